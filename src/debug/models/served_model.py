"""A model behind a server that speaks OpenAI's HTTP API: for accuracy alone. Neither weights nor tokenizer are here.

Prompts are sent as text, and the server makes tokens of them, refuses those that are too long, and knows where a text
ends. What is measured here otherwise is asked of it: log probabilities by ``echo`` with ``logprobs``, and whether a
prompt's final space is one token with the answer by ``/tokenize``, where it has these. The key is taken from
OPENAI_API_KEY for each call, and kept nowhere. Imports no torch.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from debug.errors import InputError, did_you_mean
from debug.kinds import Argument, Json
from debug.models.backends import choose_backend
from debug.models.errors import BackendMissing, ModelNotFound
from debug.models.replies import Completion, Scores
from debug.prompts.answers import common_prefix, without_merged_space
from debug.provenance import without_passwords

if TYPE_CHECKING:  # the client takes half a second to import
    from openai import AsyncOpenAI, OpenAI, OpenAIError
    from openai.types import Completion as TextReply
    from openai.types import Model

RETRIES = 6
"""How often a request is sent again: where the server is away or broken after half a second, doubled each time up to
8 s; where it limits its rate after the time that its Retry-After says (at most two minutes)."""

KEY = "OPENAI_API_KEY"

_T = TypeVar("_T", Completion, Scores)


class _Unanswered(InputError):
    """A reply that holds no answer."""


@dataclass(frozen=True)
class ServedModel:
    """A model of a server; ``served`` is its name there. ``path`` is the server's URL without a password.

    ``fields`` are added to the body of every request, in the place of what is sent by default.
    """

    id: str
    path: str
    served: str
    base_url: str = field(repr=False)
    fields: Mapping[str, Argument]
    card: str
    """What the server's list of models says of it, as JSON."""
    tokenizes: bool
    """Whether the server says what tokens it makes of a text."""
    dtype: str = "server"
    device: str = "server"
    backend: str = "openai"
    quantization: None = None

    def provenance(self) -> dict[str, str]:
        """Tags that say which server was asked, and what it says of the model."""
        return {"debug.model_path": self.path, "debug.served_model": self.card}

    def rendered(self, prompt: str, *, chat: bool = False) -> str:
        """The text that is sent: of a conversation the user's turn, to which the server applies its template."""
        return prompt

    def suited(self, template: str, program: str, answers: Sequence[str]) -> str:
        """The template without its final space where the server says that it merges with an answer, as
        :meth:`debug.models.AnswersPrompts.suited`; where the server does not say, in any case: no tokenizer has
        difficulties behind a prompt without one.

        Raises:
            BackendMissing: the server did say so, and cannot be asked any more.
        """
        if not self.tokenizes:
            return without_merged_space(lambda prompt, _: prompt.endswith(" "), template, program, answers)
        import openai

        with client_of(openai.OpenAI, self.base_url, RETRIES) as client:

            def merges(prompt: str, answers: Sequence[str]) -> bool:
                ids, *behind = (
                    _tokens(client, self.served, text) or [] for text in [prompt, *(prompt + each for each in answers)]
                )
                return any(each[: len(ids)] != ids for each in behind)

            try:
                return without_merged_space(merges, template, program, answers)
            except openai.OpenAIError as error:
                raise BackendMissing(why_not(error, self.path)) from None

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int = 32,
        chat: bool = False,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, Completion]]:
        """Greedy completions, or replies where ``chat``, in the order of the prompts; ``batch_size`` are asked at once,
        those whose indices are in ``done`` not at all.

        A prompt to which the server gives no answer, after ``RETRIES``, is yielded with its error.
        """
        options: dict[str, Argument] = {"model": self.served, "max_tokens": max_new_tokens, "temperature": 0}
        options["extra_body"] = self.fields

        async def ask(client: AsyncOpenAI, prompt: str) -> Completion:
            if chat:
                reply = await client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **options)
                choice = _choices(reply)[0]
                text = choice.message.content
            else:
                reply = await client.completions.create(prompt=prompt, **options)
                choice = _choices(reply)[0]
                text = choice.text
            return Completion(text or "", choice.finish_reason != "length", tokens=_counted(reply))

        return self._in_order(ask, lambda error: Completion(error=error), prompts, batch_size, done)

    def score(
        self, prompts: Sequence[str], answers: Sequence[str], *, batch_size: int = 32, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Scores]]:
        """As :meth:`debug.models.AnswersPrompts.score`, from the log probabilities of the tokens of prompts with an
        answer behind them. Each prompt is one request, in which it is run once for each answer and form."""
        options: dict[str, Argument] = {"model": self.served, "max_tokens": 0, "temperature": 0}
        options |= {"echo": True, "logprobs": 1, "extra_body": self.fields}

        async def ask(client: AsyncOpenAI, prompt: str) -> Scores:
            spaces = [""] if prompt[-1:].isspace() else [" ", ""]
            texts = [prompt, *(f"{prompt}{space}{answer}" for space in spaces for answer in answers)]
            reply = await client.completions.create(prompt=texts, **options)
            bare, *continued = _echoed(reply, texts)
            forms = [
                continued[start : start + len(answers)] for start in range(0, len(spaces) * len(answers), len(answers))
            ]
            of_answers = _of_answers(bare[0], forms)
            if of_answers is None:
                raise _Unanswered(
                    f"{len(answers)} answers cannot be told apart by one token behind {prompt[-40:]!r}, and so not be "
                    "scored by their logits; generate them"
                )
            total = np.logaddexp.reduce(of_answers)
            return Scores(tuple((of_answers - total).tolist()), float(np.exp(total)), tokens=_counted(reply))

        return self._in_order(ask, lambda error: Scores(error=error), prompts, batch_size, done)

    def _in_order(
        self,
        ask: Callable[[AsyncOpenAI, str], Awaitable[_T]],
        failed: Callable[[str], _T],
        prompts: Sequence[str],
        at_once: int,
        done: Collection[int],
    ) -> Iterator[tuple[int, _T]]:
        """What comes of each prompt, as soon as it and those before it are there; interrupted, what else is there.

        Requests are made by a thread of their own, so that this works in a notebook, whose thread has a loop running.
        While the server is away, each prompt is sent once: only the first ones wait for it to come back.
        """
        import openai

        if at_once < 1:
            raise InputError(f"batch_size is {at_once}; expected 1 or more")
        client = client_of(openai.AsyncOpenAI, self.base_url, RETRIES)
        free, stop, away = asyncio.Semaphore(at_once), asyncio.Event(), False
        running: Future[asyncio.AbstractEventLoop] = Future()

        async def requests() -> None:
            running.set_result(asyncio.get_running_loop())
            async with client:
                await stop.wait()

        async def one(prompt: str) -> _T:
            nonlocal away
            async with free:
                try:
                    answer = await ask(client.with_options(max_retries=0 if away else RETRIES), prompt)
                except _Unanswered as error:
                    return failed(str(error))
                except openai.OpenAIError as error:
                    away = isinstance(error, (openai.APIConnectionError, openai.InternalServerError))
                    return failed(why_not(error, self.path))
                away = False
                return answer

        threading.Thread(target=lambda: asyncio.run(requests()), daemon=True).start()
        loop = running.result()
        try:
            asked = [(index, prompt) for index, prompt in enumerate(prompts) if index not in done]
            answers = {index: asyncio.run_coroutine_threadsafe(one(prompt), loop) for index, prompt in asked}
            given: set[int] = set()
            try:
                for index, answer in answers.items():
                    given.add(index)
                    yield index, answer.result()
            except KeyboardInterrupt:
                for index, answer in answers.items():
                    if index not in given and answer.done():
                        yield index, answer.result()
                raise
        finally:
            loop.call_soon_threadsafe(stop.set)  # the loop's end cancels what is on its way


_Client = TypeVar("_Client", "AsyncOpenAI", "OpenAI")


def client_of(kind: Callable[..., _Client], base_url: str, retries: int) -> _Client:
    """A client with the key of the environment; a server that wants none is sent a word."""
    return kind(base_url=base_url, api_key=os.environ.get(KEY) or "none", max_retries=retries)


def load_served(model_id: str, base_url: str, fields: Mapping[str, Argument] | None = None) -> ServedModel:
    """The model that a server has under this name; nothing is loaded.

    Args:
        model_id: as the server's list of models names it.
        base_url: where the API begins, such as http://localhost:8000/v1.
        fields: of each request's body, besides or in the place of what is sent by default.

    Raises:
        BackendMissing: the openai client is not installed, or the server cannot be asked.
        ModelNotFound: the server has no such model; the message says which it has.
    """
    choose_backend("openai")
    import openai

    shown = without_passwords(base_url).rstrip("/")
    card, tokenizes = {}, False
    try:
        with client_of(openai.OpenAI, base_url, 2) as client:
            with suppress(openai.NotFoundError):  # no list: whether the model is there shows when it is asked
                card = _card(list(client.models.list()), model_id, shown)
            with suppress(openai.APIStatusError):
                tokenizes = _tokens(client, model_id, "a") is not None
    except openai.OpenAIError as error:
        raise BackendMissing(why_not(error, shown)) from None  # the client's own traceback may name the URL as it is
    return ServedModel(model_id, shown, model_id, base_url, dict(fields or {}), json.dumps(card), tokenizes)


def _card(listed: Sequence[Model], model_id: str, shown: str) -> dict[str, Json]:
    """What tells a served model from another of its name. Raises ModelNotFound where it is not among those listed."""
    served = {model.id: model for model in listed}
    if model_id not in served:
        names = ", ".join(list(served)[:20]) + (f" and {len(served) - 20} more" if len(served) > 20 else "")
        raise ModelNotFound(
            f"the server {shown} has no model {model_id!r}{did_you_mean(model_id, served)}; it has: {names}"
        )
    facts = {name: getattr(served[model_id], name, None) for name in ("owned_by", "root", "max_model_len")}
    return {name: value for name, value in facts.items() if value is not None}


def _tokens(client: OpenAI, model: str, text: str) -> list[int] | None:
    """What the server's tokenizer makes of a text, without tokens that it adds; None where it does not say."""
    url = f"{str(client.base_url).rstrip('/').removesuffix('/v1')}/tokenize"
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    reply: Json = client.post(url, cast_to=object, body=body)
    return (reply.get("tokens") if isinstance(reply, dict) else None) or None


def why_not(error: OpenAIError, shown: str) -> str:
    """Why a server gave no answer, and what to do: without the key, and without a password."""
    import openai

    key = os.environ.get(KEY)
    body = getattr(error, "body", None)
    said = str(body["message"] if isinstance(body, dict) and "message" in body else error.__cause__ or error)
    said = without_passwords(said.replace(key, "***") if key else said).strip()[:300]
    if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
        wrong = "is wrong, or not allowed to ask this" if key else "is not set"
        return f"the server {shown} refuses access ({error.status_code}): {KEY} {wrong}. It said: {said}"
    if isinstance(error, openai.RateLimitError):
        return (
            f"the server {shown} limits its rate (429), and did so again after it was waited for; a smaller "
            f"batch_size asks less at once. It said: {said}"
        )
    if isinstance(error, openai.APITimeoutError):
        return f"the server {shown} did not answer in time"
    if isinstance(error, openai.APIStatusError):
        return f"the server {shown} gave no answer ({error.status_code}): {said}"
    return f"the server {shown} cannot be reached: {said}"


def _choices(reply: Json) -> list[Any]:  # as the server sent them: the client does not check it
    """What the server chose to say, in the order of what it was asked."""
    choices = getattr(reply, "choices", None)
    if not choices:
        raise _Unanswered(f"the server's reply holds no answer: {reply!r:.200}")
    return sorted(choices, key=lambda choice: choice.index or 0)


def _counted(reply: Json) -> tuple[int, int] | None:
    """Tokens of prompt and completion, as the server counts them."""
    usage = getattr(reply, "usage", None)
    return None if usage is None else (usage.prompt_tokens or 0, usage.completion_tokens or 0)


def _echoed(reply: TextReply, texts: Sequence[str]) -> list[tuple[list[str], list[float]]]:
    """Of each text its tokens, and their log probabilities."""
    found = []
    choices = _choices(reply)
    for text, choice in zip(texts, choices, strict=False):
        if choice.logprobs is None or text not in choice.text or not choice.logprobs.tokens:
            break
        found.append((choice.logprobs.tokens, choice.logprobs.token_logprobs))
    if len(found) != len(texts):
        raise _Unanswered(
            "the server gives no log probabilities of a prompt's tokens (completions with echo and logprobs), which "
            "scoring 'logits' needs; generate the answers"
        )
    return found


def _of_answers(
    bare: list[str], forms: Sequence[Sequence[tuple[list[str], list[float]]]]
) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """Log probabilities of the first tokens that tell answers apart, in the form that the likeliest token begins; None
    where no form has such tokens. The rule is that of :mod:`debug.prompts.answers`."""
    length, possible = len(bare), []
    for continued in forms:
        rows = [tokens for tokens, _ in continued]
        if any(tokens[:length] != bare for tokens in rows):
            continue
        place = length + (len(common_prefix([tokens[length:] for tokens in rows])) if len(rows) > 1 else 0)
        if all(len(tokens) > place for tokens in rows) and len({tokens[place] for tokens in rows}) == len(rows):
            first = max(logs[length] for _, logs in continued)
            possible.append((first, np.array([logs[place] for _, logs in continued])))
    return max(possible, key=lambda form: form[0])[1] if possible else None
