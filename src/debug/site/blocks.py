"""What a page is made of: blocks, each a JSON object that the page's script knows how to show; and their files.

A block is one of text, heading, table, chart, pre, missing, program, answers, choose. All their texts are shown as
text. Knows no store.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from debug.causal_visualization.interactive import Chart
from debug.interpreter import Code
from debug.kinds import Json
from debug.programs import ProgramError
from debug.provenance import without_passwords

Block = dict[str, Json]
MOST_STATES = 60
"""Lines of a state table."""
_LONGEST = 4000  # characters of one text


def text(sentence: str) -> Block:
    return {"text": short(sentence)}


def heading(title: str) -> Block:
    return {"heading": short(title)}


def pre(content: str, caption: str) -> Block:
    return {"pre": short(content), "caption": caption}


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Json]], caption: str, links: Sequence[str | None] | None = None
) -> Block:
    """``links``: of each row the page that its first cell leads to."""
    cells = [[short(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    return {"table": {"columns": list(columns), "rows": cells, "links": list(links or [])}, "caption": caption}


def chart(drawn: Chart, caption: str) -> Block:
    return {"chart": drawn.to_dict(validate=False), "caption": short(caption)}


def missing(what: str, command: str) -> Block:
    """A view that this store has no data for: what is missing, and the command that makes it."""
    return {"missing": what, "command": command}


def choose(
    label: str, options: Sequence[tuple[str, str]], source: str, second: str | None = None, at: int = 0
) -> Block:
    """A select box of (key, label); the blocks of the page ``source/key`` are shown below it.

    With ``second``, the label of another box of the same options: those of ``source/key-key``, the earlier option
    first. ``at``: the number of the option that is chosen at first.
    """
    return {
        "choose": {
            "label": label,
            "second": second,
            "source": source,
            "at": at,
            "options": [[key, short(name)] for key, name in options],
        }
    }


def program(content: str, caption: str = "Program") -> Block:
    """A program with its graph, where it is one of variable binding, and with its state table, where it has one."""
    return {"program": short(content), "states": states(content), "caption": caption}


def states(content: str) -> Json:
    """The variables after every line that ran: names, and rows of (line, its text, values); None for other texts.

    Programs are read and run by the project's own interpreter, in bounded steps; local variables of calls are left out.
    """
    try:
        code = Code.parse(content)
    except ProgramError:
        return None
    of_program = [state for state in code.states if state.depth == 0][:MOST_STATES]
    names = list(dict.fromkeys(name for state in of_program for name in state.variables))
    lines = code.text.split("\n")
    rows: list[Json] = [
        [
            state.line,
            short(lines[state.line - 1]) if 0 < state.line <= len(lines) else "",
            *(short(repr(state.variables[name])) if name in state.variables else "" for name in names),
        ]
        for state in of_program
    ]
    return {"names": names, "rows": rows}


def short(content: object) -> str:
    """Text of a store for a page: without passwords, at most 4,000 characters."""
    shown = without_passwords(str(content))
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} … ({len(shown):,} characters)"


@dataclass(frozen=True)
class Files:
    """The data files of a site below a folder."""

    folder: Path

    def page(
        self, name: str, title: str, blocks: Sequence[Block], views: Sequence[tuple[str, str]] | None = None
    ) -> None:
        """Write a page: what ``#/name`` shows. ``views``: (name, title) of the pages that it is one of."""
        links = None if views is None else [list(view) for view in views]
        self.put(name, {"title": short(title), "blocks": list(blocks), "views": links})

    def bundle(self, name: str, pages: Sequence[tuple[str, Sequence[Block]]]) -> None:
        """Write small pages, (title, blocks) each, into one file: what ``#/name/0``, ``#/name/1`` and on show.

        The name begins with ``bundles/``, by which the page's script tells them.
        """
        self.put(name, [{"title": short(title), "blocks": list(blocks)} for title, blocks in pages])

    def put(self, name: str, content: Json) -> None:
        """Write a value as a script that hands it over by its name.

        The value is a JSON text in a string literal: a key ``__proto__`` stays a key, and no ``<`` ends the script.
        """
        path = self.folder / f"{name}.js"
        path.parent.mkdir(parents=True, exist_ok=True)
        inner = json.dumps(_finite(content), allow_nan=False, separators=(",", ":"))
        outer = json.dumps(inner, ensure_ascii=True).replace("<", "\\u003c")
        path.write_text(f"debugSite.put({json.dumps(name)},{outer});\n", "ascii")


def key(run_id: str) -> str:
    """A run's id as a part of file names and addresses."""
    if re.fullmatch(r"[0-9A-Za-z]{1,64}", run_id):
        return run_id
    return hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _finite(value: Json) -> Json:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
