"""How the bundled model is made: vocabulary, initial weights, training programs, the loop, and the held-out programs.

The loop needs a folder and nothing else: it keeps its state and its metrics there, and goes on from there after a kill,
on one thread bit for bit. Knows no MLflow (``runs/train_bundled_model.py`` logs what the loop yields) and no nnsight.

Plain training stays at "any number of this program" for thousands of steps; with the first two of these measures, at
"any number that some line reads":

- initial weights in the manner of mimetic initialization (Trockman, Kolter 2023, arXiv 2305.09828), :func:`new_model`;
- a naming loss on the first layer, alone at first, then beside the answers, then off. It names variables, never values;
- a curriculum that begins with many chains of two hops at once, :data:`CURRICULUM`: where only one chain is longer than
  the others, its root is the answer, and nothing has to be looked up;
- copies of the size of an embedding, and names in directions of their own, again :func:`new_model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.training.batches import pack
    from debug.training.evaluation import answered, cell_name, evaluate, markdown_table
    from debug.training.loop import (
        CURRICULUM,
        INITIALIZATIONS,
        Settings,
        State,
        checkpoint_folder,
        draw_batch,
        history,
        learning_rate,
        train,
    )
    from debug.training.model import load_weights, name_rotation, new_model
    from debug.training.programs import (
        BEYOND,
        HELD_OUT,
        LENGTHS,
        Programs,
        Shape,
        first_pairs,
        published_pairs,
        reserved_texts,
        sample_programs,
        sample_queries,
    )
    from debug.training.vocabulary import VOCABULARY, make_tokenizer

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
