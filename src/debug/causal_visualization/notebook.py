"""Results in a notebook: which chart is a result's picture, and its HTML, with escaped text and without scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import singledispatch
from html import escape
from typing import Any

import numpy as np

from debug.causal_map import CausalMap, MeanCausalMap, mean_over_pairs
from debug.causal_visualization.heatmaps import causal_heatmap, head_heatmap, mean_heatmap
from debug.causal_visualization.hypotheses import hypothesis_maps
from debug.causal_visualization.interactive import Chart
from debug.causal_visualization.programs import program_graph
from debug.causal_visualization.rows import shown_first
from debug.causal_visualization.style import Metric, Picture, visible
from debug.errors import InputError
from debug.hypotheses import HypothesisScores
from debug.programs import AnyProgram, Pair, ProgramPair
from debug.shown import Shown

SCALE = 2  # pixels of a picture for each of the page: screens have more of them
LONGEST_COMPARED = 2000  # characters of a text whose differences are marked: finding them takes time
MARK = "background:rgba(230,97,1,{:.2f});border-radius:2px"
PRE = '<pre style="white-space:pre-wrap;margin:0 1.5em 0.5em 0">{}</pre>'


@singledispatch
def picture(shown: Shown) -> Picture | Chart:
    """The chart of a result; see :meth:`debug.shown.Shown.plot`."""
    raise InputError(f"{shown!r} has no picture of its own")


@picture.register
def _(shown: CausalMap, metric: Metric | None = None, target: str | None = None) -> Picture:
    if shown.heads and shown.targets:
        return head_heatmap(shown, target or next(reversed(shown.targets)), metric)
    return causal_heatmap(shown, metric) if shown.positions else mean_heatmap(mean_over_pairs([shown]), metric)


@picture.register
def _(shown: MeanCausalMap, metric: Metric | None = None) -> Picture:
    return mean_heatmap(shown, metric)


@picture.register
def _(shown: HypothesisScores) -> Picture:
    return hypothesis_maps(shown)


@picture.register
def _(shown: ProgramPair) -> Chart:
    return program_graph(shown.original)


@singledispatch
def html(shown: Shown) -> str:
    """Its text, and its picture where it has one."""
    try:
        return PRE.format(escape(str(shown))) + image(shown.plot())
    except InputError:
        return PRE.format(escape(str(shown)))


@html.register
def _(shown: CausalMap) -> str:
    return PRE.format(escape(repr(shown))) + (strip(shown) if shown.positions else "") + image(shown.plot())


@html.register
def _(shown: Pair) -> str:
    texts = [program.text for program in shown.programs]
    differing: list[set[int]] = [set(), set()]
    if max(map(len, texts)) <= LONGEST_COMPARED:
        for kind, *ends in SequenceMatcher(None, *texts, autojunk=False).get_opcodes():
            if kind != "equal":
                differing[0] |= {*range(*ends[:2])}
                differing[1] |= {*range(*ends[2:])}
    names = ("original", "counterfactual")
    sides = [
        f"<div>{name}{PRE.format(marked(program, at) + f'  → {escape(str(program.answer))}')}</div>"
        for name, program, at in zip(names, shown.programs, differing, strict=True)
    ]
    return f'<div style="display:flex;flex-wrap:wrap">{"".join(sides)}</div>'


def marked(program: AnyProgram, differing: Iterable[int]) -> str:
    """A text with what differs marked, and its roles underlined: the pointer on one says its name."""
    role: dict[int, str] = {}
    for name, (start, end) in program.roles.items():
        role |= dict.fromkeys(range(start, end), name)
    at = {*differing}
    return spans(
        (character, role.get(place, ""), MARK.format(0.5) if place in at else "")
        for place, character in enumerate(program.text)
    )


def spans(pieces: Iterable[tuple[str, str, str]]) -> str:
    """(text, what the pointer on it says, style) -> HTML; neighbours that are alike become one span."""
    made: list[tuple[str, str, str]] = []
    for text, says, style in pieces:
        if made and made[-1][1:] == (says, style):
            made[-1] = (made[-1][0] + text, says, style)
        else:
            made.append((text, says, style))
    return "".join(
        f'<span title="{escape(says)}" style="{style}">{escape(text)}</span>' if says or style else escape(text)
        for text, says, style in made
    )


def strip(shown: CausalMap) -> str:
    """The prompt's tokens, each the stronger in colour the more a patch there does at its best layer."""
    values = np.abs(shown.values(shown_first(shown)))
    effect = {
        position: float(np.nanmax(column)) if np.isfinite(column).any() else None
        for position, column in zip(shown.positions, np.moveaxis(values, -1, 0), strict=False)
    }

    def said(place: int) -> str:
        if place not in effect:
            return f"token {place}, not patched"
        value = effect[place]
        return f"token {place}, " + ("no value" if value is None else f"largest effect {value:.2f}")

    pieces = (
        (
            visible(token) + ("\n" if "\n" in token else ""),
            said(place),
            MARK.format(0.75 * min(1.0, value)) if (value := effect.get(place)) is not None else "",
        )
        for place, token in enumerate(shown.tokens)
    )
    return PRE.format(spans(pieces))


def image(chart: Any) -> str:  # an Altair chart, of its many kinds
    """A chart as a picture in the page, of pixels: the room for an SVG's text is measured in fonts that the reader may
    not have."""
    chart.properties(background="white").save(drawing := io.BytesIO(), format="png", scale_factor=SCALE)
    data = drawing.getvalue()
    width = int.from_bytes(data[16:20], "big") // SCALE  # of the PNG's header
    picture = base64.b64encode(data).decode()
    return f'<img style="max-width:100%" width="{width}" alt="chart" src="data:image/png;base64,{picture}">'
