"""A prompt as the user's turn of a conversation: what a chat template makes of it, and where it stands in that."""

from __future__ import annotations

from typing import NamedTuple

from debug.errors import InputError
from debug.kinds import Tokenizer

_MARK = "-turn-"  # no template has it in a text of its own


class Turn(NamedTuple):
    """The text that a model reads: the user's turn, and the beginning of the reply."""

    text: str
    held: tuple[int, int]
    """Start and end, in characters of ``text``, of what it holds of the turn."""
    stripped: int
    """Characters of white space that the turn began with and ``text`` does not hold."""


def rendered(tokenizer: Tokenizer, prompt: str, of: str = "the tokenizer") -> str:
    """The user's turn of a conversation that it opens, up to where the reply begins.

    Args:
        of: whose chat template it is, for messages.

    Raises:
        InputError: there is no chat template, or it refuses the prompt.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{of} has no chat template; only instruction-tuned models do. Leave chat out")
    turns = [{"role": "user", "content": prompt}]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of its author's, and may fail in any way
        raise InputError(f"the chat template of {of} refuses the prompt: {error}") from error


def turn(tokenizer: Tokenizer, prompt: str, of: str = "the tokenizer") -> Turn:
    """:func:`rendered`, and where the prompt stands in it; white space around it may be stripped.

    The place is that of another prompt under the same template: a word that the template has, too, is not mistaken for
    it.

    Raises:
        InputError: as :func:`rendered`; or the text does not hold the prompt as it is, exactly once.
    """
    text, marked = rendered(tokenizer, prompt, of), rendered(tokenizer, _MARK, of).split(_MARK)
    before, behind = marked[0], marked[-1]
    start, end = len(before), len(text) - len(behind)
    held, bare = text[start:end], prompt.strip()
    stripped = prompt.find(bare) - held.find(bare)
    as_it_is = bare and held.strip() == bare and prompt[max(stripped, 0) :].startswith(held)
    if len(marked) != 2 or not as_it_is or not (text.startswith(before) and text.endswith(behind)):
        raise InputError(
            f"the chat template of {of} does not hold the prompt's text exactly once, as it is; expected that, so that "
            f"spans can be found in it. The prompt begins {prompt[:40]!r}, what it is made into {text[:120]!r}"
        )
    return Turn(text, (start, end), stripped)
