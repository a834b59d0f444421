"""The report's chapter on rival hypotheses: does the model move the value, or a pointer to it?"""

from __future__ import annotations

from debug import causal_visualization as charts
from debug.counterfactual import KINDS
from debug.hypotheses import HypothesisScores
from debug.hypotheses.models import NAME, ORDER, VALUE
from debug.paper.claims import SMALLEST
from debug.paper.page import Page, hops_text, without_n

SHOWN_KINDS = ("pointer", "rename", "reorder")


def report_hypotheses(page: Page) -> None:
    """Runs of several kinds of counterfactual at three hops (else the most asked for), scored by hypothesis."""
    hops = 3 if 3 in page.what.hops else max(page.what.hops)
    page.write(
        "## Value or pointer",
        "Does the residual stream carry the value of a variable, or where to find it? A hypothesis predicts the "
        "answer of each patched run: *value*: the source's value arrives. *pointer by name*: the source's root "
        "variable, looked up in the original by its name. *pointer by order*: looked up by its line. *no effect*: "
        "the original's answer stays. Agreement is the share of the distinguishing pairs (of which the hypotheses "
        "predict different tokens) whose patched top token is the predicted one. A square is won by the hypothesis "
        "that agrees most, where it does in more than half of the pairs and McNemar's test tells it from each other "
        "one (one test a square, uncorrected).",
    )
    if hops < 2:
        page.write("One hop has no line that refers to another; nothing is asked here.")
        return
    verdict, number, runs = None, "no run", []
    for kind in SHOWN_KINDS:
        cells = page.patched([hops], "residual_stream", kind, positions="targets")
        if hops not in cells or (scores := cells[hops].scores) is None:
            continue
        runs.append(cells[hops].run_id)
        page.write(f"### Counterfactual: {kind}, {hops_text(hops)}", f"Run `{cells[hops].run_id}`. {KINDS[kind].says}.")
        page.picture(f"hypotheses_{kind}", charts.hypothesis_maps(scores), f"agreement with each hypothesis, {kind}")
        page.picture(f"best_hypothesis_{kind}", charts.winner_map(scores), f"best hypothesis by square, {kind}")
        _table(page, scores, kind)
        if kind == "pointer":
            verdict, number = decided(scores), _won(scores)
    page.claim(
        "value_not_pointer",
        "The residual stream carries the value itself, not a pointer to the variable that is bound to it.",
        "at the last token value wins at some layer below the final norm, and no pointer wins anywhere; does not hold "
        "where a pointer wins at some target",
        verdict if page.answered.get(hops) else None,
        number,
        *runs,
    )


def decided(scores: HypothesisScores) -> bool | None:
    """Whether the value is moved; None where too few pairs distinguish, or nothing wins at the last token."""
    places = [each for each in scores.places if each.n >= SMALLEST]
    if any(best.winner in (NAME, ORDER) for each in places for best in each.best):
        return False
    final = [each for each in places if each.place.target == "final"]
    below = [
        best for each in final for layer, best in zip(scores.layers, each.best, strict=True) if layer < scores.n_layers
    ]
    return True if any(best.winner == VALUE for best in below) else None


def _won(scores: HypothesisScores) -> str:
    return "; ".join(scores.said())


def _table(page: Page, scores: HypothesisScores, kind: str) -> None:
    header = ["target", "n", "hypothesis", *(f"layer {n}" for n in scores.layers)]
    rows = []
    for each in scores.places:
        for name, by_layer in each.agreement.items():
            rows.append([each.place.name, each.n, name.replace("_", " "), *map(without_n, by_layer)])
            for layer, value in zip(scores.layers, by_layer, strict=True):
                page.keep(f"agreement_by_layer/{kind}/{name}/{each.place.name}", value, layer)
    page.table(header, rows)
