"""Prompts: templates, tokens, and where in the tokens the answer is. Knows no model and no parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.prompts.templates import (
        BOOLEAN_LOGIC,
        CHAIN_OF_THOUGHT,
        CODE,
        ENTITY_TRACKING,
        EXAMPLE_SEED,
        EXCEPTION_HANDLING,
        FEW_SHOT_BINDING,
        MINIMAL,
        PROMPTS,
        RANGE_TRACKING,
        REASONING,
        STEP_BY_STEP,
        UNSPACED,
        UNSPACED_CODE,
        VARIABLE_BINDING,
        few_shot,
        fill,
        get_prompt,
        program_start,
        without_final_space,
    )

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
