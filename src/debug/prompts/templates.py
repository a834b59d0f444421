"""Prompt templates: plain strings in which ``{code}`` stands for the program. Few-shot templates hold solved examples.

Substitution is plain text (:func:`fill`), so that programs may contain braces. Adding a template is writing it and
naming it in ``PROMPTS``; a text of your own works without that. Knows no model and no parser.
"""

from __future__ import annotations

import hashlib
from itertools import islice

from debug.errors import InputError
from debug.generators import Generator, get_generator, search

CODE = "{code}"
UNSPACED_CODE = "{code.removesuffix(' ')}"
"""Where the program goes without the space that its query line ends in: see :func:`without_final_space`."""

MINIMAL = CODE
"""The program and nothing else."""

VARIABLE_BINDING = CODE
"""The published format: the program ends in its query line, and the model continues with the answer."""

_GIVEN = f"Here is a Python program:\n\n```python\n{CODE}\n```\n\n"

RANGE_TRACKING = f"{_GIVEN}The final value of x is:"

BOOLEAN_LOGIC = f"{_GIVEN}x is True or False. The final value of x is:"

EXCEPTION_HANDLING = f"{_GIVEN}Dividing by zero raises ZeroDivisionError. The final value of result is:"

ENTITY_TRACKING = f"A variable has the value that was assigned to it last.\n\n{CODE}"

_ANSWER_LAST = "End with a line that says 'Answer:' and the value.\n"
_ASKED = "What value has the variable of the last line in the end?"

STEP_BY_STEP = f"{_GIVEN}{_ASKED} Write down its value after each step. {_ANSWER_LAST}"

CHAIN_OF_THOUGHT = f"{_GIVEN}{_ASKED} Let's think step by step. {_ANSWER_LAST}"

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
    "BOOLEAN_LOGIC": BOOLEAN_LOGIC,
    "EXCEPTION_HANDLING": EXCEPTION_HANDLING,
    "ENTITY_TRACKING": ENTITY_TRACKING,
    "STEP_BY_STEP": STEP_BY_STEP,
    "CHAIN_OF_THOUGHT": CHAIN_OF_THOUGHT,
}

REASONING = (STEP_BY_STEP, CHAIN_OF_THOUGHT)
"""Templates after which a model writes more than its answer: the answer comes last, and hundreds of tokens late."""

EXAMPLE_SEED = 900_000
"""Where the seeds of solved examples begin: far from those that runs draw their programs from."""


def few_shot(
    generator: str | Generator, seq_len: int, n: int, seed: int = EXAMPLE_SEED, template: str = VARIABLE_BINDING
) -> str:
    """A template with ``n`` different solved programs of ``seed``, ``seed + 1``, ... above the program that is asked.

    ``template`` is that of each example and of the question. A run passes over programs that its template solves, so
    the tested program is never among the examples.

    Raises:
        InputError: n is below 1, the generator has fewer programs of this length, the template asks for reasoning, or
            as :func:`get_prompt` and :func:`debug.generators.get_generator`.
    """
    if n < 1:
        raise InputError(f"n is {n}; expected 1 solved example or more")
    name, template = get_prompt(template)
    if template in REASONING:
        raise InputError(f"template {name} asks for reasoning, which solved examples (answers alone) do not show")
    generator_name, function = get_generator(generator)
    examples: dict[str, str] = {}
    for example in islice(search(function, seq_len, seed), 100 * n):
        question = fill(template, example.program)
        examples[example.program] = f"{question}{'' if question[-1].isspace() else ' '}{example.answer}"
        if len(examples) == n:
            return "\n\n".join([*examples.values(), template])
    raise InputError(f"{generator_name} gave {len(examples)} different programs of {seq_len} lines; {n} were asked for")


def fill(template: str, program: str) -> str:
    """The prompt: the template with the program in the place of ``{code}``."""
    if UNSPACED_CODE in template:
        return template.replace(UNSPACED_CODE, program.removesuffix(" "))
    return template.replace(CODE, program)


def program_start(template: str) -> int:
    """The character of the prompt at which the program begins.

    Raises:
        InputError: the template has not exactly one place for it.
    """
    if template.count(CODE) + template.count(UNSPACED_CODE) != 1:
        raise InputError(f"prompt template {template[:80]!r} must have exactly one {CODE}")
    return template.index(UNSPACED_CODE if UNSPACED_CODE in template else CODE)


def without_final_space(name_or_text: str) -> str:
    """The template whose prompts lack the space that this one's end in; by its name where it has one.

    For vocabularies such as GPT-2's, in which a space and the number behind it are one token: a prompt that ends in the
    space has a token that no text has there, and the model can write no answer behind it.
    """
    name, text = get_prompt(name_or_text)
    unspaced = text[: -len(CODE)] + UNSPACED_CODE if text.endswith(CODE) else text.removesuffix(" ")
    return name + UNSPACED if name in PROMPTS and unspaced != text else unspaced


UNSPACED = "_NO_FINAL_SPACE"
"""What the names of templates without the final space end in: ``VARIABLE_BINDING_NO_FINAL_SPACE``."""


def get_prompt(name_or_text: str) -> tuple[str, str]:
    """Name and text of a template given as either; a text of one's own is named by its digest.

    Raises:
        InputError: neither a known name nor a text with exactly one ``{code}``.
    """
    unspaced = {
        name + UNSPACED: text[: -len(CODE)] + UNSPACED_CODE for name, text in PROMPTS.items() if text.endswith(CODE)
    }
    known = PROMPTS | unspaced
    if name_or_text in known:
        return name_or_text, known[name_or_text]
    for name, text in known.items():
        if name_or_text == text:
            return name, text
    places = name_or_text.count(CODE) + name_or_text.count(UNSPACED_CODE)
    if places != 1:
        raise InputError(
            f"prompt template {name_or_text[:80]!r} contains {CODE} {places} times; expected it exactly once, where "
            f"the program goes, or the name of a template: {', '.join(PROMPTS)}"
        )
    return f"custom-{hashlib.sha256(name_or_text.encode()).hexdigest()[:8]}", name_or_text
