"""English texts whose pieces have roles: told sentence by sentence, read again, and their counterfactuals."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from string import Formatter
from typing import NamedTuple

import numpy as np

from debug.counterfactual import Kind, choose
from debug.hypotheses.models import NAME, ORDER
from debug.kinds import Json
from debug.programs import LONGEST_TEXT, ProgramError, TextPair, TextProgram

Spans = dict[str, list[int]]
Words = dict[str, str]
Sentence = tuple[str, Words]
"""A pattern, and what stands in it."""


class Bound(NamedTuple):
    """Where a text says what has which value: the thing in a box, the drink that someone fills a container with."""

    name: tuple[str, ...]
    value: str


@dataclass(frozen=True)
class Story:
    """A text that was read: its answer, and where in it the answer comes from."""

    text: str
    answer: str
    metadata: dict[str, Json]
    """``spans``: role -> [start, end), in characters; ``states``, after each sentence."""
    sentences: tuple[Sentence, ...]
    """The last is the query."""
    bound: tuple[Bound, ...]
    """In the order of the text."""
    root: int
    """Of these the one that the answer is the value of."""

    def with_words(self, others: Mapping[str, str]) -> str:
        """The text with other words in the place of some, everywhere."""
        return told(
            (pattern, {role: others.get(w, w) for role, w in words.items()}) for pattern, words in self.sentences
        )

    def words(self, *roles: str) -> list[str]:
        """The words of roles, each once, in the order of the text."""
        return list(dict.fromkeys(w for _, words in self.sentences for role, w in words.items() if role in roles))


class Sentences:
    """A text that grows by sentences, the spans of what is named in each, and the state after each."""

    def __init__(self) -> None:
        self.text = ""
        self.spans: Spans = {}
        self.states: list[dict[str, Json]] = []
        self.sentences: list[Sentence] = []
        self.bound: list[Bound] = []

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
        self.sentences.append((pattern, words))

    def asked(self, pattern: str, words: Words, root: int, **metadata: Json) -> Story:
        """The text with the query behind it, whose answer is the value of ``bound[root]``."""
        self.add(pattern, None, **words)
        about = metadata | {"spans": self.spans, "states": self.states}
        return Story(self.text, self.bound[root].value, about, tuple(self.sentences), tuple(self.bound), root)

    def refusal(self, why: str) -> ProgramError:
        """That the sentence that would be next cannot be."""
        return ProgramError(f"sentence {len(self.states) + 1} cannot be: {why}")


def told(sentences: Iterable[Sentence]) -> str:
    """The text of sentences."""
    return " ".join(pattern.format(**words) for pattern, words in sentences)


def sentences_of(
    text: str, patterns: tuple[str, ...], query: str, vocabulary: Mapping[str, tuple[str, ...]]
) -> list[Sentence]:
    """The sentences of a text, the query last; ``vocabulary`` has the words of each name in the patterns.

    Raises:
        ProgramError: a sentence is of no pattern, the text does not end in the query, or is too long.
    """
    if len(text) > LONGEST_TEXT:
        raise ProgramError(f"the text has {len(text):,} characters; expected at most {LONGEST_TEXT:,}")
    pieces = re.split(r"(?<=\.) ", text)
    found: list[Sentence] = []
    for number, piece in enumerate(pieces, 1):
        allowed = patterns if number < len(pieces) else (query,)
        matches = ((pattern, _regex(pattern, tuple(vocabulary.items())).fullmatch(piece)) for pattern in allowed)
        match = next(((pattern, match.groupdict()) for pattern, match in matches if match), None)
        if match is None:
            raise ProgramError(f"sentence {number} is {piece[:80]!r}; expected {' or '.join(map(repr, allowed))}")
        found.append(match)
    return found


@cache
def _regex(pattern: str, vocabulary: tuple[tuple[str, tuple[str, ...]], ...]) -> re.Pattern[str]:
    parts = Formatter().parse(pattern)
    known = dict(vocabulary)
    return re.compile(
        "".join(
            re.escape(text) + (f"(?P<{name}>{'|'.join(known[name])})" if name else "") for text, name, _, _ in parts
        )
    )


def story_pair(
    kind: str, text: str, seed: int | None, read: Callable[[str], Story], kinds: Mapping[str, Kind[Story]]
) -> TextPair:
    """The pair of a text with its counterfactual of a kind, as :func:`debug.counterfactual.counterfactual` chooses it.

    A pointer is where the source binds the value that it asks for: by name, what the original binds to that name (the
    same time, where it does so several times); by order, what it binds there, counted in the order of the text.

    Raises:
        ProgramError: the text cannot be read, or it has no such counterfactual.
    """
    if kind not in kinds:
        raise ProgramError(f"kind is {kind!r:.80}; expected one of {', '.join(kinds)}")
    original = read(text)
    texts = kinds[kind].texts(original, np.random.RandomState([seed or 0, 1]))

    def pair_with(changed: Story) -> TextPair:
        return TextPair(_program(original), _program(changed), seed, kind, _pointers(original, changed))

    return choose(kind, kinds[kind], texts, original, read, pair_with)


def _program(story: Story) -> TextProgram:
    return TextProgram(story.text, story.answer, story.metadata["spans"], exact=False)


def _pointers(original: Story, source: Story) -> dict[str, str]:
    name = source.bound[source.root].name
    time = [each.name for each in source.bound[: source.root]].count(name)
    by_name = [each.value for each in original.bound if each.name == name][time : time + 1]
    by_order = [each.value for each in original.bound][source.root : source.root + 1]
    return {said: values[0] for said, values in ((NAME, by_name), (ORDER, by_order)) if values}


# --- Words for counterfactuals ----------------------------------------------------------------------------------------


def others(known: Iterable[str], used: Collection[str], like: str, rng: np.random.RandomState) -> list[str]:
    """Known words that are not used, in random order: first those as long as ``like`` that begin otherwise, so that
    they are more likely to be as many tokens."""
    free = [word for word in known if word not in used]
    drawn = [free[at] for at in rng.permutation(len(free))]
    return sorted(drawn, key=lambda word: len(word) != len(like) or word[0] == like[0])


def fresh(words: Iterable[str], known: tuple[str, ...], rng: np.random.RandomState) -> dict[str, str]:
    """For each word another, all different, none of them among the words; none at all where there are too few."""
    words = list(words)
    new: dict[str, str] = {}
    for word in words:
        free = others(known, {*words, *new.values()}, word, rng)
        if not free:
            return {}
        new[word] = free[0]
    return new


def exchanges(words: list[str], rng: np.random.RandomState) -> Iterator[dict[str, str]]:
    """Each two words in one another's place, in random order: first those that are as long."""
    pairs = [(one, other) for at, one in enumerate(words) for other in words[:at] if one != other]
    drawn = [pairs[at] for at in rng.permutation(len(pairs))]
    for one, other in sorted(drawn, key=lambda pair: len(pair[0]) != len(pair[1])):
        yield {one: other, other: one}
