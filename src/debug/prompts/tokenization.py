"""The one way from a text to the tokens that a model reads, and the tokens that end its own; accuracy and causal runs,
both backends. Knows no model and no program."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from debug.kinds import Tokenizer

logger = logging.getLogger(__name__)

_PROBE = "a = 1"
_REPLY = "-reply-"  # no template has it in a text of its own


class Reading(NamedTuple):
    """A text as tokens. ``text`` is what the tokens say: without end tokens that the given text closed with."""

    text: str
    token_ids: list[int]
    offsets: list[tuple[int, int]]
    """Of each token: the characters of ``text`` that it stands for."""
    added: list[bool]
    """Of each token: whether the tokenizer put it there, and nothing in the text did."""


def read(tokenizer: Tokenizer, text: str, *, rendered: bool = False) -> Reading:
    """The tokens of a text behind which a model goes on writing.

    End tokens behind the text are dropped, whether the tokenizer appends them or the text closes with them: behind
    these a model begins another text. A text that begins with the token which the tokenizer puts first has it once.

    Args:
        tokenizer: a fast tokenizer of transformers.
        rendered: the text comes from a chat template, which wrote all special tokens that belong there.
    """
    encoding = tokenizer(
        text,
        add_special_tokens=not rendered,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    token_ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    added = list(map(bool, encoding["special_tokens_mask"]))
    end = len(token_ids)
    if not rendered:
        while end and added[end - 1]:
            end -= 1
        appended = end
        while end and token_ids[end - 1] == tokenizer.eos_token_id and not added[end - 1]:
            end -= 1
        if end < appended:
            _say(f"the prompt closes with {text[offsets[end][0] :]!r}, which ends a text")
            text = text[: offsets[end][0]]
    start = int(end > 1 and added[0] and not added[1] and token_ids[0] == token_ids[1])
    return Reading(text, token_ids[start:end], offsets[start:end], added[start:end])


@cache
def _say(what: str) -> None:
    """Once, however many prompts it holds for."""
    logger.warning("%s; it is left out", what)


def appended(tokenizer: Tokenizer) -> str | None:
    """What a tokenizer puts behind every text, as its name says, and :func:`read` drops; None for most."""
    try:
        encoding = tokenizer(_PROBE, return_special_tokens_mask=True, verbose=False)
    except Exception:  # tokenizers raises bare Exception where a vocabulary has no unknown token
        return None
    token_ids, mask = encoding["input_ids"], encoding["special_tokens_mask"]
    behind = len(mask) - next((n for n, special in enumerate(reversed(mask)) if not special), len(mask))
    return "".join(tokenizer.convert_ids_to_tokens(token_ids[behind:])) or None


def end_tokens(tokenizer: Tokenizer, configured: int | Iterable[int] | None) -> set[int]:
    """Tokens that end a text: those of the generation configuration, the tokenizer's own, and the chat template's."""
    ends = {configured} if isinstance(configured, int) else {*(configured or ())}
    return {*ends, tokenizer.eos_token_id, turn_end(tokenizer)} - {None}


def turn_end(tokenizer: Tokenizer) -> int | None:
    """The token that the chat template writes right behind what the assistant says; None where that is no token of its
    own, or there is no template.

    A model that was tuned on conversations ends with it what it has to say, whether its generation configuration names
    that token or not (``<|im_end|>``, ``<end_of_turn>``, ``<|eot_id|>``).
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    asked, replied = {"role": "user", "content": "a = 1"}, {"role": "assistant", "content": _REPLY}
    added = tokenizer.get_added_vocab()
    for turns in ([asked, replied], [asked, replied, asked]):  # some templates close a turn only where one follows
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception as error:  # a template is a program of its author's, and may fail in any way
            logger.warning("the chat template renders no reply, and the end of one is not known from it: %s", error)
            return None
        _, said, behind = text.rpartition(_REPLY)
        names = [name for name in added if said and behind.lstrip().startswith(name)]
        if names:
            return added[max(names, key=len)]
    return None
