"""A model whose weights are elsewhere: on NDIF, or on an NDIF server of one's own. Traces are sent there.

Here are its configuration, its tokenizer and the names of its modules (on torch's device "meta", without weights). A
trace's code and what it reads from around it go to the server; what it saves comes back. ``ndif:local`` is nnsight's
simulation: a trace is serialized, read back where only the server's packages can be imported, and run here.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import httpx
import torch
from nnsight import TransformersModel
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.schema.config import CONFIG
from nnsight.tracing.tracer import Tracer
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from debug.errors import InputError
from debug.kinds import Argument, Module, Tokenizer, Traced
from debug.models.backends import LOCAL, NDIF
from debug.models.errors import ModelNotFound, RemoteFailed
from debug.models.numbers import DTYPES
from debug.models.transformers_model import LoadedModel, wrap
from debug.provenance import text_digest, without_passwords

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
PATIENCE = 600.0  # seconds for which a server that does not answer is asked again
LONGEST_PAUSE = 5.0


@dataclass(frozen=True, eq=False)
class RemoteModel(LoadedModel):
    """``device`` says where it is: ``ndif`` (nnsight's configuration and NDIF_HOST name the server), ``ndif:URL``, or
    ``ndif:local``. ``hf`` has no weights, but for the last."""

    backend = "ndif"

    @property
    def host(self) -> str:
        return self.device.partition(":")[2] or CONFIG.API.HOST

    @cached_property
    def key(self) -> str:
        """What the server knows the model by; the hub is asked how its name is spelled, where it can be reached."""
        try:
            return self.nnsight.to_model_key()
        except Exception as error:  # the hub's client has no base class for all that it raises
            logger.debug("the hub does not say how %s is spelled: %s", self.path, error)
            kind = type(self.nnsight)
            return f"{kind.__module__}.{kind.__qualname__}:{json.dumps({'repo_id': self.path, 'revision': None})}"

    @property
    def weights_digest(self) -> str:
        """Of where the weights are and what they are called there: they themselves are never seen."""
        return text_digest(["remote", self.host, self.path])

    def provenance(self) -> dict[str, str]:
        said = super().provenance()
        return said | {"debug.device_name": self.host, "debug.threads": ""}

    def elsewhere(self) -> Ndif | LocalSimulationBackend:
        """What a trace is given as its backend; a new one for each.

        Raises:
            InputError: the host is no URL.
        """
        if self.device == LOCAL:
            return LocalSimulationBackend(self.nnsight)
        try:
            return Ndif(self.key, host=self.host)
        except ValueError as error:
            raise InputError(f"device is {self.device!r}; {error}. Expected {NDIF}, or {NDIF}:https://...") from error

    def _generate(
        self, prompts: list[tuple[int, list[int]]], max_new_tokens: int, batch_size: int, done: Collection[int] = ()
    ) -> Iterator[tuple[int, list[int] | None]]:
        for indices, token_ids in _batches(prompts, batch_size, done):
            yield from zip(indices, self._greedy(token_ids, max_new_tokens, self.end_tokens), strict=True)

    def _score(
        self,
        prompts: list[tuple[int, list[int]]],
        tokens: dict[int, list[int]],
        batch_size: int,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, torch.Tensor]]:
        for indices, token_ids in _batches(prompts, batch_size, done):
            remote, elsewhere, asked = self.nnsight, self.elsewhere(), [tokens[index] for index in indices]
            with remote.trace(token_ids, backend=elsewhere, use_cache=False, logits_to_keep=1):
                logs = remote.output.logits[:, -1].detach().float().log_softmax(-1)
                found: Traced = [row[of].cpu() for row, of in zip(logs, asked, strict=True)]
                found.save()
            yield from zip(indices, found, strict=True)

    def _greedy(self, token_ids: torch.Tensor, n: int, ends: set[int]) -> list[list[int] | None]:
        """Token by token, a trace each; a row ends with a token that ends a text."""
        made: list[list[int] | None] = [[] for _ in token_ids]
        for _ in range(n):
            tops, finite = next_tokens(self, token_ids)
            for row, (top, is_finite) in enumerate(zip(tops.tolist(), finite.tolist(), strict=True)):
                so_far = made[row]
                if so_far is not None and not ends & {*so_far[-1:]}:
                    made[row] = [*so_far, top] if is_finite else None
            token_ids = torch.cat([token_ids, tops[:, None]], 1)
            if all(of is None or ends & {*of[-1:]} for of in made):
                break
        return made


def _batches(
    prompts: list[tuple[int, list[int]]], batch_size: int, done: Collection[int]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Prompts of one length, so many at a time, with their numbers; those that are all done are left out."""
    by_length: dict[int, list[tuple[int, list[int]]]] = {}
    for index, ids in prompts:
        by_length.setdefault(len(ids), []).append((index, ids))
    for alike in by_length.values():
        for start in range(0, len(alike), batch_size):
            indices, ids = zip(*alike[start : start + batch_size], strict=True)
            if not all(index in done for index in indices):
                yield [*indices], torch.tensor(ids)


def next_tokens(model: RemoteModel, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows of token ids the most probable next token, and whether its logits are finite."""
    remote, elsewhere = model.nnsight, model.elsewhere()
    with remote.trace(token_ids, backend=elsewhere, use_cache=False, logits_to_keep=1):
        logits = remote.output.logits[:, -1].detach()
        tops = logits.argmax(-1).cpu().save()
        finite = logits.isfinite().all(-1).cpu().save()
    return tops, finite


def load_remote(
    model_id: str, path: str, device: str, dtype: str | None, trust_remote_code: bool, here: LoadedModel | None = None
) -> RemoteModel:
    """The names of a model's modules, and its tokenizer; one short trace tells whether the server answers, and the
    dtype in which it has the model. ``here``: the model itself, for ``ndif:local``.

    Raises:
        ModelNotFound: no configuration or no tokenizer.
        RemoteFailed: the server does not answer, or does not have the model.
        InputError: it has the model in another dtype than was asked for; or there is a password in its address.
    """
    if (shown := without_passwords(device)) != device:
        raise InputError(f"device is {shown!r}, with a password; a server's key is read from NDIF_API_KEY")
    if here is None:
        hf, tokenizer, remote = _without_weights(model_id, path, trust_remote_code)
        here = wrap(hf, tokenizer, model_id=model_id, path=path, wrapped=remote)
    fields = {name: getattr(here, name) for name in ("id", "path", "nnsight", "tokenizer", "architecture")}
    model = RemoteModel(**fields, device=device, dtype=dtype or here.dtype, unpatchable=here.unpatchable)
    remote, elsewhere = model.nnsight, model.elsewhere()
    with remote.trace(torch.zeros(1, 4, dtype=torch.long), backend=elsewhere, use_cache=False):
        said: Traced = str(remote.output.logits.dtype)
        said.save()
    theirs = said.removeprefix("torch.")
    if theirs not in DTYPES:
        raise RemoteFailed(f"the server has model {model_id!r} in {theirs}; known are {', '.join(DTYPES)}")
    if dtype is not None and theirs != dtype:
        raise InputError(f"dtype is {dtype!r}, and the server has model {model_id!r} in {theirs}; leave it out")
    return replace(model, dtype=theirs)


def _without_weights(model_id: str, path: str, trust_remote_code: bool) -> tuple[Module, Tokenizer, TransformersModel]:
    transformers_logging.disable_progress_bar()
    options: dict[str, Argument] = {"trust_remote_code": True} if trust_remote_code else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        remote = TransformersModel(path, task="text-generation", tokenizer=tokenizer, dispatch=False, **options)
    except Exception as error:  # the hub's client and transformers share no base class
        said = str(error).strip().splitlines()
        raise ModelNotFound(
            f"model {model_id!r} has no configuration or tokenizer that can be read here, which a model that runs "
            f"elsewhere needs, too: {said[0] if said else type(error).__name__}"
        ) from error
    return remote._module, tokenizer, remote


class Ndif(RemoteBackend):
    """nnsight's way to a server: a job is handed in and asked for until it is done, however often the line breaks.

    Of what comes back tensors and numbers alone are read: nothing is unpickled.
    """

    def __init__(self, key: str, host: str) -> None:
        super().__init__(key, host=host, blocking=False)
        self.display.enabled = False

    def __call__(self, tracer: Tracer | None = None) -> dict[str, Argument]:
        assert tracer is not None
        self._patiently(lambda: self.submit(tracer))
        pause = 0.05
        while (found := self._patiently(lambda: self.poll(tracer))) is None:
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 1.5 * pause)
        self._push(found, tracer)
        return found

    def finalize(self, content: bytes) -> dict[str, Argument]:
        if self.compress:
            import zstandard

            content = zstandard.ZstdDecompressor().decompress(content)
        try:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise RemoteError("what came back is more than tensors and numbers, and was not read") from error

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        """Again with growing pauses while the server is away; a job only computes, so that a second one does no harm.

        Raises:
            RemoteFailed: the server says no, or is away for too long.
        """
        until, pause = time.monotonic() + PATIENCE, 0.5
        while True:
            try:
                return ask()
            except (RemoteError, httpx.HTTPError) as error:
                cause = error.__cause__ if isinstance(error, RemoteError) else error
                is_away = isinstance(cause, httpx.TransportError)
                is_away |= isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code >= 500
                if not is_away or time.monotonic() > until:
                    raise RemoteFailed(self._said(error)) from error
                logger.warning("%s; asking again", self._said(error))
                time.sleep(pause)
                pause = min(30.0, 2 * pause)

    def _said(self, error: Exception) -> str:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        line = lines[-1] if isinstance(error, RemoteError) else lines[0]  # the end of a traceback from there
        return f"the NDIF server {self.host} did not run a trace: {line}"
