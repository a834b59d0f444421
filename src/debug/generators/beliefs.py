"""Beliefs in English: who fills what with which drink, and who sees it."""

from __future__ import annotations

import numpy as np

from debug.generators.base import Answer, check_knob, check_lengths, check_share, pick
from debug.generators.sentences import Sentences
from debug.kinds import Json

NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry")
CONTAINERS = ("cup", "bottle", "glass", "jar", "jug", "bowl")
DRINKS = ("beer", "coffee", "juice", "milk", "soda", "tea", "water", "wine")


def make_beliefs_program(
    seq_len: int, rng: np.random.RandomState, *, people: int = 2, containers: int = 2, seen: float = 0.5
) -> tuple[str, Answer, dict[str, Json]]:
    """seq_len fillings, each seen by some of the others; what one of the people believes is asked for.

    ``Anna fills the cup with tea. Ben sees it. Ben fills the cup with beer. Anna does not see it. Anna believes that
    the cup contains``: the next word is the answer, ``tea``. Half of the time a false belief is asked for, where there
    is one.

    Args:
        people: how many, 1 to 8.
        containers: how many, 1 to 6.
        seen: share of the fillings that each of the others sees.

    Returns:
        The text, the drink, and ``{"content", "spans", "states"}``: what the container really has in it, the roles
        ``sentence_n_{name,container,drink,sight,end}`` and ``query_{name,container}``, and after each sentence
        ``{"sentence", "contents", "beliefs"}``, n from 1.
    """
    check_lengths(seq_len)
    check_knob("people", people, 1, len(NAMES))
    check_knob("containers", containers, 1, len(CONTAINERS))
    check_share("seen", seen)
    names = [str(name) for name in rng.choice(NAMES, size=people, replace=False)]
    filled = [str(name) for name in rng.choice(CONTAINERS, size=containers, replace=False)]
    contents: dict[str, str] = {}
    beliefs: dict[str, dict[str, str]] = {name: {} for name in names}
    text = Sentences()

    def state() -> dict[str, Json]:
        return {"contents": dict(contents), "beliefs": {name: dict(held) for name, held in beliefs.items()}}

    for _ in range(seq_len):
        actor, container = pick(rng, names), pick(rng, filled)
        drink = pick(rng, [drink for drink in DRINKS if drink != contents.get(container)])
        contents[container] = beliefs[actor][container] = drink
        words = {"name": actor, "container": container, "drink": drink}
        text.add("{name} fills the {container} with {drink}.", state(), **words)
        for other in (name for name in names if name != actor):
            sees = rng.random() < seen
            if sees:
                beliefs[other][container] = drink
            text.add("{name} {sight} it.", state(), name=other, sight="sees" if sees else "does not see")
    held = [(name, container) for name in names for container in beliefs[name]]
    false = [(name, container) for name, container in held if beliefs[name][container] != contents[container]]
    asked = false if false and rng.random() < 0.5 else held
    name, container = asked[rng.randint(len(asked))]
    text.add("{name} believes that the {container} contains", name=name, container=container)
    metadata = {"content": contents[container], "spans": text.spans, "states": text.states}
    return text.text, beliefs[name][container], metadata
