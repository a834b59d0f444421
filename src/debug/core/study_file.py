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

import yaml

from debug.core.config import TASKS, ExperimentConfig
from debug.errors import DebugError, InputError
from debug.kinds import Json

_FIELDS = {field.name for field in fields(ExperimentConfig)} - {"name"}
_KEYS = {"name", "defaults", "experiments"}


class StudyError(InputError):
    """A study file that is not there, is no YAML, or asks for what there is not; the message names file and field."""


def read_study(path: str | Path) -> tuple[str, list[ExperimentConfig]]:
    """The study's name and its experiments.

    Raises:
        StudyError: names the file, the experiment's number (from 1), and what was wrong.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise StudyError(f"study {path} cannot be read: {error.strerror}") from error
    if len(text) > _LARGEST:
        raise StudyError(f"study {path} has more than {_LARGEST:,} bytes; expected a list of experiments")
    try:
        content = _parsed(text.decode("utf-8"))
    except Exception as error:  # constructors of numbers, dates and keys raise whatever their conversions do
        said = "it is nested too deep" if isinstance(error, RecursionError) else f"{error}"[:500]
        raise StudyError(f"study {path} is neither YAML nor JSON that can be used: {said}") from error
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


_LARGEST = 2**18  # bytes
_MOST_VALUES = 100_000


def _parsed(text: str) -> Json:
    """YAML as data; JSON is YAML. Aliases are counted for what they stand for, before anything is made of them.

    Raises:
        InputError: they stand for too much, or for themselves.
        Exception: it is no YAML.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _values(root, {}) > _MOST_VALUES:
            raise InputError(f"its aliases stand for more than {_MOST_VALUES:,} values")
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds, an alias as often as it is used. ``known`` has those that were counted, 0 of those
    that are being counted: a node inside of itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0
        inside = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_values(each, known) for each in inside)
    elif not known[id(node)]:
        raise InputError("an alias stands for itself")
    return known[id(node)]


def _config(where: str, name: str, defaults: dict[str, Json], experiment: Json) -> ExperimentConfig:
    if not isinstance(experiment, dict):
        raise StudyError(f"{where} is {experiment!r:.80}; expected fields: {', '.join(sorted(_FIELDS))}")
    values = defaults | experiment
    unknown = sorted(map(str, values.keys() - _FIELDS))
    if unknown:
        raise StudyError(f"{where} has {', '.join(unknown):.500}; there are: {', '.join(sorted(_FIELDS))}")
    values.setdefault("program_generator", "variable_binding")
    values.setdefault("prompt_template", TASKS.get(str(values["program_generator"]), ("MINIMAL",))[0])
    try:
        return ExperimentConfig(**{"name": name, "num_seqs": 100, "seq_lens": [5], "models": [], **values})
    except (DebugError, TypeError) as error:
        raise StudyError(f"{where}: {error}"[:1000]) from error


def _shown(content: Json) -> str:
    return f"the keys {sorted(map(str, content))}"[:500] if isinstance(content, dict) else f"{content!r:.80}"
