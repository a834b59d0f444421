"""A cell's results into its run as they come: samples, maps and activations, then metrics and pictures."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from debug import causal_visualization as charts
from debug.causal_experiment_runner.results import CellResult
from debug.causal_map import CausalMap, MeanOverPairs, save_maps, save_tensors
from debug.causal_tracing import PairResult, agreement_metrics
from debug.hypotheses import ScoresOverPairs
from debug.kinds import Json
from debug.programs import Answer, AnyPair
from debug.statistics import bootstrap_mean, wilson
from debug.tracking import RunWriter

_OF_PAIR = ("kind", "predictions", "spans", "counterfactual_spans", "targets", "exact")  # in samples as in its record
PICTURES = "debug.causal_visualization.logged:pictures"
SHARD = 64  # pairs in one file of causal maps, or of activations


class CellWriter:
    """Adds results to a cell's run as they come: maps and activations in shards, metrics and pictures at the end."""

    def __init__(self, run: RunWriter, cell: CellResult, params: dict[str, Json]) -> None:
        self.run, self.cell, self.params = run, cell, params
        self.mean = MeanOverPairs()
        self.scores = ScoresOverPairs()
        self.pairs: list[AnyPair] = []
        self.first: CausalMap | None = None
        self.correct: list[tuple[bool, bool]] = []
        self.maps: list[CausalMap] = []
        self.activations: dict[str, np.ndarray] = {}
        self.attention: dict[str, np.ndarray] = {}
        self.shards = self.tried = 0
        self.reasons: dict[str, str] = {}

    def add(self, result: PairResult) -> None:
        # Drawing goes on until enough pairs are used: counting those that replace skipped ones would bias the rate.
        if result.correct is not None and len(self.correct) < self.params["num_seqs"]:
            self.correct.append(result.correct)
        if result.pair is not None and result.pair.seed is not None and self.params["generator"] != "given":
            self.tried += 1
            self.cell.seeds_passed_over = result.pair.seed - self.params["seed"] + 1 - self.tried
        self.run.append_jsonl("samples.jsonl", [_sample(result)])
        if result.causal_map is None or result.pair is None:
            reason = result.skipped or ""
            self.cell.skipped[self.reasons.setdefault(kind_of_reason(reason), reason)] += 1
            return
        causal_map = replace(result.causal_map, pair=len(self.pairs))
        self.first = self.first or causal_map
        self.cell.interventions += result.interventions
        self.cell.rank_agreement += [] if result.rank_agreement is None else [result.rank_agreement]
        self.cell.agreement += [] if result.agreement is None else [result.agreement]
        if result.checks is not None:
            self.cell.checks = result.checks if self.cell.checks is None else self.cell.checks | result.checks
        self.activations |= {f"{len(self.pairs)}/{name}": array for name, array in result.activations.items()}
        if result.attention is not None:
            own = {"weights": result.attention.weights, "queries": np.array(result.attention.queries, np.int64)}
            self.attention |= {f"{len(self.pairs)}/{name}": array for name, array in own.items()}
        self.pairs.append(result.pair)
        self.maps.append(causal_map)
        self.mean.add(causal_map)
        self.scores.add(causal_map, result.pair)
        if len(self.maps) == SHARD:
            self._write_shard()

    def _write_shard(self) -> None:
        save_maps(self.run.folder / "causal_maps" / f"{self.shards:05d}.safetensors", self.maps)
        for folder, arrays in (("activations", self.activations), ("attention", self.attention)):
            if arrays:
                save_tensors(self.run.folder / folder / f"{self.shards:05d}.safetensors", arrays)
        self.run.log_programs(self.pairs)
        self.run.flush()
        self.maps, self.activations, self.attention = [], {}, {}
        self.shards += 1

    def close(self) -> None:
        cell = self.cell
        if self.maps:
            self._write_shard()
        cell.pairs_used = len(self.pairs)
        if self.correct:
            n = len(self.correct)
            cell.accuracy, cell.accuracy_counterfactual = (
                wilson(sum(pair[which] for pair in self.correct), n) for which in (0, 1)
            )
        if self.first is not None and self.first.targets:
            cell.mean = self.mean.result()
            cell.scores = self.scores.result()
        draw = charts.draw(PICTURES, self.run.folder, self.first, cell.mean, cell.scores) if self.first else list
        metrics, curves = _metrics(cell)
        self.run.log_metrics(metrics)
        for layer, values in curves.items():
            estimates = {name: value for name, value in values.items() if not name.endswith(("_ci_low", "_ci_high"))}
            self.run.log_metrics(estimates, step=layer)  # each is a chart in MLflow; the intervals are in summary.json
        self.run.log_json("summary.json", summary(cell))
        if cell.scores is not None:
            self.run.log_json("hypotheses.json", cell.scores.to_record())
        if self.pairs:
            known = {name: self.params.get(name) for name in ("generator", "seed", "hops", "seq_len")}
            texts = [text for pair in self.pairs for text in (pair.original.text, pair.counterfactual.text)]
            self.run.log_dataset(f"{known['generator']} pairs", texts, known | {"artifact": "programs.json"})
        drawn = ", ".join(f"{stem}.png" for stem in draw())
        pictures = [f"pictures: tab Artifacts, {drawn}; dashboard, page Causal map"] if drawn else []
        self.run.describe(
            [f"{cell.pairs_used} pairs used, {cell.skipped.total()} skipped", *cell.findings(), *pictures]
        )


def _metrics(cell: CellResult) -> tuple[dict[str, float | None], dict[int, dict[str, float | None]]]:
    """A cell's metrics of the tracking contract, and the stepped ones by layer."""
    metrics: dict[str, float | None] = {
        "pairs_used": cell.pairs_used,
        "pairs_skipped": cell.skipped.total(),
        "interventions_per_second": cell.interventions / cell.seconds if cell.seconds else None,
    }
    if cell.accuracy is not None and cell.accuracy_counterfactual is not None:
        metrics |= cell.accuracy.metrics("accuracy") | {"accuracy_n": cell.accuracy.n}
        metrics |= cell.accuracy_counterfactual.metrics("accuracy_counterfactual")
        metrics |= {"accuracy_counterfactual_n": cell.accuracy_counterfactual.n}
    if cell.checks is not None:
        metrics |= cell.checks.metrics()
    if cell.rank_agreement:
        metrics |= bootstrap_mean(cell.rank_agreement).metrics("rank_agreement")
    for name, value in agreement_metrics(cell.agreement).items():
        metrics |= value.metrics(name)
    of_mean, curves = cell.mean.to_metrics() if cell.mean else ({}, {})
    told = cell.scores if cell.scores and cell.scores.beyond_success else None  # else success says all of it
    scored, by_layer = told.to_metrics() if told else ({}, {})
    return metrics | of_mean | scored, {
        layer: curves.get(layer, {}) | by_layer.get(layer, {}) for layer in curves | by_layer
    }


def summary(cell: CellResult) -> dict[str, Json]:
    metrics, curves = _metrics(cell)
    peak = cell.mean and cell.mean.peak()
    found = peak if peak and peak.chosen.estimate > 0 else None
    return {
        "name": cell.name,
        "run_id": cell.run_id,
        "metrics": metrics,
        "by_layer": {str(layer): values for layer, values in curves.items()},
        "n": ({"accuracy": cell.accuracy.n} if cell.accuracy else {})
        | ({curve.target: curve.n for curve in cell.mean.curves} if cell.mean else {}),
        "seeds_passed_over": cell.seeds_passed_over,
        "peak": found and {"target": found.target, "layer": found.layer, "n": found.rate.n if found.rate else 0},
        "hand_overs": [move._asdict() for move in cell.mean.moves] if cell.mean else [],
        "skipped": dict(cell.skipped),
        "seconds": cell.seconds,
    }


def _sample(result: PairResult) -> dict[str, Json]:
    """The pair as a sample: the original program and what the model says to it, the counterfactual beside it."""
    pair, correct, answers = result.pair, result.correct, result.answers
    return {
        "seed": pair and pair.seed,
        "seq_len": pair and pair.original.seq_len,
        "hops": pair and pair.original.hops,
        "program": pair and pair.original.text,
        "prompt": result.prompt,
        "expected": pair and pair.expected_original,
        "raw_output": answers and answers[0],
        "parsed": pair and answers and _parsed(answers[0], pair.expected_original),
        "correct": correct and correct[0],
        "chain": pair and pair.variable_chain and list(pair.variable_chain.names),
        "error": result.skipped,
        "counterfactual": pair and pair.counterfactual.text,
        "expected_counterfactual": pair and pair.expected_counterfactual,
        "raw_output_counterfactual": answers and answers[1],
        "correct_counterfactual": correct and correct[1],
    } | ({} if pair is None else {name: value for name, value in pair.to_record().items() if name in _OF_PAIR})


def _parsed(top_token: str, expected: Answer) -> Answer | None:
    """The top token as an answer; null where an answer has more tokens than the one that was asked for."""
    text = top_token.strip()
    if type(expected) is not int:
        return expected if text == str(expected) else text or None
    return int(text) if text.isdecimal() and len(text) >= len(str(expected)) else None


def kind_of_reason(reason: str) -> str:
    """The first clause without the texts and numbers of a pair, so that reasons can be counted."""
    masked = re.sub(r"'[^']*'|\[[^\]]*\]|\d+", "…", reason.split("\n")[0].split("; ")[0])
    return re.sub(r"(… ?)+(and … other words)?", "…", masked)[:200]
