"""Attention of the clean forward pass of a pair: from a target's tokens to all, head by head."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st
from view import choice, draw, put_now, yes

from debug.causal_map import AttentionPattern, CausalMap
from debug.causal_visualization import attention_chart, attention_overview, attention_rows, visible
from debug.causal_visualization.interactive import clickable, outlined, quick
from debug.causal_visualization.style import shown_target
from debug.tracking import LoggedRun


def attention_of(run: LoggedRun, causal_map: CausalMap) -> None:
    """The attention patterns of a pair behind a switch, where the run has kept them."""
    kept = run.attention
    if not len(kept) or not causal_map.targets or not yes("attention", "Attention patterns of the clean forward pass"):
        return
    if causal_map.pair not in kept:
        st.caption(f"Attention was kept for the first pairs of this run: {', '.join(map(str, list(kept)[:20]))}.")
        return
    pattern = kept[causal_map.pair]
    there = [name for name, at in causal_map.targets.items() if {*at} <= {*pattern.queries}]
    if not there or pattern.weights.shape[-1] != len(causal_map.tokens):
        st.caption("The attention that is stored for this pair is of another prompt.")
        return
    last = "final" if "final" in there else there[-1]
    _charts(causal_map, pattern, there, last)


def _charts(causal_map: CausalMap, pattern: AttentionPattern, targets: list[str], last: str) -> None:
    n_layers, n_heads = pattern.weights.shape[:2]
    tokens, first = range(len(causal_map.tokens)), min(causal_map.first_difference, len(causal_map.tokens) - 1)
    boxes = st.columns(4)
    with boxes[0]:
        target = choice("attention_from", "From the token of", _first(last, targets), shown_target)
    with boxes[1]:

        def named(position: str) -> str:
            return f"{visible(causal_map.tokens[int(position)])} at {position}"

        token = int(choice("attention_to", "To token", _first(str(first), map(str, tokens)), named))
    most = int(pattern.of(causal_map.targets[target])[:, :, token].argmax())  # the head that looks most at it
    with boxes[2]:
        layers = _first(str(most // n_heads), map(str, range(n_layers)))
        layer = int(choice("attention_layer", "Layer", layers))
    with boxes[3]:
        head = int(choice("attention_head", "Head", _first(str(most % n_heads), map(str, range(n_heads)))))

    def open_head(cell: dict) -> None:
        put_now(attention_layer=cell.get("layer"), attention_head=cell.get("head"))

    rows = attention_rows(causal_map, pattern, target)
    overview = attention_overview(causal_map, rows, target, token)
    with st.container(horizontal=True, vertical_alignment="top", gap="medium"):
        overview = quick(clickable(outlined(overview, layer=layer, head=head), "layer", "head"), n_layers * n_heads)
        draw(overview, "attention-heads", rows, open_head)
        draw(attention_chart(causal_map, rows, target, layer, head), "attention")
    st.caption("Click a head to see all that it looks at.")


def _first(default: str, options: Iterable[str]) -> list[str]:
    """The options, what is shown without a choice first."""
    return [default, *(option for option in options if option != default)]
