"""The paper's findings on one model: the runs that show them, and a report page of what these runs hold.

:func:`reproduce` carries out accuracy runs, causal runs and, where there is a training run, accuracy runs of its
checkpoints, all in one MLflow experiment and nested under one summary run. That run holds ``report.md`` with its
pictures, ``summary.json``, and as metrics every number of the page that no other run holds. The findings are those of
Wu, Geiger and Millière (ICML 2025, arXiv 2505.20896); how they are measured is in the runners and the engine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from debug import causal_visualization as charts
from debug import models
from debug.causal_experiment_runner import CausalExperimentRunner, CellResult
from debug.causal_map import RANDOM, MeanCausalMap
from debug.causal_tracing import Plan
from debug.core import ExperimentConfig
from debug.counterfactual import make_pair
from debug.generators import make_variable_binding_program, search
from debug.heuristics import HEURISTICS, PREFIX, largest_chain
from debug.models import LoadedModel
from debug.programs import Program, ProgramPair
from debug.prompts import get_prompt
from debug.runner import ExperimentResult, ExperimentRunner
from debug.statistics import Interval, bootstrap_mean, wilson
from debug.token_analyzer import TokenizedProgram, analyze
from debug.tracking import LoggedRun, RunWriter, Store

EXPERIMENT = "reproduce_paper"
SOLVED = 0.99  # accuracy from which on a depth counts as solved
MOVES = 0.1  # a head moves the value where its normalized logit difference is surely above this
SHOWN = 0.05  # targets that reach less success than this at every layer are not listed one by one
EXPLANATIONS = ("any number", "line 1 or 2", "largest chain", "dereferencing")


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
    """A claim of the paper on this model; ``holds`` is None where the runs do not test it."""

    name: str
    text: str
    criterion: str
    holds: bool | None
    number: str
    runs: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "does not hold", None: "not tested"}[self.holds]


class Page:
    """The report while it is written, and the summary run that keeps it and its numbers."""

    def __init__(self, what: Reproduction, store: Store, run: RunWriter, dtype: str | None, device: str | None) -> None:
        self.what, self.store, self.run, self.dtype, self.device = what, store, run, dtype, device
        self.lines: list[str] = []
        self.claims: list[Claim] = []

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
            self.run.log_metrics(value.metrics(name), step)

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
        full = Plan(
            intervention_type,
            prompt_template=what.prompt_template,
            require_correct=True,
            exclude_shallow=True,
            logit_lens=False,
            **plan,
        )
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
        return cells

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
        _accuracy(page, model)
        _trajectory(page, model, training)
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
        "no a program or pair have 95% Wilson intervals, means 95% bootstrap intervals over pairs.",
        f"**This model.** {plain(config.model_type)}: {model.n_layers} layers, {model.n_heads} heads a layer, width "
        f"{config.hidden_size}, {parameters:,} parameters, {config.vocab_size:,} words, {positions}, "
        f"{model.dtype}. Numbers of layers and heads below are this model's; they cannot be compared with the paper's "
        f"one by one. Programs: {what.seq_len} lines, the published generator and format, "
        f"prompt {plain(get_prompt(what.prompt_template)[0])}, seeds from {what.seed} on.",
    )
    if model.id == "tiny":
        page.write(
            "The bundled model differs from the paper's in more than size: balanced and varied training programs, a "
            "curriculum, an auxiliary naming loss in the beginning, and initial weights that lean towards looking up a "
            "name (its model card has the details). That it looks names up is thus less of a discovery than in the "
            "paper; at which layers and tokens it does, and how the value travels, is measured here."
        )


# ----------------------------------------------------------------------------------------------------------- accuracy


def _accuracy(page: Page, model: LoadedModel) -> None:
    what = page.what
    asked: dict[str, Any] = {
        "name": EXPERIMENT,
        "prompt_template": what.prompt_template,
        "program_generator": "variable_binding",
        "models": [what.model, *(PREFIX + name for name in HEURISTICS)],
        "num_seqs": what.num_seqs,
        "seed": what.seed,
    }
    result = page.accuracy(
        [
            ExperimentConfig(seq_lens=[what.seq_len], hops=what.hops, **asked),
            ExperimentConfig(seq_lens=what.lengths, hops=[None], **asked),
        ]
    )
    rows = [row for row in result.summary["cells"] if row["num_samples"]]
    by_hops = [row for row in rows if row["hops"] is not None]
    by_length = [row for row in rows if row["hops"] is None]
    page.write("## Accuracy", f"Study `{result.run_id}`; greedy decoding, the first number is the answer.")
    page.picture("accuracy_by_hops", charts.accuracy_chart(_chart_frame(by_hops)), "accuracy by hops")
    _accuracy_table(page, by_hops, "hops")
    page.picture("accuracy_by_length", charts.accuracy_chart(_chart_frame(by_length)), "accuracy by length")
    _accuracy_table(page, by_length, "seq_len")
    telling = result.samples.filter(
        pl.col("model") == model.id, pl.col("seq_len") == what.seq_len, pl.col("correct").is_not_null()
    ).unique("program", maintain_order=True)
    right = [row["correct"] for row in telling.iter_rows(named=True) if _telling(row["program"])]
    beyond = wilson(sum(right), len(right)) if right else None
    page.keep("accuracy_where_heuristics_fail", beyond)
    page.write(
        f"Of these, on the different {what.seq_len}-line programs whose answer is neither a number of line 1 or 2 nor "
        f"the root of the largest chain: {beyond or 'there is none among these'}."
    )
    own = [row for row in by_hops if row["model"] == model.id]
    lowest = min(own, key=lambda row: row["accuracy"])
    page.claims += [
        Claim(
            "dereferences",
            f"Queries of {min(what.hops)} to {max(what.hops)} hops are answered.",
            f"accuracy of {SOLVED:.0%} or more at each",
            len(own) == len(what.hops) and lowest["accuracy"] >= SOLVED,
            f"lowest, at {_hops(lowest['hops'])}: {_rate(lowest)}",
            [lowest["run_id"]],
        ),
        Claim(
            "beyond_heuristics",
            "What it does is not one of the shallow heuristics.",
            f"accuracy of {SOLVED:.0%} or more where line 1 and 2 and the largest chain mislead",
            None if beyond is None else beyond.estimate >= SOLVED,
            str(beyond or "no such program"),
            [page.run.run_id],
        ),
    ]


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


def explanations(program: str) -> dict[str, set[int]]:
    """Which answers each strategy could give: any number, a number of line 1 or 2, the root of the largest chain, and
    the value that the query's chain leads to."""
    parsed = Program.parse(program)
    numbers = [(line.line, int(line.rhs)) for line in parsed.assignments if line.source is None]
    return dict(
        zip(
            EXPLANATIONS,
            (
                {number for _, number in numbers},
                {number for line, number in numbers if line < 2},
                {int(largest_chain(program, np.random.RandomState(0)))},
                {parsed.answer},
            ),
            strict=True,
        )
    )


def _telling(program: str) -> bool:
    """Whether the right answer is none that line 1 or 2, or the largest chain, would give."""
    _, early, largest, right = explanations(program).values()
    return not right & (early | largest)


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


def _trajectory(page: Page, model: LoadedModel, training: LoggedRun | None) -> None:
    what = page.what
    page.write("## The training trajectory")
    text = "Training goes through three phases: random numbers, a shallow heuristic of early lines, dereferencing."
    criterion = (
        "a checkpoint that gives numbers, of the program no oftener than chance; a later one that, where the heuristic "
        "misleads, gives numbers of line 1 or 2 surely oftener than chance; the last one gives the right answer there "
        f"in {SOLVED:.0%} or more"
    )
    folders = checkpoints(training) if training else {}
    if training is None or not folders:
        page.write("The store holds no training run with checkpoints, so the trajectory is not in this report.")
        page.claims.append(Claim("three_phases", text, criterion, None, "no training run in the store"))
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
    rows = list(_explained(result, folders, what))
    for row in rows:
        page.keep(f"explained/{row['of']}/{row['explanation']}".replace(" ", "_"), row["share"], row["step"])
    of = {(row["of"], row["explanation"], row["step"]): row["share"] for row in rows}
    names = dict.fromkeys(row["explanation"] for row in rows)
    page.write(
        f"Checkpoints of training run `{training.run_id}`, asked in study `{result.run_id}`: which share of their "
        f"answers each strategy could have given. First over all programs of {', '.join(map(str, what.hops))} hops, as "
        "many of each; then over those of which the right answer is neither a number of line 1 or 2 nor the root of "
        "the largest chain. By chance: drawn at random from the program's numbers.",
    )
    for which, caption in (("all", "all programs"), ("telling", "programs on which the heuristics are wrong")):
        shown = [row for row in rows if row["of"] == which and row["explanation"] in EXPLANATIONS]
        if shown:
            frame = pl.DataFrame(
                [
                    {
                        "step": row["step"],
                        "explanation": row["explanation"],
                        "share": row["share"].estimate,
                        "ci_low": row["share"].low,
                        "ci_high": row["share"].high,
                    }
                    for row in shown
                ]
            )
            page.picture(f"trajectory_{which}", charts.trajectory_chart(frame, caption), caption)
            cells = [[step, *(of[which, name, step] for name in names)] for step in folders]
            page.table([f"step, {caption}", *names], cells)
    last = max(folders)
    if ("telling", "dereferencing", last) not in of:
        page.claims.append(Claim("three_phases", text, criterion, None, "the heuristics are right on every program"))
        return
    random = [
        step
        for step in folders
        if of["all", "a digit", step].estimate >= SOLVED
        and (of["all", "any number", step].low or 0) <= of["all", "any number by chance", step].estimate
    ]
    shallow = [
        step
        for step in folders
        if step > min(random, default=last)
        and (of["telling", "line 1 or 2", step].low or 0) > of["telling", "line 1 or 2 by chance", step].estimate
    ]
    right = of["telling", "dereferencing", last]
    steps = f"random numbers at steps {random or 'none'}, early lines at {shallow or 'none'}"
    page.claims.append(
        Claim(
            "three_phases",
            text,
            criterion,
            bool(random) and bool(shallow) and right.estimate >= SOLVED,
            f"{steps}, right in the end {right}",
            [page.run.run_id, result.run_id],
        )
    )


def _explained(result: ExperimentResult, folders: dict[int, Path], what: Reproduction) -> Iterator[dict[str, Any]]:
    """The share of a checkpoint's answers that each strategy could have given, and what chance would give."""
    for step, folder in folders.items():
        read = result.samples.filter(pl.col("model") == folder.name, pl.col("correct").is_not_null())
        read = read.unique("program", maintain_order=True)
        samples = [(row["parsed"], explanations(row["program"]), row["program"]) for row in read.iter_rows(named=True)]
        for of, chosen in (("all", samples), ("telling", [one for one in samples if _telling(one[2])])):
            if not chosen:
                continue
            shares = {"a digit": wilson(sum(parsed in range(10) for parsed, *_ in chosen), len(chosen))}
            for name in EXPLANATIONS:
                fits = [parsed in explained[name] for parsed, explained, _ in chosen]
                shares[name] = wilson(sum(fits), len(fits))
            any_number = [len(explained["any number"]) / 10 for _, explained, _ in chosen]
            early = [len(explained["line 1 or 2"]) / len(explained["any number"]) for _, explained, _ in chosen]
            shares["any number by chance"] = bootstrap_mean(any_number, is_rate=True)
            shares["line 1 or 2 by chance"] = bootstrap_mean(early, is_rate=True)
            yield from ({"of": of, "step": step, "explanation": name, "share": shares[name]} for name in shares)


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
    arrivals: dict[int, int] = {}
    climbs: dict[int, bool] = {}
    moves: list[str] = []
    for hops, cell in cells.items():
        mean = _of(cell)
        page.write(
            f"### {_hops(hops)}",
            f"Run `{cell.run_id}`; accuracy on these pairs, before wrong ones are left out, {cell.accuracy}.",
        )
        page.picture(f"success_{hops}_hops", charts.mean_heatmap(mean), f"success, {_hops(hops)}")
        picture = charts.mean_heatmap(mean, "normalized_logit_diff")
        page.picture(f"normalized_logit_diff_{hops}_hops", picture, f"normalized logit difference, {_hops(hops)}")
        _by_layer(page, mean, hops)
        handed = mean.hand_overs()
        for before, after, layer in handed:
            page.run.log_metrics({f"hand_over_layer/hops_{hops}/{before}_to_{after}": layer})
        page.write(
            "Hand-over layers: "
            + (", ".join(f"{before} → {after} at {layer}" for before, after, layer in handed) or "none")
            + "."
        )
        lines = [1, *(_line(after, hops) for _, after, _ in handed)]
        climbs[hops] = sorted(lines) == lines and set(lines) == set(range(1, hops + 2))
        path = ", ".join(f"{after} at {layer}" for _, after, layer in handed) or "none"
        passed_over = [f"line {line} passed over" for line in range(1, hops + 1) if line not in lines]
        moves.append(f"{_hops(hops)}: {', '.join([path, *passed_over])}")
        if handed and handed[-1][1] == "final":
            arrivals[hops] = handed[-1][2]
    runs = [cell.run_id for cell in cells.values()]
    page.claims += [
        Claim(
            "line_by_line",
            "The residual stream is an addressable memory: the value moves along the chain from line to line.",
            "the target with the highest success rate moves, as layers go up, through every line of the chain in order "
            "and on to the query line",
            all(climbs.values()) if climbs else None,
            "; ".join(moves) or "no run",
            runs,
        ),
        Claim(
            "deeper_is_later",
            "Deeper chains are resolved at later layers.",
            "the layer at which `final` takes over never falls with the number of hops, and rises over all",
            None if len(arrivals) < 2 else _rises([arrivals[hops] for hops in sorted(arrivals)]),
            ", ".join(f"{_hops(hops)}: layer {layer}" for hops, layer in arrivals.items())
            or "`final` never takes over",
            runs,
        ),
    ]


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


def _rises(layers: list[int]) -> bool:
    return sorted(layers) == layers and layers[0] < layers[-1]


# ---------------------------------------------------------------------------------------------------- attention heads


@torch.inference_mode()
def attention_pattern(
    model: LoadedModel, token_ids: Int[Tensor, " token"]
) -> Float[np.ndarray, "layer head query key"]:
    """What every head attends to in one prompt. The model computes its attention eagerly for this one pass."""
    before = model.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        output = model.hf(input_ids=token_ids[None].to(model.device), output_attentions=True, use_cache=False)
    finally:
        model.hf.set_attn_implementation(before)
    return torch.cat(output.attentions).float().cpu().numpy()


def attention_shares(
    pattern: Float[np.ndarray, "layer head query key"], program: TokenizedProgram, target: str
) -> dict[str, Float[np.ndarray, "layer head"]]:
    """The share of its attention that a target's tokens, on the mean, give to each role, and to ``other lines``."""
    of = pattern[:, :, program.positions(target)].mean(2)
    role_at = {position: role for role, at in program.roles.items() for position in at}
    shares: dict[str, Float[np.ndarray, "layer head"]] = {}
    for position in range(of.shape[-1]):
        role = role_at.get(position, "other lines")
        shares[role] = shares.get(role, 0) + of[..., position]
    return shares


def _attention_heads(page: Page, model: LoadedModel) -> None:
    what = page.what
    page.write(
        "## Attention heads",
        "One head's output at one target patched at a time, on the same pairs. Listed are the heads that move the "
        f"value: those whose normalized logit difference lies above {MOVES} with its whole interval. Beside each, what "
        "the target's tokens attend to through it in the original programs: the three roles with the largest shares.",
    )
    cells = page.patched(what.hops, "attention_heads", positions="targets")
    moving: dict[int, int] = {}  # hops -> the most heads that move the value at one target
    previous: list[tuple[str, Interval, str]] = []
    for hops, cell in cells.items():
        mean = _of(cell)
        page.write(f"### {_hops(hops)}", f"Run `{cell.run_id}`.")
        picture = charts.mean_heatmap(mean, "normalized_logit_diff")
        page.picture(f"heads_{hops}_hops", picture, f"normalized logit difference by head, {_hops(hops)}")
        heads = list(_moving(mean))
        for target, layer, head, value, _ in heads:
            page.keep(f"head_normalized_logit_diff/hops_{hops}/{target}/layer_{layer}_head_{head}", value)
        shares = _attention_of(page, model, cell, {target for target, *_ in heads})
        rows = []
        for target, layer, head, value, success in heads:
            own = {role: bootstrap_mean(by[:, layer, head], is_rate=True) for role, by in shares[target].items()}
            for role, share in own.items():
                name = f"attention_share/hops_{hops}/{target}/layer_{layer}_head_{head}/{role}"
                page.keep(name.replace(" ", "_"), share)
            top = sorted(own.items(), key=lambda item: -item[1].estimate)[:3]
            attended = ", ".join(f"{role} {_short(share)}" for role, share in top)
            rows.append([target, layer, head, _short(success), value, attended])
        page.table(
            [f"{_hops(hops)}: target", "layer", "head", "success", "normalized logit difference", "attends to"], rows
        )
        read = Counter(target for target, *_ in heads if _reads(target))
        moving[hops] = max(read.values(), default=0)
        previous += list(_to_previous_line(heads, shares, hops))
    for name, share, _ in previous:
        page.keep(f"attention_to_previous_line/{name}", share)
    every = model.n_layers * model.n_heads
    least = min(previous, key=lambda one: one[1].estimate, default=None)
    runs = [cell.run_id for cell in cells.values()]
    page.claims += [
        Claim(
            "specialized_heads",
            "Specialized attention heads route the value between token positions.",
            "at each number of hops some head moves the value into a right-hand side from referential depth 2 on or "
            f"into `final`, and none of these has more such heads than a quarter of the {every}",
            all(0 < count <= every / 4 for count in moving.values()) if moving else None,
            ", ".join(f"{_hops(hops)}: at most {count} of {every} at a target" for hops, count in moving.items())
            or "no run",
            runs,
        ),
        Claim(
            "heads_read_previous_line",
            "These heads look at the line of the chain before their own.",
            "through the head that moves most there, the right-hand sides from referential depth 2 on, and `final`, "
            "give at least half of their attention to the chain line before",
            None if least is None else least[1].estimate >= 0.5,
            "no head moves the value there" if least is None else f"least, at {least[2]}: {least[1]}",
            [page.run.run_id, *runs],
        ),
    ]


def _moving(mean: MeanCausalMap) -> Iterator[tuple[str, int, int, Interval, Interval | None]]:
    """(target, layer, head, normalized logit difference, success) of the heads that move the value."""
    for curve in mean.curves:
        target, _, head = curve.target.rpartition("/head_")
        by_layer = zip(mean.layers, curve["normalized_logit_diff"], curve.success, strict=True)
        for layer, value, success in by_layer:
            if value is not None and value.low is not None and value.low > MOVES:
                yield target, layer, int(head), value, success


def _attention_of(
    page: Page, model: LoadedModel, cell: CellResult, targets: set[str]
) -> dict[str, dict[str, Float[np.ndarray, "pair layer head"]]]:
    """Target -> role -> attention shares, of the original programs of a run's pairs."""
    template = get_prompt(page.what.prompt_template)[1]
    found: dict[str, dict[str, list[np.ndarray]]] = {target: {} for target in targets}
    for pair in page.store.load_run(cell.run_id).pairs:
        program = analyze(model.tokenizer, pair.original, template)
        pattern = attention_pattern(model, torch.tensor(program.token_ids))
        for target in targets:
            for role, share in attention_shares(pattern, program, target).items():
                found[target].setdefault(role, []).append(share)
    return {target: {role: np.stack(by) for role, by in roles.items()} for target, roles in found.items()}


def _to_previous_line(
    heads: list[tuple[str, int, int, Interval, Interval | None]],
    shares: dict[str, dict[str, Float[np.ndarray, "pair layer head"]]],
    hops: int,
) -> Iterator[tuple[str, Interval, str]]:
    """(metric's name, share of attention to the chain line before, the place in words) of the head that moves most at
    each right-hand side from referential depth 2 on, and at ``final``."""
    best: dict[str, tuple[str, int, int, Interval, Interval | None]] = {}
    for found in heads:
        if found[0] not in best or best[found[0]][3].estimate < found[3].estimate:
            best[found[0]] = found
    for target, (_, layer, head, *_) in best.items():
        if not _reads(target):
            continue
        line = _line(target, hops)
        roles = [by for role, by in shares[target].items() if role.startswith(f"ref_depth_{line - 1}_")]
        name = f"hops_{hops}/{target}/layer_{layer}_head_{head}"
        share = bootstrap_mean(np.sum(roles, axis=0)[:, layer, head], is_rate=True)
        yield name, share, f"{_hops(hops)}, {target}, layer {layer}, head {head}"


# ----------------------------------------------------------------------------------------------------------- knockout


def _knockout(page: Page) -> None:
    page.write(
        "## Knockout",
        "Attention edges cut in all layers. Direct pointer: the query line's tokens cannot look at the root's value. "
        "Chain following: the query line cannot look at the chain's last line, nor any chain line at the one before "
        "it. Beside each, as many random edges cut in the same pairs, and the paired difference with its exact McNemar "
        "test.",
    )
    cells = page.patched([hops for hops in page.what.hops if hops > 1], "attention_knockout")
    rows, lost, kept = [], {}, {}
    for hops, cell in cells.items():
        mean = _of(cell)
        for name, by_layer in mean.against_random.items():
            own, random = (mean[target]["answer_kept"][0] for target in (name, name + RANDOM))
            compared = by_layer[0]
            rows.append(
                [
                    hops,
                    name.replace("_", " "),
                    own,
                    random,
                    compared.difference,
                    f"{compared.p_value:.2g}",
                    f"`{cell.run_id}`",
                ]
            )
            (lost if name == "chain_following" else kept)[hops] = (own, compared.difference)
    page.table(["hops", "cut", "answer kept", "with random edges cut", "difference", "p", "run"], rows)
    for hops, cell in cells.items():
        page.picture(f"knockout_{hops}_hops", charts.knockout_chart(_of(cell)), f"knockout, {_hops(hops)}")
    runs = [cell.run_id for cell in cells.values()]
    most = max(lost.items(), key=lambda item: item[1][0].estimate, default=None)
    least = min(kept.items(), key=lambda item: item[1][0].estimate, default=None)
    page.claims += [
        Claim(
            "chain_following_needed",
            "The answer is found by following the chain line by line.",
            "with those edges cut the answer is kept in less than half of the pairs, and in fewer than with random "
            "edges cut (whole interval of the difference below 0)",
            most and all(own.estimate < 0.5 and (diff.high or 0) < 0 for own, diff in lost.values()),
            (most and f"kept most, at {_hops(most[0])}: {most[1][0]}; difference {most[1][1]}") or "no run",
            runs,
        ),
        Claim(
            "no_direct_pointer",
            "The query does not point straight at the root's value.",
            "with those edges cut the answer is kept in 90% of the pairs or more",
            least and least[1][0].estimate >= 0.9,
            (least and f"kept least, at {_hops(least[0])}: {least[1][0]}; difference {least[1][1]}") or "no run",
            runs,
        ),
    ]


# ------------------------------------------------------------------------------------------------------------- claims


def _claims(page: Page) -> None:
    page.claims.append(
        Claim(
            "heuristic_kept",
            "The early-line heuristic stays part of the final mechanism.",
            "not measured: pairs with the root on line 1 or 2 are left out of every causal run here",
            None,
            "none",
        )
    )
    page.write("## The paper's claims on this model")
    page.table(
        ["claim", "what counts as holding", "on this model", "its number", "runs"],
        [
            [
                claim.text,
                claim.criterion,
                f"**{claim.verdict}**",
                claim.number,
                " ".join(f"`{r[:8]}`" for r in claim.runs),
            ]
            for claim in page.claims
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
