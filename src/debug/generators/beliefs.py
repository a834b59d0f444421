"""Beliefs in English: who fills what with which drink, and who sees it. Generator, reader, counterfactuals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

import numpy as np

from debug.counterfactual import Kind
from debug.generators.base import Answer, check_knob, check_lengths, check_share, pick
from debug.generators.sentences import (
    Bound,
    Sentence,
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

NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry")
CONTAINERS = ("cup", "bottle", "glass", "jar", "jug", "bowl")
DRINKS = ("beer", "coffee", "juice", "milk", "soda", "tea", "water", "wine")

SIGHTS = ("sees", "does not see")
FILLS, SIGHT = "{name} fills the {container} with {drink}.", "{name} {sight} it."
ASKED = "{name} believes that the {container} contains"


class Beliefs(Sentences):
    """What these people believe of what is where, as sentences say it."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.contents: dict[str, str] = {}
        self.held: dict[str, dict[str, int]] = {name: {} for name in names}  # -> container -> a filling, by its number
        self.witnesses: set[str] = set()  # of the last filling, and who saw it not

    def tell(self, pattern: str, words: Words) -> None:
        """The next sentence; raises ProgramError where it contradicts those before it."""
        name = words["name"]
        if pattern == FILLS:
            self.bound.append(Bound((name, words["container"]), words["drink"]))
            self.contents[words["container"]] = words["drink"]
            self.witnesses = set()
        elif not self.bound:
            raise self.refusal(f"nothing was done that {name} could see")
        elif name in self.witnesses:
            raise self.refusal(f"{name} did it, or it is said before whether {name} saw it")
        self.witnesses.add(name)
        if words.get("sight") != SIGHTS[1]:
            last = len(self.bound) - 1
            self.held[name][self.bound[last].name[1]] = last
        self.add(pattern, {"contents": dict(self.contents), "beliefs": self.beliefs}, **words)

    @property
    def beliefs(self) -> dict[str, Json]:
        """Name -> container -> the drink that it is believed to contain."""
        return {name: {box: self.bound[at].value for box, at in held.items()} for name, held in self.held.items()}

    def ask(self, words: Words) -> Story:
        """The text with its query; raises ProgramError where that is no belief of the person."""
        name, container = words["name"], words["container"]
        if (root := self.held.get(name, {}).get(container)) is None:
            raise self.refusal(f"{name} has not seen the {container} filled")
        return self.asked(ASKED, words, root, content=self.contents[container])


def read_beliefs(text: str) -> Story:
    """A text as :func:`make_beliefs_program` makes it: fillings, each with who sees it, then what someone believes.

    Raises:
        ProgramError: a sentence is another, or contradicts those before it.
    """
    words = {"name": NAMES, "container": CONTAINERS, "drink": DRINKS, "sight": SIGHTS}
    *sentences, (_, asked) = sentences_of(text, (FILLS, SIGHT), ASKED, words)
    beliefs = Beliefs(dict.fromkeys(named["name"] for _, named in sentences))
    for pattern, named in sentences:
        beliefs.tell(pattern, named)
    return beliefs.ask(asked)


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
    text = Beliefs(names)
    for _ in range(seq_len):
        actor, container = pick(rng, names), pick(rng, filled)
        drink = pick(rng, [drink for drink in DRINKS if drink != text.contents.get(container)])
        text.tell(FILLS, {"name": actor, "container": container, "drink": drink})
        for other in (name for name in names if name != actor):
            text.tell(SIGHT, {"name": other, "sight": SIGHTS[0] if rng.random() < seen else SIGHTS[1]})
    held = [(name, container) for name in names for container in text.held[name]]
    beliefs = text.beliefs
    false = [(name, container) for name, container in held if beliefs[name][container] != text.contents[container]]
    asked = false if false and rng.random() < 0.5 else held
    name, container = asked[rng.randint(len(asked))]
    story = text.ask({"name": name, "container": container})
    return story.text, story.answer, story.metadata


def beliefs_pair(kind: str, text: str, seed: int | None = None) -> TextPair:
    """The pair of such a text with its counterfactual of a kind; see :func:`.story_pair`.

    Raises:
        ProgramError: the text cannot be read, or it has no such counterfactual.
    """
    return story_pair(kind, text, seed, read_beliefs, KINDS)


def _with(sentences: Iterable[Sentence], role: str, others: Mapping[int, str]) -> list[Sentence]:
    """The sentences with other drinks, or containers, in some fillings, by their number from 0."""
    changed: list[Sentence] = []
    filling = -1
    for pattern, words in sentences:
        filling += pattern == FILLS
        changed.append((pattern, words | {role: others[filling]} if pattern == FILLS and filling in others else words))
    return changed


def _drinks(story: Story, filling: int, rng: np.random.RandomState) -> list[str]:
    """Drinks that a filling could be with, of the text's own only where it has all."""
    own = story.bound[filling].value
    return others(DRINKS, story.words("drink"), own, rng) or others(DRINKS, (own, story.answer), own, rng)


def _root_value(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    for drink in _drinks(story, story.root, rng):
        yield told(_with(story.sentences, "drink", {story.root: drink}))


def _swap_values(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    values = [each.value for each in story.bound]
    pairs = [*combinations(range(len(values)), 2)]
    drawn = [pairs[at] for at in rng.permutation(len(pairs))]
    for one, other in sorted(drawn, key=lambda pair: len(values[pair[0]]) != len(values[pair[1]])):
        yield told(_with(story.sentences, "drink", {one: values[other], other: values[one]}))


def _permuted(story: Story, rng: np.random.RandomState) -> list[Sentence]:
    """Fillings in another order, each with who sees it: of one container in the order that they have, and no sentence
    where one of other words was, so that roles stay where they are; in their own order where a draw has none such."""
    blocks: list[list[Sentence]] = []
    for sentence in story.sentences[:-1]:
        blocks += [[]] if sentence[0] == FILLS else []
        blocks[-1].append(sentence)
    left = list(range(len(blocks)))
    drawn: list[int] = []
    for place in blocks:
        containers = [blocks[at][0][1]["container"] for at in left]
        free = [at for n, at in enumerate(left) if containers[n] not in containers[:n]]
        free = [at for at in free if _sights(blocks[at]) == _sights(place)]
        if not free:
            return [*story.sentences]
        drawn.append(free[rng.randint(len(free))])
        left.remove(drawn[-1])
    return [*(sentence for at in drawn for sentence in blocks[at]), story.sentences[-1]]


def _sights(sentences: Iterable[Sentence]) -> list[str]:
    return [words["sight"] for pattern, words in sentences if pattern == SIGHT]


def _reorder(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    while len(story.words("container")) > 1:
        yield told(_permuted(story, rng))


def _pointer(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    """Another person, or container, is asked for; fillings exchange their containers; all drinks are others."""
    known = {"name": story.words("name"), "container": story.words("container")}
    while max(map(len, known.values())) > 1:
        containers = map(str, rng.permutation([container for (_, container), _ in story.bound]))
        drinks: dict[int, str] = {}
        for number, (_, own) in enumerate(story.bound):
            used = {*story.words("drink"), *drinks.values()}
            drinks[number] = (others(DRINKS, used, own, rng) or others(DRINKS, (own,), own, rng))[0]
        *sentences, (_, asked) = _with(story.sentences, "drink", drinks)
        query = ASKED, {role: pick(rng, known[role]) for role in asked}
        yield told([*_with(sentences, "container", dict(enumerate(containers))), query])


def _rename(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    for words in (story.words("name"), story.words("container")):
        yield from map(story.with_words, exchanges(words, rng))


def _distractor(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    for filling in rng.permutation(len(story.bound)).tolist():
        if story.bound[filling].value != story.answer:
            for drink in _drinks(story, filling, rng):
                yield told(_with(story.sentences, "drink", {filling: drink}))


def _same_answer(story: Story, rng: np.random.RandomState) -> Iterator[str]:
    people, containers = fresh(story.words("name"), NAMES, rng), fresh(story.words("container"), CONTAINERS, rng)
    yield story.with_words(people | containers)


KINDS: dict[str, Kind[Story]] = {
    "root_value": Kind(_root_value, "the drink that is believed to be there is another", VALUE),
    "pointer": Kind(
        _pointer,
        "another person or container is asked for, fillings exchange their containers, all drinks are others",
        NAME,
    ),
    "swap_values": Kind(_swap_values, "two fillings exchange their drinks, one of them the one believed in", VALUE),
    "rename": Kind(
        _rename, "two people, or two containers, exchange their names, and the original has a filling by these", NAME
    ),
    "reorder": Kind(
        _reorder,
        "fillings of different containers change places, each with who sees it, where those are as many",
        ORDER,
    ),
    "distractor": Kind(_distractor, "the drink of a filling that is not believed in is another"),
    "same_answer": Kind(_same_answer, "all people, or all containers, have names that the original has not"),
}
