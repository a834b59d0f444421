"""The search: each model after the other, batch by batch, every program that was tried in the log.

It is a study, whose cells are taken up where they stood: what was found follows from the log.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from debug import generators, models, provenance, tracking
from debug.core import parse_answer
from debug.counterfactual import make_pair
from debug.kinds import Json
from debug.models.heuristics import Heuristic
from debug.programs import ProgramPair
from debug.progress import Progress
from debug.prompts.answers import DIGITS
from debug.robust_seeds.search_config import KIND, RobustSearch
from debug.runner import ExperimentRunner, NothingScored, given
from debug.runner.study import how_run
from debug.statistics import Interval, rate_until
from debug.studies import Resuming, Study, digest_of

if TYPE_CHECKING:
    from debug.runner.asking import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RobustSeeds:
    """What was found in one cell: at most ``wanted`` seeds in order, after ``tried`` programs were shown to models.

    ``rate`` is the share of programs that are robust, by :func:`debug.statistics.rate_until`: its n ends at the last
    seed that was wanted, though the rest of its batch was tried too, so that it is the same for every batch size. None
    where no program could be asked.
    """

    hops: int | None
    seq_len: int
    wanted: int
    seeds: list[int]
    tried: int
    all_incorrect: bool
    run_id: str
    rate: Interval | None = None

    def __str__(self) -> str:
        what = "answered wrong by all models" if self.all_incorrect else "answered by all models"
        seeds = ", ".join(map(str, self.seeds))
        found = (
            f"{len(self.seeds)} of {self.wanted} wanted, {self.tried} programs tried, rate {self.rate}: seeds {seeds}"
            if seeds
            else f"none in {self.tried} seeds"
        )
        return f"{'any' if self.hops is None else self.hops} hops, {self.seq_len} lines, {what}: {found}"


class PlannedCell(NamedTuple):
    """All models of a search, by their joined ids, on one number of hops and lines."""

    model_id: str
    hops: int | None
    seq_len: int

    @property
    def place(self) -> str:
        """The tag by which a cell is found again."""
        return digest_of([*self])


def find_robust_seeds(
    search: RobustSearch, runner: ExperimentRunner | None = None, resuming: Resuming | None = None
) -> list[RobustSeeds]:
    """Search each cell, and log every seed that was tried.

    Args:
        runner: says where is logged and how models are run (backend, dtype, batch size).
        resuming: whether, and how, it goes on with the latest search that asks the same; by default it begins anew.

    Raises:
        debug.models.ModelNotFound: before anything is written, where that can be told without loading.
        debug.studies.StudyDiffers, debug.tracking.LeftToOthers: as ``resuming`` has it.
        NothingScored: no program of any cell could be asked.
    """
    resuming = resuming or Resuming(resume=False)
    runner = runner or ExperimentRunner()
    runner.check(search.models)
    own = models.names_of(search.models)
    loaded = [runner.load(model_id) for model_id in search.models]
    loaded = [
        model if model.id == name else replace(model, id=name) for model, name in zip(loaded, own.values(), strict=True)
    ]
    for model in loaded:
        if isinstance(model, models.AnswersPrompts):
            model.say_what_prompts_lose()
    names = ", ".join(model.id for model in loaded)
    store = tracking.Store(runner.tracking_uri)
    of_models = _joined(model.provenance() for model in loaded)
    how = _joined(how_run(model) for model in loaded)
    planned = Study(
        search.name,
        f"{names} · robust seeds",
        KIND,
        digest_of([runner.how, search.programs.to_record(), search.max_tried, search.all_incorrect]),
        [PlannedCell(", ".join(search.models), *cell) for cell in search.programs.cells],
        lambda cell: f"{names} · {'any' if cell.hops is None else cell.hops} hops · {cell.seq_len} lines",
        lambda _: provenance.what_made_it(how, provenance.of_process() | of_models),
    )
    with resuming.open(store, planned, {}) as carried:
        study = carried.run
        shared = {
            "models": [model.id for model in loaded],
            "model": names,
            "generator": search.programs.generator[0],
            "prompt_template": search.programs.prompt[0],
            "few_shot": search.few_shot,
            "seed": search.seed,
            "num_seqs": search.count,
            "max_tried": search.max_tried,
            "all_incorrect": search.all_incorrect,
            **how,
        }
        study.log_params(shared)
        study.log_json("config.json", search.programs.to_record() | {"all_incorrect": search.all_incorrect})

        def look(planned: PlannedCell, run_id: str) -> None:
            params = shared | {"hops": "any" if planned.hops is None else planned.hops, "seq_len": planned.seq_len}
            with study.cell(carried.study.name_of(planned), params, of_models, claimed=run_id) as cell:
                _search_cell(search, loaded, planned, runner.batch_size, cell)

        carried.carry_out(look)
        finished = carried.finished()
        found = [
            _found(search, cell, list(finished[cell.place].sample_records()), finished[cell.place].run_id)
            for cell in carried.study.cells
        ]
        study.log_json("summary.json", {"cells": [_summary(seeds) for seeds in found]})
        if not any(seeds.tried for seeds in found):
            raise NothingScored(f"no program could be asked of {names}; each sample's error is in samples.jsonl")
    return found


def _summary(found: RobustSeeds) -> dict[str, Json]:
    names = ("hops", "seq_len", "wanted", "seeds", "tried", "all_incorrect", "run_id")
    return {name: getattr(found, name) for name in names}


def _joined(of_models: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What is told of each model, as text for all."""
    told = list(of_models)
    names = dict.fromkeys(name for each in told for name in each)
    return {name: ", ".join(dict.fromkeys(each[name] for each in told if name in each)) for name in names}


def _search_cell(
    search: RobustSearch, loaded: list[Model], planned: PlannedCell, batch_size: int, cell: tracking.RunWriter
) -> RobustSeeds:
    """Ask batch by batch until enough are found; batches that the cell has as a whole are not asked again."""
    template = search.programs.prompt_text(planned.seq_len)
    programs = generators.search(search.programs.generator[1], planned.seq_len, search.seed, planned.hops, template)
    candidates = islice(programs, search.max_tried)
    known = cell.kept_jsonl("samples.jsonl")
    records: list[dict[str, Json]] = []
    robust = 0
    with Progress(search.count, cell.name, "seed") as bar:
        while robust < search.count and (batch := list(islice(candidates, batch_size))):
            of_batch = known[len(records) : len(records) + len(batch)]
            if len(of_batch) < len(batch):
                pairs = [make_pair(each.program, each.seed) for each in batch]
                new = _ask(search, loaded, pairs, template, batch_size)[len(of_batch) :]
                cell.append_jsonl("samples.jsonl", new)
                of_batch += new
            records += of_batch
            robust += sum(record["robust"] is True for record in of_batch)
            bar.set_description(f"{cell.name}, {len(records)} tried")
            bar.update(min(robust, search.count) - bar.done)
    found = _found(search, planned, records, cell.run_id)
    errors = Counter(record["error"] for record in records if record["error"] is not None)
    metrics: dict[str, float | None] = {"seeds_found": len(found.seeds), "num_samples": found.tried}
    metrics["num_errors"] = errors.total()
    if found.rate:
        metrics |= found.rate.metrics("robust_rate") | {"robust_rate_n": found.rate.n}
    cell.log_metrics(metrics)
    for error, count in errors.most_common(1):
        logger.warning("%s: %d programs were not asked: %s", cell.name, count, error)
    cell.log_json("summary.json", _summary(found) | metrics)
    return found


def _found(
    search: RobustSearch, planned: PlannedCell, records: Sequence[Mapping[str, Json]], run_id: str
) -> RobustSeeds:
    """What the samples of a cell, in the order in which they were tried, say."""
    seeds: list[int] = []
    tried, counted = 0, 0
    for record in records:
        tried += record["error"] is None
        counted += record["error"] is None and len(seeds) < search.count
        seeds += [record["seed"]] if record["robust"] else []
    seeds = seeds[: search.count]
    rate = rate_until(len(seeds), counted, search.count) if counted else None
    hops, seq_len = planned.hops, planned.seq_len
    return RobustSeeds(hops, seq_len, search.count, seeds, tried, search.all_incorrect, run_id, rate)


def _ask(
    search: RobustSearch, loaded: list[Model], pairs: list[ProgramPair], template: str, batch_size: int
) -> list[dict[str, Json]]:
    """A record of each pair: the answers of the models up to the first that fails it, the last of them in full."""
    records = []
    for pair in pairs:
        records.append(
            {
                "seed": pair.seed,
                "seq_len": pair.original.seq_len,
                "hops": pair.original.hops,
                "program": pair.original.text,
                "counterfactual": pair.counterfactual.text,
                "expected": pair.expected_original,
                "expected_counterfactual": pair.expected_counterfactual,
                "chain": list(pair.variable_chain.names),
                "answers": {},
                "failed_at": None,
                "error": None,
            }
        )
    remaining = list(range(len(pairs)))
    for model in loaded:
        asked = [text for n in remaining for text in (pairs[n].original.text, pairs[n].counterfactual.text)]
        text = template
        if asked and not isinstance(model, Heuristic):
            text = model.suited(template, asked[0], DIGITS)
        prompts = given(model, text, asked)
        completions = dict(model.generate(prompts, max_new_tokens=search.max_new_tokens, batch_size=batch_size))
        passed = []
        for place, n in enumerate(remaining):
            both = completions[2 * place], completions[2 * place + 1]
            record = records[n]
            error = both[0].error or both[1].error
            parsed = [None if one.error else parse_answer(search.programs.parser[1], one.text) for one in both]
            expected = record["expected"], record["expected_counterfactual"]
            correct = [given_answer == answer for given_answer, answer in zip(parsed, expected, strict=True)]
            record["answers"][model.id] = parsed
            record |= {"prompt": prompts[2 * place], "parsed": parsed[0], "error": error}
            record |= {"raw_output": both[0].text, "raw_output_counterfactual": both[1].text}
            record |= {"correct": correct[0], "correct_counterfactual": correct[1]}
            wrong = [answer is not None and not right for answer, right in zip(parsed, correct, strict=True)]
            if error is None and all(wrong if search.all_incorrect else correct):
                passed.append(n)
            elif error is None:  # that a model could not be asked says nothing of the seed
                record["failed_at"] = model.id
        remaining = passed
    for n, record in enumerate(records):
        record["robust"] = n in remaining if record["error"] is None else None
    return records
