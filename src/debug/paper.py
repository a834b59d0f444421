"""The paper's findings on one model: the runs that show them, and a report page of what these runs hold.

:func:`reproduce` carries out accuracy runs, causal runs and, where there is a training run, accuracy runs of its
checkpoints, all in one MLflow experiment and nested under one summary run. That run holds ``report.md`` with its
pictures, ``summary.json``, and as metrics every number of the page that no other run holds. The findings are those of
Wu, Geiger and Millière (ICML 2025, arXiv 2505.20896); how they are measured is in the runners and the engine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from debug import causal_visualization as charts
from debug import models
from debug.attention_knockout import HYPOTHESES
from debug.attention_patterns import attention_pattern, attention_shares
from debug.causal_experiment_runner import CausalExperimentRunner, CellResult
from debug.causal_map import LEADS, METRICS, RANDOM, CausalMap, MeanCausalMap, MeanOverPairs, ratio_of_means
from debug.causal_tracing import Plan
from debug.causal_visualization import Metric
from debug.core import ExperimentConfig
from debug.counterfactual import make_pair
from debug.generators import make_variable_binding_program, search
from debug.heuristics import HEURISTICS, PREFIX
from debug.models import LoadedModel
from debug.programs import Program, ProgramPair
from debug.prompts import get_prompt
from debug.runner import ExperimentResult, ExperimentRunner
from debug.statistics import Interval, bootstrap_mean, wilson
from debug.strategies import EARLY, SHALLOW, drawn, explained, explanations, misleads, wrong_answers
from debug.token_analyzer import analyze
from debug.tracking import LoggedRun, RunWriter, Store

EXPERIMENT = "reproduce_paper"
SMALLEST = 10  # programs or pairs below which no interval decides a claim
SOLVED = 0.95  # accuracy that a solved depth is surely above
ANSWERS = 0.5  # what goes on inside is asked where accuracy is surely above this: else right answers are luck
MOVES = 0.1  # a head moves the value where its normalized logit difference is surely above this
QUERY_LINE = "query_hash+query_var+query_colon+final"
NOTHING = 0.05  # a difference of rates that is surely smaller counts as none
SHOWN = 0.05  # targets that reach less success than this at every layer are not listed one by one


@dataclass(frozen=True)
class Reproduction:
    """What is measured, of which model, on how many programs."""

    model: str = "tiny"
    prompt_template: str = "VARIABLE_BINDING"
    hops: Sequence[int] = (1, 2, 3, 4)
    seq_len: int = 17
    """Of everything but the accuracy by length."""
    lengths: Sequence[int] = (2, 5, 8, 11, 14, 17)
    num_seqs: int = 500
    """Programs in each accuracy cell."""
    num_pairs: int = 200
    """Pairs, shallow ones excluded, in each causal cell."""
    seed: int = 0
    training_run: str | None = None
    """The run whose checkpoints are asked; None: the newest finished training run of the model, if there is one."""


@dataclass(frozen=True)
class Claim:
    """A claim on this model; ``holds`` is None where the runs cannot tell."""

    name: str
    text: str
    criterion: str
    holds: bool | None
    number: str
    runs: Sequence[str]

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "does not", None: "undecided"}[self.holds]


def surely_above(value: Interval | None, bound: float) -> bool | None:
    """Whether the whole interval is above a bound (True), or below it (False); None where it is on both sides, or of
    fewer than ``SMALLEST``."""
    if value is None or value.low is None or value.high is None or value.n < SMALLEST:
        return None
    return True if value.low > bound else False if value.high < bound else None


def surely_below(value: Interval | None, bound: float) -> bool | None:
    above = surely_above(value, bound)
    return None if above is None else not above


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """One that does not decides; else one that is undecided leaves all undecided, as none at all does."""
    known = list(verdicts)
    return False if False in known else True if known and None not in known else None


class Page:
    """The report while it is written, and the summary run that keeps it and its numbers."""

    def __init__(self, what: Reproduction, store: Store, run: RunWriter, dtype: str | None, device: str | None) -> None:
        self.what, self.store, self.run, self.dtype, self.device = what, store, run, dtype, device
        self.lines: list[str] = []
        self.claims: list[Claim] = []
        self.answered: dict[int, bool] = {}
        """By hops: whether the model surely answers more than ``ANSWERS`` of the pairs, wrong ones among them."""

    def write(self, *lines: str) -> None:
        """Paragraphs."""
        for line in lines:
            self.lines += [line, ""]

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.lines += [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]
        self.lines.append("")

    def picture(self, stem: str, chart: charts.Picture, caption: str) -> None:
        """A PNG beside the page; the runs themselves hold their charts as HTML too."""
        chart.save(self.run.folder / f"{stem}.png", scale_factor=2)
        self.write(f"![{caption}]({stem}.png)")

    def keep(self, name: str, value: Interval | None, step: int | None = None) -> None:
        """Log an estimate and its ends."""
        if value is not None:
            self.run.log_metrics(value.metrics(re.sub("[ ,:]+", "_", name)), step)

    def keep_all(self, prefix: str, shares: Mapping[str, Interval], step: int | None = None) -> None:
        for name, value in shares.items():
            self.keep(f"{prefix}/{name}", value, step)

    def claim(self, name: str, text: str, criterion: str, holds: bool | None, number: str, *runs: str) -> None:
        self.claims.append(Claim(name, text, criterion, holds, number, runs))

    def accuracy(self, configs: Sequence[ExperimentConfig], *, no_cache: bool = False) -> ExperimentResult:
        runner = ExperimentRunner(
            self.store.uri, batch_size=128, dtype=self.dtype, device=self.device, backend="transformers"
        )
        result = runner.run_study(EXPERIMENT, configs, resume=False, no_cache=no_cache)
        self.run.adopt(result.run_id)
        return result

    def patched(self, hops: Sequence[int], intervention_type: str, **plan: Any) -> dict[int, CellResult]:
        """A causal run of each number of hops, on the same pairs; those that failed are named on the page, left out."""
        what, cells = self.what, {}
        runner = CausalExperimentRunner(self.store.uri, dtype=self.dtype, device=self.device)
        filters = {"require_correct": True, "exclude_shallow": True, "logit_lens": False}
        full = Plan(intervention_type, prompt_template=what.prompt_template, **filters, **plan)
        for depth in hops:
            params = {"generator": "variable_binding", "hops": depth, "seq_len": what.seq_len, "seed": what.seed}
            try:
                result = runner.run_plan(
                    what.model,
                    self.pairs[depth],
                    full,
                    name=EXPERIMENT,
                    wanted=what.num_pairs,
                    params=params | {"num_seqs": what.num_pairs},
                )
            except ValueError as error:  # no pair of these was left to patch; the run says so too
                self.write(f"{_hops(depth)}: FAILED, {plain(str(error))}")
                continue
            self.run.adopt(result.run_id)
            cells[depth] = result.cells[0]
            self.answered[depth] = bool(surely_above(result.cells[0].accuracy, ANSWERS))
        return cells

    def inside(self, verdicts: Mapping[int, bool | None], fewest_hops: int = 1) -> bool | None:
        """A claim of what goes on inside, at every number of hops: undecided where the model does not answer."""
        asked = [hops for hops in self.what.hops if hops >= fewest_hops]
        return every(verdicts.get(hops) if self.answered.get(hops) else None for hops in asked)

    @cached_property
    def pairs(self) -> dict[int, list[ProgramPair]]:
        """By hops: pairs whose root is on neither of the first two lines, a fifth more than wanted, for those that the
        model does not answer. Few long chains are so, and running the model on the others only to skip them would take
        most of the time."""
        what, wanted = self.what, self.what.num_pairs + (self.what.num_pairs + 4) // 5
        template, found = get_prompt(what.prompt_template)[1], {}
        for hops in tqdm(what.hops, desc="pairs", unit="hops"):
            made = search(make_variable_binding_program, what.seq_len, what.seed, hops, template)
            pairs = (make_pair(program.program, program.seed) for program in made)
            found[hops] = list(islice((pair for pair in pairs if pair.variable_chain.root.line >= 2), wanted))
            if not found[hops]:
                raise ValueError(
                    f"no program of {what.seq_len} lines and {_hops(hops)} has its root below line 2; ask for longer "
                    "ones"
                )
        return found

    def maps(self, hops: int, cell: CellResult, said: str = "", **metrics: Metric) -> MeanCausalMap:
        """A number of hops: its run, and its mean map, with a picture of each metric, by the stem of the file."""
        mean = _of(cell)
        self.write(f"### {_hops(hops)}", f"Run `{cell.run_id}`{said}.")
        for stem, metric in metrics.items():
            picture = charts.mean_heatmap(mean, metric)
            self.picture(f"{stem}_{hops}_hops", picture, f"{METRICS[metric]}, {_hops(hops)}")
        return mean

    def save(self) -> None:
        (self.run.folder / "report.md").write_text("\n".join(self.lines), "utf-8")
        known = {f"claim_holds/{claim.name}": claim.holds for claim in self.claims}
        self.run.log_metrics({name: None if holds is None else float(holds) for name, holds in known.items()})
        records = [asdict(claim) | {"verdict": claim.verdict} for claim in self.claims]
        self.run.log_json("summary.json", {"claims": records})


def reproduce(
    what: Reproduction, tracking_uri: str | None = None, *, dtype: str | None = None, device: str | None = None
) -> LoggedRun:
    """Make the runs and the report.

    Returns:
        The summary run; its ``artifact("report.md")`` is the page, its ``children`` are the studies.

    Raises:
        ValueError, SelfCheckError, TrackingError: as the runners' ``run``.
    """
    store = Store(tracking_uri)
    model = models.load(what.model, dtype=dtype, device=device)
    training = _training_run(store, what)
    with store.start(EXPERIMENT, f"{model.id} · report", kind="causal_tracing") as run:
        run.log_params(asdict(what) | {"model": model.id, "training_run": training and training.run_id})
        run.set_tags(model.provenance())
        page = Page(what, store, run, dtype, device)
        _head(page, model)
        claims_at = len(page.lines)
        asked = _accuracy(page, model)
        _trajectory(page, model, training, asked)
        _residual_stream(page)
        _attention_heads(page, model)
        _knockout(page)
        body, page.lines = page.lines[claims_at:], page.lines[:claims_at]
        _claims(page)
        page.lines += body
        page.save()
    return store.load_run(run.run_id)


def plain(text: str | None) -> str:
    """Text from outside as Markdown that shows it as it is, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~])", r"\\\1", " ".join((text or "").split()))


def _head(page: Page, model: LoadedModel) -> None:
    what, config = page.what, model.config
    parameters = sum(parameter.numel() for parameter in model.hf.parameters())
    positions = "rotary positions" if getattr(config, "rope_parameters", None) else "positions as its configuration has"
    page.write(
        f"# How {plain(model.id)} tracks variables",
        "The findings of Wu, Geiger and Millière, *How Do Transformers Learn Variable Binding in Symbolic Programs?* "
        f"(ICML 2025, arXiv 2505.20896), measured anew on this model. Summary run `{page.run.run_id}`; every number "
        "below is a metric of the run that is named with it, or of the summary run where none is. Rates of one yes or "
        "no a program or pair have 95% Wilson intervals, means 95% intervals over pairs, and normalized logit "
        "differences are ratios of means.",
        f"**This model.** {plain(config.model_type)}: {model.n_layers} layers, {model.n_heads} heads a layer, width "
        f"{config.hidden_size}, {parameters:,} parameters, {config.vocab_size:,} words, {positions}, "
        f"{model.dtype}. Numbers of layers and heads below are this model's; they cannot be compared with the paper's "
        f"one by one. Programs: {what.seq_len} lines, the published generator and format, "
        f"prompt {plain(get_prompt(what.prompt_template)[0])}, seeds from {what.seed} on.",
    )
    if model.id == "tiny":
        page.write(
            "The bundled model differs from the paper's in more than size: balanced and varied training programs, a "
            "curriculum, an auxiliary naming loss on right-hand sides in the beginning, and initial weights that lean "
            "towards looking up a name (its model card has the details). Without the one or the other the same "
            "architecture mostly does not carry the value line by line (docs/ablation.md). That this one does is no "
            "discovery; that it is found, at the layers and tokens where it is, is what this page can show."
        )


# ----------------------------------------------------------------------------------------------------------- accuracy


def _accuracy(page: Page, model: LoadedModel) -> ExperimentResult:
    what = page.what
    asked: dict[str, Any] = {
        "name": EXPERIMENT,
        "prompt_template": what.prompt_template,
        "program_generator": "variable_binding",
        "models": [what.model, *(PREFIX + name for name in HEURISTICS)],
        "num_seqs": what.num_seqs,
        "seed": what.seed,
    }
    by_hops = ExperimentConfig(seq_lens=[what.seq_len], hops=what.hops, **asked)
    result = page.accuracy([by_hops, ExperimentConfig(seq_lens=what.lengths, hops=[None], **asked)])
    page.write("## Accuracy", f"Study `{result.run_id}`; greedy decoding, the first number is the answer.")
    rows = [row for row in result.summary["cells"] if row["num_samples"]]
    for by, shown in (
        ("hops", own := [row for row in rows if row["hops"] is not None]),
        ("length", [row for row in rows if row["hops"] is None]),
    ):
        page.picture(f"accuracy_by_{by}", charts.accuracy_chart(_chart_frame(shown)), f"accuracy by {by}")
        _accuracy_table(page, shown, "hops" if by == "hops" else "seq_len")
    own = [row for row in own if row["model"] == model.id]
    samples = _answers(result, pl.col("model") == model.id, pl.col("seq_len") == what.seq_len)
    right = [answer in explanations(program)["dereferencing"] for answer, program in samples if misleads(program)]
    beyond = wilson(sum(right), len(right)) if right else None
    page.keep("accuracy_where_heuristics_fail", beyond)
    page.write(
        f"Of these, on the different {what.seq_len}-line programs whose answer is neither a number of line 1 or 2 nor "
        f"the root of the largest chain: {beyond or 'there is none among these'}."
    )
    lowest = min(own, key=lambda row: row["accuracy"])
    page.claim(
        "dereferences",
        f"Queries of {min(what.hops)} to {max(what.hops)} hops are answered.",
        f"accuracy surely above {SOLVED:.0%} at each",
        every(surely_above(_rate(row), SOLVED) for row in own) if len(own) == len(what.hops) else None,
        f"lowest, at {_hops(lowest['hops'])}: {_rate(lowest)}",
        lowest["run_id"],
    )
    page.claim(
        "beyond_heuristics",
        "What it does is not one of the shallow heuristics.",
        f"accuracy surely above {SOLVED:.0%} where line 1 and 2 and the largest chain mislead",
        surely_above(beyond, SOLVED),
        str(beyond or "no such program"),
        page.run.run_id,
    )
    return result


def _accuracy_table(page: Page, rows: list[dict[str, Any]], by: str) -> None:
    labels = list(dict.fromkeys(row["label"] for row in rows))
    at = {(row[by], row["label"]): row for row in rows}
    header = ["hops" if by == "hops" else "lines", *(plain(label) for label in labels)]
    values = sorted({value for value, _ in at})
    shown = {place: f"{_rate(row)}, run `{row['run_id'][:8]}`" for place, row in at.items()}
    page.table(header, [[value, *(shown.get((value, label), "") for label in labels)] for value in values])


def _rate(row: dict[str, Any]) -> Interval:
    return Interval(row["accuracy"], row["accuracy_ci_low"], row["accuracy_ci_high"], row["num_samples"], True)


def _chart_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    named = {"accuracy": "accuracy", "accuracy_ci_low": "ci_low", "accuracy_ci_high": "ci_high", "num_samples": "n"}
    frame = pl.DataFrame(rows, infer_schema_length=None).rename(named)
    return frame.select(pl.col("label").alias("model"), "hops", "seq_len", *named.values())


def _answers(result: ExperimentResult, *which: pl.Expr) -> list[tuple[int | None, str]]:
    """(answer, program) of the different programs that were asked and scored."""
    read = result.samples.filter(pl.col("correct").is_not_null(), *which).unique("program", maintain_order=True)
    return list(read.select("parsed", "program").iter_rows())


def _wrong_table(page: Page, row: str, wrong: dict[int, dict[str, Interval]]) -> None:
    """Of each step, or number of hops, :func:`wrong_answers`; logged too."""
    rows = []
    for value, by in wrong.items():
        page.keep_all(f"wrong_answers_by_{row}", by, value)
        rows += [[value, *(share if name in SHALLOW else _short(share) for name, share in by.items())]] if by else []
    page.table([row, *next(filter(None, wrong.values()), {"no wrong answer": None})], rows)


# --------------------------------------------------------------------------------------------------------- trajectory


def _training_run(store: Store, what: Reproduction) -> LoggedRun | None:
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


def _trajectory(page: Page, model: LoadedModel, training: LoggedRun | None, asked: ExperimentResult) -> None:
    what = page.what
    page.write("## The training trajectory")
    claim = (
        "three_phases",
        "Training goes through three phases: random numbers, a shallow heuristic of early lines, dereferencing.",
        f"a checkpoint that answers with digits (surely above {SOLVED:.0%}), right surely less than {NOTHING:.0%} "
        "oftener than numbers drawn from the program; a later one whose wrong answers are surely oftener of line 1 or "
        "2 than the value of a line drawn; both chosen on one half of the programs and measured on the other; the last "
        f"one surely right above {SOLVED:.0%} where the heuristics mislead. Undecided where no checkpoint shows a "
        "phase, which may lie between two",
    )
    folders = checkpoints(training) if training else {}
    if training is None or not folders:
        page.write("The store holds no training run with checkpoints, so the trajectory is not in this report.")
        page.claim(*claim, None, "no training run in the store")
        return
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
    result = page.accuracy([config], no_cache=True)
    answers = {step: _answers(result, pl.col("model") == folder.name) for step, folder in folders.items()}
    misled = {step: [one for one in found if misleads(one[1])] for step, found in answers.items()}
    last = max(folders)
    of_last = next(row for row in result.summary["cells"] if row["model"] == folders[last].name)
    if page.store.load_run(of_last["run_id"]).tags["debug.weights_digest"] == model.weights_digest:
        compared = "Its last checkpoint is the model that the other sections measure."
    else:
        own = {program: answer for answer, program in _answers(asked, pl.col("model") == model.id)}
        alike = [own[program] == answer for answer, program in answers[last] if program in own]
        share = wilson(sum(alike), len(alike)) if alike else None
        page.keep("last_checkpoint_answers_like_model", share)
        compared = (
            "**Its last checkpoint is not, byte for byte, the model that the other sections measure**: this is the "
            f"trajectory of another training. The two answer alike in {share or 'none: no program was put to both'}."
        )
    hops = Counter(Program.parse(program).hops for _, program in misled[last])
    page.write(
        f"Checkpoints of training run `{training.run_id}`, asked in study `{result.run_id}`. {compared}",
        f"Which share of the answers each strategy could have given: over all programs of "
        f"{', '.join(map(str, what.hops))} hops, as many of each; then where the heuristics are wrong (the right "
        "answer is neither a number of line 1 or 2 nor the root of the largest chain), most of which are short chains: "
        f"{', '.join(f'{n} of {_hops(depth)}' for depth, n in sorted(hops.items())) or 'none'}. The last rows are "
        "answers drawn at random: any digit, or one of the program's numbers.",
    )
    seen, draws = _explained_table(page, "all", "all programs", answers)
    if not misled[last]:
        page.claim(*claim, None, "the heuristics are right on every program")
        return
    where_wrong, _ = _explained_table(page, "telling", "where the heuristics are wrong", misled)
    page.write(
        "Of the wrong answers among the latter that are numbers of their program: the share that each heuristic could "
        "have given, and what chance gives, by a number drawn (each alike) and by the value of a line drawn (oftener "
        "numbers that many lines lead to); the right one is left out of the draws."
    )
    wrong = {step: by for step, found in misled.items() if (by := wrong_answers(found))}
    _wrong_table(page, "step", wrong)
    chance = draws["any number"]["dereferencing"]
    random = next((step for step, found in answers.items() if _random(found[::2], chance, sure=False)), None)
    later = {step: found for step, found in misled.items() if step > (random or -1)}
    shallow = {step: by for step, found in later.items() if (by := wrong_answers(found[::2]))}
    chosen = max(shallow, key=lambda step: shallow[step][EARLY].low or -1.0, default=None)
    is_random = None if random is None else _random(answers[random][1::2], chance)
    early = None if chosen is None else wrong_answers(misled[chosen][1::2]).get(EARLY)
    page.keep("early_lines_on_the_other_half", early)
    begins = next((step for step, by in seen.items() if by["a digit"].estimate > 0.5), last)
    before = max((step for step in seen if step < begins), default=begins)
    right = where_wrong[last]["dereferencing"]
    solved = surely_above(right, SOLVED)
    page.claim(
        *claim,
        False if solved is False else every([solved, is_random or None, surely_above(early, 0) or None]),
        f"random numbers at step {random} (digits at step {before}: {_short(seen[before]['a digit'])}, at {begins}: "
        f"{_short(seen[begins]['a digit'])}, right {_short(seen[begins]['dereferencing'])}, drawn {_short(chance)}); "
        f"line 1 or 2 less line drawn, at step {chosen}: {early or 'no wrong answer'}; right in the end {right}",
        page.run.run_id,
        result.run_id,
    )


def _random(answers: Sequence[tuple[int | None, str]], chance: Interval, sure: bool = True) -> bool:
    """Whether answers are digits, and right no oftener than numbers drawn: surely, or as far as their rates say."""
    if not answers:
        return False
    by = explained(answers)
    digits, right = by["a digit"], by["dereferencing"]
    if not sure:
        return digits.estimate >= SOLVED and right.estimate <= chance.estimate + NOTHING
    return bool(surely_above(digits, SOLVED) and surely_below(right, chance.estimate + NOTHING))


def _explained_table(
    page: Page, of: str, caption: str, answers: dict[int, list[tuple[int | None, str]]]
) -> tuple[dict[int, dict[str, Interval]], dict[str, dict[str, Interval]]]:
    """Step -> the share of answers that each strategy explains; the same of answers drawn from a pool; both logged."""
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
    rows = [[row, by["a digit"].n, *map(_short, by.values())] for row, by in named.items()]
    page.table([f"step, {caption}", "n", *draws["a digit"]], rows)
    return shares, draws


# ---------------------------------------------------------------------------------------------------- residual stream


def _residual_stream(page: Page) -> None:
    what = page.what
    page.write(
        "## Residual stream",
        f"The counterfactual's residual stream at one role's tokens, going into one layer, patched into the original "
        f"run: at every role from the root's value on and every layer, over {what.num_pairs} pairs of each number of "
        "hops (asked for; n is beside each). Pairs with the root on line 1 or 2 are left out, so that no "
        "heuristic of early lines could answer them. Success: the answer becomes the counterfactual's. In the figures "
        "information flows upwards; the top row is what the final norm reads.",
    )
    cells = page.patched(what.hops, "residual_stream", positions="targets", targets="roles")
    climbs: dict[int, bool | None] = {}
    moves: list[str] = []
    for hops, cell in cells.items():
        said = f"; accuracy on these pairs, before wrong ones are left out, {cell.accuracy}"
        mean = page.maps(hops, cell, said, success="success", normalized_logit_diff="normalized_logit_diff")
        _by_layer(page, mean, hops)
        page.write(f"Hand-overs: {'; '.join(map(str, mean.moves)).replace('->', '→') or 'none'}.")
        if hops == 1:
            continue  # from the root to the last token: both ends hold by construction, and there is no line between
        lines = {1, *(_line(move.after, hops) for move in mean.moves)}
        path = ", ".join(f"{move.after} at {move.layer}" for move in mean.moves) or "no hand-over"
        quiet = [f"line {line} never leads" for line in range(2, hops + 1) if line not in lines]
        moves.append(f"{_hops(hops)}: {', '.join([path, *quiet])}")
        climbs[hops] = climbed(mean, hops)
    page.claim(
        "line_by_line",
        "The residual stream is an addressable memory: the value moves along the chain from line to line.",
        "at each number of hops above 1 the value is handed over, as layers go up, from the root through every line of "
        "the chain in order and on to the query line; it does not where it is handed over past a line at whose tokens "
        f"success is surely below {LEADS:.0%} at every layer",
        page.inside(climbs, 2),
        "; ".join(moves) or "no run",
        *(cell.run_id for cell in cells.values()),
    )


def climbed(mean: MeanCausalMap, hops: int) -> bool | None:
    """Whether the value moves through every line of the chain in order; None where that is not sure, or there is no
    line between the root's and the query's."""
    moves = [(_line(move.before, hops), _line(move.after, hops)) for move in mean.moves]
    if hops == 1 or not moves or min(move.n for move in mean.moves) < SMALLEST:
        return None
    lines = [moves[0][0], *(after for _, after in moves)]
    if sorted(lines) == lines and set(lines) == set(range(1, hops + 2)):
        return True
    for line in {line for before, after in moves for line in range(before + 1, after)} - {*lines}:
        cells = [rate for curve in mean.curves if _line(curve.target, hops) == line for rate in curve.success]
        if every(surely_below(rate, LEADS) for rate in cells):
            return False
    return None


def _by_layer(page: Page, mean: MeanCausalMap, hops: int) -> None:
    """Success and normalized logit difference of the targets that matter, by layer; the normalized one is logged."""
    best = {curve.target: max(v.estimate for v in curve.success[: mean.n_layers] if v) for curve in mean.curves}
    header = [f"{_hops(hops)}: target", "n", *(f"layer {layer}" for layer in mean.layers[:-1]), "final norm"]
    for metric, title in (("success", "Success:"), ("normalized_logit_diff", "Normalized logit difference:")):
        for curve in mean.curves if metric == "normalized_logit_diff" else ():
            for layer, value in zip(mean.layers, curve[metric], strict=True):
                page.keep(f"normalized_logit_diff_by_layer/hops_{hops}/{curve.target}", value, layer)
        page.write(title)
        shown = [curve for curve in mean.curves if best[curve.target] >= SHOWN]
        page.table(header, [[c.target, c.n, *(_short(value) for value in c[metric])] for c in shown])
    rest = [rate for rate in best.values() if rate < SHOWN]
    if rest:
        page.write(f"The other {len(rest)} roles succeed in at most {max(rest):.1%} of the pairs at any layer.")


def _line(target: str, hops: int) -> int:
    """The referential depth of a target's line; that of the query line counts as one more than the chain's last."""
    depth = re.match(r"ref_depth_(\d+)_", target)
    return int(depth[1]) if depth else hops + 1


def _reads(target: str) -> bool:
    """Whether the value gets to a target from another line: the right-hand sides but the root's, and `final`."""
    return target == "final" or (target.endswith("_rhs") and target != "ref_depth_1_rhs")


# ---------------------------------------------------------------------------------------------------- attention heads


def _attention_heads(page: Page, model: LoadedModel) -> None:
    what = page.what
    page.write(
        "## Attention heads",
        "One head's output at one target patched at a time, on the same pairs. Every other pair chooses the heads: "
        f"those whose normalized logit difference lies above {MOVES} with its whole interval. On the rest they are "
        "measured; listed are those that do so again, intervals corrected for the number chosen (Bonferroni). Beside "
        "each, what the target's tokens attend to through it in these original programs: the three roles with the "
        "largest shares.",
    )
    cells = page.patched(what.hops, "attention_heads", positions="targets")
    every_head = model.n_layers * model.n_heads
    verdicts: dict[int, bool | None] = {}
    read: dict[int, bool | None] = {}
    counts: list[str] = []
    previous: dict[str, Interval] = {}  # place -> share of attention that goes to the chain line before
    for hops, cell in cells.items():
        page.maps(hops, cell, heads="normalized_logit_diff")
        found = moving_heads(page.store.load_run(cell.run_id).maps)
        verdicts[hops] = found.specialized(every_head)
        counts.append(f"{_hops(hops)}: {found.counted(every_head)}")
        shares = _attention_of(page, model, cell, {head.target for head in found.moving})
        rows = []
        for head in found.moving:
            target, layer, number, value, success = head
            place = f"hops_{hops}/{target}/layer_{layer}_head_{number}"
            page.keep(f"head_normalized_logit_diff/{place}", value)
            page.keep(f"head_success/{place}", success)
            own = {role: by[:, layer, number] for role, by in shares[target].items()}
            attended = {role: bootstrap_mean(share, is_rate=True) for role, share in own.items()}
            page.keep_all(f"attention_share/{place}", attended)
            top = sorted(attended, key=lambda role: -attended[role].estimate)[:3]
            at = ", ".join(f"{role} {_short(attended[role])}" for role in top)
            rows.append([target, layer, number, _short(success), value, at])
            if (target, layer, number) in found.strongest:
                before = [by for role, by in own.items() if role.startswith(f"ref_depth_{_line(target, hops) - 1}_")]
                share = bootstrap_mean(np.sum(before, axis=0), is_rate=True)
                page.keep(f"attention_to_previous_line/{place}", share)
                previous[f"{_hops(hops)}, {target}, layer {layer}, head {number}"] = share
                read[hops] = every([surely_above(share, 0.5), *([read[hops]] if hops in read else [])])
        header = ["target", "layer", "head", "success", "normalized logit difference", "attends to"]
        page.table([f"{_hops(hops)}: {header[0]}", *header[1:]], rows)
    runs = [cell.run_id for cell in cells.values()]
    page.claim(
        "specialized_heads",
        "Specialized attention heads route the value between token positions.",
        "at each number of hops some head surely moves the value into a right-hand side from referential depth 2 on "
        f"or into `final`, and at none of these more than a quarter of the {every_head} may do so; it does not where "
        "none can, or where more than a quarter surely do",
        page.inside(verdicts),
        "; ".join(counts) or "no run",
        *runs,
    )
    least = sorted(previous.items(), key=lambda item: item[1].estimate)[:2]
    page.claim(
        "heads_read_previous_line",
        "These heads look at the line of the chain before their own.",
        "through the head that moves most there (on the pairs that choose), the right-hand sides from referential "
        "depth 2 on, and `final`, surely give at least half of their attention to the chain line before",
        page.inside(read),
        f"least of {len(previous)} places, " + "; then ".join(f"at {place}: {share}" for place, share in least)
        if least
        else "no head moves the value there",
        page.run.run_id,
        *runs,
    )


class Head(NamedTuple):
    """What one head's output, patched at one target, does."""

    target: str
    layer: int
    head: int
    value: Interval
    """Normalized logit difference."""
    success: Interval | None


@dataclass(frozen=True)
class MovingHeads:
    """The heads that move the value: chosen on the pairs of even number, measured on those of odd number."""

    moving: list[Head]
    """Of those chosen the ones that do so again; intervals hold for all chosen at once."""
    chosen: int
    strongest: set[tuple[str, int, int]]
    """At each target that the value gets to, the one that moves most on the pairs that choose."""
    surely: dict[str, int]
    """Targets that the value gets to -> how many heads move it there."""
    perhaps: dict[str, int]
    """How many may: those whose interval on the measured pairs is not below ``MOVES``."""
    n: int

    def specialized(self, heads: int) -> bool | None:
        """Whether some, and few, of a model's heads move the value: see the claim."""
        if self.n < SMALLEST:
            return None
        if max(self.perhaps.values(), default=0) == 0 or max(self.surely.values(), default=0) > heads / 4:
            return False
        return True if any(self.surely.values()) and max(self.perhaps.values()) <= heads / 4 else None

    def counted(self, heads: int) -> str:
        surely, perhaps = (max(count.values(), default=0) for count in (self.surely, self.perhaps))
        return f"at most {surely} of {heads} at a target surely, {perhaps} perhaps (n={self.n})"


def moving_heads(maps: Iterable[CausalMap]) -> MovingHeads:
    """Choose and measure the heads that move the value, from causal maps of single heads.

    An effect that is no share of anything (:func:`ratio_of_means` gives None) may be above ``MOVES`` as well as below.
    """
    halves = MeanOverPairs(), MeanOverPairs()
    smallest = 0.0
    for number, causal_map in enumerate(maps):
        halves[number % 2].add(causal_map)
        smallest = causal_map.min_effect
    if halves[1].n_pairs == 0:
        return MovingHeads([], 0, set(), {}, {}, 0)
    chosen, measured = (half.result() for half in halves)
    found = list(_above_moves(chosen))
    by_strength = sorted(found, key=lambda head: head.value.estimate)
    strongest = {head.target: head for head in by_strength if _reads(head.target)}
    moving = []
    for head in found:
        name = f"{head.target}/head_{head.head}"
        _, behind = halves[1].behind(name, head.layer)
        effects, wholes = (behind[part][:, None] for part in ("logit_diff", "whole_effect"))
        [value] = ratio_of_means(effects, wholes, smallest, 1 - 0.05 / len(found))
        if value is not None and value.low is not None and value.low > MOVES:
            success = measured[name].success[measured.layers.index(head.layer)]
            moving.append(head._replace(value=value, success=success))
    targets = {curve.target.rpartition("/head_")[0] for curve in measured.curves}
    surely = {target: sum(head.target == target for head in moving) for target in targets if _reads(target)}
    perhaps = dict.fromkeys(surely, 0)
    for curve in measured.curves:
        target = curve.target.rpartition("/head_")[0]
        if target in perhaps:
            perhaps[target] += sum(map(_may_move, curve["normalized_logit_diff"]))
    places = {(head.target, head.layer, head.head) for head in strongest.values()}
    return MovingHeads(moving, len(found), places, surely, perhaps, measured.n_pairs)


def _may_move(value: Interval | None) -> bool:
    """No value, or no ends, can be anything; but zeros are: of cells whose effect is so by construction."""
    if value is None or value.high is None:
        return value is None or value.estimate != 0
    return value.high >= MOVES


def _above_moves(mean: MeanCausalMap) -> Iterator[Head]:
    """The heads whose whole interval is above ``MOVES``."""
    for curve in mean.curves:
        target, _, head = curve.target.rpartition("/head_")
        by_layer = zip(mean.layers, curve["normalized_logit_diff"], curve.success, strict=True)
        for layer, value, success in by_layer:
            if value is not None and value.low is not None and value.low > MOVES:
                yield Head(target, layer, int(head), value, success)


def _attention_of(
    page: Page, model: LoadedModel, cell: CellResult, targets: set[str]
) -> dict[str, dict[str, Float[np.ndarray, "pair layer head"]]]:
    """Target -> role -> attention shares, of the original programs of the pairs on which heads are measured."""
    run = page.store.load_run(cell.run_id)
    template = Plan(**run.config["plan"]).template  # as the pairs were run
    found: dict[str, dict[str, list[np.ndarray]]] = {target: {} for target in targets}
    for pair in run.pairs[1::2]:
        program = analyze(model.tokenizer, pair.original, template)
        pattern = attention_pattern(model, torch.tensor(program.token_ids))
        for target in targets:
            for role, share in attention_shares(pattern, program, target).items():
                found[target].setdefault(role, []).append(share)
    return {target: {role: np.stack(by) for role, by in roles.items()} for target, roles in found.items()}


# ----------------------------------------------------------------------------------------------------------- knockout


def _knockout(page: Page) -> None:
    page.write(
        "## Knockout",
        "Attention edges cut in all layers. Direct pointer: the query line's tokens cannot look at the root's value. "
        "Chain following: the query line cannot look at the chain's last line, nor any chain line at the one before "
        "it; then each of these alone. Beside each, random edges cut in the same pairs, and the paired difference with "
        "its exact McNemar test.",
    )
    cells: dict[int, CellResult] = {}
    for hops in (hops for hops in page.what.hops if hops > 1):
        cells |= page.patched([hops], "attention_knockout", positions=[*HYPOTHESES, *_steps(hops)])
    rows: list[list[object]] = []
    kept: dict[str, dict[int, tuple[Interval, Interval]]] = {}
    single: dict[int, dict[str, tuple[Interval, Interval]]] = {}
    for hops, cell in cells.items():
        mean, steps = _of(cell), _steps(hops)
        for name, [compared, *_] in mean.against_random.items():
            own, random = (mean[target]["answer_kept"][0] for target in (name, name + RANDOM))
            assert own is not None
            label = steps.get(name, name.replace("_", " "))
            test = [compared.difference, f"{compared.p_value:.2g}", f"`{cell.run_id}`"]
            rows.append([hops, label, own, random, *test])
            into = single.setdefault(hops, {}) if name in steps else kept.setdefault(name, {})
            into[label if name in steps else hops] = (own, compared.difference)  # type: ignore[index]
    page.table(["hops", "cut", "answer kept", "with random edges cut", "difference", "p", "run"], rows)
    for hops, cell in cells.items():
        page.picture(f"knockout_{hops}_hops", charts.knockout_chart(_of(cell)), f"knockout, {_hops(hops)}")
    runs = [cell.run_id for cell in cells.values()]
    lost, direct = kept.get("chain_following", {}), kept.get("direct_pointer", {})
    most = max(lost.items(), key=lambda item: item[1][0].estimate, default=None)
    least = min(direct.items(), key=lambda item: item[1][0].estimate, default=None)
    page.claim(
        "chain_following_needed",
        "The answer is found by following the chain line by line.",
        "with those edges cut the answer is kept surely in less than half of the pairs, and surely in fewer than with "
        "random edges cut",
        page.inside(
            {hops: every([surely_below(own, 0.5), surely_below(diff, 0)]) for hops, (own, diff) in lost.items()}, 2
        ),
        f"kept most, at {_hops(most[0])}: {most[1][0]}; difference {most[1][1]}" if most else "no run",
        *runs,
    )
    weakest = [
        (diff.estimate, f"{_hops(hops)}, {label}: {own}, difference {diff}")
        for hops, by in single.items()
        for label, (own, diff) in by.items()
    ]
    page.claim(
        "every_line_read",
        "Each line of the chain reads the one before it (ours, not the paper's: the claim before, edge by edge).",
        "with one line's edges to the one before it cut, and no others, the answer is kept surely in fewer pairs than "
        f"with random edges cut; it does not where the difference is surely smaller than {NOTHING:.0%}",
        page.inside({hops: every(_needed(diff) for _, diff in by.values()) for hops, by in single.items()}, 2),
        "matters least: " + max(weakest)[1] if weakest else "no run",
        *runs,
    )
    page.claim(
        "no_direct_pointer",
        "The query does not point straight at the root's value.",
        "with those edges cut the answer is kept surely in 90% of the pairs or more",
        page.inside({hops: surely_above(own, 0.9) for hops, (own, _) in direct.items()}, 2),
        f"kept least, at {_hops(least[0])}: {least[1][0]}; difference {least[1][1]}" if least else "no run",
        *runs,
    )
    page.write(
        "What the model answers instead, the chain-following edges cut: of the wrong answers that are numbers of their "
        "program, the share of each shallow heuristic, beside chance as in the trajectory. In none of these pairs is "
        "the root on line 1 or 2."
    )
    wrong = {hops: wrong_answers(_cut(page.store.load_run(cell.run_id))) for hops, cell in cells.items()}
    _wrong_table(page, "hops", wrong)
    page.claim(
        "heuristic_kept",
        "The early-line heuristic stays beneath the final mechanism, as what it falls back on.",
        "with the chain-following edges cut, wrong answers at each number of hops are surely oftener of line 1 or 2 "
        "than the value of a line drawn (chosen after such runs were seen; not tested: whether random cuts do so too)",
        page.inside({hops: surely_above(by.get(EARLY), 0) for hops, by in wrong.items()}, 2),
        "; ".join(
            f"{_hops(hops)}: {by['line 1 or 2']}, less line drawn {_short(by[EARLY])}"
            for hops, by in wrong.items()
            if by
        )
        or "no wrong answer",
        page.run.run_id,
        *runs,
    )


def _steps(hops: int) -> dict[str, str]:
    """The edges of chain following one line at a time: hypothesis -> what it cuts, in words."""
    steps = {f"{QUERY_LINE}->ref_depth_{hops}_line": f"query → line {hops}"}
    for line in range(hops, 1, -1):
        steps[f"ref_depth_{line}_line->ref_depth_{line - 1}_line"] = f"line {line} → line {line - 1}"
    return steps


def _needed(difference: Interval) -> bool | None:
    """Whether cutting surely costs answers (True), or surely next to none (False)."""
    return False if surely_above(difference, -NOTHING) else surely_below(difference, 0) or None


def _cut(run: LoggedRun) -> Iterator[tuple[int | None, str]]:
    """(answer, program) of a knockout's pairs with the chain-following edges cut."""
    pairs = run.pairs
    for found in run.maps:
        [token] = found.top[..., found.target_columns["chain_following"]]
        text = found.vocabulary[int(token)].strip()
        yield int(text) if text.isdecimal() else None, pairs[found.pair].original.text


# ------------------------------------------------------------------------------------------------------------- claims


def _claims(page: Page) -> None:
    page.write(
        "## The paper's claims on this model",
        "A number is *surely* above or below another where its whole interval is, and it is of "
        f"{SMALLEST} programs or pairs or more. A claim *holds* where its criterion is surely met, *does not* where it "
        "is surely not, and is *undecided* else: on more pairs it may be decided. Claims of what goes on inside are "
        f"decided where the model surely answers more than {ANSWERS:.0%} of the pairs: the right answers of another "
        "are luck, and what moves them is no mechanism. Whatever is chosen (heads, checkpoints, hand-overs) is chosen "
        "on one half of the pairs or programs and measured on the other.",
    )
    page.table(
        ["claim", "what counts as holding", "on this model it", "its number", "runs"],
        [
            [c.text, c.criterion, f"**{c.verdict}**", c.number, " ".join(f"`{run[:8]}`" for run in c.runs)]
            for c in page.claims
        ],
    )


def _of(cell: CellResult) -> MeanCausalMap:
    assert cell.mean is not None  # Page.patched leaves the others out
    return cell.mean


def _hops(hops: int) -> str:
    return f"{hops} {'hop' if hops == 1 else 'hops'}"


def _short(value: Interval | None) -> str:
    """Without n, where that is told beside it."""
    return "no value" if value is None else str(value).rpartition(" (n=")[0]
