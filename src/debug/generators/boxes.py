"""Entity tracking in English: things in boxes, and moves."""

from __future__ import annotations

import string

import numpy as np

from debug.errors import InputError
from debug.generators.base import Answer, check_knob, check_lengths, pick
from debug.generators.sentences import Sentences
from debug.kinds import Json

THINGS = (
    *("apple", "ball", "bell", "book", "bottle", "brick", "camera", "card", "coat", "coin", "cup", "drum", "fan"),
    *("flower", "glass", "hat", "key", "lamp", "letter", "map", "phone", "plate", "ring", "shirt", "watch"),
)


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
    letters = string.ascii_uppercase[:boxes]
    inside: dict[str, str] = {}  # box -> thing
    text = Sentences()
    chosen = [str(thing) for thing in rng.choice(THINGS, size=things, replace=False)]
    places = [str(box) for box in rng.choice(list(letters), size=things, replace=False)]
    for thing, box in zip(chosen, places, strict=True):
        inside[box] = thing
        text.add("The {thing} is in box {to}.", {"boxes": dict(inside)}, thing=thing, to=box)
    for _ in range(seq_len):
        source = pick(rng, sorted(inside))
        target = pick(rng, [box for box in letters if box not in inside])
        thing = inside.pop(source)
        inside[target] = thing
        words = {"thing": thing, "from": source, "to": target}
        text.add("The {thing} is moved from box {from} to box {to}.", {"boxes": dict(inside)}, **words)
    box = pick(rng, sorted(inside))
    text.add("Box {box} contains the", box=box)
    return text.text, inside[box], {"spans": text.spans, "states": text.states}
