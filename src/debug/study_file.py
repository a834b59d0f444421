"""Whole studies from a file: experiments of both kinds, each a grid of cells.

    name: four_models                        # MLflow experiment
    defaults:                                # fields of an experiment, for every one that has them
      hops: [1, 2, 3, 4]
      num_seqs: 100
    experiments:                             # what differs
      - {models: [tiny]}
      - {models: [smollm2], grid: {few_shot: [0, 3]}}
      - {kind: causal, models: [tiny], grid: {intervention_type: [residual_stream, attention_heads, mlp]}}

Fields are those of ExperimentConfig, of CausalConfig where the kind is causal. ``grid``: an experiment for each
combination of these values. All accuracy experiments are one study, compared program by program; each causal one is a
study. YAML (its safe subset: data, no objects) or JSON. The template may be left out: it is then the task's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import NamedTuple

import yaml

from debug.causal_experiment_runner.config import CausalConfig
from debug.core import TASKS, ExperimentConfig
from debug.errors import DebugError, InputError
from debug.kinds import Json

_KEYS = {"name", "defaults", "experiments"}
_KINDS: dict[str, type[ExperimentConfig | CausalConfig]] = {"accuracy": ExperimentConfig, "causal": CausalConfig}
_FIELDS = {
    kind: {field.name for field in fields(config) if field.init} - {"name"} | {"program_generator"}
    for kind, config in _KINDS.items()
}
_MOST_COMBINATIONS = 1000


class StudyError(InputError):
    """A study file that is not there, is no YAML, or asks for what there is not; the message names file and field."""


class StudyFile(NamedTuple):
    """What a file asks for."""

    name: str
    accuracy: list[ExperimentConfig]
    causal: list[CausalConfig]


def read_study(path: str | Path) -> StudyFile:
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
    if unknown := sorted(map(str, defaults.keys() - set.union(*_FIELDS.values()))):
        raise StudyError(f"study {path}, defaults: {', '.join(unknown):.500} is a field of no kind of experiment")
    found = StudyFile(content["name"], [], [])
    for number, experiment in enumerate(experiments, 1):
        for config in _configs(f"study {path}, experiment {number}", content["name"], defaults, experiment):
            if isinstance(config, CausalConfig):
                found.causal.append(config)
            else:
                found.accuracy.append(config)
    return found


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


def _configs(
    where: str, name: str, defaults: dict[str, Json], experiment: Json
) -> Iterator[ExperimentConfig | CausalConfig]:
    if not isinstance(experiment, dict):
        raise StudyError(f"{where} is {experiment!r:.80}; expected fields: {', '.join(sorted(_FIELDS['accuracy']))}")
    own = dict(experiment)
    kind, grid = own.pop("kind", "accuracy"), own.pop("grid", None) or {}
    if kind not in _KINDS:
        raise StudyError(f"{where}: kind is {kind!r:.80}; expected one of {', '.join(_KINDS)}")
    known = _FIELDS[kind]
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise StudyError(f"{where}: grid is {grid!r:.80}; expected lists of values by field")
    unknown = sorted(map(str, (own.keys() | grid.keys()) - known))
    if unknown:
        raise StudyError(f"{where} has {', '.join(unknown):.500}; there are: {', '.join(sorted(known))}")
    shared = {field: value for field, value in defaults.items() if field in known}
    for number, values in enumerate(product(*grid.values())):
        if number == _MOST_COMBINATIONS:
            raise StudyError(f"{where}: grid has more than {_MOST_COMBINATIONS} combinations")
        yield _config(where, kind, {"name": name, **shared, **own, **dict(zip(grid, values, strict=True))})


def _config(where: str, kind: str, values: dict[str, Json]) -> ExperimentConfig | CausalConfig:
    generator = values.pop("program_generator", values.pop("generator", "variable_binding"))
    try:
        if kind == "causal":
            return CausalConfig(**{"models": [], "generator": generator, **values})
        values.setdefault("prompt_template", TASKS.get(str(generator), ("MINIMAL",))[0])
        given = {"num_seqs": 100, "seq_lens": [5], "models": [], "program_generator": generator}
        return ExperimentConfig(**{**given, **values})
    except (DebugError, TypeError) as error:
        raise StudyError(f"{where}: {error}"[:1000]) from error


def _shown(content: Json) -> str:
    return f"the keys {sorted(map(str, content))}"[:500] if isinstance(content, dict) else f"{content!r:.80}"
