"""An accuracy run repeated, and its samples compared."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TypeVar

import numpy as np

from debug import models
from debug.core import ExperimentConfig
from debug.generators import GENERATORS, GeneratedProgram, Generator
from debug.kinds import Argument, Json
from debug.rerun.config import build
from debug.rerun.verdict import DIFFERENT, IDENTICAL, WITHIN, RerunError
from debug.runner import ExperimentRunner
from debug.tracking import LoggedRun, TrackingError

_T = TypeVar("_T")


def repeat_accuracy(
    cell: LoggedRun,
    model: str,
    where: dict[str, str | None],
    chosen: Sequence[int] | None,
    changes: dict[str, Argument],
    tags: dict[str, str],
) -> str:
    if "config.json" in cell.artifacts():
        config = cell.config
    elif cell.parent_run_id is not None:
        config = cell.parent.config
    else:
        raise RerunError(f"run {cell.run_id} has no config.json that says how it was made")
    # Samples are stored as batches finished, the longest prompts first: batched in that order they fall alike.
    records = chosen_of(cell, [record for record in cell.sample_records() if record["program"] is not None], chosen)
    if not records:
        raise RerunError(f"run {cell.run_id} has no samples to repeat")
    programs = [
        GeneratedProgram(
            record["seed"],
            record["seq_len"],
            record["program"],
            record["expected"],
            {"hops": record["hops"], "chain": record["chain"]},
        )
        for record in records
    ]
    name = str(config.get("generator", "given"))
    hops, seq_len = value_of(cell.params.get("hops", "any")), value_of(cell.params.get("seq_len", "null"))
    asked = {"hops": None if hops == "any" else hops, "seq_len": seq_len}
    logged = {name: value for name, value in config.items() if name in {f.name for f in fields(ExperimentConfig)}}
    logged |= {
        "prompt_template": config.get("prompt_text", config.get("prompt_template")),
        "program_generator": name if name in GENERATORS else _logged_programs(name),
        "models": [model],
        "hops": [asked["hops"]],
        "seq_lens": [asked["seq_len"]],
        "num_seqs": len(programs),
    }
    experiment = build(cell, ExperimentConfig, logged, {n: value for n, value in changes.items() if n not in RUNNER})
    how = _how(cell, config, changes)
    served = how.get("backend") == "openai"  # then the server decides what a log says of these
    known = {
        name: value
        for name, value in where.items()
        if value != "server" and not (served and value == cell.params.get(name))
    }
    runner = ExperimentRunner(cell.store.uri, **known, **how)
    result = runner.run(experiment, programs={(asked["hops"], asked["seq_len"]): programs}, tags=tags)
    return next(iter(result.cell_run_ids.values()))


RUNNER: dict[str, Callable[[Json], bool]] = {
    "batch_size": lambda value: type(value) is int and value > 0,
    "backend": lambda value: value in ("transformers", "vllm", "openai"),
    "quantization": lambda value: value is None or value in models.QUANTIZATIONS,
    "engine_args": lambda value: isinstance(value, dict),
    "base_url": lambda value: value is None or isinstance(value, str),
    "price": lambda value: value is None or isinstance(value, list),
}
"""How an accuracy run's models were run, as its config.json has it, with what it must be."""
_ENGINE_ARGS = {
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel"),
    *("dtype", "quantization", "kv_cache_dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "seed"),
    *("gpu_memory_utilization", "cpu_offload_gb", "block_size", "enforce_eager", "enable_prefix_caching"),
    *("enable_chunked_prefill", "disable_custom_all_reduce"),
}
"""Arguments of vLLM's that are taken from a log; others name code, files and models, which a log must not choose."""


def _how(cell: LoggedRun, config: Mapping[str, Json], changes: Mapping[str, Argument]) -> dict[str, Argument]:
    """The runner's arguments as logged, those that are changed left to the caller; runs of before have fewer.

    A log does not choose where prompts and a key are sent: that is the caller's base_url, or OPENAI_BASE_URL.
    """
    how = {name: config[name] for name in RUNNER.keys() - changes.keys() if name in config}
    for name, value in how.items():
        if not RUNNER[name](value):
            raise TrackingError(f"run {cell.run_id}, config.json: field {name!r} is {value!r:.80}")
    logged_url = how.pop("base_url", None)
    how |= {name: changes[name] for name in RUNNER if name in changes}
    served = how.get("backend") == "openai"
    if served and not (how.get("base_url") or os.environ.get("OPENAI_BASE_URL")):
        raise RerunError(
            f"run {cell.run_id} asked the server {logged_url}; a log does not choose where prompts and a key are sent, "
            "so give base_url yourself (--set base_url=...)"
        )
    if not served:
        how.pop("price", None)
    if "engine_args" in changes:
        return how
    if how.get("backend") not in ("vllm", "openai"):
        return how | {"engine_args": None}
    if foreign := sorted(how.get("engine_args", {}).keys() - (set() if served else _ENGINE_ARGS)):
        raise RerunError(
            f"run {cell.run_id} was made with {', '.join(foreign)} among engine_args, which is not taken from a log; "
            "where you trust it, give engine_args yourself"
        )
    return how


def _logged_programs(name: str) -> Generator:
    """A generator in name only: the programs are the logged ones, and only solved examples are drawn anew."""

    def generator(seq_len: int, rng: np.random.RandomState, num_hops: int | None = None) -> tuple[str, int]:
        raise RerunError("its solved examples need that function again; give it as program_generator")

    generator.__name__ = name
    return generator


def compare_samples(old: LoggedRun, new: LoggedRun) -> tuple[str, list[str]]:
    then, now = ([record for record in run.sample_records() if record["program"] is not None] for run in (old, new))
    if [record["prompt"] for record in then] != [record["prompt"] for record in now]:
        return DIFFERENT, [f"the prompts differ; there were {len(then)} samples, now {len(now)}"]
    changed = [
        n for n, both in enumerate(zip(then, now, strict=True)) if both[0]["raw_output"] != both[1]["raw_output"]
    ]
    if changed:
        answers = sum(then[n]["parsed"] != now[n]["parsed"] for n in changed)
        was, became = (f"{records[changed[0]]['raw_output']!r:.80}" for records in (then, now))
        return DIFFERENT, [
            f"{len(changed)} of {len(then)} completions differ, {answers} of them in the parsed answer; the first is "
            f"of sample {changed[0]} (seed {then[changed[0]]['seed']}): was {was}, now {became}"
        ]
    same = f"all {len(then)} completions are the same, character for character"
    if then == now:
        return IDENTICAL, [same]
    read = ("parsed", "correct", "error", "answer_rank")
    for n, both in enumerate(zip(then, now, strict=True)):
        was, became = ({name: record.get(name) for name in read} for record in both)
        if was != became:
            return DIFFERENT, [same, f"they are read otherwise, first of sample {n}: was {was}, now {became}"]
    probabilities = np.array([[_probability(record) for record in records] for records in (then, now)])
    moved = np.abs(np.diff(np.log(probabilities), axis=0)[0])
    worst = int(moved.argmax())
    tolerance = 2 * max(models.SELF_CHECK_TOLERANCE.get(run.params.get("dtype", ""), 0.0) for run in (old, new))
    finding = f"largest difference of a right answer's log probability: {moved[worst]:.3g} (sample {worst}, "
    finding += f"seed {then[worst]['seed']}); tolerance {tolerance:g}"
    return (WITHIN if moved[worst] <= tolerance else DIFFERENT), [same, finding]


def _probability(record: Mapping[str, Json]) -> float:
    """The right answer's, of a run that was scored by logits; 1 in others, whose completions say everything."""
    value = record.get("answer_probability")
    return value if isinstance(value, float) and 0 < value <= 1 else 1.0


def value_of(param: str) -> Json:
    """A logged parameter as the value that it was; texts as they are."""
    try:
        return json.loads(param)
    except ValueError:
        return param


def chosen_of(cell: LoggedRun, items: Sequence[_T], numbers: Sequence[int] | None) -> Sequence[_T]:
    if numbers is None:
        return items
    if bad := [number for number in numbers if not 0 <= number < len(items)]:
        raise RerunError(f"pairs {bad} are out of range; run {cell.run_id} has 0 to {len(items) - 1}")
    return [items[number] for number in numbers]
