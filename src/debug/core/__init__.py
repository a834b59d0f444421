"""What an accuracy experiment is: its configuration, checked before anything runs, and the parsers of answers.

A parser is ``(completion) -> answer``, None where the text holds no answer: "no answer" is never a wrong answer. Adding
one is writing the function and naming it in ``PARSERS``; a function of your own works without that. Knows no model and
no store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.core.config import (
        INDEPENDENT_SEED,
        TASKS,
        ExperimentConfig,
        StudyConfig,
        quick_experiment,
        shared_programs,
    )
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
        parse_word,
    )

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
