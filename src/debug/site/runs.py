"""Pages of studies and of their cells: numbers, charts, maps, pairs, samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import polars as pl

from debug import causal_visualization as charts
from debug.causal_map import CausalMap, MeanOverPairs
from debug.causal_visualization.comparison import MOST_COLOURS, rates
from debug.causal_visualization.interactive import quick
from debug.errors import DebugError
from debug.kinds import Json
from debug.site import blocks
from debug.site.blocks import Block, Files, key
from debug.statistics import Interval
from debug.tracking import LoggedRun, own_n

PICTURES = {
    "hypotheses": "Which hypothesis of what is moved the patched runs agree with, by layer and target.",
    "best_hypothesis": "The hypothesis that agrees best.",
    "causal_map_mean": "Mean over pairs: layers by targets.",
    "estimated_causal_map_mean": "Mean over pairs, estimated from gradients: layers by targets.",
    "curves_by_layer": "The same over layers, with 95% CIs.",
    "estimated_curves_by_layer": "The same over layers, with 95% CIs.",
    "knockout": "Share of pairs whose answer is kept with the edges of each hypothesis cut.",
}
"""Of the charts that a causal run logs, those of its mean, in the order of a page -> caption."""
RATES = ("accuracy", "peak_patch_success_rate", "patch_success_rate", "answer_kept_rate", "normalized_logit_diff")
_TAGS = ("debug.error", "git_commit", "debug.weights_digest", "debug.rerun_of", "mlflow.note.content")
_CELL_PARAMS = ("model", "hops", "seq_len", "intervention_type")


@dataclass(frozen=True)
class Limits:
    """How much of each run is shown.

    Attributes:
        samples: samples, and pairs, of a run.
        maps: maps of single pairs of a run.
    """

    samples: int = 50
    maps: int = 10


def headline(run: LoggedRun) -> str:
    """The run's main rate with its interval; empty where it has none."""
    for name in _rates(run):
        if name in run.metrics:
            return f"{name.replace('_', ' ')} {rate(run, name)}"
    return ""


def rate(run: LoggedRun, name: str) -> Interval | str:
    """A logged metric with its interval, and its n where that is known."""
    value, low, high = (run.metrics.get(f"{name}{end}") for end in ("", "_ci_low", "_ci_high"))
    if value is None:
        return ""
    percent = "rate" in name or "accuracy" in name
    n = own_n(name, run.metrics)
    if n is None:
        return f"{value:.1%}" if percent else f"{value:.3g}"
    return Interval(value, low, high, n, is_rate=percent)


def finding(run: LoggedRun, cells: Sequence[LoggedRun]) -> str:
    """A study in a line: mean accuracy of its cells by model, or by hops where it has one; else a cell's main rate."""
    answered = [cell for cell in cells if run.kind == "accuracy" and "accuracy" in cell.metrics]
    for name, label in (("model", "accuracy: "), ("hops", "accuracy by hops: ")):
        means: dict[str, list[float]] = {}
        for cell in answered:
            means.setdefault(cell.params.get(name, "any"), []).append(cell.metrics["accuracy"])
        if len(means) > 1:
            in_turn = sorted(means, key=lambda value: (len(value), value)) if name == "hops" else list(means)
            return label + ", ".join(f"{value} {sum(means[value]) / len(means[value]):.0%}" for value in in_turn[:6])
    told = [said for each in (*cells, run) if (said := headline(each))]
    return "" if not told else told[0] if len(told) < 3 else f"{told[0]}; {len(told) - 1} more cells"


def index_row(run: LoggedRun, cells: Sequence[LoggedRun]) -> dict[str, Json]:
    """What the list of studies shows of one, and is searched in."""

    def of(name: str) -> str:
        values = dict.fromkeys(each.params[name] for each in (run, *cells) if name in each.params)
        return ", ".join(sorted(map(str, values), key=lambda text: (len(text), text)))

    return {
        "id": key(run.run_id),
        "name": blocks.short(run.name or "unnamed")[:200],
        "kind": (run.kind or "another tool's run").replace("_", " ")[:40],
        "status": run.status,
        "started": f"{run.start_time:%Y-%m-%d %H:%M}" if run.start_time else "",
        "model": of("model")[:120],
        "hops": of("hops")[:40],
        "lines": of("seq_len")[:40],
        "cells": len(cells),
        "finding": blocks.short(finding(run, cells))[:200],
    }


def write_study(files: Files, run: LoggedRun, cells: Sequence[LoggedRun], limits: Limits) -> list[dict[str, Json]]:
    """Write the pages of a study and of its cells; of those that have maps, what the list of maps shows."""
    parts = [*facts(run), *study_charts(run, cells)]
    with_maps = []
    if cells:
        names = [name for name in _CELL_PARAMS if any(name in cell.params for cell in cells)]
        said = [name for name in RATES if any(name in cell.metrics for cell in cells)]
        rows = [
            [
                cell.name,
                cell.status.lower(),
                *(cell.params.get(name, "") for name in names),
                *(str(rate(cell, name)) for name in said),
            ]
            for cell in cells
        ]
        titles = ["cell", "status", *(name.replace("seq_len", "lines").replace("_", " ") for name in (*names, *said))]
        links = [f"runs/{key(cell.run_id)}" for cell in cells]
        parts.append(
            blocks.table(
                titles,
                rows,
                f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}, with 95% confidence intervals.",
                links,
            )
        )
        parts += [blocks.heading("Cells in full")]
        parts.append(blocks.choose("Cell", [(key(cell.run_id), cell.name) for cell in cells], "runs"))
    for cell in cells:
        found, n_maps = cell_blocks(files, cell, limits)
        files.page(f"runs/{key(cell.run_id)}", cell.name, [*facts(cell), *found])
        if n_maps:
            with_maps.append(map_row(cell, run, n_maps))
    if not cells:
        found, n_maps = cell_blocks(files, run, limits)
        parts += found
        with_maps += [map_row(run, run, n_maps)] if n_maps else []
    files.page(f"runs/{key(run.run_id)}", run.name or "unnamed", parts)
    return with_maps


def map_row(cell: LoggedRun, study: LoggedRun, n_maps: int) -> dict[str, Json]:
    return {
        "id": key(cell.run_id),
        "name": blocks.short(cell.name)[:200],
        "model": cell.params.get("model", "")[:120],
        "hops": cell.params.get("hops", ""),
        "lines": cell.params.get("seq_len", ""),
        "component": cell.params.get("intervention_type", "").replace("_", " ")[:60],
        "maps": n_maps,
        "finding": headline(cell)[:200],
        "study": blocks.short(study.name)[:120],
    }


def facts(run: LoggedRun) -> list[Block]:
    """What a run is: status, times, params, the numbers without a place of their own, and some tags."""
    started = f"{run.start_time:%Y-%m-%d %H:%M} UTC" if run.start_time else "no date"
    took = "" if run.duration is None else f", took {run.duration:,.0f} s"
    found = [blocks.text(f"{(run.kind or 'run').replace('_', ' ')} · {run.status.lower()} · {started}{took}")]
    if error := run.tags.get("debug.error"):
        found.append(blocks.pre(error, "It failed:"))
    own = {name for name in run.metrics if "/" not in name and not name.endswith(("_ci_low", "_ci_high", "_n"))}
    rows: list[list[Json]] = [[name, value] for name, value in sorted(run.params.items())]
    rows += [[name.replace("_", " "), str(rate(run, name))] for name in sorted(own)]
    rows += [[tag.removeprefix("debug.").replace("_", " "), run.tags[tag]] for tag in _TAGS[1:] if tag in run.tags]
    if rows:
        found.append({"details": "Settings and numbers", **blocks.table(["name", "value"], rows, "")})
    return found


def study_charts(run: LoggedRun, cells: Sequence[LoggedRun]) -> list[Block]:
    """The main rate of a study's cells: accuracy by hops or length; of causal runs by hops, where there are several."""
    name = next((name for name in _rates(run) if any(name in cell.metrics for cell in cells)), None)
    rows = [
        {
            "model": cell.params.get("model", "?"),
            "hops": cell.params.get("hops", "any"),
            "seq_len": cell.params.get("seq_len", "?"),
            "value": cell.metrics[name],
            "ci_low": cell.metrics.get(f"{name}_ci_low"),
            "ci_high": cell.metrics.get(f"{name}_ci_high"),
            "n": own_n(name, cell.metrics),
        }
        for cell in cells
        if name is not None and name in cell.metrics
    ]
    names: dict[str, type[pl.String | pl.Float64]] = dict.fromkeys(("model", "hops", "seq_len"), pl.String)
    frame = pl.DataFrame(rows, names | dict.fromkeys(("value", "ci_low", "ci_high", "n"), pl.Float64))
    if name is None or frame["model"].n_unique() > MOST_COLOURS:
        return []
    if name == "accuracy":
        whole = (pl.col(column).cast(pl.Int64, strict=False) for column in ("hops", "seq_len"))
        frame = frame.with_columns(*whole).rename({"value": "accuracy"}).drop_nulls("seq_len")
        if frame.is_empty():
            return []
        return [blocks.chart(charts.accuracy_chart(frame), "Accuracy of each cell, with 95% CIs (Wilson).")]
    if frame["hops"].n_unique() < 2:
        return []
    title, panel = name.replace("_", " "), "seq_len" if frame["seq_len"].n_unique() > 1 else None
    drawn = rates(frame, "hops", title, panel=panel, signed="rate" not in name)
    return [blocks.chart(drawn, f"{title.capitalize()} of each cell, with 95% CIs.")]


def _rates(run: LoggedRun) -> tuple[str, ...]:
    """The names of main rates, the one first that a run of its kind is about."""
    return RATES if run.kind in ("accuracy", "imported") else (*RATES[1:], RATES[0])


def cell_blocks(files: Files, run: LoggedRun, limits: Limits) -> tuple[list[Block], int]:
    """Maps, pairs and samples of a run, as far as it has them and they can be read; and how many maps it has."""
    try:
        names = set(run.artifacts())
    except DebugError as error:
        return [blocks.text(f"Its files cannot be read: {error}")], 0
    found: list[Block] = []
    n_maps = 0
    if any(name.startswith("causal_maps/") for name in names):
        try:
            n_maps = len(run.maps)
            found += map_blocks(files, run, limits)
        except DebugError as error:
            found.append(blocks.text(f"Its maps cannot be shown: {error}"))
    for name, show in (("programs.json", pair_blocks), ("samples.jsonl", sample_blocks)):
        if name in names and (name != "programs.json" or n_maps > limits.maps or not n_maps):  # else maps have them
            try:
                found += show(files, run, limits)
            except DebugError as error:
                found.append(blocks.text(f"Its {name} cannot be read: {error}"))
    return found, n_maps


def map_blocks(files: Files, run: LoggedRun, limits: Limits) -> list[Block]:
    """The mean over pairs, and maps of single pairs, each in a file of its own."""
    mean, shown = MeanOverPairs(), []
    for causal_map in run.maps:
        mean.add(causal_map)
        if len(shown) < limits.maps:
            shown.append(causal_map)
    if not shown:
        return []
    found = [blocks.heading("Causal map")]
    try:
        of_mean = charts.pictures(shown[0], mean.result())
    except DebugError as error:
        of_mean = {}
        found.append(blocks.text(f"The mean over pairs cannot be drawn: {error}"))
    found += [blocks.chart(of_mean[name], caption) for name, caption in PICTURES.items() if name in of_mean]
    place, count = f"maps/{key(run.run_id)}", len(run.maps)
    options = []
    for number, causal_map in enumerate(shown):
        found_of_pair = pair_map(run, causal_map)
        if found_of_pair:
            files.page(f"{place}/{number}", f"Pair {causal_map.pair}", found_of_pair)
            options.append((str(number), f"pair {causal_map.pair}"))
    if options:
        of = f", {len(options)} of {count}" if count > len(options) else ""
        found += [blocks.heading("Single pairs"), blocks.choose(f"Pair{of}", options, place)]
    return found


def pair_map(run: LoggedRun, causal_map: CausalMap) -> list[Block]:
    """One pair: its map over tokens, or over heads by target; its logit lens; its programs."""
    found = []
    if causal_map.heads:
        found += [
            blocks.chart(charts.head_heatmap(causal_map, target), "Layers by heads, patched at one target.")
            for target in causal_map.targets
        ]
    elif causal_map.positions:
        drawn = quick(charts.causal_heatmap(causal_map), causal_map.top.size)
        found.append(blocks.chart(drawn, "Layers by token positions: what a patch there does to the answer."))
    if causal_map.lens_ranks is not None:
        lens = quick(charts.lens_heatmap(causal_map), causal_map.lens_ranks.size // 2)
        found.append(blocks.chart(lens, "Logit lens: the rank of the answer, read off each layer of the clean run."))
    try:
        if found and 0 <= causal_map.pair < len(run.pairs):
            found += both_programs(run.pairs[causal_map.pair].to_record())
    except DebugError:
        return found  # the page of the run says what is wrong with its pairs
    return found


def both_programs(record: dict[str, Json]) -> list[Block]:
    found = []
    for which in ("original", "counterfactual"):
        if isinstance(content := record.get(which), str):
            answer = blocks.short(record.get(f"expected_{which}", "?"))
            found.append(blocks.program(content, f"{which.capitalize()}, answer {answer}"))
    return found


def pair_blocks(files: Files, run: LoggedRun, limits: Limits) -> list[Block]:
    records = [pair.to_record() for pair in run.pairs[: limits.samples]]
    place = f"bundles/pairs/{key(run.run_id)}"
    if not records:
        return []
    files.bundle(place, [(f"Pair {number}", both_programs(record)) for number, record in enumerate(records)])
    options = [
        (str(n), f"pair {n}: {one_line(r.get('original'))[:60]} → {one_line(r.get('expected_counterfactual'))[:20]}")
        for n, r in enumerate(records)
    ]
    of = f", {len(records)} of {len(run.pairs)}" if len(run.pairs) > len(records) else ""
    return [blocks.heading("Pairs"), blocks.choose(f"Pair of programs{of}", options, place)]


def sample_blocks(files: Files, run: LoggedRun, limits: Limits) -> list[Block]:
    samples = list(islice(run.sample_records(), limits.samples))
    if not samples:
        return []
    place = f"bundles/samples/{key(run.run_id)}"
    rows: list[list[Json]] = []
    pages: list[tuple[str, list[Block]]] = []
    for number, sample in enumerate(samples):
        outcome = outcome_of(sample)
        said = [sample.get("expected"), sample.get("parsed"), one_line(sample.get("raw_output"))[:80]]
        rows.append([f"sample {number}", outcome, *("" if one is None else one for one in said)])
        own = [blocks.text(f"Expected {sample.get('expected')}, parsed {sample.get('parsed')}: {outcome}.")]
        if sample.get("error"):
            own.append(blocks.pre(str(sample["error"]), "Error"))
        own.append(blocks.pre(str(sample.get("raw_output")), "Output of the model"))
        if sample.get("program"):
            own.append(blocks.program(str(sample["program"])))
        if sample.get("prompt") not in (None, sample.get("program")):
            own.append(blocks.pre(str(sample["prompt"]), "Prompt"))
        pages.append((f"Sample {number}", own))
    files.bundle(place, pages)
    columns = ["sample", "outcome", "expected", "parsed", "output"]
    links = [f"{place}/{number}" for number in range(len(rows))]
    caption = f"The first {len(rows)} samples." if len(rows) == limits.samples else f"{len(rows)} samples."
    return [blocks.heading("Samples"), blocks.table(columns, rows, caption, links)]


def outcome_of(sample: dict[str, Json]) -> str:
    if sample.get("correct") is None:
        return "error"
    return "correct" if sample["correct"] else "unparseable" if sample.get("parsed") is None else "wrong"


def one_line(content: object) -> str:
    return " ⏎ ".join(str(content).split("\n"))


def in_order(cells: Iterable[LoggedRun]) -> list[LoggedRun]:
    """Cells in the order in which they were started."""
    return sorted(cells, key=lambda cell: (cell.start_time is None, cell.start_time, cell.run_id))
