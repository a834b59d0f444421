"""Lists and dicts that are read and written: ``x = [3, 5] / y = x[1]``."""

from __future__ import annotations

import string

import numpy as np

from debug.generators.base import Answer, check_chosen, check_knob, check_lengths, check_share, interpreted, pick
from debug.kinds import Json

_KEYS = "abcdefghi"
_CONTAINERS = "xyzuvw"


def make_container_program(
    seq_len: int,
    rng: np.random.RandomState,
    *,
    kinds: tuple[str, ...] = ("list", "dict"),
    size: int = 3,
    containers: int = 2,
    aliases: float = 0.0,
) -> tuple[str, Answer, dict[str, Json]]:
    """Containers of digits, and seq_len lines that read an element, write one, or (of lists) append or pop one.

    The last line reads, and what it reads is asked for.

    Args:
        kinds: ``list``, ``dict`` or both.
        size: elements of each container at first, 1 to 9.
        containers: how many, 1 to 3.
        aliases: share of the containers that get a second name, under which they are written and read too.

    Returns:
        The text, the answer, and ``{"spans", "states"}``.
    """
    check_lengths(seq_len)
    check_chosen("kinds", kinds, ("list", "dict"))
    check_knob("size", size, 1, 9)
    check_knob("containers", containers, 1, 3)
    check_share("aliases", aliases)
    lines: list[str] = []
    places: dict[str, list[str]] = {}  # container -> its indices or keys; of two names the same list
    unused = iter(_CONTAINERS)
    for _ in range(containers):
        name, kind = next(unused), pick(rng, kinds)
        digits = [str(digit) for digit in rng.randint(0, 10, size=size)]
        places[name] = [str(n) for n in range(size)] if kind == "list" else [f'"{key}"' for key in _KEYS[:size]]
        items = digits if kind == "list" else [f"{p}: {d}" for p, d in zip(places[name], digits, strict=True)]
        lines.append(f"{name} = [{', '.join(items)}]" if kind == "list" else f"{name} = {{{', '.join(items)}}}")
        if rng.random() < aliases:
            alias = next(unused)
            lines.append(f"{alias} = {name}")
            places[alias] = places[name]
    free = [letter for letter in string.ascii_lowercase if letter not in _CONTAINERS]
    read: list[str] = []
    for number in range(seq_len):
        name = pick(rng, places)
        at = places[name]
        is_list = at[0] == "0"
        acts = ["read", "write", *["append"] * (is_list and len(at) < 9), *["pop"] * (is_list and len(at) > 1)]
        act = "read" if number == seq_len - 1 else pick(rng, acts)
        value = pick(rng, read) if read and rng.random() < 0.3 else str(rng.randint(10))
        if act == "read":
            variable = pick(rng, [letter for letter in free if letter not in read] or free)
            read = [*(other for other in read if other != variable), variable]
            lines.append(f"{variable} = {name}[{pick(rng, at)}]")
        elif act == "write":
            lines.append(f"{name}[{pick(rng, at)}] = {value}")
        elif act == "append":
            at.append(str(len(at)))
            lines.append(f"{name}.append({value})")
        else:
            at.pop()
            lines.append(f"{name}.pop()")
    return interpreted("\n".join([*lines, f"#{read[-1]}: "]))
