"""The report's chapter on training: the answers of checkpoints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from debug import causal_visualization as charts
from debug import models
from debug.core import ExperimentConfig
from debug.models import LoadedModel
from debug.paper.accuracy import can_answer, wrong_table
from debug.paper.claims import NOTHING, SOLVED, every, surely_above, surely_below
from debug.paper.page import EXPERIMENT, Page, hops_text, without_n
from debug.paper.reproduction import Reproduction
from debug.paper.strategies import EARLY, EXCESS, drawn, explained, misleads, wrong_answers
from debug.programs import Program
from debug.runner import ExperimentResult
from debug.statistics import Interval, wilson
from debug.tracking import LoggedRun, Store

THREE_PHASES = (
    "three_phases",
    "Training has three phases: random numbers, a shallow heuristic of early lines, dereferencing.",
    f"(1) a checkpoint answers with digits (95% CI above {SOLVED:.0%}) and is right no more often than random "
    f"numbers of the program (95% CI below chance + {NOTHING:.0%}); (2) a later one gives wrong answers more "
    "often on line 1 or 2 than the value of a random line (difference, 95% CI above 0); both are selected on one "
    "half of the programs and measured on the other; (3) the last one has an accuracy with a 95% CI above "
    f"{SOLVED:.0%} where the heuristics are wrong. Undecided where no checkpoint shows a phase: it may lie between "
    "two checkpoints",
)
"""The claim: its name, text and criterion."""

Answers = list[tuple[int | None, str]]
"""(answer, program); None: unparseable."""


def training_run(store: Store, what: Reproduction) -> LoggedRun | None:
    if what.training_run is not None:
        return store.load_run(what.training_run)
    found = store.find_runs(kind="training", model=models.name_of(what.model))
    ids = found.filter(pl.col("status") == "FINISHED")["run_id"]
    return store.load_run(ids[0]) if len(ids) else None


def checkpoints(run: LoggedRun) -> dict[int, Path]:
    """The folders of a training run's checkpoints on this machine, by step."""
    folders = {}
    for name in run.artifacts():
        if match := re.fullmatch(r"checkpoints/step_(\d+)/[^/]+", name):
            folders[int(match[1])] = run.artifact(name).parent
    return dict(sorted(folders.items()))


def report_trajectory(page: Page, model: LoadedModel, training: LoggedRun | None, asked: ExperimentResult) -> None:
    page.write("## The training trajectory")
    folders = checkpoints(training) if training else {}
    if training is None or not folders:
        page.write("The store has no training run with checkpoints, so the trajectory is not in this report.")
        page.claim(*THREE_PHASES, None, "no training run in the store")
        return
    result = _evaluated(page, folders)
    answers = {step: can_answer(result, pl.col("model") == folder.name) for step, folder in folders.items()}
    misled = {step: [one for one in found if misleads(one[1])] for step, found in answers.items()}
    last = max(folders)
    of_last = next(row for row in result.summary["cells"] if row["model"] == folders[last].name)
    if page.store.load_run(of_last["run_id"]).tags["debug.weights_digest"] == model.weights_digest:
        compared = "The last checkpoint is the model of the other sections."
    else:
        compared = _another_training(page, answers[last], can_answer(asked, pl.col("model") == model.id))
    hops = Counter(Program.parse(program).hops for _, program in misled[last])
    page.write(
        f"Checkpoints of training run `{training.run_id}`, evaluated in study `{result.run_id}`. {compared}",
        "The share of answers that each strategy could have given: first over all programs, with equally many of "
        f"{', '.join(map(str, page.what.hops))} hops; then where the heuristics are wrong (the right answer is neither "
        "a number on line 1 or 2 nor the root of the largest chain). The latter are mostly short chains: "
        f"{', '.join(f'{n} of {hops_text(depth)}' for depth, n in sorted(hops.items())) or 'none'}. The last rows are "
        "answers drawn at random: any digit, or one of the program's numbers.",
    )
    seen, draws = _explained_table(page, "all", "all programs", answers)
    if not misled[last]:
        page.claim(*THREE_PHASES, None, "the heuristics are right on every program")
        return
    where_wrong, _ = _explained_table(page, "telling", "where the heuristics are wrong", misled)
    page.write(
        "Wrong answers among the latter that are numbers of their program: the share that each heuristic could have "
        "given, and two chance levels: a number drawn uniformly, and the value of a line drawn uniformly (more often a "
        "number that many lines lead to). The right number is excluded from the draws."
    )
    wrong_table(page, "step", {step: by for step, found in misled.items() if (by := wrong_answers(found))})
    chance, right = draws["any number"]["dereferencing"], where_wrong[last]["dereferencing"]
    phases = _EarlyPhases.of(answers, misled, chance)
    page.keep("early_lines_on_the_other_half", phases.early)
    solved = surely_above(right, SOLVED)
    page.claim(
        *THREE_PHASES,
        False if solved is False else every([solved, phases.is_random or None, surely_above(phases.early, 0) or None]),
        f"random numbers at step {phases.random} ({_digits(seen)}, drawn {without_n(chance)}); "
        f"{EXCESS}, at step {phases.chosen}: {phases.early or 'no wrong answer'}; right in the end {right}",
        page.run.run_id,
        result.run_id,
    )


def _evaluated(page: Page, folders: Mapping[int, Path]) -> ExperimentResult:
    """An accuracy study of all checkpoints, on half as many programs as the study of the model has."""
    what = page.what
    config = ExperimentConfig(
        EXPERIMENT,
        what.prompt_template,
        "variable_binding",
        [str(folder) for folder in folders.values()],
        max(1, what.num_seqs // 2),
        [what.seq_len],
        what.hops,
        what.seed,
        max_new_tokens=2,
    )
    return page.accuracy([config], no_cache=True)


def _another_training(page: Page, of_last: Answers, of_model: Answers) -> str:
    """What to say where the last checkpoint is not the model: on how many programs both give the same answer."""
    own = {program: answer for answer, program in of_model}
    alike = [own[program] == answer for answer, program in of_last if program in own]
    share = wilson(sum(alike), len(alike)) if alike else None
    page.keep("last_checkpoint_answers_like_model", share)
    return (
        "**The last checkpoint is not, byte for byte, the model of the other sections**: this is the trajectory of "
        f"another training run. Share of equal answers: {share or 'unknown, no program was evaluated on both'}."
    )


@dataclass(frozen=True)
class _EarlyPhases:
    """The checkpoints of the first two phases: selected on one half of the programs, measured on the other."""

    random: int | None
    """The step of random numbers: the first of digits that are right no more often than drawn ones."""
    is_random: bool | None
    """Whether it is that on the other half too, by 95% CIs."""
    chosen: int | None
    """The later step at which wrong answers are most surely on early lines."""
    early: Interval | None
    """How much more often than by chance they are there, on the other half."""

    @classmethod
    def of(cls, answers: Mapping[int, Answers], misled: Mapping[int, Answers], chance: Interval) -> _EarlyPhases:
        """From the answers by step, to all programs and to those on which the heuristics are wrong."""
        random = next((step for step, found in answers.items() if _random(found[::2], chance, sure=False)), None)
        later = {step: found for step, found in misled.items() if step > (random or -1)}
        shallow = {step: by for step, found in later.items() if (by := wrong_answers(found[::2]))}
        chosen = max(shallow, key=lambda step: shallow[step][EARLY].low or -1.0, default=None)
        is_random = None if random is None else _random(answers[random][1::2], chance)
        early = None if chosen is None else wrong_answers(misled[chosen][1::2]).get(EARLY)
        return cls(random, is_random, chosen, early)


def _digits(seen: Mapping[int, Mapping[str, Interval]]) -> str:
    """Where answers become digits: their share at the step before and at that step, and how many are right there."""
    begins = next((step for step, by in seen.items() if by["a digit"].estimate > 0.5), max(seen))
    before = max((step for step in seen if step < begins), default=begins)
    return (
        f"digits at step {before}: {without_n(seen[before]['a digit'])}, at {begins}: "
        f"{without_n(seen[begins]['a digit'])}, right {without_n(seen[begins]['dereferencing'])}"
    )


def _random(answers: Answers, chance: Interval, sure: bool = True) -> bool:
    """Whether answers are digits, and right no more often than random numbers: by 95% CIs (``sure``), or by rates."""
    if not answers:
        return False
    by = explained(answers)
    digits, right = by["a digit"], by["dereferencing"]
    if not sure:
        return digits.estimate >= SOLVED and right.estimate <= chance.estimate + NOTHING
    return bool(surely_above(digits, SOLVED) and surely_below(right, chance.estimate + NOTHING))


def _explained_table(
    page: Page, of: str, caption: str, answers: dict[int, Answers]
) -> tuple[dict[int, dict[str, Interval]], dict[str, dict[str, Interval]]]:
    """Step -> the share of answers that each strategy explains; and pool -> its chance levels. Logs both."""
    shares = {step: explained(found) for step, found in answers.items() if found}
    programs = [program for _, program in answers[max(answers)]]
    draws = {pool: drawn(programs, pool) for pool in ("a digit", "any number")}
    points = []
    for step, by in shares.items():
        page.keep_all(f"explained/{of}", by, step)
        points += [{"step": step, "explanation": name, **v.metrics("share")} for name, v in by.items()]
    for pool, by in draws.items():
        page.keep_all(f"drawn/{of}/{pool}", by)
    frame = pl.DataFrame(points).rename({"share_ci_low": "ci_low", "share_ci_high": "ci_high"})
    page.picture(f"trajectory_{of}", charts.trajectory_chart(frame, caption), caption)
    named = {**shares, **{f"{pool} drawn": by for pool, by in draws.items()}}
    rows = [[row, by["a digit"].n, *map(without_n, by.values())] for row, by in named.items()]
    page.table([f"step, {caption}", "n", *draws["a digit"]], rows)
    return shares, draws
