"""What a mean over pairs says, in sentences."""

from __future__ import annotations

from collections.abc import Callable

from debug.causal_map.mean import MeanCausalMap
from debug.causal_map.metrics import RANDOM
from debug.causal_map.names import in_words


def findings(mean: MeanCausalMap, name: Callable[[str], str] = str) -> list[str]:
    """Its peak and hand-overs, and of a knockout what cutting a hypothesis's edges does beyond random ones. ``name``
    is what a target is called."""
    lines = []
    peak = mean.peak()
    if peak and peak.chosen.estimate > 0:
        rate = f"in {peak.rate} of the pairs that did not choose this place" if peak.rate else "in the one pair"
        lines.append(
            f"peak: patched at {name(peak.target)}, layer {peak.layer}, the answer becomes the counterfactual's {rate}"
        )
    elif "success" in mean.metrics:
        held = ", ".join(map(name, sorted(mean.held))) or "none"
        lines.append(
            "no peak: patched anywhere but at targets where that holds by construction at some layer "
            f"({held}), no answer becomes the counterfactual's"
        )
    lines += [f"hand-over {move.said(name)}" for move in mean.moves]
    for hypothesis, by_layer in mean.against_random.items():
        for row, compared in enumerate(by_layer):
            kept, control = (mean[each]["answer_kept"][row] for each in (hypothesis, hypothesis + RANDOM))
            lines.append(
                f"{name(hypothesis)} cut from layer {mean.layers[row]} on: answer kept {kept}; with as many random "
                f"edges cut {control}; difference {compared}"
            )
    return lines


def route(mean: MeanCausalMap) -> str | None:
    """Its hand-overs as one sentence: "The value moves from hop 1 · value to hop 2 · value at layer 2, to the last
    token at layer 4". None where there are none."""
    if not mean.moves:
        return None
    said, at = f"The value moves from {_the(mean.moves[0].before)}", mean.moves[0].before
    for move in mean.moves:
        said += "" if move.before == at else f"; from {_the(move.before)}"
        said += f" to {_the(move.after)} at layer {move.layer},"
        at = move.after
    return said.rstrip(",").replace(",;", ";")


def _the(target: str) -> str:
    return "the last token" if target == "final" else in_words(target)
