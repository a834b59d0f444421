"""A causal run repeated, and its maps compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import SupportsInt

import numpy as np

from debug import models
from debug.causal_experiment_runner import CausalExperimentRunner
from debug.causal_map import CausalMap
from debug.counterfactual import PairLike
from debug.kinds import Argument, Json
from debug.plan import Plan
from debug.rerun.accuracy import chosen_of, value_of
from debug.rerun.config import build, model_of
from debug.rerun.verdict import DIFFERENT, IDENTICAL, WITHIN, RerunError
from debug.tracking import LoggedRun, TrackingError


def repeat_causal(
    cell: LoggedRun,
    model: str,
    where: dict[str, str | None],
    chosen: Sequence[int] | None,
    changes: dict[str, Argument],
    tags: dict[str, str],
) -> str:
    config = _causal_config(cell)
    if {"prompt_template", "chat"} & changes.keys() or model != model_of(cell):
        config["plan"] = config["plan"] | {"answer_lead": None}  # this model's, behind this prompt
    plan = build(cell, Plan, config["plan"], changes)
    params = {name: value_of(cell.params[name]) for name in _OF_PROGRAMS if name in cell.params}
    if "prompt_template" in changes:
        params.pop("few_shot", None)  # whose examples the other has not
    elif "few_shot" in params:
        params["prompt_template"] = cell.params["prompt_template"]
    for name in ("seed", "num_seqs"):
        if name in params and type(params[name]) is not int and (name, params[name]) != ("seed", None):
            raise TrackingError(f"run {cell.run_id}: param {name!r} is {params[name]!r:.80}; expected an integer")
    if changes or chosen is not None:
        programs: Sequence[PairLike] = chosen_of(cell, cell.pairs, chosen)
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


_OF_PROGRAMS = ("generator", "counterfactual", "hops", "seq_len", "seed", "num_seqs", "few_shot")


def _causal_config(cell: LoggedRun) -> dict[str, Json]:
    """Plan, number of pairs wanted and batch size; runs of before 2 hold the plan in their study's configuration."""
    if "config.json" in cell.artifacts():
        config = cell.config
    elif cell.parent_run_id is not None:
        known = {field.name for field in fields(Plan)}
        study = cell.parent.config
        config = {"plan": {name: value for name, value in study.items() if name in known}}
    else:
        raise RerunError(f"run {cell.run_id} has no config.json that says how it was made")
    config = {"wanted": value_of(cell.params.get("num_seqs", "null")), "batch_tokens": None} | config
    checks: dict[str, Callable[[Json], bool]] = {
        "plan": lambda value: isinstance(value, dict),
        "wanted": lambda value: type(value) is int and value > 0,
        "batch_tokens": lambda value: value is None or (type(value) is int and value > 0),
    }
    for name, check in checks.items():
        if not check(config.get(name)):
            raise TrackingError(f"run {cell.run_id}, config.json: field {name!r} is {config.get(name)!r:.80}")
    return config


def _given(record: Mapping[str, Json]) -> dict[str, Json] | str:
    """The pair of a sample; one that never was a program is skipped again, as nothing."""
    if record["program"] is None:
        return ""
    fields = {"original": record["program"], "counterfactual": record.get("counterfactual"), "seed": record["seed"]}
    fields |= {name: record.get(name) for name in ("kind", "predictions")}
    if "spans" in record:  # a pair of texts that are no variable binding
        roles = ("spans", "counterfactual_spans", "targets", "exact")
        fields |= {name: record.get(name) for name in (*roles, "expected_counterfactual")}
        fields["expected_original"] = record["expected"]
    return {name: value for name, value in fields.items() if value is not None}


def compare_maps(old: LoggedRun, new: LoggedRun) -> tuple[str, list[str]]:
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
        changed = _flipped(one.answered, other.answered, one.answer_numbers, other.answer_numbers)
        if changed.any() and not flipped:
            first_flip = _cell(one, tuple(np.argwhere(changed)[0]))
        flipped, cells = flipped + int(changed.sum()), cells + changed.size
        if one.control_answered is not None and other.control_answered is not None:
            both = one.answer_numbers, other.answer_numbers
            controls += int(_flipped(one.control_answered, other.control_answered, *both).sum())
        tops = np.array(one.top_tokens), np.array(other.top_tokens)
        answers += int(_flipped(*tops, one.answer_tokens, other.answer_tokens).sum())
    if identical:
        return IDENTICAL, [f"every logit of {len(old.maps)} maps, {cells} squares, is the same to the last bit"]
    dtypes = [run.params.get("dtype", "") for run in (old, new)]
    tolerance = max(models.SELF_CHECK_TOLERANCE.get(dtype, 0.0) for dtype in dtypes)
    findings = [f"largest difference of an answer's logit: {worst:.3g} ({cell_of_worst}); tolerance {tolerance:g}"]
    if flipped:
        findings.append(f"success differs in {flipped} of {cells} squares, first in {first_flip}")
    if controls:
        findings.append(f"success of the same-answer control differs in {controls} squares")
    if answers:
        findings.append(
            f"{answers} answers of clean or counterfactual forward passes are right in one run and not in the other"
        )
    return (DIFFERENT if flipped or controls or answers or not worst <= tolerance else WITHIN), findings


def _flipped(then: np.ndarray, now: np.ndarray, were: tuple[int, int], are: tuple[int, int]) -> np.ndarray:
    """Where one of the two answers is given in one map and not in the other."""
    return np.any([(then == was) != (now == became) for was, became in zip(were, are, strict=True)], axis=0)


def _cell(causal_map: CausalMap, place: Iterable[SupportsInt]) -> str:
    row, *head, column = (int(index) for index in place)
    positions = causal_map.columns[column]
    tokens = ", ".join(f"{position} {causal_map.tokens[position]!r}" for position in positions)
    return " ".join(
        [f"pair {causal_map.pair}, layer {causal_map.layers[row]},", *(f"head {h}," for h in head), f"token {tokens}"]
    )
