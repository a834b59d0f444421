"""Causal results of the older format, as maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Required

import numpy as np
from pydantic import Field
from tokenizers import decoders
from typing_extensions import TypedDict

from debug import causal_visualization as charts
from debug.causal_map import LEGACY, CausalMap, MeanCausalMap, MeanOverPairs, save_maps
from debug.kinds import Json
from debug.legacy.source import (
    FIRST_DIGIT,
    MOST_CELLS,
    NOT_RECORDED,
    LegacyCell,
    LegacyError,
    Problem,
    Source,
)
from debug.programs import Program, ProgramError, ProgramPair
from debug.records import Expected, Int64, Names, Number, Text
from debug.statistics import bootstrap_mean
from debug.token_analyzer import PairError, of_texts
from debug.tracking import RunWriter

LAYERS_ARE = "layer outputs: layer l here is this project's l + 1"


_Index = Annotated[int, Field(strict=True, ge=0, lt=2**20), Expected("an index, 0 or more")]
_Token = Annotated[int, Field(strict=True, ge=0, lt=2**31), Expected("the id of a token")]
_Share = Annotated[float, Field(strict=True, ge=0, le=1), Expected("a share between 0 and 1")]


class _Intervention(TypedDict, total=False):
    intervention_type: Text | None
    layer_idx: Required[_Index]
    head_idx: _Index | None
    target_token_pos: _Index | None
    token_pos: _Index | None  # what patch_results.json calls it
    logit_difference: Number | None
    normalized_logit_difference: Number | None
    success_rate: _Share | None
    original_top_token: _Token | None
    intervened_top_token: _Token | None
    program_id: Int64 | None
    original_program: Text | None
    counterfactual_program: Text | None
    token_labels: Names | None
    target_name: Text | None


class _Metadata(TypedDict, total=False):
    model_id: Text
    rng_seed: Int64


_MEASURED = ("intervened_top_token", "success_rate", "normalized_logit_difference", "logit_difference")


@dataclass
class _Group:
    """The rows of one program: (layer, head or -1, position) -> row."""

    first: dict[str, Json]
    rows: dict[tuple[int, int, int], tuple[int, dict[str, Json]]] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    """Target as the file names it -> position."""


def read_maps(source: Source) -> list[LegacyCell]:
    """A cell for each intervention type of the file."""
    metadata = source.beside("experiment_metadata.json", _Metadata)
    groups: dict[tuple[str | None, bool], dict[tuple, _Group]] = {}
    for index, row in source.checked(_Intervention):
        position = row["target_token_pos"] if row["target_token_pos"] is not None else row["token_pos"]
        labels = row["token_labels"]
        if position is None or (labels is not None and position >= len(labels)):
            expected = f"one of {len(labels)} tokens" if labels else "the position of a token"
            problem = f"field 'target_token_pos' is {position!r}; expected {expected}"
            source.problems.append(Problem(source.name, index, problem))
            continue
        of_type = groups.setdefault((row["intervention_type"], row["head_idx"] is not None), {})
        texts = (row["program_id"], row["original_program"], row["counterfactual_program"])
        group = of_type.setdefault((*texts, tuple(labels or ())), _Group(row))
        place = (row["layer_idx"], -1 if row["head_idx"] is None else row["head_idx"], position)
        if place in group.rows:
            before, known = group.rows[place]
            if any(known[name] != row[name] for name in _MEASURED):
                problem = f"says something else of the cell that row {before} is of; that one is kept"
                source.problems.append(Problem(source.name, index, problem))
                continue
        elif row["original_top_token"] != group.first["original_top_token"]:
            problem = f"field 'original_top_token' is {row['original_top_token']}; it was "
            problem += f"{group.first['original_top_token']} in the first row of this program"
            source.problems.append(Problem(source.name, index, problem))
            continue
        else:
            group.rows[place] = (index, row)
        target = re.sub(r"_layer_\d+(_head_\d+)?$", "", row["target_name"] or "")
        if re.fullmatch(r"\w{1,80}", target, re.ASCII) and not re.fullmatch(r"pos_\d+", target):
            group.names.setdefault(target, position)
    if not groups:
        raise LegacyError("has no row that makes sense")
    return [_maps_cell(source, kind, list(of_type.values()), metadata) for (kind, _), of_type in groups.items()]


def _maps_cell(source: Source, kind: str | None, groups: list[_Group], metadata: dict[str, Json]) -> LegacyCell:
    layers, heads = (sorted({place[axis] for group in groups for place in group.rows}) for axis in (0, 1))
    pairs: list[ProgramPair] = []
    maps: list[CausalMap] = []
    for group in groups:
        first = min(index for index, _ in group.rows.values())
        positions = sorted({position for *_, position in group.rows})
        if (cells := len(layers) * len(heads) * len(positions)) > max(MOST_CELLS, 50 * len(group.rows)):
            problem = f"the program's {len(group.rows)} rows are scattered over {cells:,} cells; it is left out"
            source.problems.append(Problem(source.name, first, problem))
            continue
        pair = _pair(source, first, group.first)
        if pair is not None:
            pairs.append(pair)
        maps.append(_map(group, pair, len(pairs) - 1 if pair else -1, kind, layers, heads, positions))
    if not maps:
        raise LegacyError("has no map that can be drawn")
    shared = {name: {getattr(pair.original, name) for pair in pairs} for name in ("hops", "seq_len")}
    known = {
        name: None if not values else values.pop() if len(values) == 1 else "any" for name, values in shared.items()
    }
    whole = all(one.positions == list(range(len(one.tokens))) for one in maps)
    model = source.model(metadata.get("model_id"))
    params = NOT_RECORDED | {
        "model": model,
        **known,
        "seed": metadata.get("rng_seed"),
        "num_seqs": len(maps),
        "intervention_type": kind,
        "positions": "all" if whole else "some",
        "layers": ",".join(map(str, layers)),
        "require_correct": None,
        "exclude_shallow": None,
    }
    if kind == "residual_stream":
        params["layers_are"] = LAYERS_ARE
    shape = [f"{known['hops']} hops" if known["hops"] else "", f"{known['seq_len']} lines" if known["seq_len"] else ""]
    name = " · ".join(filter(None, [model, *shape, kind, "imported"]))
    return LegacyCell(name, params, lambda run: _write_maps(run, source, maps, pairs, params))


def _pair(source: Source, index: int, row: dict[str, Json]) -> ProgramPair | None:
    if row["original_program"] is None or row["counterfactual_program"] is None:
        return None
    try:
        return ProgramPair(Program.parse(row["original_program"]), Program.parse(row["counterfactual_program"]))
    except ProgramError as error:
        problem = f"its map is imported without its programs: {str(error).splitlines()[0]}"
        source.problems.append(Problem(source.name, index, problem))
        return None


def _map(
    group: _Group,
    pair: ProgramPair | None,
    number: int,
    kind: str | None,
    layers: list[int],
    heads: list[int],
    positions: list[int],
) -> CausalMap:
    first, has_heads = group.first, heads != [-1]
    labels: list[str] | None = first["token_labels"]
    tokens = _texts(labels) if labels else ["?"] * (positions[-1] + 1)
    shape = (len(layers), *([len(heads)] if has_heads else []), len(positions))
    arrays = {name: np.full(shape, np.nan, np.float32) for name in _MEASURED[1:]}
    top = np.full(shape, -1, np.int64)
    row_of, head_of, column_of = ({value: at for at, value in enumerate(axis)} for axis in (layers, heads, positions))
    for (layer, head, position), (_, row) in group.rows.items():
        place = (row_of[layer], *([head_of[head]] if has_heads else []), column_of[position])
        for name, array in arrays.items():
            if row[name] is not None:
                array[place] = row[name]
        if row["intervened_top_token"] is not None:
            top[place] = row["intervened_top_token"]
    targets = {name: [at] for name, at in group.names.items()}
    if pair is not None:
        try:
            roles = of_texts(pair.original, tokens).targets()
            targets = {name: at for name, at in roles.items() if len(at) == 1 and at[0] in column_of}
        except PairError:
            pass  # the texts of the tokens are not the program's: its own names stay
    answers = _answers(labels, pair, first["original_top_token"])
    values = [] if pair is None or answers is None else [pair.expected_counterfactual, pair.expected_original]
    vocabulary = {token: str(value) for token, value in zip(answers or (), values, strict=True)}
    null = np.full(2, np.nan, np.float32)
    return CausalMap(
        intervention_type=kind or "not recorded",
        pair=number,
        tokens=tokens,
        layers=layers,
        positions=positions,
        columns=[[position] for position in positions],
        targets=targets,
        target_columns={name: column_of[at[0]] for name, at in targets.items()},
        n_layers=layers[-1] + 1,
        first_difference=0,
        answer_tokens=answers or (-1, -1),
        top_tokens=(-1 if first["original_top_token"] is None else first["original_top_token"], -1),
        min_effect=0.0,
        vocabulary=vocabulary,
        z_clean=null,
        z_counterfactual=null,
        z_patched=np.full((*shape, 2), np.nan, np.float32),
        top=top,
        heads=[[head] for head in heads] if has_heads else [],
        method="imported",
        legacy_success_rate=arrays["success_rate"],
        legacy_normalized_logit_difference=arrays["normalized_logit_difference"],
        legacy_logit_difference=arrays["logit_difference"],
    )


def _byte_level(labels: Sequence[str]) -> bool:
    return any("Ġ" in label or "Ċ" in label for label in labels)


def _texts(labels: list[str]) -> list[str]:
    """The texts of tokens from a vocabulary's own names of them."""
    if not _byte_level(labels):
        return labels
    decoder = decoders.ByteLevel()
    return [decoder.decode([label]) for label in labels]


def _answers(labels: list[str] | None, pair: ProgramPair | None, original_top: int | None) -> tuple[int, int] | None:
    """Token ids of both answers where they can be told from the file; see the head of this module."""
    if pair is None or not labels or not _byte_level(labels):
        return None
    c, o = pair.expected_counterfactual, pair.expected_original
    if not (0 <= c <= 9 and 0 <= o <= 9) or original_top != FIRST_DIGIT + o:
        return None
    return FIRST_DIGIT + c, FIRST_DIGIT + o


def _write_maps(
    run: RunWriter, source: Source, maps: list[CausalMap], pairs: list[ProgramPair], params: dict[str, Json]
) -> None:
    save_maps(run.folder / "causal_maps" / "00000.safetensors", maps)
    run.log_programs(pairs)
    run.append_jsonl("samples.jsonl", map(_sample_of_pair, pairs))
    mean = None
    if any(one.targets for one in maps):
        adding = MeanOverPairs()
        for one in maps:
            adding.add(one)
        mean = adding.result()
    metrics, curves = _metrics(maps, mean)
    run.log_metrics(metrics)
    for layer, values in curves.items():
        run.log_metrics(values, step=layer)
    problems = [str(problem) for problem in source.problems[:1000]]
    run.log_json("summary.json", {"metrics": metrics, "params": params, "problems": problems})
    if pairs:
        texts = [text for pair in pairs for text in (pair.original.text, pair.counterfactual.text)]
        run.log_dataset("imported pairs", texts, {"file": source.name})
    for stem, chart in charts.pictures(maps[0], mean).items():
        charts.save_chart(chart, run.folder, stem)


def _metrics(
    maps: list[CausalMap], mean: MeanCausalMap | None
) -> tuple[dict[str, float | None], dict[int, dict[str, float | None]]]:
    rates = [one.legacy_success_rate for one in maps if one.legacy_success_rate is not None]
    known = [rate[~np.isnan(rate)] for rate in rates]
    known = [rate for rate in known if rate.size]
    metrics: dict[str, float | None] = {
        "pairs_used": len(maps),
        "interventions": sum(
            int((~np.isnan(np.stack([getattr(one, n) for n in LEGACY]))).any(0).sum()) for one in maps
        ),
    }
    if known:
        weights = [rate.size for rate in known]
        overall = bootstrap_mean([float(rate.mean()) for rate in known], is_rate=True, weights=weights)
        metrics |= overall.metrics("legacy_success_rate")
    of_mean, curves = mean.to_metrics() if mean is not None else ({}, {})
    return metrics | of_mean, curves


def _sample_of_pair(pair: ProgramPair) -> dict[str, Json]:
    """The pair as a sample of which the model's answers were not recorded."""
    record = pair.to_record()
    return {
        **dict.fromkeys(("prompt", "raw_output", "parsed", "correct", "error")),
        **{name: record[name] for name in ("seed", "seq_len", "hops", "counterfactual", "expected_counterfactual")},
        "program": record["original"],
        "expected": record["expected_original"],
        "chain": record["variable_chain"],
    }
