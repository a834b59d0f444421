"""Where the answer's token is behind a prompt: the one rule for what is generated, ranked by logits, and patched.

A prompt that ends in white space has its answer right behind it (``#a: `` then ``4``). One that does not has it there
too, or behind a space (``#a:`` then ``4`` or `` 4``), and that space may be a token of its own (SmolLM2, Qwen, Mistral)
or the beginning of the answer's (GPT-2, OPT, Pythia). What is possible is what the tokenizer makes of the prompt with
the answer behind it (:func:`forms`); which of it is meant is what the model itself writes:

- generation reads the text that comes, with or without a space;
- ranking by logits takes the form that holds the most probable token behind the prompt;
- a causal run reads on behind the white space that the model itself writes, as if the prompt ended in it, and an answer
  begins with a space where the model's first token does. Where it writes otherwise for one pair than for the run's
  first ones, or for the two programs of a pair, the pair is skipped, with these tokens as the reason.

A prompt that ends in a space which merges with the answer loses it (:func:`suited`), whatever it is for.
Knows no weights.
"""

from __future__ import annotations

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import islice, takewhile
from typing import NamedTuple, Protocol, TypeVar

from debug.errors import InputError
from debug.kinds import Tokenizer
from debug.programs import AnyPair
from debug.prompts import tokenization
from debug.prompts.templates import fill, get_prompt, without_final_space

logger = logging.getLogger(__name__)

_Token = TypeVar("_Token", int, str)


class NoPlace(InputError):
    """Behind this prompt the answers have no tokens of their own; the message shows the tokens."""


class Writer(Protocol):
    """What is asked of a model here; :class:`debug.models.LoadedModel` is one."""

    @property
    def id(self) -> str: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def first_tokens(self, prompts: Sequence[list[int]], n: int) -> list[list[int]]: ...


class Prompt(Protocol):
    """A prompt and its tokens; :class:`debug.token_analyzer.TokenizedProgram` is one."""

    @property
    def prompt(self) -> str: ...

    @property
    def token_ids(self) -> list[int]: ...

    @property
    def rendered(self) -> bool: ...


class Form(NamedTuple):
    """One way in which answers can be written behind a prompt."""

    space: str
    """What is written before them: nothing, or a space."""
    lead: list[int]
    """The tokens that all of them begin with: the space where it is a token of its own, a common sign or digit; nothing
    where all are one answer."""
    tokens: list[int]
    """Of each answer, the token behind the lead; of some answers the same."""


def token_ids(tokenizer: Tokenizer, text: str, rendered: bool = False) -> list[int]:
    """The tokens of a text as a model reads it (``rendered`` by a chat template or not); none where it has no token for
    part of it."""
    try:
        return tokenization.read(tokenizer, text, rendered=rendered).token_ids
    except Exception:  # tokenizers raises bare Exception where a vocabulary has no unknown token
        return []


def forms(
    tokenizer: Tokenizer, prompt: str, prompt_ids: Sequence[int], answers: Sequence[str], rendered: bool = False
) -> list[Form]:
    """The ways in which a tokenizer lets these answers follow a prompt: with a space first, then without.

    Raises:
        NoPlace: behind this prompt the answers are no tokens of their own.
    """
    length, found, changed = len(prompt_ids), [], []
    for space in [""] if prompt[-1:].isspace() else [" ", ""]:
        continued = [token_ids(tokenizer, f"{prompt}{space}{answer}", rendered) for answer in answers]
        merged = [ids for ids in continued if ids[:length] != list(prompt_ids) or len(ids) == length]
        if merged:
            changed.append(merged[0])
            continue
        behind = [ids[length:] for ids in continued]
        lead = common_prefix(behind) if len({*answers}) > 1 else []
        if all(len(ids) > len(lead) for ids in behind):
            found.append(Form(space, lead, [ids[len(lead)] for ids in behind]))
    if not found and changed and not changed[0]:
        raise NoPlace(f"there is no token for part of the answers {', '.join(map(repr, answers))!s:.200}")
    if not found and changed:
        before, after = (tokenizer.convert_ids_to_tokens(list(ids)[-4:]) for ids in (prompt_ids, changed[0]))
        raise NoPlace(
            f"the prompt's tokens change when the answer follows: {after} after {before}; a prompt template whose end "
            "does not merge with a number would do"
        )
    return found


def suited(tokenizer: Tokenizer, template: str, program: str, answers: Sequence[str]) -> str:
    """The text of the template without its final space, where that is one token with what follows; else as it is.

    Args:
        template: name or text.
        program: one of those that it is for.
        answers: what the model might write behind it.
    """
    return without_merged_space(partial(_merges, tokenizer), template, program, answers)


def without_merged_space(
    merges: Callable[[str, Sequence[str]], bool], template: str, program: str, answers: Sequence[str]
) -> str:
    """:func:`suited`, by what says whether a prompt's tokens are others when one of the answers follows."""
    name, text = get_prompt(template)
    prompt = fill(text, program)
    if not prompt.endswith(" ") or not merges(prompt, answers):
        return text
    unspaced, other = get_prompt(without_final_space(template))
    shorter = fill(other, program)
    if shorter == prompt or merges(shorter, [f" {answer}" for answer in answers]):
        return text
    _say(
        f"prompts are given without their final space (template {unspaced} in the place of {name}), and answers begin "
        f"with it: the tokenizer makes, or may make, one token of both ({f' {answers[0]}'!r})"
    )
    return other


@cache
def _say(what: str) -> None:
    """Once, however many prompts it holds for."""
    logger.info("%s", what)


def _merges(tokenizer: Tokenizer, prompt: str, answers: Sequence[str]) -> bool:
    """Whether a prompt's tokens are others when one of the answers follows; no text without a token merges."""
    ids = token_ids(tokenizer, prompt)
    behind = [token_ids(tokenizer, f"{prompt}{answer}") for answer in answers]
    return any(found and found[: len(ids)] != ids for found in behind)


def written(model: Writer, prompts: Sequence[str], rendered: bool = False) -> list[list[int]]:
    """The first tokens that a model (:class:`debug.models.LoadedModel`) writes, greedily, behind each prompt."""
    return model.first_tokens([token_ids(model.tokenizer, prompt, rendered) for prompt in prompts], WRITTEN)


def of_pair(pair: AnyPair) -> tuple[str, ...]:
    """The answers that can be expected of a pair (:class:`debug.programs.Pair`): its two, where they are texts; none
    where they are numbers, for then all numbers can."""
    answers = (pair.expected_original, pair.expected_counterfactual)
    return () if all(type(answer) is int for answer in answers) else tuple(map(str, answers))


def lead(model: Writer, prompts: Sequence[tuple[str, Sequence[str]]], rendered: bool = False) -> str:
    """The white space that a model writes, as tokens of its own, before most of its answers to these prompts, each of
    which stands with its answers' texts (none: numbers).

    Nothing where the prompts end in white space, or the model begins no answer, or the space is the answer's token's.
    """
    asked = [each for each in prompts if not each[0][-1:].isspace() and token_ids(model.tokenizer, each[0], rendered)]
    votes: Counter[str] = Counter()
    for (prompt, values), tokens in zip(asked, written(model, [prompt for prompt, _ in asked], rendered), strict=True):
        before = _white_space(model.tokenizer, tokens)
        if not _is_answer(model.tokenizer.decode(tokens), values):
            continue
        ids = [*token_ids(model.tokenizer, prompt, rendered), *before]
        # A tokenizer may decode a token of white space as nothing.
        texts = ["", " ", model.tokenizer.decode(before)]
        fitting = (text for text in texts if token_ids(model.tokenizer, prompt + text, rendered) == ids)
        votes.update(islice(fitting, 1))
    [(found, _)] = votes.most_common(1) or [("", 0)]
    if found:
        _say(f"model {model.id!r} writes {found!r} before its answers: it is read as the end of the prompt")
    return found


def agreed(
    tokenizer: Tokenizer,
    prompt: Prompt,
    lead: str,
    both: Sequence[str],
    written: Sequence[Sequence[int]],
    values: Sequence[str] = (),
    begin_alike: bool = False,
) -> tuple[int, int] | None:
    """The tokens of a pair's two answers, as the model itself begins to write them; None where it does not do so alike,
    or begins both with the same token, unless they may ``begin_alike``.

    Args:
        prompt: the :class:`debug.token_analyzer.TokenizedProgram` that the answers follow; it ends in ``lead``.
        both: both answers' texts.
        written: what the model writes behind the two prompts without ``lead``.
        values: the answers that can be expected; none: numbers.
    """
    bare = token_ids(tokenizer, prompt.prompt.removesuffix(lead), prompt.rendered)
    expected = list(prompt.token_ids[len(bare) :])
    possible = forms(tokenizer, prompt.prompt, prompt.token_ids, [*both, *(values or DIGITS)], prompt.rendered)
    forms_ = [form for form in possible if not form.lead]
    spaces = set()
    for tokens in written:
        before = _white_space(tokenizer, tokens)
        if tokens and list(tokens[: len(expected)]) != expected:
            return None
        if before != expected and _is_answer(tokenizer.decode(tokens), values):
            return None
        spaces |= {form.space for form in forms_ if {*tokens[len(expected) :][:1]} & {*form.tokens}}
    if len(spaces) > 1 or not forms_:
        return None
    c, o = next((form for form in forms_ if form.space in spaces), forms_[0]).tokens[:2]
    return (c, o) if c != o or both[0] == both[1] or begin_alike else None


def tokens_of(
    tokenizer: Tokenizer, prompt: Prompt, answers: Sequence[str], both: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """The tokens of each answer behind a prompt; those without any of their own are left out, and all where the first
    two do not begin with ``both``.

    Args:
        answers: texts; the first two are those whose tokens ``both`` are, which says whether a space is written first.
    """
    length = len(prompt.token_ids)
    for space in ("", " "):
        texts = {text: f"{prompt.prompt}{space}{text}" for text in dict.fromkeys(answers)}
        ids = {answer: token_ids(tokenizer, text, prompt.rendered) for answer, text in texts.items()}
        own = {t: of for t, of in ids.items() if of[:length] == prompt.token_ids and len(of) > length}
        found = {text: tuple(of[length:]) for text, of in own.items()}
        if tuple(found[text][0] for text in answers[:2] if text in found) == both:
            return found
    return {}


def says(text: str, value: str, values: Sequence[str] = ()) -> bool:
    """Whether what a model began to write is this one of the answers (none: numbers)."""
    if values:
        return bool(text.strip()) and (value.startswith(text.strip()) or text.lstrip().startswith(value))
    match = _ANSWER.match(text)
    return match is not None and match[1] == value


def _is_answer(text: str, values: Sequence[str]) -> bool:
    return any(says(text, value, values) for value in values) if values else _ANSWER.match(text) is not None


def _white_space(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
    """The tokens of white space that these begin with."""
    special = set(tokenizer.all_special_ids)
    return list(takewhile(lambda token: token not in special and not tokenizer.decode([token]).strip(), tokens))


_ANSWER = re.compile(r"\s*(-?[0-9]+)")
WRITTEN = 4  # tokens: white space of one or two, and the answer behind it


def written_answer(text: str, answers: Sequence[str]) -> int:
    """Which of the answers a written text begins with, as its number; -1 where none, or where a word, or a number such
    as 1.5 or 1,000, goes on."""
    text = text.lstrip()
    begun = [n for n, answer in enumerate(answers) if re.match(rf"{re.escape(answer)}(?!\w|(?<=\d)[.,]\d)", text)]
    return max(begun, key=lambda n: len(answers[n]), default=-1)


DIGITS = tuple(string.digits)
"""The answers of programs in general."""


def common_prefix(rows: list[list[_Token]]) -> list[_Token]:
    """The tokens that all rows begin with."""
    first, last = min(rows), max(rows)  # of rows in order, these two have the least in common
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]
