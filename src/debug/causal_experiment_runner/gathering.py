"""Results of pairs added up to what a cell found; and those of a logged run, read back as they were."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from debug.causal_experiment_runner.results import CellResult
from debug.causal_map import CausalMap, MeanOverPairs
from debug.causal_tracing import Agreement, PairResult
from debug.engine.self_checks import SelfChecks
from debug.hypotheses import ScoresOverPairs
from debug.kinds import Json
from debug.programs import AnyPair
from debug.statistics import wilson
from debug.tracking import Arrays, LoggedRun, Maps, Patterns, RunWriter, TrackingError


class Gathered:
    """What a cell found, pair by pair; the numbers of its CellResult are there once it is closed."""

    def __init__(self, cell: CellResult, params: Mapping[str, Json]) -> None:
        self.cell, self.params = cell, params
        self.mean = MeanOverPairs()
        self.scores = ScoresOverPairs()
        self.pairs: list[AnyPair] = []
        self.first: CausalMap | None = None
        self.correct: list[tuple[bool, bool]] = []
        self.tried = self._drawn = 0
        self._reasons: dict[str, str] = {}

    def add(self, result: PairResult) -> CausalMap | None:
        """The pair's map, numbered; None where it was skipped."""
        self.tried += 1
        # Drawing goes on until enough pairs are used: counting those that replace skipped ones would bias the rate.
        if result.correct is not None and len(self.correct) < self.params["num_seqs"]:
            self.correct.append(result.correct)
        if result.pair is not None and result.pair.seed is not None and self.params["generator"] != "given":
            self._drawn += 1
            self.cell.seeds_passed_over = result.pair.seed - self.params["seed"] + 1 - self._drawn
        if result.causal_map is None or result.pair is None:
            reason = result.skipped or ""
            self.cell.skipped[self._reasons.setdefault(kind_of_reason(reason), reason)] += 1
            return None
        causal_map = replace(result.causal_map, pair=len(self.pairs))
        self.first = self.first or causal_map
        self.cell.interventions += result.interventions
        self.cell.rank_agreement += [] if result.rank_agreement is None else [result.rank_agreement]
        self.cell.agreement += [] if result.agreement is None else [result.agreement]
        if result.checks is not None:
            self.cell.checks = result.checks if self.cell.checks is None else self.cell.checks | result.checks
        self.pairs.append(result.pair)
        self.mean.add(causal_map)
        self.scores.add(causal_map, result.pair)
        return causal_map

    def close(self) -> None:
        cell = self.cell
        cell.pairs_used = len(self.pairs)
        if self.correct:
            n = len(self.correct)
            cell.accuracy, cell.accuracy_counterfactual = (
                wilson(sum(pair[which] for pair in self.correct), n) for which in (0, 1)
            )
        if self.first is not None and self.first.targets:
            cell.mean = self.mean.result()
            cell.scores = self.scores.result()


class Kept(Mapping[int, PairResult]):
    """The results that an unfinished run has, by the number of the pair among those tried, without the pairs.

    Arrays are read when they are asked for; those of full shards (of so many pairs), which are not written again, are
    left out.
    """

    def __init__(self, run: RunWriter, shard: int) -> None:
        """Raises TrackingError where samples have no map."""
        self._records = run.kept_jsonl("samples.jsonl")
        self._maps, self._activations, self._attention = (
            Maps(run.files),
            Arrays(run.files, "activations"),
            Patterns(run.files),
        )
        used = [number for number, record in enumerate(self._records) if record["error"] is None]
        self._number = {index: number for number, index in enumerate(used)}
        full = [name for name in run.files.shards("causal_maps") if "/pair-" not in name]
        self._open = min(len(used) // shard, len(full)) * shard
        if len(self._maps) < len(used):
            raise TrackingError(
                f"run {run.run_id} has {len(used)} samples of pairs and {len(self._maps)} causal maps: it cannot be "
                "gone on with. Start anew with --fresh (resume=False)"
            )

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and 0 <= index < len(self._records)

    def __getitem__(self, index: int) -> PairResult:
        if index not in self:
            raise KeyError(index)
        number = self._number.get(index)
        result = result_of(index, self._records[index], None if number is None else self._maps[number])
        if number is None or number < self._open:
            return result
        prefix = f"{number}/"
        own = {name: np.array(self._activations[name]) for name in self._activations if name.startswith(prefix)}
        activations = {name.removeprefix(prefix): array for name, array in own.items()}
        return replace(result, activations=activations, attention=self._attention.get(number))

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._records)))

    def __len__(self) -> int:
        return len(self._records)


def result_of(index: int, record: Mapping[str, Json], causal_map: CausalMap | None) -> PairResult:
    """A line of samples.jsonl, and the pair's map, as the result that they were made of, but for the pair."""
    checks, agreement = record.get("checks"), record.get("agreement")
    correct = (record["correct"], record["correct_counterfactual"])
    answers = (record["raw_output"], record["raw_output_counterfactual"])
    return PairResult(
        index,
        None,
        skipped=record["error"],
        correct=None if correct[0] is None else correct,
        answers=None if answers[0] is None else answers,
        prompt=record["prompt"],
        causal_map=causal_map,
        checks=checks and SelfChecks(**checks),
        interventions=record.get("interventions", 0),
        rank_agreement=record.get("rank_agreement"),
        agreement=agreement and Agreement(**{name: np.array(values) for name, values in agreement.items()}),
    )


def as_logged(run: LoggedRun) -> CellResult:
    """The result of a cell whose run is finished, as it was."""
    cell = CellResult(run.params["model"], run.name, run.run_id)
    found = Gathered(cell, {"num_seqs": int(run.params["num_seqs"]), "generator": "given"})
    number = 0
    for index, record in enumerate(run.sample_records()):
        if record["error"] is not None:
            found.add(result_of(index, record, None))
            continue
        found.add(replace(result_of(index, record, run.maps[number]), pair=run.pairs[number]))
        number += 1
    found.close()
    cell.seeds_passed_over, cell.seconds = run.summary.get("seeds_passed_over"), run.summary["seconds"]
    return cell


def kind_of_reason(reason: str) -> str:
    """The first clause without the texts and numbers of a pair, so that reasons can be counted."""
    masked = re.sub(r"'[^']*'|\[[^\]]*\]|\d+", "…", reason.split("\n")[0].split("; ")[0])
    return re.sub(r"(… ?)+(and … other words)?", "…", masked)[:200]
