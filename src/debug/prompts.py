"""Prompt templates: plain strings in which ``{code}`` stands for the program. Few-shot templates hold solved examples.

Substitution is plain text (:func:`fill`), so that programs may contain braces. Adding a template is writing it and
naming it in ``PROMPTS``; a text of your own works without that. Knows no model and no parser.
"""

from __future__ import annotations

import hashlib
from itertools import islice

from debug.generators import Generator, get_generator, search

CODE = "{code}"

MINIMAL = CODE
"""The program and nothing else."""

VARIABLE_BINDING = CODE
"""The published format: the program ends in its query line, and the model continues with the answer."""

RANGE_TRACKING = f"Here is a Python program:\n\n```python\n{CODE}\n```\n\nThe final value of x is:"

FEW_SHOT_BINDING = f"""n = 3
y = 9
c = 7
m = 5
d = 8
#c: 7

s = 4
f = 5
g = f
c = g
m = 1
#g: 5

b = 4
p = 8
u = p
r = u
h = p
#r: 8

{CODE}"""
"""Three solved five-line programs of 1, 2 and 3 hops (seeds 900013, 900021 and 900034) before the one that is asked."""

PROMPTS: dict[str, str] = {
    "VARIABLE_BINDING": VARIABLE_BINDING,
    "MINIMAL": MINIMAL,
    "FEW_SHOT_BINDING": FEW_SHOT_BINDING,
    "RANGE_TRACKING": RANGE_TRACKING,
}


def few_shot(generator: str | Generator, seq_len: int, n: int, seed: int, template: str = VARIABLE_BINDING) -> str:
    """A template with ``n`` solved programs of ``seed``, ``seed + 1``, ... above the program that is asked.

    ``template`` is that of each example and of the question. A run passes over programs that its template solves, so
    the tested program is never among the examples.

    Raises:
        ValueError: n is below 1, or as :func:`get_prompt` and :func:`debug.generators.get_generator`.
    """
    if n < 1:
        raise ValueError(f"n is {n}; expected 1 solved example or more")
    _, template = get_prompt(template)
    _, function = get_generator(generator)
    examples = []
    for example in islice(search(function, seq_len, seed), n):
        question = fill(template, example.program)
        examples.append(f"{question}{'' if question[-1].isspace() else ' '}{example.answer}")
    return "\n\n".join([*examples, template])


def fill(template: str, program: str) -> str:
    """The prompt: the template with the program in the place of ``{code}``."""
    return template.replace(CODE, program)


def get_prompt(name_or_text: str) -> tuple[str, str]:
    """Name and text of a template given as either; a text of one's own is named by its digest.

    Raises:
        ValueError: neither a known name nor a text with exactly one ``{code}``.
    """
    if name_or_text in PROMPTS:
        return name_or_text, PROMPTS[name_or_text]
    for name, text in PROMPTS.items():
        if name_or_text == text:
            return name, text
    if name_or_text.count(CODE) != 1:
        raise ValueError(
            f"prompt template {name_or_text[:80]!r} contains {CODE} {name_or_text.count(CODE)} times; expected it "
            f"exactly once, where the program goes, or the name of a template: {', '.join(PROMPTS)}"
        )
    return f"custom-{hashlib.sha256(name_or_text.encode()).hexdigest()[:8]}", name_or_text
