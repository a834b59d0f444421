"""The chapters of a study's page, each made when it is asked for: one that cannot be read costs only itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import polars as pl

from debug.causal_map import CausalMap, MeanCausalMap, findings, in_words, mean_over_pairs, route
from debug.causal_visualization import (
    accuracy_chart,
    curves_by_layer,
    hypothesis_maps,
    knockout_chart,
    mean_heatmap,
    winner_map,
)
from debug.causal_visualization.comparison import natural
from debug.causal_visualization.example import tokens_and_roles
from debug.causal_visualization.interactive import Chart
from debug.causal_visualization.programs import program_graph
from debug.hypotheses import scores_of
from debug.programs import Program, ProgramError
from debug.provenance import without_passwords
from debug.statistics import Interval
from debug.tracking import LoggedRun, own_n

MOST_CELLS = 12  # of which a page has maps
SMALL = 20  # pairs or samples: fewer leave intervals of half the scale
Mean = Callable[[LoggedRun], MeanCausalMap]


@dataclass(frozen=True)
class Chapter:
    """What stands under a heading, in this order. All text is shown as it is, never as Markdown or HTML."""

    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    table: pl.DataFrame | None = None
    code: str = ""


@dataclass(frozen=True)
class _Study:
    run: LoggedRun
    mean_of: Mean
    cells: list[LoggedRun] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", self.run.children or [self.run])

    @property
    def causal(self) -> list[LoggedRun]:
        """The cells that have maps to average."""
        return [cell for cell in self.cells if _has_mean(cell)]


def _has_mean(cell: LoggedRun) -> bool:
    return "intervention_type" in cell.params and bool(len(cell.maps)) and bool(cell.maps[0].targets)


def _mean(run: LoggedRun) -> MeanCausalMap:
    return mean_over_pairs(run.maps)


def chapters(study: LoggedRun, mean_of: Mean = _mean) -> dict[str, Callable[[], Chapter | None]]:
    """Heading -> what makes its chapter; None where the study has nothing of the kind.

    Args:
        study: A study, or one cell alone.
        mean_of: The mean map of a run; a server that has it in memory passes its own.

    Each may raise TrackingError or CausalMapError where a file of the store cannot be read.
    """
    of = _Study(study, mean_of)
    made: dict[str, Callable[[], Chapter | None]] = {
        "Question": lambda: _question(of),
        "Example": lambda: _example(of),
        "Accuracy": lambda: _accuracy(of),
    }
    shown = of.causal[:MOST_CELLS]
    names = [cell.name for cell in shown]
    for cell in shown:
        own = cell.name if cell.name and names.count(cell.name) == 1 else f"{cell.name} {cell.run_id[:8]}".strip()
        name = "Causal map" if len(shown) == 1 else f"Causal map: {own}"
        made[name] = lambda cell=cell: _map(of, cell)
    return made | {
        "Rival hypotheses": lambda: _hypotheses(of),
        "Self-checks": lambda: _checks(of),
        "Caveats": lambda: _caveats(of),
        "Repeat it": lambda: _command(of),
    }


# --- question --------------------------------------------------------------------------------------------------------

QUESTIONS = {
    "accuracy": "How often is the model's answer to the program right?",
    "causal_tracing": "Where in the model is the variable's value? Each place is patched: its activation is taken from "
    "a counterfactual program with another answer. Where the answer becomes the counterfactual's, the place had the "
    "value.",
    "attention_knockout": "Which attention edges carry the value? Edges are cut; where the answer is lost, and more "
    "often than with as many random edges cut, the model needs them.",
    "attribution": "Where in the model is the variable's value? Estimated from gradients, nothing was patched.",
    "logit_lens": "At which layer can the answer be read from the residual stream?",
    "robust_seeds": "Which seeds make programs that every model answers right?",
    "training": "What does the model learn, and when?",
    "imported": "Results made elsewhere, as they were imported.",
}
VARIED = {"model": "model", "hops": "hops", "seq_len": "lines", "generator": "programs", "few_shot": "few-shot"}


def _question(of: _Study) -> Chapter:
    lines = [QUESTIONS.get(of.run.kind or "", "A run that was not logged by this project.")]
    values = {
        title: list(dict.fromkeys(v for cell in of.cells if (v := cell.params.get(name, of.run.params.get(name)))))
        for name, title in VARIED.items()
    }
    lines.append(" · ".join(f"{title}: {', '.join(sorted(v, key=natural))}" for title, v in values.items() if v))
    return Chapter([*filter(None, lines), *_headline(of)])


def found(mean: MeanCausalMap) -> list[str]:
    """The finding of a mean map in at most two sentences."""
    return [*([way] if (way := route(mean)) else []), *findings(mean, in_words)[:1]]


def rates_in_words(rates: pl.DataFrame) -> list[str]:
    """The highest and lowest accuracy of each model, of a frame as :func:`accuracy_chart` takes it."""
    said = []
    for model, part in rates.group_by("model", maintain_order=True):
        lowest, *_, highest = [*part.sort("accuracy").iter_rows(named=True)] * 2
        if part.select("accuracy", "ci_low", "ci_high", "n").n_unique() == 1:
            said.append(f"{model[0]}: accuracy {_interval(lowest)} in {_each(len(part))}")
        else:
            ends = [f"{_interval(row)} {_where(row)}" for row in (highest, lowest)]
            said.append(f"{model[0]}: accuracy {', down to '.join(ends)}")
    return said


def _headline(of: _Study) -> list[str]:
    said = []
    for cell in of.causal[:3]:
        name = f"{cell.name}: " if len(of.causal) > 1 else ""
        said += [f"{name}{sentence}" for sentence in found(of.mean_of(cell))]
    return said + rates_in_words(_rates(of))


def rate_in_words(rate: float, low: float | None, high: float | None, n: float | None) -> str:
    """A rate with its 95% CI and n; that n was not recorded is said, and is not 0."""
    text = str(Interval(rate, low, high, int(n or 1), is_rate=True))
    return text if n else f"{text.rpartition(' (n=')[0]} (n not recorded)"


def _interval(row: dict) -> str:
    return rate_in_words(row["accuracy"], row["ci_low"], row["ci_high"], row["n"])


def _each(cells: int) -> str:
    return "the one cell" if cells == 1 else f"each of {cells} cells"


def _where(row: dict) -> str:
    hops = f"{row['hops']} {'hop' if row['hops'] == '1' else 'hops'}" if row["hops"] else "any hops"
    return f"at {hops}" + (f", {row['seq_len']} lines" if row["seq_len"] else "")


# --- what was found --------------------------------------------------------------------------------------------------


def _example(of: _Study) -> Chapter | None:
    """The first program: with its tokens and their roles where there is a map of it, else as a graph."""
    for cell in of.causal[:1]:
        first: CausalMap = cell.maps[0]
        lines = [f"The first of {len(cell.maps)} pairs, as the model reads it. Targets of the patches are named."]
        if 0 <= first.pair < len(cell.pairs):
            pair = cell.pairs[first.pair]
            lines.append(f"Answer {pair.original.answer}; of the counterfactual {pair.counterfactual.answer}.")
        return Chapter(lines, [tokens_and_roles(first)])
    for cell in of.cells:
        if "samples.jsonl" not in cell.artifacts():
            continue
        sample = next((s for s in cell.sample_records() if s["program"]), None)
        if sample is None:
            continue
        try:
            return Chapter(
                [f"The first program; its answer is {sample['expected']}."],
                [program_graph(Program.parse(sample["program"]))],
            )
        except ProgramError:  # of another kind than variable binding
            return Chapter([f"The first program; its answer is {sample['expected']}."], code=sample["program"])
    return None


def _rates(of: _Study) -> pl.DataFrame:
    """One row a cell of accuracy, as :func:`accuracy_chart` takes it."""
    rows = []
    for cell in of.cells:
        m, p = cell.metrics, of.run.params | cell.params
        if "accuracy" in m and "intervention_type" not in p:
            lines = p.get("seq_len", "")
            rows.append(
                (
                    *(p.get("label") or p.get("model", "model"), p.get("hops"), int(lines) if lines.isdecimal() else 0),
                    *(m["accuracy"], m.get("accuracy_ci_low"), m.get("accuracy_ci_high"), own_n("accuracy", m)),
                )
            )
    names = ("model", "hops", "seq_len", "accuracy", "ci_low", "ci_high", "n")
    kinds = (pl.Utf8, pl.Utf8, pl.Int64, pl.Float64, pl.Float64, pl.Float64, pl.Int64)
    return pl.DataFrame(rows, dict(zip(names, kinds, strict=True)), orient="row")


def _accuracy(of: _Study) -> Chapter | None:
    frame = _rates(of)
    if frame.is_empty():
        known = [(cell.name, cell.metrics) for cell in of.causal if "accuracy" in cell.metrics]
        said = [
            f"{name}: " + " · ".join(f"{title} {_logged(m, key)}" for key, title in _BOTH.items() if key in m)
            for name, m in known
        ]
        return Chapter(said) if said else None
    table = frame.with_columns(pl.col("accuracy", "ci_low", "ci_high").round(4))
    return Chapter(charts=[accuracy_chart(frame)], table=table if len(table) <= 50 else None)


_BOTH = {"accuracy": "accuracy on the originals", "accuracy_counterfactual": "on the counterfactuals"}


def _logged(metrics: dict[str, float], name: str) -> str:
    """A rate with the interval and n that were logged with it."""
    low, high = (metrics.get(f"{name}_ci_{end}") for end in ("low", "high"))
    return rate_in_words(metrics[name], low, high, own_n(name, metrics))


def _map(of: _Study, cell: LoggedRun) -> Chapter:
    mean = of.mean_of(cell)
    said = [way] if (way := route(mean)) and len(of.causal) > 1 else []
    charts: list[Chart] = [knockout_chart(mean)] if mean.against_random and len(mean.layers) == 1 else []
    charts.append(mean_heatmap(mean))
    if len(mean.layers) > 1:
        charts.append(curves_by_layer(mean))
    return Chapter(said + findings(mean, in_words), charts)


def _hypotheses(of: _Study) -> Chapter | None:
    for cell in of.causal:
        scores = scores_of(cell.maps, cell.pairs)
        if scores is not None and scores.beyond_success:
            return Chapter(scores.said(), [hypothesis_maps(scores), winner_map(scores)])
    return None


# --- how far to trust it ---------------------------------------------------------------------------------------------

CHECKS = {
    "check_identity_max_abs": "patched with its own activations, a logit moves by",
    "check_full_patch_max_abs": "patched with all of the counterfactual, a logit is from the counterfactual's by",
    "check_full_patch_without": "without the patch it is from the counterfactual's by (more than twice the rounding)",
    "check_localized_max_abs": "squares of the map run again the plain way differ by",
}


def _passes(name: str, measured: float, allowed: float) -> bool:
    return measured > 2 * allowed if name == "check_full_patch_without" else measured <= allowed


def _checks(of: _Study) -> Chapter | None:
    rows = [
        (cell.name, said, cell.metrics[name], allowed, _passes(name, cell.metrics[name], allowed))
        for cell in of.cells
        if (allowed := cell.metrics.get("check_tolerance")) is not None
        for name, said in CHECKS.items()
        if name in cell.metrics
    ]
    if not rows:
        return None
    names = ("run", "check", "measured", "rounding may do", "passed")
    passed = sum(row[-1] for row in rows)
    frame = pl.DataFrame(
        rows, dict(zip(names, (pl.Utf8, pl.Utf8, pl.Float64, pl.Float64, pl.Boolean), strict=True)), orient="row"
    )
    frame = frame.with_columns(
        pl.col("measured", "rounding may do").map_elements(lambda v: f"{v:.2g}", pl.Utf8),
        pl.when("passed").then(pl.lit("yes")).otherwise(pl.lit("NO")).alias("passed"),
    )
    return Chapter(
        [f"{passed} of {len(rows)} checks of the patches passed (largest difference of a logit)."],
        table=frame.drop("run") if len(of.cells) == 1 else frame,
    )


def _caveats(of: _Study) -> Chapter:
    said: list[str] = []
    for run in dict.fromkeys((of.run, *of.cells)):
        name = "" if run is of.run else f"{run.name}: "
        if run.status != "FINISHED":
            said.append(f"{name}{run.status.lower()}. {run.tags.get('debug.error', '')}".strip())
        if mixed := run.tags.get("debug.mixed"):
            said.append(f"{name}begun and finished with different code, libraries or weights: {mixed}")
        n = own_n("accuracy", run.metrics)
        if n is not None and n < SMALL:
            said.append(f"{name}only {n} {'pairs' if 'intervention_type' in run.params else 'samples'}: see intervals")
        if run.metrics.get("pairs_skipped") and "summary.json" in run.artifacts():
            skipped = run.summary.get("skipped")
            for reason, times in (skipped or {}).items() if isinstance(skipped, dict) else ():
                said.append(f"{name}{times} pairs skipped: {reason}")
    for cell in of.causal[:MOST_CELLS]:
        mean, name = of.mean_of(cell), f"{cell.name}: " if len(of.cells) > 1 else ""
        if mean.estimated:
            said.append(f"{name}estimated from gradients, not patched")
        if mean.held:
            held = ", ".join(map(in_words, sorted(mean.held)))
            said.append(f"{name}at some layer these succeed by construction, and are no peak: {held}")
        if mean.too_small is not None and mean.too_small.estimate > 0:
            said.append(f"{name}the counterfactual's own effect is too small to normalize by in {mean.too_small}")
        if mean.negative is not None and mean.negative.estimate > 0:
            said.append(f"{name}the counterfactual makes its own answer less likely in {mean.negative}")
    if of.run.kind == "imported":
        said.append("Numbers are as they were published; nothing was recomputed.")
    if of.run.tags.get("debug.git_dirty") == "true":
        said.append("The code had changes that no commit has.")
    return Chapter([without_passwords(line) for line in said] or ["None that the run knows of."])


MADE_BY = {
    "debug.git_commit": "commit",
    "debug.weights_digest": "weights",
    "debug.device_name": "device",
    "debug.platform": "platform",
}


def _command(of: _Study) -> Chapter:
    tags = of.cells[0].tags | of.run.tags
    table = [("run", of.run.run_id), *((title, tags[tag]) for tag, title in MADE_BY.items() if tag in tags)]
    return Chapter(
        code=without_passwords(tags.get("debug.command", f"debug rerun {of.run.run_id}")),
        table=pl.DataFrame(table, {"what": pl.Utf8, "value": pl.Utf8}, orient="row"),
    )
