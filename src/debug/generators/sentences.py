"""English texts whose pieces have roles."""

from __future__ import annotations

from string import Formatter

from debug.kinds import Json

Spans = dict[str, list[int]]


class Sentences:
    """A text that grows by sentences, the spans of what is named in each, and the state after each."""

    def __init__(self) -> None:
        self.text = ""
        self.spans: Spans = {}
        self.states: list[dict[str, Json]] = []

    def add(self, pattern: str, state: dict[str, Json] | None = None, **words: str) -> None:
        """A sentence, or with no state the query behind them; each word has the role ``sentence_n_name``, n from 1."""
        self.text += " " if self.text else ""
        number = len(self.states) + 1
        prefix = "query" if state is None else f"sentence_{number}"
        for literal, name, _, _ in Formatter().parse(pattern):
            self.text += literal
            if name:
                start = len(self.text)
                self.text += words[name]
                self.spans[f"{prefix}_{name}"] = [start, len(self.text)]
        if state is not None:
            self.spans[f"{prefix}_end"] = [len(self.text) - 1, len(self.text)]
            self.states.append({"sentence": number} | state)
