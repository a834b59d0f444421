"""The only place that loads weights: model ids to loaded models, kept in a cache, one naming for all architectures.

    model = load("tiny")                      # bundled; also "smollm2", a folder, or a hub id
    unload("tiny")
    engine = load_vllm("smollm2")           # the same weights in vLLM: for accuracy only, nothing inside can be read
    served = load_served("tiny", "http://localhost:8000/v1")  # on a server of OpenAI's API: no weights are here

The first two answer prompts alike (:class:`AnswersPrompts`): the same token ids go in, greedy text or the scores of
possible answers come out, and a prompt that cannot be run comes back with its reason. The third does the same with
text, of which its server makes tokens.

Architecture differences end here: the engine asks a :class:`LoadedModel` for ``layer(3)`` or ``mlp(3)`` and never for
``transformer.h``. Knows no program and no experiment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.models.architectures import ARCHITECTURES, Architecture
    from debug.models.backends import QUANTIZATIONS, checked_server, choose_backend
    from debug.models.errors import (
        BackendMissing,
        ModelNotFound,
        PromptTooLong,
        UnsupportedArchitecture,
        VocabularyError,
        WeightsMismatch,
    )
    from debug.models.files import BUNDLED, CHECKPOINTS, locate, name_of, names_of
    from debug.models.loading import load, load_vllm, loaded, unload, unload_all
    from debug.models.numbers import DTYPES, SELF_CHECK_TOLERANCE, SMALLEST_EFFECT, out_of_memory
    from debug.models.prompting import AnswersPrompts
    from debug.models.replies import Completion
    from debug.models.served_model import ServedModel, load_served
    from debug.models.transformers_model import LoadedModel, wrap
    from debug.models.vllm_model import VllmModel
    from debug.models.weights import from_files

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
