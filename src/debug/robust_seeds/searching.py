"""The search: each model after the other, batch by batch, every program that was tried in the log."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from debug import generators, models, tracking
from debug.core import parse_answer
from debug.counterfactual import make_pair
from debug.kinds import Json
from debug.models.heuristics import Heuristic
from debug.programs import ProgramPair
from debug.progress import Progress
from debug.prompts.answers import DIGITS
from debug.provenance import without_passwords
from debug.robust_seeds.search_config import KIND, RobustSearch
from debug.runner import ExperimentRunner, NothingScored, given
from debug.statistics import Interval, rate_until

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


def find_robust_seeds(search: RobustSearch, runner: ExperimentRunner | None = None) -> list[RobustSeeds]:
    """Search each cell, and log every seed that was tried.

    Args:
        runner: says where is logged and how models are run (backend, dtype, batch size).

    Raises:
        debug.models.ModelNotFound: before anything is written, where that can be told without loading.
        NothingScored: no program of any cell could be asked.
    """
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
    found = []
    with store.start(search.name, f"{names} · robust seeds", kind=KIND) as study:
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
            "backend": ", ".join(dict.fromkeys(model.backend for model in loaded)),
            "dtype": ", ".join(dict.fromkeys(model.dtype for model in loaded)),
            "device": ", ".join(dict.fromkeys(model.device for model in loaded)),
            **({} if runner.base_url is None else {"base_url": without_passwords(runner.base_url)}),
        }
        study.log_params(shared)
        study.log_json("config.json", search.programs.to_record() | {"all_incorrect": search.all_incorrect})
        for hops, seq_len in search.programs.cells:
            named = "any" if hops is None else hops
            with study.cell(
                f"{names} · {named} hops · {seq_len} lines", shared | {"hops": named, "seq_len": seq_len}
            ) as cell:
                found.append(_search_cell(search, loaded, hops, seq_len, runner.batch_size, cell))
        study.log_json("summary.json", {"cells": [_summary(seeds) for seeds in found]})
        if not any(seeds.tried for seeds in found):
            raise NothingScored(f"no program could be asked of {names}; each sample's error is in samples.jsonl")
    return found


def _summary(found: RobustSeeds) -> dict[str, Json]:
    names = ("hops", "seq_len", "wanted", "seeds", "tried", "all_incorrect", "run_id")
    return {name: getattr(found, name) for name in names}


def _search_cell(
    search: RobustSearch,
    loaded: list[Model],
    hops: int | None,
    seq_len: int,
    batch_size: int,
    cell: tracking.RunWriter,
) -> RobustSeeds:
    template = search.programs.prompt_text(seq_len)
    seeds: list[int] = []
    tried, counted, errors = 0, 0, Counter()
    candidates = islice(_pairs(search, hops, seq_len, template), search.max_tried)
    with Progress(search.count, cell.name, "seed") as bar:
        while len(seeds) < search.count and (batch := list(islice(candidates, batch_size))):
            records = _ask(search, loaded, batch, template, batch_size)
            cell.append_jsonl("samples.jsonl", records)
            errors.update(record["error"] for record in records if record["error"] is not None)
            for record in records:
                tried += record["error"] is None
                counted += record["error"] is None and len(seeds) < search.count
                seeds += [record["seed"]] if record["robust"] else []
            bar.set_description(f"{cell.name}, {tried} tried")
            bar.update(min(len(seeds), search.count) - bar.done)
    metrics: dict[str, float | None] = {"seeds_found": min(len(seeds), search.count), "num_samples": tried}
    metrics["num_errors"] = errors.total()
    rate = rate_until(min(len(seeds), search.count), counted, search.count) if counted else None
    if rate:
        metrics |= rate.metrics("robust_rate") | {"robust_rate_n": rate.n}
    cell.log_metrics(metrics)
    for error, count in errors.most_common(1):
        logger.warning("%s: %d programs were not asked: %s", cell.name, count, error)
    found = RobustSeeds(
        hops, seq_len, search.count, seeds[: search.count], tried, search.all_incorrect, cell.run_id, rate
    )
    cell.log_json("summary.json", _summary(found) | metrics)
    return found


def _pairs(search: RobustSearch, hops: int | None, seq_len: int, template: str) -> Iterator[ProgramPair]:
    for each in generators.search(search.programs.generator[1], seq_len, search.seed, hops, template):
        yield make_pair(each.program, each.seed)


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
