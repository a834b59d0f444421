"""The views of a training run: what its checkpoints answer, and what is inside of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
import polars as pl

from debug import causal_visualization as charts
from debug.causal_map import MeanCausalMap, MeanOverPairs
from debug.causal_visualization.checkpoints import (
    OUTCOMES,
    accuracy_by_feature,
    answer_flow,
    answers_heatmap,
    components_chart,
    confusion_matrix,
    logits_by_step,
    outcome_bars,
)
from debug.causal_visualization.comparison import over_steps, slopes
from debug.causal_visualization.side_by_side import side_by_side
from debug.errors import DebugError
from debug.kinds import Json
from debug.paper.strategies import explained
from debug.site import blocks
from debug.site.blocks import Block, Files, key
from debug.site.checkpoints import Checkpoints, Said
from debug.statistics import Interval, mcnemar, wilson
from debug.tracking import LoggedRun

MOST_PROGRAMS = 48
"""Rows of the heatmap of programs by checkpoints."""
MOST_COMPARED = 16
"""Checkpoints that are compared, each with each."""
MEASURE = "debug site STORE OUT --force --measure 50"
_ANSWERS = "answers of its checkpoints to the same programs"

Outcome = pl.DataFrame


def write_training(files: Files, checkpoints: Checkpoints) -> list[tuple[str, str]]:
    """Write the views of a training run; their names and titles."""
    run = checkpoints.training
    place = f"training/{key(run.run_id)}"
    views: dict[str, tuple[str, Callable[[Files, str, Checkpoints], list[Block]]]] = {
        "graph": ("Program graph", graph),
        "programs": ("Programs by checkpoint", programs),
        "trajectory": ("Training trajectory", trajectory),
        "answers": ("Answers of a checkpoint", answers),
        "statistics": ("Checkpoint statistics", statistics),
        "comparison": ("Two checkpoints", comparison),
        "logits": ("Logits by layer and step", logits),
        "heads": ("Heads", heads),
        "subspaces": ("Subspaces", subspaces),
    }
    links = [(f"{place}/{name}", title) for name, (title, _) in views.items()]
    for name, (title, view) in views.items():
        try:
            found = view(files, f"{place}/{name}", checkpoints)
        except DebugError as error:
            found = [blocks.text(f"This view cannot be shown: {error}")]
        files.page(f"{place}/{name}", title, [blocks.text(f"{run.name}, run {run.run_id[:8]}"), *found], links)
    return links


def graph(files: Files, place: str, of: Checkpoints) -> list[Block]:
    """The programs that checkpoints were asked, each as a graph."""
    asked = next(iter(of.answers.values()), {})
    told = "Each line is a point, as deep as its chain of reads; the chain that the query asks for is orange."
    if not asked:
        return [blocks.text(told), {"typed": EXAMPLE}, _missing(of, _ANSWERS)]
    shown = chosen_programs(list(asked.values()))
    options = [(str(number), label(number, said)) for number, said in enumerate(shown)]
    return [
        blocks.text(told),
        blocks.choose("Program", options, programs_of(of)),
        blocks.heading("Your own program"),
        {"typed": EXAMPLE},
    ]


EXAMPLE = "i = 8\nx = i\nh = x\ny = 4\nw = x\n#h: "


def programs_of(of: Checkpoints) -> str:
    """Where the pages of single programs are, which :func:`programs` writes."""
    return f"bundles/programs/{key(of.training.run_id)}"


def label(number: int, said: Said) -> str:
    return f"program {number + 1}: {said.hops} {'hop' if said.hops == 1 else 'hops'}, {said.lines} lines"


def chosen_programs(every: Sequence[Said]) -> list[Said]:
    """At most MOST_PROGRAMS, as many of each number of hops as there are, in the order of hops."""
    by_hops: dict[int, list[Said]] = {}
    for said in every:
        by_hops.setdefault(said.hops, []).append(said)
    share = max(1, MOST_PROGRAMS // max(1, len(by_hops)))
    return [said for hops in sorted(by_hops) for said in by_hops[hops][:share]][:MOST_PROGRAMS]


def outcomes(answers: dict[int, dict[str, Said]]) -> Outcome:
    """One row per checkpoint and program: step, program (its number), answer, expected, outcome, hops and others."""
    rows = [
        {
            "step": step,
            "program": number,
            "answer": said.answer,
            "expected": said.expected,
            "outcome": said.outcome,
            "right": said.right,
            "hops": said.hops,
            "root_line": said.root_line,
            "lines": said.lines,
        }
        for step, found in answers.items()
        for number, said in enumerate(found.values())
    ]
    return pl.DataFrame(rows, schema_overrides={"answer": pl.String, "step": pl.Int64})


def programs(files: Files, place: str, of: Checkpoints) -> list[Block]:
    """A heatmap of programs by checkpoints; a cell leads to its program."""
    if not of.answers:
        return [_missing(of, _ANSWERS)]
    shown = chosen_programs(list(next(iter(of.answers.values())).values()))
    names, rows, pages = [label(number, said) for number, said in enumerate(shown)], [], []
    for name, said in zip(names, shown, strict=True):
        own = {step: found[said.program] for step, found in of.answers.items()}
        rows += [{"label": name, "step": step, "answer": a.answer, "outcome": a.outcome} for step, a in own.items()]
        told = [[str(step), a.answer or "none", a.outcome] for step, a in own.items()]
        answers_of = blocks.table(["step", "answer", "what it is"], told, f"The right answer is {said.expected}.")
        pages.append((name, [blocks.program(said.program), answers_of]))
    files.bundle(programs_of(of), pages)
    frame = pl.DataFrame(rows, schema_overrides={"answer": pl.String, "step": pl.Int64})
    every = len(next(iter(of.answers.values())))
    drawn = blocks.chart(answers_heatmap(frame), f"{len(shown)} of {every} programs; a click shows the program below.")
    drawn["click"] = {"field": "label", "options": names}
    return [
        blocks.text("What each checkpoint answers to the same programs, which were drawn with the same seeds."),
        drawn,
        blocks.choose("Program", [(str(number), name) for number, name in enumerate(names)], programs_of(of)),
    ]


def trajectory(files: Files, place: str, of: Checkpoints) -> list[Block]:
    """Accuracy over steps as the training logged it; and what explains the checkpoints' answers."""
    found: list[Block] = []
    curves = accuracies(of.training)
    if curves.is_empty():
        found.append(blocks.text("This training run has logged no accuracies on held-out programs."))
    else:
        caption = "Accuracy on held-out programs while it trained, with 95% CIs (Wilson) where these were logged."
        found.append(blocks.chart(over_steps(curves, "accuracy on held-out programs"), caption))
    if not of.answers:
        return [*found, _missing(of, _ANSWERS)]
    points = [
        {"step": step, "explanation": name, **share.metrics("share")}
        for step, said in of.answers.items()
        for name, share in explained([(_number(one.answer), one.program) for one in said.values()]).items()
    ]
    frame = pl.DataFrame(points).rename({"share_ci_low": "ci_low", "share_ci_high": "ci_high"})
    caption = "Share of the answers that each strategy could have given, with 95% CIs. One answer may fit several."
    drawn = charts.trajectory_chart(frame, f"what explains the answers, n = {len(next(iter(of.answers.values())))}")
    flow = blocks.chart(
        answer_flow(outcomes(of.answers)),
        "Bars: what became of all answers. Ribbons: programs, from where to where.",
    )
    return [*found, blocks.chart(drawn, caption), blocks.heading("Flow between answers"), flow]


def accuracies(run: LoggedRun) -> pl.DataFrame:
    """What training logs as accuracy/lines_<n>_hops_<k>, for :func:`over_steps`."""
    names = r"^(accuracy|num_samples)/lines_(\d+)(?:_hops_(\d+))?(?:_(ci_low|ci_high))?$"
    what = pl.coalesce(
        pl.col("metric").str.extract(names, 4),
        pl.col("metric").str.extract(names, 1).replace({"accuracy": "value", "num_samples": "n"}),
    )
    logged = pl.concat([run.curves("accuracy/"), run.curves("num_samples/")]).with_columns(
        panel=pl.col("metric").str.extract(names, 2),
        series=pl.col("metric").str.extract(names, 3).fill_null("any"),
        what=what,
    )
    columns = ["value", "ci_low", "ci_high", "n"]
    frame = (
        logged.drop_nulls("panel")
        .unique(["panel", "series", "step", "what"], keep="last", maintain_order=True)
        .pivot("what", on_columns=columns, index=["panel", "series", "step"], values="value")
        .drop_nulls("value")
    )
    by_hops = frame.filter(pl.col("series") != "any")
    shown = frame.filter(pl.col("panel").is_in(by_hops["panel"].unique().implode())) if len(by_hops) else frame
    return shown.select("step", *columns, panel=pl.format("{} lines", "panel"), series=pl.format("hops {}", "series"))


def answers(files: Files, place: str, of: Checkpoints) -> list[Block]:
    """Of each checkpoint, what became of its answers by hops and lines; and their flow from the checkpoint before."""
    if not of.answers:
        return [_missing(of, _ANSWERS)]
    frame, steps = outcomes(of.answers), list(of.answers)
    for number, step in enumerate(steps):
        own = frame.filter(pl.col("step") == step)
        found = [
            blocks.chart(outcome_bars(own.with_columns(pl.col(name).cast(pl.String)), name, title), caption)
            for name, title, caption in (
                ("hops", "hops", "What became of the answers, by hops."),
                ("root_line", "line of the root value", "The same by the line that assigns the root value."),
            )
            if own[name].n_unique() > 1 or name == "hops"
        ]
        if number:
            flow = frame.filter(pl.col("step").is_in([steps[number - 1], step]))
            caption = f"What becomes of the answers from step {steps[number - 1]} to step {step}."
            found.append(blocks.chart(answer_flow(flow), caption))
        files.page(f"{place}/{step}", f"Step {step}", found)
    return [one_of(steps, place)]


def statistics(files: Files, place: str, of: Checkpoints) -> list[Block]:
    """Of each checkpoint: accuracy by features of the programs, its answers, and a confusion matrix."""
    if not of.answers:
        return [_missing(of, _ANSWERS)]
    for step, said in of.answers.items():
        every = list(said.values())
        frame = outcomes({step: said})
        counts: list[list[Json]] = [
            [name, str(wilson(sum(one.outcome == name for one in every), len(every)))] for name in OUTCOMES
        ]
        files.page(
            f"{place}/{step}",
            f"Step {step}",
            [
                blocks.text(f"Accuracy {wilson(sum(one.right for one in every), len(every))}."),
                blocks.table(["answer", "share, 95% CI"], counts, "What became of the answers."),
                blocks.chart(accuracy_by_feature(features(frame)), "Accuracy by features of the programs, 95% CIs."),
                blocks.chart(
                    confusion_matrix(frame), "Confusion matrix: right answers by given ones, numbers of programs."
                ),
            ],
        )
    return [one_of(list(of.answers), place)]


def features(frame: Outcome) -> pl.DataFrame:
    """Rows for :func:`accuracy_by_feature`: by hops and by where the root value is."""
    third = ((3 * (pl.col("root_line") - 1)) // pl.col("lines")).clip(0, 2)
    shallow = pl.when(pl.col("root_line") < 3).then(pl.lit("1 or 2")).otherwise(pl.lit("later"))
    hops = sorted(frame["hops"].unique())
    levels: dict[str, tuple[pl.Expr, list[str]]] = {
        "hops": (pl.col("hops").cast(pl.String), [str(number) for number in hops]),
        "root value, third of the program": (third.cast(pl.String), ["0", "1", "2"]),
        "line of the root value": (shallow, ["1 or 2", "later"]),
    }
    rows = []
    for feature, (level, names) in levels.items():
        for name in names:
            right = frame.filter(level == name)["right"]
            if len(right):
                share = wilson(int(right.sum()), len(right))
                shown = {"0": "first", "1": "second", "2": "last"}.get(name, name) if "third" in feature else name
                rows.append({"feature": feature, "level": shown, **share.metrics("accuracy"), "n": len(right)})
    return pl.DataFrame(rows).rename({"accuracy_ci_low": "ci_low", "accuracy_ci_high": "ci_high"})


def comparison(files: Files, place: str, of: Checkpoints) -> list[Block]:
    """Two checkpoints on the same programs: accuracy, who is right where, flow of answers, and their causal maps."""
    if not of.answers:
        return [_missing(of, _ANSWERS)]
    steps = spread(list(of.answers), MOST_COMPARED)
    means = dict(mean_maps(of, "residual_stream"))
    for one, other in combinations(steps, 2):
        files.page(f"{place}/{one}-{other}", f"Steps {one} and {other}", compared(of, one, other, means))
    options = [(str(step), f"step {step}") for step in steps]
    found = [blocks.choose("Checkpoint A", options, place, second="Checkpoint B")]
    if len(steps) < len(of.answers):
        found.insert(0, blocks.text(f"{len(steps)} of {len(of.answers)} checkpoints can be chosen."))
    return found


def compared(of: Checkpoints, one: int, other: int, means: dict[int, MeanCausalMap]) -> list[Block]:
    first, second = list(of.answers[one].values()), list(of.answers[other].values())
    right = [[said.right for said in each] for each in (first, second)]
    told = mcnemar(right[1], right[0])
    rows: list[dict[str, Json]] = []
    for hops in sorted({said.hops for said in first}):
        for step, each in ((one, first), (other, second)):
            known = [said.right for said in each if said.hops == hops]
            share: Interval = wilson(sum(known), len(known))
            name = f"{hops} {'hop' if hops == 1 else 'hops'}"
            ends = {"ci_low": share.low, "ci_high": share.high, "n": share.n}
            rows.append({"cell": name, "run": f"step {step}", "value": share.estimate, **ends})
    both = sum(a and b for a, b in zip(*right, strict=True))
    n_first, n_second, n = sum(right[0]), sum(right[1]), len(first)
    table = blocks.table(
        ["", f"step {other} right", f"step {other} wrong"],
        [
            [f"step {one} right", both, n_first - both],
            [f"step {one} wrong", n_second - both, n - n_first - n_second + both],
        ],
        f"Programs. Step {other} minus step {one}: {told} (exact McNemar test).",
    )
    pair = outcomes({step: of.answers[step] for step in (one, other)})
    found = [
        table,
        blocks.chart(slopes(pl.DataFrame(rows), "accuracy"), "Accuracy by hops, with 95% CIs."),
        blocks.chart(
            answer_flow(pair), "What became of the answers at both, and how programs go from one to the other."
        ),
    ]
    if one in means and other in means:
        shared = [metric for metric in means[one].metrics if metric in means[other].metrics]
        names = (f"step {one}", f"step {other}")
        if shared:
            drawn = side_by_side(means[one], means[other], shared[0], names)
            found += [blocks.heading("Causal maps"), blocks.chart(drawn, "Mean over pairs; the last is A − B.")]
    return found


def mean_maps(of: Checkpoints, component: str) -> Iterator[tuple[int, MeanCausalMap]]:
    """Step -> the mean over the pairs of its first causal run of a component that can be read."""
    for step, runs in of.made_with("causal_tracing", component).items():
        for run in runs:
            mean = MeanOverPairs()
            try:
                for causal_map in run.maps:
                    mean.add(causal_map)
                found = mean.result()
            except DebugError:
                continue  # the page of the run says what is wrong with it
            yield step, found
            break


def logits(files: Files, place: str, of: Checkpoints) -> list[Block]:
    """Mean logits of the right answer, and of the counterfactual's, at the last token: layers by checkpoints."""
    rows, top = [], 0
    for step, runs in of.made_with("causal_tracing", "residual_stream").items():
        read = [
            one.lens_logits[:, one.positions.index(last)]
            for one in (runs[0].maps if runs else [])
            if one.lens_logits is not None and (last := len(one.tokens) - 1) in one.positions
        ]
        if not read or len({len(each) for each in read}) > 1:
            continue
        mean, top = np.mean(read, axis=0), len(read[0]) - 1
        values = {"right answer": mean[:, 1], "counterfactual's answer": mean[:, 0]}
        values["right answer − counterfactual's"] = mean[:, 1] - mean[:, 0]
        rows += [
            {"step": step, "layer": layer, "of": name, "logit": float(each[layer]), "n": len(read)}
            for name, each in values.items()
            for layer in range(top + 1)
        ]
    if not rows:
        return [_missing(of, "causal runs of its checkpoints with a logit lens")]
    order = {name: at for at, name in enumerate(dict.fromkeys(row["of"] for row in rows))}
    frame = pl.DataFrame(sorted(rows, key=lambda row: order[row["of"]]))
    told = "The residual stream at the last token, read through the final norm and the unembedding at every layer."
    caption = "Mean over the pairs' original programs. The counterfactual's answer is a number that is not right here."
    return [blocks.text(told), blocks.chart(logits_by_step(frame, top), caption)]


def heads(files: Files, place: str, of: Checkpoints) -> list[Block]:
    """Of each checkpoint, the mean map of its attention heads."""
    steps = []
    for step, mean in mean_maps(of, "attention_heads"):
        drawn = charts.mean_heatmap(mean)
        caption = "Layers by heads: how often the answer follows where one head's output is patched."
        files.page(f"{place}/{step}", f"Step {step}", [blocks.chart(drawn, caption)])
        steps.append(step)
    if not steps:
        return [_missing(of, "causal runs of its checkpoints on attention heads")]
    return [one_of(steps, place)]


def subspaces(files: Files, place: str, of: Checkpoints) -> list[Block]:
    """The activations that causal runs stored, on their first two principal components."""
    steps = []
    for step, runs in of.made_with("causal_tracing", "residual_stream").items():
        found = [block for run in runs[:1] for block in components(run)]
        if found:
            files.page(f"{place}/{step}", f"Step {step}", found)
            steps.append(step)
    if not steps:
        return [_missing(of, "causal runs of its checkpoints that stored activations")]
    told = (
        "The residual stream at the last token on its first two principal components, a point a program, named by its "
        "right answer. Components that no answer was used to find: groups of equal numbers are the model's own doing. "
        "Which directions the model reads is not measured here."
    )
    return [blocks.text(told), one_of(steps, place)]


def components(run: LoggedRun) -> list[Block]:
    """A chart a layer, of at least four programs' clean and counterfactual activations at the last token."""
    read: list[np.ndarray] = []
    values: list[str] = []
    for number, causal_map in enumerate(run.maps):
        positions = run.activations.get(f"{number}/positions")
        at = [] if positions is None else np.asarray(positions).tolist()
        if len(causal_map.tokens) - 1 not in at or not 0 <= causal_map.pair < len(run.pairs):
            continue
        pair = run.pairs[causal_map.pair]
        for which, answer in (("clean", pair.expected_original), ("counterfactual", pair.expected_counterfactual)):
            of_run = run.activations.get(f"{number}/{which}/residual_stream")
            if of_run is not None and of_run.ndim == 3 and np.isfinite(of_run).all():
                read.append(np.asarray(of_run)[:, at.index(len(causal_map.tokens) - 1)])
                values.append(str(answer)[:12])
    if len(read) < 4 or len({each.shape for each in read}) > 1:
        return []
    stacked = np.stack(read).astype(np.float64)  # program, layer, width
    found = []
    for layer in range(stacked.shape[1]):
        centred = stacked[:, layer] - stacked[:, layer].mean(axis=0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        whole = float((s**2).sum())
        name = "final norm" if layer == stacked.shape[1] - 1 else f"layer {layer}"
        if whole < 1e-9:
            continue  # the same for every program: nothing was read yet
        signs = np.sign(
            u[np.abs(u).argmax(axis=0), range(u.shape[1])]
        )  # else two runs may be each other's mirror image
        scores = (u * s * signs)[:, :2]
        shares = (float(s[0] ** 2) / whole, float(s[1] ** 2) / whole)
        frame = pl.DataFrame({"first": scores[:, 0], "second": scores[:, 1], "value": values})
        drawn = components_chart(frame, shares, name)
        found.append(blocks.chart(drawn, f"What goes into {name}, {len(values)} programs."))
    return found


def one_of(steps: Sequence[int], place: str) -> Block:
    """A choice of a checkpoint, at first of the last one."""
    return blocks.choose("Checkpoint", [(str(step), f"step {step}") for step in steps], place, at=len(steps) - 1)


def spread(steps: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(at)] for at in np.linspace(0, len(steps) - 1, most)]


def _missing(of: Checkpoints, what: str) -> Block:
    if not of.folders:
        return blocks.missing(
            "The training run kept no checkpoints; this trains the bundled model and keeps some:", "debug train"
        )
    return blocks.missing(f"This store has no {what} yet ({len(of.folders)} checkpoints); this makes them:", MEASURE)


def _number(answer: str | None) -> int | None:
    return int(answer) if answer and answer.lstrip("-").isdecimal() and len(answer) < 18 else None
