"""What a user can ask of models that cannot be."""

from __future__ import annotations

from debug.errors import DebugError, InputError


class ModelNotFound(InputError):
    """No weights under this id; the message says where was looked and how to get them."""


class WeightsMismatch(ModelNotFound):
    """Files that are not the weights of their architecture: what they lack would be random."""


class VocabularyError(InputError):
    """A prompt with characters for which the model has no token."""


class PromptTooLong(InputError):
    """A prompt that, with what is to follow it, is longer than what the model reads at once."""


class BackendMissing(InputError):
    """vLLM, bitsandbytes or a client, or the GPU or server it needs, is not here; the message says how to go on."""


class RemoteFailed(DebugError, RuntimeError):
    """A server that holds a model did not run a trace; the message says which, and what it said."""


class UnsupportedArchitecture(InputError):
    """The model's modules are not where any known architecture has them."""
