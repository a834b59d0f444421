"""A logged run repeated: exactly, or with what is named changed; the repetition is compared with what the log says.

    print(rerun("3f2a91c0"))                                   # identical, within tolerance, or different, and why
    rerun("3f2a91c0", intervention_type="mlp", layers=[0, 1])  # the same programs, another question

Everything that a repetition needs is in the run: the programs in samples.jsonl, the plan or configuration in
config.json, model, dtype and device in params and tags. Knows no engine: runs go through the two runners.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from debug import models
from debug.causal_experiment_runner import CausalExperimentRunner
from debug.causal_map import CausalMap, MeanOverPairs
from debug.causal_tracing import Plan
from debug.core import ExperimentConfig
from debug.generators import GENERATORS, GeneratedProgram
from debug.provenance import differences
from debug.runner import ExperimentRunner
from debug.statistics import wilson
from debug.tracking import LoggedRun, Store, TrackingError, own_n

IDENTICAL, WITHIN, DIFFERENT = "identical", "within tolerance", "different"


class RerunError(ValueError):
    """A run that cannot be repeated, or a change that does not apply to it."""


@dataclass(frozen=True)
class Verdict:
    """What a repetition gave beside the run that it repeats."""

    outcome: str
    """``identical`` (every bit), ``within tolerance`` (logits as close as rounding allows, same successes), or
    ``different``."""
    findings: list[str]
    """What differs in the results; the largest difference with its cell first."""
    environment: dict[str, tuple[str | None, ...]]
    """What differs in how the two were computed: name -> then and now."""

    def __str__(self) -> str:
        lines = [self.outcome, *(f"  {finding}" for finding in self.findings)]
        lines += [f"  {name}: was {then}, now {now}" for name, (then, now) in self.environment.items()]
        if not self.environment:
            lines.append("  nothing differs in versions, dtype, device, digests, commit or thread count")
        return "\n".join(lines)


@dataclass(frozen=True)
class Rerun:
    """A repetition: the cell that it repeats, its own, and the verdict; where something was changed, which is no
    repetition, what was measured then and now instead."""

    of: str
    run_id: str
    verdict: Verdict | None
    measured: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.verdict is not None:
            return f"run {self.run_id} repeats {self.of}: {self.verdict}"
        return "\n".join([f"run {self.run_id} repeats {self.of} with changes:", *(f"  {s}" for s in self.measured)])


def rerun(
    run: str | LoggedRun,
    *,
    tracking_uri: str | None = None,
    model: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    pairs: Sequence[int] | None = None,
    **changes: Any,
) -> list[Rerun]:
    """Repeat a logged causal or accuracy run, each cell of it where it is a study.

    Args:
        run: a run, its id, the beginning of its id, or its name.
        tracking_uri: the store that it is in, and that the repetition is logged to.
        model: other weights than those that the run names; the same ones in another place are no change.
        dtype, device: other than logged. The programs and the question stay, so there is a verdict all the same.
        pairs: numbers of pairs (of samples, in an accuracy run) to which the repetition is limited.
        changes: fields of :class:`debug.causal_tracing.Plan`; in accuracy runs of :class:`debug.core.ExperimentConfig`,
            and backend, batch_size, quantization and engine_args, which are no change of the question either. Nor is a
            program_generator or answer_parser of the logged name: of functions that are not this project's a log holds
            no more than that, and needs them again (the generator for solved examples only).

    Raises:
        RerunError: it cannot be repeated; the message says what is missing.
        debug.tracking.TrackingError: there is no such run, or its artifacts are broken.
    """
    logged = run if isinstance(run, LoggedRun) else Store(tracking_uri).load_run(run)
    cells = logged.children if logged.role == "study" else [logged]
    repeat = _REPEAT.get(logged.kind or "")
    if repeat is None or not cells:
        raise RerunError(
            f"run {logged.run_id} is of kind {logged.kind!r} and has {len(cells)} cells; what can be repeated are runs "
            f"of kind {', '.join(_REPEAT)}"
        )
    return [_rerun_cell(cell, repeat, model, dtype, device, pairs, changes) for cell in cells]


def _rerun_cell(
    cell: LoggedRun,
    repeat: Callable[..., str],
    model: str | None,
    dtype: str | None,
    device: str | None,
    pairs: Sequence[int] | None,
    changes: dict[str, Any],
) -> Rerun:
    named = {"model": model, "dtype": dtype, "device": device, "pairs": pairs and list(pairs)}
    asked = {name: value for name, value in named.items() if value is not None} | changes
    tags = {"debug.rerun_of": cell.run_id} | (
        {"debug.rerun_changes": json.dumps(asked, default=_name)} if asked else {}
    )
    run_id = repeat(
        cell,
        model or _model_of(cell),
        {"dtype": dtype or cell.params.get("dtype"), "device": device or _device_of(cell)},
        pairs,
        changes,
        tags,
    )
    new = cell.store.load_run(run_id)
    weights = {run.tags.get("debug.weights_digest") for run in (cell, new)}
    own = {
        "program_generator": "generator",
        "answer_parser": "answer_parser",
    }  # functions, known to a log by name alone
    same = {name for name, param in own.items() if name in changes and _name(changes[name]) == cell.params.get(param)}
    question = changes.keys() - _RUNNER.keys() - same
    if question or pairs is not None or (model is not None and len(weights) > 1):
        return Rerun(cell.run_id, run_id, None, tuple(_measured(asked, cell, new, pairs)))
    compare = _compare_samples if cell.kind == "accuracy" else _compare_maps
    outcome, findings = compare(cell, new)
    verdict = Verdict(outcome, findings, differences(cell.environment, new.environment))
    new.store.set_tags(run_id, {"debug.rerun_verdict": str(verdict)[:8000]})
    return Rerun(cell.run_id, run_id, verdict)


_RATES = (
    *("accuracy", "accuracy_counterfactual", "answer_probability", "answer_rank", "num_no_answer", "num_errors"),
    *("patch_success_rate", "peak_patch_success_rate", "control_success_rate", "normalized_logit_diff"),
    *("answer_kept_rate", "answer_logit_drop", "rank_agreement", "pairs_used", "pairs_skipped", "num_samples"),
)
"""Metrics that say in a line what a run found, in this order; knockouts have theirs by hypothesis, behind a slash."""


def _measured(asked: Mapping[str, Any], old: LoggedRun, new: LoggedRun, pairs: Sequence[int] | None) -> list[str]:
    """What was changed, and each number before and after: of the same pairs where the repetition is limited to some."""
    lines = []
    for name, value in asked.items():
        was = old.params.get({"program_generator": "generator"}.get(name, name))
        lines.append(f"{name}: {'' if was is None or name == 'pairs' else f'{was} -> '}{_name(value)}")
    then, now = old.metrics, new.metrics
    if pairs is not None:
        then = _metrics_of(old, pairs)
        now = {name: value for name, value in now.items() if name in then or name not in old.metrics}
    names = [name for rate in _RATES for name in sorted({*then, *now}) if name == rate or name.startswith(f"{rate}/")]
    names = [name for name in names if not name.endswith(("_ci_low", "_ci_high")) and "_by_layer/" not in name]
    # By target only where there is no number over all of them: what a knockout cut.
    names = [name for name in names if "/" not in name or name.partition("/")[0] not in {*then, *now}]
    rows = [("", "before", "after"), *((name, _shown(then, name), _shown(now, name)) for name in names)]
    wide = [max(len(row[column]) for row in rows) for column in range(2)]
    return lines + [f"{a.ljust(wide[0])}  {b.ljust(wide[1])}  {c}".rstrip() for a, b, c in rows]


def _shown(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "none"
    ends = [metrics.get(f"{name}_{end}") for end in ("ci_low", "ci_high")]
    interval = "" if None in ends else f" [{ends[0]:.3g}, {ends[1]:.3g}]"
    n = own_n(name, metrics)
    return f"{metrics[name]:.3g}{interval}" + ("" if n is None or not interval else f" (n={n})")


def _metrics_of(run: LoggedRun, numbers: Sequence[int]) -> dict[str, float]:
    """A run's metrics, of some of its pairs alone (of its samples, in an accuracy run), numbered as :func:`rerun` has
    it: those that can be had from what it kept of them."""
    if run.kind == "accuracy":
        records = [record for record in run.sample_records() if record["program"] is not None]
        read = [records[n]["correct"] for n in numbers if records[n]["correct"] is not None]
        found = wilson(sum(read), len(read)).metrics("accuracy") if read else {}
        return {name: value for name, value in found.items() if value is not None} | {"num_samples": len(read)}
    mean = MeanOverPairs()
    for number in numbers:
        mean.add(run.maps[number])
    found = mean.result().to_metrics()[0] if run.maps[numbers[0]].targets else {}
    return {name: value for name, value in found.items() if value is not None} | {"pairs_used": len(numbers)}


def _name(value: Any) -> str:
    return getattr(value, "__name__", str(value))


def _model_of(cell: LoggedRun) -> str:
    """The id that loads the run's model here: its folder where that is there, else the name."""
    name, path = cell.params.get("model", ""), cell.tags.get("debug.model_path", "")
    if not name:
        raise RerunError(f"run {cell.run_id} names no model; name one")
    return path if name not in models.BUNDLED and path != name and Path(path).is_dir() else name


def _device_of(cell: LoggedRun) -> str | None:
    """The run's device where this machine has it; else this machine's own choice, which the verdict then names."""
    device = cell.params.get("device")
    return None if device is None or (device.startswith("cuda") and not torch.cuda.is_available()) else device


# --- causal runs ------------------------------------------------------------------------------------------------------


def _repeat_causal(
    cell: LoggedRun,
    model: str,
    where: dict[str, str | None],
    chosen: Sequence[int] | None,
    changes: dict[str, Any],
    tags: dict[str, str],
) -> str:
    config = _causal_config(cell)
    if "prompt_template" in changes or model != _model_of(cell):
        config["plan"] = config["plan"] | {"answer_lead": None}  # this model's, behind this prompt
    plan = _built(cell, Plan, config["plan"], changes)
    params = {name: _value(cell.params[name]) for name in _OF_PROGRAMS if name in cell.params}
    for name in ("seed", "num_seqs"):
        if name in params and type(params[name]) is not int and (name, params[name]) != ("seed", None):
            raise TrackingError(f"run {cell.run_id}: param {name!r} is {params[name]!r:.80}; expected an integer")
    if changes or chosen is not None:
        programs: Sequence[Any] = _chosen(cell, cell.pairs, chosen)
        params |= {"num_seqs": len(programs)}
        wanted = len(programs)
    else:
        # Which pairs share a forward pass moves logits by rounding: those that were skipped are tried again, too.
        programs = [_given(record) for record in cell.sample_records()]
        wanted = config["wanted"]
    runner = CausalExperimentRunner(cell.store.uri, batch_tokens=config["batch_tokens"], **where)
    result = runner.run_plan(
        model,
        programs,
        plan,
        name=cell.experiment,
        wanted=wanted,
        params=params,
        tags=tags,
        reference=cell.reference if plan.needs_reference else None,
    )
    return result.cells[0].run_id


_OF_PROGRAMS = ("generator", "hops", "seq_len", "seed", "num_seqs")


def _causal_config(cell: LoggedRun) -> dict[str, Any]:
    """Plan, number of pairs wanted and batch size; runs of before 2 hold the plan in their study's configuration."""
    if "config.json" in cell.artifacts():
        config = cell.config
    elif cell.parent_run_id is not None:
        known = {field.name for field in fields(Plan)}
        study = cell.store.load_run(cell.parent_run_id).config
        config = {"plan": {name: value for name, value in study.items() if name in known}}
    else:
        raise RerunError(f"run {cell.run_id} has no config.json that says how it was made")
    config = {"wanted": _value(cell.params.get("num_seqs", "null")), "batch_tokens": None} | config
    checks: dict[str, Callable[[Any], bool]] = {
        "plan": lambda value: isinstance(value, dict),
        "wanted": lambda value: type(value) is int and value > 0,
        "batch_tokens": lambda value: value is None or (type(value) is int and value > 0),
    }
    for name, check in checks.items():
        if not check(config.get(name)):
            raise TrackingError(f"run {cell.run_id}, config.json: field {name!r} is {config.get(name)!r:.80}")
    return config


def _given(record: Mapping[str, Any]) -> dict[str, Any] | str:
    """The pair of a sample; one that never was a program is skipped again, as nothing."""
    if record["program"] is None:
        return ""
    fields = {"original": record["program"], "counterfactual": record.get("counterfactual"), "seed": record["seed"]}
    return {name: value for name, value in fields.items() if value is not None}


def _compare_maps(old: LoggedRun, new: LoggedRun) -> tuple[str, list[str]]:
    if old.pairs != new.pairs or len(old.maps) != len(new.maps):
        first = next((n for n, both in enumerate(zip(old.pairs, new.pairs, strict=False)) if both[0] != both[1]), None)
        where = "" if first is None else f"; the first that differs is pair {first}"
        return DIFFERENT, [f"{len(old.pairs)} pairs were used then, {len(new.pairs)} now{where}"]
    worst, cell_of_worst, flipped, first_flip, identical, cells = -1.0, "", 0, "", True, 0
    controls = answers = 0
    for one, other in zip(old.maps, new.maps, strict=True):
        for name in ("tokens", "layers", "columns", "targets"):
            if getattr(one, name) != getattr(other, name):
                return DIFFERENT, [f"{name} of pair {one.pair} were {getattr(one, name)}, now {getattr(other, name)}"]
        if one.top.shape != other.top.shape:
            return DIFFERENT, [f"the map of pair {one.pair} was {one.top.shape}, now {other.top.shape}"]
        (arrays, _), (others, _) = one.to_tensors(), other.to_tensors()
        if one.answer_tokens != other.answer_tokens:
            return DIFFERENT, [f"answer tokens of pair {one.pair} were {one.answer_tokens}, now {other.answer_tokens}"]
        identical &= one.top_tokens == other.top_tokens and arrays.keys() == others.keys()
        identical &= all(array.tobytes() == others[name].tobytes() for name, array in arrays.items() if name in others)
        moved = np.nan_to_num(np.abs(one.z_patched - other.z_patched), nan=np.inf)
        moved[np.isnan(one.z_patched) & np.isnan(other.z_patched)] = 0  # what an attribution does not estimate
        moved = moved.max(axis=-1)
        place = np.unravel_index(int(moved.argmax()), moved.shape)
        if moved[place] > worst:
            worst, cell_of_worst = float(moved[place]), _cell(one, place)
        # Success is the top token c, or o where the answer is to be kept: neither may be reached now and not then.
        changed = _flipped(one.top, other.top, one, other)
        if changed.any() and not flipped:
            first_flip = _cell(one, tuple(np.argwhere(changed)[0]))
        flipped, cells = flipped + int(changed.sum()), cells + changed.size
        if one.control_top is not None and other.control_top is not None:
            controls += int(_flipped(one.control_top, other.control_top, one, other).sum())
        answers += int(_flipped(np.array(one.top_tokens), np.array(other.top_tokens), one, other).sum())
    if identical:
        return IDENTICAL, [f"every logit of {len(old.maps)} maps, {cells} cells, is the same to the last bit"]
    dtypes = [run.params.get("dtype", "") for run in (old, new)]
    tolerance = max(models.SELF_CHECK_TOLERANCE.get(dtype, 0.0) for dtype in dtypes)
    findings = [f"largest difference of an answer's logit: {worst:.3g} ({cell_of_worst}); tolerance {tolerance:g}"]
    if flipped:
        findings.append(f"success differs in {flipped} of {cells} cells, first in {first_flip}")
    if controls:
        findings.append(f"success of the same-answer control differs in {controls} cells")
    if answers:
        findings.append(f"{answers} answers of clean or counterfactual runs are right in one run and not in the other")
    return (DIFFERENT if flipped or controls or answers or not worst <= tolerance else WITHIN), findings


def _flipped(then: np.ndarray, now: np.ndarray, one: CausalMap, other: CausalMap) -> np.ndarray:
    """Where one of the two answers is the top token in one map and not in the other."""
    pairs = zip(one.answer_tokens, other.answer_tokens, strict=True)
    return np.any([(then == was) != (now == became) for was, became in pairs], axis=0)


def _cell(causal_map: CausalMap, place: Sequence[Any]) -> str:
    row, *head, column = (int(index) for index in place)
    positions = causal_map.columns[column]
    tokens = ", ".join(f"{position} {causal_map.tokens[position]!r}" for position in positions)
    return " ".join(
        [f"pair {causal_map.pair}, layer {causal_map.layers[row]},", *(f"head {h}," for h in head), f"token {tokens}"]
    )


# --- accuracy runs ----------------------------------------------------------------------------------------------------


def _repeat_accuracy(
    cell: LoggedRun,
    model: str,
    where: dict[str, str | None],
    chosen: Sequence[int] | None,
    changes: dict[str, Any],
    tags: dict[str, str],
) -> str:
    if "config.json" in cell.artifacts():
        config = cell.config
    elif cell.parent_run_id is not None:
        config = cell.store.load_run(cell.parent_run_id).config
    else:
        raise RerunError(f"run {cell.run_id} has no config.json that says how it was made")
    # Samples are stored as batches finished, the longest prompts first: batched in that order they fall alike.
    records = _chosen(cell, [record for record in cell.sample_records() if record["program"] is not None], chosen)
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
    hops, seq_len = _value(cell.params.get("hops", "any")), _value(cell.params.get("seq_len", "null"))
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
    experiment = _built(cell, ExperimentConfig, logged, {n: value for n, value in changes.items() if n not in _RUNNER})
    how = _how(cell, config, changes)
    runner = ExperimentRunner(cell.store.uri, dtype=where["dtype"], device=where["device"], **how)
    result = runner.run(experiment, programs={(asked["hops"], asked["seq_len"]): programs}, tags=tags)
    return next(iter(result.cell_run_ids.values()))


_RUNNER: dict[str, Callable[[Any], bool]] = {
    "batch_size": lambda value: type(value) is int and value > 0,
    "backend": lambda value: value in ("transformers", "vllm"),
    "quantization": lambda value: value is None or value in models.QUANTIZATIONS,
    "engine_args": lambda value: isinstance(value, dict),
}
"""How an accuracy run's models were run, as its config.json has it, with what it must be."""
_ENGINE_ARGS = {
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel"),
    *("dtype", "quantization", "kv_cache_dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "seed"),
    *("gpu_memory_utilization", "cpu_offload_gb", "block_size", "enforce_eager", "enable_prefix_caching"),
    *("enable_chunked_prefill", "disable_custom_all_reduce"),
}
"""Arguments of vLLM's that are taken from a log; others name code, files and models, which a log must not choose."""


def _how(cell: LoggedRun, config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The runner's arguments as logged, those that are changed left to the caller; runs of before have fewer."""
    how = {name: config[name] for name in _RUNNER.keys() - changes.keys() if name in config}
    for name, value in how.items():
        if not _RUNNER[name](value):
            raise TrackingError(f"run {cell.run_id}, config.json: field {name!r} is {value!r:.80}")
    how |= {name: changes[name] for name in _RUNNER if name in changes}
    if "engine_args" in changes:
        return how
    if how.get("backend") != "vllm":
        return how | {"engine_args": None}
    if foreign := sorted(how.get("engine_args", {}).keys() - _ENGINE_ARGS):
        raise RerunError(
            f"run {cell.run_id} was made with {', '.join(foreign)} among engine_args, which is not taken from a log; "
            "where you trust it, give engine_args yourself"
        )
    return how


def _logged_programs(name: str) -> Callable[..., Any]:
    """A generator in name only: the programs are the logged ones, and only solved examples are drawn anew."""

    def generator(seq_len: int, rng: Any, num_hops: int | None = None) -> tuple[str, int]:
        raise RerunError("its solved examples need that function again; give it as program_generator")

    generator.__name__ = name
    return generator


def _compare_samples(old: LoggedRun, new: LoggedRun) -> tuple[str, list[str]]:
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


def _probability(record: Mapping[str, Any]) -> float:
    """The right answer's, of a run that was scored by logits; 1 in others, whose completions say everything."""
    value = record.get("answer_probability")
    return value if isinstance(value, float) and 0 < value <= 1 else 1.0


# --- both -------------------------------------------------------------------------------------------------------------


def _value(param: str) -> Any:
    """A logged parameter as the value that it was; texts as they are."""
    try:
        return json.loads(param)
    except ValueError:
        return param


def _chosen(cell: LoggedRun, items: Sequence[Any], numbers: Sequence[int] | None) -> Sequence[Any]:
    if numbers is None:
        return items
    if bad := [number for number in numbers if not 0 <= number < len(items)]:
        raise RerunError(f"pairs {bad} are out of range; run {cell.run_id} has 0 to {len(items) - 1}")
    return [items[number] for number in numbers]


def _built(cell: LoggedRun, kind: type, logged: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """A plan or a configuration from what was logged of it, with some fields changed."""
    known = [field.name for field in fields(kind)]
    if unknown := sorted(changes.keys() - set(known)):
        raise RerunError(f"{', '.join(unknown)} cannot be changed; a run of kind {cell.kind!r} has: {', '.join(known)}")
    if unknown := sorted(logged.keys() - set(known)):
        raise RerunError(
            f"run {cell.run_id} was made with {', '.join(unknown)}, which this version of the project does not know; "
            "update the project to repeat it"
        )
    try:
        return kind(**{**logged, **changes})
    except TypeError as error:
        raise TrackingError(f"run {cell.run_id}, config.json: no {kind.__name__} can be made of it: {error}") from error
    except ValueError as error:
        raise RerunError(f"run {cell.run_id} cannot be repeated so: {error}") from error


_REPEAT: dict[str, Callable[..., str]] = {
    **dict.fromkeys(("causal_tracing", "attention_knockout", "attribution"), _repeat_causal),
    "accuracy": _repeat_accuracy,
}
"""By kind of run."""
