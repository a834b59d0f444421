"""A cell's results into its run as they come: samples, maps and activations, then metrics and pictures."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from debug import causal_visualization as charts
from debug.causal_experiment_runner.gathering import Gathered
from debug.causal_experiment_runner.results import CellResult
from debug.causal_map import CausalMap, save_maps, save_tensors
from debug.causal_tracing import PairResult, agreement_metrics
from debug.kinds import Json
from debug.programs import Answer
from debug.statistics import bootstrap_mean
from debug.tracking import RunWriter, part_of, uninterrupted

PICTURES = "debug.causal_visualization.logged:pictures"
SHARD = 64  # pairs in one file of causal maps, or of activations
_OF_PAIR = ("kind", "predictions", "spans", "counterfactual_spans", "targets", "exact")  # in samples as in its record


class CellWriter:
    """Adds results to a cell's run as they come: each pair as a whole, maps and activations in shards once there are
    enough, metrics and pictures at the end. ``kept``: how many of the results to come the run has from before."""

    def __init__(self, run: RunWriter, cell: CellResult, params: dict[str, Json], kept: int = 0) -> None:
        self.run, self.cell, self.params = run, cell, params
        self.found = Gathered(cell, params)
        self.kept = kept
        self.maps: list[CausalMap] = []
        self.arrays: dict[str, dict[str, np.ndarray]] = {"activations": {}, "attention": {}}

    def add(self, result: PairResult) -> None:
        number, is_new = len(self.found.pairs), self.found.tried >= self.kept
        with uninterrupted():
            causal_map = self.found.add(result)
            arrays = arrays_of(result, number)
            if causal_map is not None:
                self.maps.append(causal_map)
                for folder, own in arrays.items():
                    self.arrays[folder] |= own
                if is_new:
                    for folder, own in arrays.items():
                        if own:
                            save_tensors(self.run.folder / part_of(folder, number), own)
                    save_maps(self.run.folder / part_of("causal_maps", number), [causal_map])
                else:
                    self.cell.interventions_kept += result.interventions
            if is_new:  # last: a pair that has a sample is there as a whole
                self.run.append_jsonl("samples.jsonl", [_sample(result)])
            if len(self.maps) == SHARD:
                self._write_shard()

    def _write_shard(self) -> None:
        """The maps and arrays of the last pairs in one file, in the place of one for each."""
        first, folder = len(self.found.pairs) - len(self.maps), self.run.folder
        shard = f"{first // SHARD:05d}.safetensors"
        names = [
            part_of(of, pair) for pair in range(first, len(self.found.pairs)) for of in ("causal_maps", *self.arrays)
        ]
        parts = [folder / name for name in names if (folder / name).exists()]
        if parts or not (folder / "causal_maps" / shard).exists():
            for of, arrays in self.arrays.items():
                if arrays:
                    save_tensors(folder / of / shard, arrays)
            save_maps(folder / "causal_maps" / shard, self.maps)  # last: where it is, all is there
            self.run.log_programs(self.found.pairs)
        for part in parts:
            part.unlink()
        self.run.flush()
        self.maps, self.arrays = [], {folder: {} for folder in self.arrays}

    def close(self, *, finished: bool) -> None:
        """Write what there is. Of a cell that is to be taken up again, the metrics of its mean are left out: MLflow
        forgets none that the whole does not have."""
        cell, pairs, first = self.cell, self.found.pairs, self.found.first
        if self.maps:
            self._write_shard()
        self.found.close()
        draw = charts.draw(PICTURES, self.run.folder, first, cell.mean, cell.scores) if first else list
        metrics, curves = _metrics(cell) if finished else (_of_pairs(cell), {})
        self.run.log_metrics(metrics)
        for layer, values in curves.items():
            estimates = {name: value for name, value in values.items() if not name.endswith(("_ci_low", "_ci_high"))}
            self.run.log_metrics(estimates, step=layer)  # each is a chart in MLflow; the intervals are in summary.json
        self.run.log_json("summary.json", summary(cell))
        if cell.scores is not None:
            self.run.log_json("hypotheses.json", cell.scores.to_record())
        if pairs:
            self.run.log_programs(pairs)
        if pairs and finished:
            known = {name: self.params.get(name) for name in ("generator", "seed", "hops", "seq_len")}
            texts = [text for pair in pairs for text in (pair.original.text, pair.counterfactual.text)]
            self.run.log_dataset(f"{known['generator']} pairs", texts, known | {"artifact": "programs.json"})
        drawn = ", ".join(f"{stem}.png" for stem in draw())
        pictures = [f"pictures: tab Artifacts, {drawn}; dashboard, page Causal map"] if drawn else []
        self.run.describe(
            [f"{cell.pairs_used} pairs used, {cell.skipped.total()} skipped", *cell.findings(), *pictures]
        )


def arrays_of(result: PairResult, number: int) -> dict[str, dict[str, np.ndarray]]:
    """A pair's activations and attention patterns by folder, as the files of a run name them."""
    of = {"activations": result.activations, "attention": {}}
    if result.attention is not None:
        queries = np.array(result.attention.queries, np.int64)
        of["attention"] = {"weights": result.attention.weights, "queries": queries}
    return {folder: {f"{number}/{name}": array for name, array in own.items()} for folder, own in of.items()}


def _of_pairs(cell: CellResult) -> dict[str, float | None]:
    """A cell's metrics but for those of its mean and of hypotheses."""
    metrics: dict[str, float | None] = {
        "pairs_used": cell.pairs_used,
        "pairs_skipped": cell.skipped.total(),
        "interventions_per_second": (cell.interventions - cell.interventions_kept) / cell.seconds or None
        if cell.seconds
        else None,
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
    return metrics


def _metrics(cell: CellResult) -> tuple[dict[str, float | None], dict[int, dict[str, float | None]]]:
    """A cell's metrics of the tracking contract, and the stepped ones by layer."""
    of_mean, curves = cell.mean.to_metrics() if cell.mean else ({}, {})
    told = cell.scores if cell.scores and cell.scores.beyond_success else None  # else success says all of it
    scored, by_layer = told.to_metrics() if told else ({}, {})
    return _of_pairs(cell) | of_mean | scored, {
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
    """The pair as a sample: the original program and what the model says to it, the counterfactual beside it, and what
    the engine measured."""
    pair, correct, answers, agreement = result.pair, result.correct, result.answers, result.agreement
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
        "interventions": result.interventions,
        "checks": result.checks and asdict(result.checks),
        "rank_agreement": result.rank_agreement,
        "agreement": agreement and {name: array.tolist() for name, array in agreement._asdict().items()},
    } | ({} if pair is None else {name: value for name, value in pair.to_record().items() if name in _OF_PAIR})


def _parsed(top_token: str, expected: Answer) -> Answer | None:
    """The top token as an answer; null where an answer has more tokens than the one that was asked for."""
    text = top_token.strip()
    if type(expected) is not int:
        return expected if text == str(expected) else text or None
    return int(text) if text.isdecimal() and len(text) >= len(str(expected)) else None
