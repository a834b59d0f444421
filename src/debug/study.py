"""Whole studies from a file: several experiments, which :meth:`debug.runner.ExperimentRunner.run_study` runs as one.

    name: four_models                        # MLflow experiment
    defaults:                                # fields of ExperimentConfig, for every experiment
      program_generator: variable_binding
      hops: [1, 2, 3, 4]
    experiments:                             # what differs
      - {models: [tiny], num_seqs: 100}
      - {models: [smollm2], few_shot: 3}

YAML (its safe subset: data, no objects) or JSON. The template may be left out: it is then the task's own.
Knows no model.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from debug.core import TASKS, ExperimentConfig

_FIELDS = {field.name for field in fields(ExperimentConfig)} - {"name"}
_KEYS = {"name", "defaults", "experiments"}


class StudyError(ValueError):
    """A study file that is not there, is no YAML, or asks for what there is not; the message names file and field."""


def read_study(path: str | Path) -> tuple[str, list[ExperimentConfig]]:
    """The study's name and its experiments.

    Raises:
        StudyError: names the file, the experiment's number (from 1), and what was wrong.
    """
    try:
        content: Any = yaml.safe_load(Path(path).read_text("utf-8"))  # JSON is YAML
    except OSError as error:
        raise StudyError(f"study {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"study {path} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict) or not content.keys() <= _KEYS or not isinstance(content.get("name"), str):
        raise StudyError(
            f"study {path} has {_shown(content)}; expected name (a text), experiments, and perhaps defaults"
        )
    defaults, experiments = content.get("defaults") or {}, content.get("experiments")
    if not isinstance(experiments, list) or not experiments or not isinstance(defaults, dict):
        raise StudyError(f"study {path}: experiments is {experiments!r:.80}; expected a list of one or more")
    return content["name"], [
        _config(f"study {path}, experiment {number}", content["name"], defaults, experiment)
        for number, experiment in enumerate(experiments, 1)
    ]


def _config(where: str, name: str, defaults: dict[str, Any], experiment: Any) -> ExperimentConfig:
    if not isinstance(experiment, dict):
        raise StudyError(f"{where} is {experiment!r:.80}; expected fields: {', '.join(sorted(_FIELDS))}")
    values = defaults | experiment
    unknown = sorted(map(str, values.keys() - _FIELDS))
    if unknown:
        raise StudyError(f"{where} has {', '.join(unknown)}; there are: {', '.join(sorted(_FIELDS))}")
    values.setdefault("program_generator", "variable_binding")
    values.setdefault("prompt_template", TASKS.get(str(values["program_generator"]), ("MINIMAL",))[0])
    if isinstance(values.get("hops"), list):
        values["hops"] = [None if hops == "any" else hops for hops in values["hops"]]
    try:
        return ExperimentConfig(**{"name": name, "num_seqs": 100, "seq_lens": [5], "models": [], **values})
    except (ValueError, TypeError) as error:
        raise StudyError(f"{where}: {error}") from error


def _shown(content: Any) -> str:
    return f"the keys {sorted(map(str, content))}" if isinstance(content, dict) else f"{content!r:.80}"
