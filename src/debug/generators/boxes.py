"""Entity tracking in English: things in boxes, and moves. Generator, reader, counterfactuals."""

from __future__ import annotations

import string
from collections.abc import Iterator

import numpy as np

from debug.counterfactual import Kind
from debug.errors import InputError
from debug.generators.base import Answer, check_knob, check_lengths, pick
from debug.generators.sentences import (
    Bound,
    Sentences,
    Story,
    Words,
    exchanges,
    fresh,
    others,
    sentences_of,
    story_pair,
    told,
)
from debug.hypotheses.models import NAME, ORDER, VALUE
from debug.kinds import Json
from debug.programs import TextPair

THINGS = (
    *("apple", "ball", "bell", "book", "bottle", "brick", "camera", "card", "coat", "coin", "cup", "drum", "fan"),
    *("flower", "glass", "hat", "key", "lamp", "letter", "map", "phone", "plate", "ring", "shirt", "watch"),
)

LETTERS = tuple(string.ascii_uppercase)
PLACED, MOVED = "The {thing} is in box {to}.", "The {thing} is moved from box {from} to box {to}."
ASKED = "Box {box} contains the"


class Boxes(Sentences):
    """Boxes of one thing or none, as sentences say it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: dict[str, str] = {}  # box -> thing

    def tell(self, pattern: str, words: Words) -> None:
        """The next sentence; raises ProgramError where it contradicts those before it."""
        thing, to, source = words["thing"], words["to"], words.get("from")
        if source is not None:
            if self.inside.get(source) != thing:
                raise self.refusal(f"the {thing} is not in box {source}")
            del self.inside[source]
        elif len(self.bound) < len(self.states):
            raise self.refusal(f"the {thing} is put into a box behind a move; first sentences say where things are")
        elif thing in self.inside.values():
            raise self.refusal(f"the {thing} is in another box")
        else:
            self.bound.append(Bound((to,), thing))
        if to in self.inside:
            raise self.refusal(f"box {to} has the {self.inside[to]} in it")
        self.inside[to] = thing
        self.add(pattern, {"boxes": dict(self.inside)}, **words)

    def ask(self, words: Words) -> Story:
        """The text with its query; raises ProgramError where the box is empty."""
        if (thing := self.inside.get(words["box"])) is None:
            raise self.refusal(f"box {words['box']} is asked for, and is empty")
        return self.asked(ASKED, words, [each.value for each in self.bound].index(thing))


def read_boxes(text: str) -> Story:
    """A text as :func:`make_boxes_program` makes it: first where things are, then moves, then what a box contains.

    Raises:
        ProgramError: a sentence is another, or contradicts those before it.
    """
    words = {"thing": THINGS, "from": LETTERS, "to": LETTERS, "box": LETTERS}
    boxes = Boxes()
    *sentences, (_, asked) = sentences_of(text, (PLACED, MOVED), ASKED, words)
    for pattern, named in sentences:
        boxes.tell(pattern, named)
    return boxes.ask(asked)


def make_boxes_program(
    seq_len: int, rng: np.random.RandomState, *, boxes: int = 5, things: int = 3
) -> tuple[str, Answer, dict[str, Json]]:
    """Where each thing is, then seq_len moves into an empty box; what one box contains in the end is asked for.

    ``The apple is in box A. ... The apple is moved from box A to box D. Box D contains the``: the next word is the
    answer. A box has one thing or none.

    Args:
        boxes: how many, 2 to 26.
        things: how many, fewer than boxes, at most 25.

    Returns:
        The text, the thing, and ``{"spans", "states"}``: roles ``sentence_n_{thing,from,to,end}`` (the first sentences
        have ``to`` alone) and ``query_box``, and ``{"sentence", "boxes"}`` after each sentence, n from 1.
    """
    check_lengths(seq_len)
    check_knob("boxes", boxes, 2, 26)
    check_knob("things", things, 1, len(THINGS))
    if things >= boxes:
        raise InputError(f"things is {things}; {boxes} boxes of which one stays empty have at most {boxes - 1}")
    letters, text = LETTERS[:boxes], Boxes()
    inside = text.inside
    chosen = [str(thing) for thing in rng.choice(THINGS, size=things, replace=False)]
    places = [str(box) for box in rng.choice(list(letters), size=things, replace=False)]
    for thing, box in zip(chosen, places, strict=True):
        text.tell(PLACED, {"thing": thing, "to": box})
    for _ in range(seq_len):
        source = pick(rng, sorted(inside))
        target = pick(rng, [box for box in letters if box not in inside])
        text.tell(MOVED, {"thing": inside[source], "from": source, "to": target})
    story = text.ask({"box": pick(rng, sorted(inside))})
    return story.text, story.answer, story.metadata


def boxes_pair(kind: str, text: str, seed: int | None = None) -> TextPair:
    """The pair of such a text with its counterfactual of a kind; see :func:`.story_pair`.

    Raises:
        ProgramError: the text cannot be read, or it has no such counterfactual.
    """
    return story_pair(kind, text, seed, read_boxes, KINDS)


def _root_value(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    for other in others(THINGS, story.words("thing"), story.answer, rng):
        yield story.with_words({story.answer: other})


def _swap_values(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    yield from map(story.with_words, exchanges(story.words("thing"), rng))


def _pointer(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    """The query, or a move, names another box; first sentences exchange their boxes; all things are others."""
    letters, things = story.words("from", "to", "box"), story.words("thing")
    while True:
        new = fresh(things, THINGS, rng) or dict(zip(things, map(str, rng.permutation(things)), strict=True))
        places = [str(box) for (box,), _ in (story.bound[at] for at in rng.permutation(len(story.bound)))]
        sentences = [(pattern, dict(words)) for pattern, words in story.sentences]
        at = len(sentences) - 1 if rng.rand() < 0.5 else rng.randint(len(places), len(sentences))
        role = pick(rng, [role for role in sentences[at][1] if role != "thing"])
        sentences[at][1][role] = pick(rng, letters)
        inside: dict[str, str] = {}
        for number, (_, words) in enumerate(sentences[:-1]):
            if number < len(places):
                words |= {"thing": new[words["thing"]], "to": places[number]}
            elif words["from"] in inside:  # else the text is refused
                words["thing"] = inside.pop(words["from"])
            inside[words["to"]] = words["thing"]
        yield told(sentences)


def _rename(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    yield from map(story.with_words, exchanges(story.words("from", "to", "box"), rng))


def _reorder(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    n = len(story.bound)
    while n > 1:
        yield told([*(story.sentences[at] for at in rng.permutation(n)), *story.sentences[n:]])


def _distractor(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    things = story.words("thing")
    for at in rng.permutation(len(things)):
        if things[at] != story.answer:
            yield from (story.with_words({things[at]: new}) for new in others(THINGS, things, things[at], rng))


def _same_answer(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    yield story.with_words(fresh(story.words("from", "to", "box"), LETTERS, rng))


KINDS: dict[str, Kind[Story]] = {
    "root_value": Kind(_root_value, "the thing that is asked for is another, everywhere", VALUE),
    "pointer": Kind(
        _pointer,
        "another box is asked for or a move goes elsewhere, boxes of first sentences are exchanged, all things are "
        "others",
        NAME,
    ),
    "swap_values": Kind(_swap_values, "the thing that is asked for and another exchange their places", VALUE),
    "rename": Kind(_rename, "two boxes exchange their letters, and the original has something in the other one", NAME),
    "reorder": Kind(_reorder, "first sentences are permuted", ORDER),
    "distractor": Kind(_distractor, "a thing that is not asked for is another, everywhere"),
    "same_answer": Kind(_same_answer, "all boxes have letters that the original has not"),
}
