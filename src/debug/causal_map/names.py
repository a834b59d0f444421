"""Targets and heads as parts of names, and their order in the program's text."""

from __future__ import annotations

import re
from typing import NamedTuple

_IN_WORDS = {
    **{"lhs": "variable", "equals": "=", "rhs": "value", "newline": "line end", "line": "line"},
    **{"hash": "#", "var": "variable", "colon": "colon"},
}
_PARTS = ("lhs", "equals", "rhs", "newline", "hash", "var", "colon")


class Place(NamedTuple):
    """A target, and of a map with heads the heads that are patched there together."""

    target: str
    heads: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """``final/head_3``; of several heads ``final/heads_3_5``."""
        if not self.heads:
            return self.target
        return f"{self.target}/head{'s' if len(self.heads) > 1 else ''}_{'_'.join(map(str, self.heads))}"

    @property
    def head_label(self) -> str | None:
        """``3``, or ``3+5`` of heads that are patched together; None without heads."""
        return "+".join(map(str, self.heads)) or None

    @property
    def text_order(self) -> tuple:
        """Where it stands in any program: chain lines by referential depth, the query line, ``final``; then heads.

        Positions by number come first, in theirs.
        """
        kind, *rest = self.target.split("_")
        line = {"position": 0, "ref": 1, "query": 2}.get(kind, 3)
        numbers = [int(part) for part in rest if part.isdecimal()]
        part = _PARTS.index(rest[-1]) if rest and rest[-1] in _PARTS else 0
        return line, numbers, part, list(self.heads)


def in_words(target: str) -> str:
    """A target, an edge or a hypothesis for people: ``ref_depth_2_rhs`` reads "hop 2 · value", ``final`` "last token".

    A name that is nobody's of these stays as it is.
    """
    for between, word in (("->", " → "), ("+", " + ")):
        if between in target:
            return word.join(map(in_words, target.split(between)))
    target, _, head = target.partition("/")
    head = f" · {head.replace('_', ' ')}" if head else ""
    if target == "final":
        return f"last token{head}"
    if (line := re.fullmatch(r"(?:ref_depth_(\d+)|line_(\d+)|query)_([a-z]+)", target)) and line[3] in _IN_WORDS:
        where = f"hop {line[1]}" if line[1] else f"line {line[2]}" if line[2] else "query"
        return f"{where} · {_IN_WORDS[line[3]]}{head}"
    return target + head


def logged_name(target: str) -> str:
    """A target, or a hypothesis, as a part of a metric's name: MLflow has no ``+`` and no ``>`` in these."""
    return re.sub(r"[^\w./: -]", "_", target.replace("->", "_to_").replace("+", "_and_"))
