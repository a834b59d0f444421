"""What an accuracy experiment is: its configuration, checked before anything runs, and the parsers of answers.

A parser is ``(completion) -> answer``, None where the text holds no answer: "no answer" is never a wrong answer. Adding
one is writing the function and naming it in ``PARSERS``; a function of your own works without that. Knows no model and
no store.
"""

from debug.core.config import INDEPENDENT_SEED, TASKS, ExperimentConfig, quick_experiment, shared_programs
from debug.core.parsers import (
    PARSERS,
    Answer,
    Parser,
    answer_span,
    cut_off,
    get_parser,
    parse_answer,
    parse_boolean,
    parse_integer,
    parse_last_boolean,
    parse_last_integer,
    parse_variable_binding,
)

__all__ = [
    "INDEPENDENT_SEED",
    "PARSERS",
    "TASKS",
    "Answer",
    "ExperimentConfig",
    "Parser",
    "answer_span",
    "cut_off",
    "get_parser",
    "parse_answer",
    "parse_boolean",
    "parse_integer",
    "parse_last_boolean",
    "parse_last_integer",
    "parse_variable_binding",
    "quick_experiment",
    "shared_programs",
]
