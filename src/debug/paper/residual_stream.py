"""The report's chapter on the residual stream: the position of the value, layer by layer."""

from __future__ import annotations

import re

from debug.causal_map import LEADS, MeanCausalMap
from debug.paper.claims import SMALLEST, every, surely_below
from debug.paper.page import SHOWN, Page, hops_text, without_n

MOVES = 0.1  # a head moves the value where the CI of its normalized logit difference is above this


def report_residual_stream(page: Page) -> None:
    what = page.what
    page.write(
        "## Residual stream",
        "The counterfactual's residual stream at one role's tokens, before layer l (resid_pre of layer l), is "
        "patched into the original forward pass, at every role from the root's value on and at every layer. "
        f"{what.num_pairs} pairs were requested for each number of hops; n is given with each result. Pairs with the "
        "root on line 1 or 2 are excluded, so that no heuristic of early lines can answer them. Success: the top token "
        "becomes the counterfactual answer; its mean is the patch success rate (interchange-intervention accuracy, "
        "IIA). In the "
        "figures information flows upwards; the top row is what the final norm reads.",
    )
    cells = page.patched(what.hops, "residual_stream", positions="targets", targets="roles")
    climbs: dict[int, bool | None] = {}
    moves: list[str] = []
    for hops, cell in cells.items():
        said = f"; accuracy on these pairs, before wrong ones are excluded: {cell.accuracy}"
        mean = page.maps(hops, cell, said, success="success", normalized_logit_diff="normalized_logit_diff")
        _by_layer(page, mean, hops)
        page.write(f"Hand-overs: {'; '.join(map(str, mean.moves)).replace('->', '→') or 'none'}.")
        if hops == 1:
            continue  # from root to last token: success holds by construction at both, and there is no line between
        lines = {1, *(line_of(move.after, hops) for move in mean.moves)}
        path = ", ".join(f"{move.after} at {move.layer}" for move in mean.moves) or "no hand-over"
        quiet = [f"no hand-over to line {line}" for line in range(2, hops + 1) if line not in lines]
        moves.append(f"{hops_text(hops)}: {', '.join([path, *quiet])}")
        climbs[hops] = climbed(mean, hops)
    page.claim(
        "line_by_line",
        "The residual stream is an addressable memory: the value moves along the chain from line to line.",
        "at each number of hops above 1 the value is handed over, with increasing layer, from the root through every "
        "line of the chain in order to the query line; does not hold where a hand-over skips a line at whose tokens "
        f"success has a 95% CI below {LEADS:.0%} at every layer",
        page.inside(climbs, 2),
        "; ".join(moves) or "no run",
        *(cell.run_id for cell in cells.values()),
    )


def climbed(mean: MeanCausalMap, hops: int) -> bool | None:
    """Whether the value moves through every line of the chain in order; None where that is undecided, or there is no
    line between the root's and the query's."""
    moves = [(line_of(move.before, hops), line_of(move.after, hops)) for move in mean.moves]
    if hops == 1 or not moves or min(move.n for move in mean.moves) < SMALLEST:
        return None
    lines = [moves[0][0], *(after for _, after in moves)]
    if sorted(lines) == lines and set(lines) == set(range(1, hops + 2)):
        return True
    for line in {line for before, after in moves for line in range(before + 1, after)} - {*lines}:
        cells = [rate for curve in mean.curves if line_of(curve.target, hops) == line for rate in curve.success]
        if every(surely_below(rate, LEADS) for rate in cells):
            return False
    return None


def _by_layer(page: Page, mean: MeanCausalMap, hops: int) -> None:
    """Success and normalized logit difference of targets with an effect, by layer; logs the normalized one."""
    best = {curve.target: max(v.estimate for v in curve.success[: mean.n_layers] if v) for curve in mean.curves}
    header = [f"{hops_text(hops)}: target", "n", *(f"layer {layer}" for layer in mean.layers[:-1]), "final norm"]
    for metric, title in (("success", "Success:"), ("normalized_logit_diff", "Normalized logit difference:")):
        for curve in mean.curves if metric == "normalized_logit_diff" else ():
            for layer, value in zip(mean.layers, curve[metric], strict=True):
                page.keep(f"normalized_logit_diff_by_layer/hops_{hops}/{curve.target}", value, layer)
        page.write(title)
        shown = [curve for curve in mean.curves if best[curve.target] >= SHOWN]
        page.table(header, [[c.target, c.n, *(without_n(value) for value in c[metric])] for c in shown])
    rest = [rate for rate in best.values() if rate < SHOWN]
    if rest:
        page.write(f"The success of the other {len(rest)} roles is at most {max(rest):.1%} at any layer.")


def line_of(target: str, hops: int) -> int:
    """The referential depth of a target's line; that of the query line is one more than the chain's last."""
    depth = re.match(r"ref_depth_(\d+)_", target)
    return int(depth[1]) if depth else hops + 1


def what_it_reads(target: str) -> bool:
    """Whether a target gets the value from another line: right-hand sides except the root's, and `final`."""
    return target == "final" or (target.endswith("_rhs") and target != "ref_depth_1_rhs")
