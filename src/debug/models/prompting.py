"""What both backends do alike: text to token ids, refusals, token ids back to text."""

from __future__ import annotations

import json
import logging
import platform
import re
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from debug.errors import DebugError, InputError
from debug.kinds import Tokenizer
from debug.models.errors import PromptTooLong, VocabularyError
from debug.models.replies import Completion, Scores
from debug.prompts import answers as places
from debug.prompts import tokenization
from debug.prompts.chat import rendered
from debug.provenance import text_digest

logger = logging.getLogger(__name__)


class AnswersPrompts:
    """What both backends do alike: text to token ids, refusals, token ids back to text."""

    id: str
    path: str
    dtype: str
    device: str
    tokenizer: Tokenizer
    backend: str
    files_digest: str | None
    ranks = 1

    @property
    def devices(self) -> list[str]:
        """Those that its layers are on, the first one's first."""
        return [self.device]

    @property
    def window(self) -> int | None:
        """Tokens that the model reads at once; None where its configuration names no limit."""
        raise NotImplementedError

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int = 32,
        chat: bool = False,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, Completion]]:
        """Greedy completions: yields (index into ``prompts``, what follows that prompt) as they are finished.

        A prompt that cannot be run (a character without a token, more tokens than the model reads, no chat template),
        or behind which logits are not finite, is yielded with its error. vLLM takes all prompts at once, whatever the
        batch size. A batch of prompts whose indices are all in ``done`` is not run; the others are as without it.

        Raises:
            InputError: the batch size is not positive.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected 1 or more")
        encoded = []
        for index, prompt in enumerate(prompts):
            try:
                encoded.append((index, self.encode(prompt, chat=chat, room=max_new_tokens)))
            except DebugError as error:
                yield index, Completion(error=str(error))
        ends = self.end_tokens
        for index, tokens in self._generate(encoded, max_new_tokens, batch_size, done) if encoded else ():
            if tokens is None:
                yield index, Completion(error=self.not_finite)
                continue
            end = first_end(tokens, ends)
            text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
            yield index, Completion(text, end < len(tokens))

    def score(
        self, prompts: Sequence[str], answers: Sequence[str], *, batch_size: int = 32, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Scores]]:
        """How probable each of the possible answers is right behind each prompt; nothing is generated.

        Answers are told apart by the first token at which they all differ; what they have in common before it (a space)
        counts as given. Behind a prompt that does not end in white space they begin with a space or not, as the most
        probable token has it (:mod:`.answers`). Yields (index into ``prompts``, scores) as batches finish; where
        answers share a token, or are not tokens of their own behind the prompt, or where logits are not finite, with
        that error.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected 1 or more")
        possible: dict[int, tuple[list[int], list[places.Form]]] = {}
        for index, prompt in enumerate(prompts):
            try:
                possible[index] = self.answer_forms(prompt, answers)
            except DebugError as error:
                yield index, Scores(error=str(error))
        # Of two forms: each by the first tokens that it can come with, behind the prompt as it is.
        several = [(index, ids) for index, (ids, forms) in possible.items() if len(forms) > 1]
        starts = {index: [form.lead[:1] or form.tokens for form in possible[index][1]] for index, _ in several}
        flat = {index: [token for of_form in of for token in of_form] for index, of in starts.items()}
        seen = dict(self._score(several, flat, batch_size, ())) if several else {}
        encoded, tokens = [], {}
        for index, (ids, forms) in possible.items():
            form, start = forms[0], 0
            if index in seen and not seen[index].isfinite().all():
                yield index, Scores(error=self.not_finite)
                continue
            if index in seen:
                best = int(seen[index].argmax())
                ends = list(accumulate(map(len, starts[index])))
                which = next(n for n, end in enumerate(ends) if best < end)
                form, start = forms[which], ends[which] - len(starts[index][which])
            if index in seen and not form.lead:
                yield index, self._among_themselves(seen[index][start : start + len(form.tokens)])
                continue
            encoded.append((index, [*ids, *form.lead]))
            tokens[index] = form.tokens
        for index, of_answers in self._score(encoded, tokens, batch_size, done) if encoded else ():
            yield index, self._among_themselves(of_answers)

    def _among_themselves(self, of_answers: Float[Tensor, " answer"]) -> Scores:
        if not of_answers.isfinite().all():
            return Scores(error=self.not_finite)
        total = of_answers.logsumexp(0)
        return Scores(tuple((of_answers - total).tolist()), float(total.exp()))

    def _generate(
        self, prompts: list[tuple[int, list[int]]], max_new_tokens: int, batch_size: int, done: Collection[int] = ()
    ) -> Iterator[tuple[int, list[int] | None]]:
        """New tokens behind each prompt; None where one of them was chosen from logits that are not finite."""
        raise NotImplementedError

    def _score(
        self,
        prompts: list[tuple[int, list[int]]],
        tokens: dict[int, list[int]],
        batch_size: int,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, Float[Tensor, " answer"]]]:
        """Log probabilities, among the whole vocabulary, of the tokens behind each prompt."""
        raise NotImplementedError

    @property
    def end_tokens(self) -> set[int]:
        """Tokens that end a text, alike in both backends: as :func:`debug.prompts.tokenization.end_tokens`."""
        raise NotImplementedError

    @property
    def not_finite(self) -> str:
        """Why a prompt has no answer whose logits are not finite, and what to do."""
        what = f"logits of model {self.id!r} ({self.dtype}) are not finite; "
        if self.dtype == "float16":
            return what + "numbers above 65,504 overflow in float16, so that bfloat16 or float32 may do"
        return what + "its weights may be broken"

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the files with configuration and weights, as they were when they were read into memory; of the
        parameters in memory where the model came from no files."""
        return self.files_digest or self._parameters_digest()

    def _parameters_digest(self) -> str:
        raise NotImplementedError

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of everything that turns a text into tokens."""
        pipeline = json.loads(self.tokenizer.backend_tokenizer.to_str())
        del pipeline["padding"], pipeline["truncation"]  # what the last call asked for
        return text_digest([json.dumps(pipeline, sort_keys=True)])

    @property
    def generation_digest(self) -> str:
        """SHA-256 of what else decides about a text: the tokens that end it, and the chat template."""
        template = getattr(self.tokenizer, "chat_template", None)
        return text_digest([json.dumps([sorted(self.end_tokens), template], sort_keys=True)])

    def say_what_prompts_lose(self) -> None:
        """Warn of an end token that the tokenizer puts behind every text: prompts go without it."""
        if (dropped := tokenization.appended(self.tokenizer)) is not None:
            logger.warning(
                "the tokenizer of model %r puts %s behind every prompt, which ends a text; it is left out",
                *(self.id, dropped),
            )

    def provenance(self) -> dict[str, str]:
        """Tags that say which model this is and what computes it; once a run, what its prompts lose is said, too."""
        if self.device.startswith("cuda"):
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        self.say_what_prompts_lose()
        dropped = tokenization.appended(self.tokenizer)
        return ({} if dropped is None else {"debug.prompt_end_dropped": dropped}) | {
            "debug.model_path": self.path,
            "debug.weights_digest": self.weights_digest,
            "debug.tokenizer_digest": self.tokenizer_digest,
            "debug.generation_digest": self.generation_digest,
            "debug.device_name": name,
            "debug.threads": str(torch.get_num_threads()),
            **({"debug.devices": ", ".join(self.devices)} if len(self.devices) > 1 else {}),
            **({"debug.tensor_parallel": str(self.ranks)} if self.ranks > 1 else {}),
        }

    def encode(self, prompt: str, *, chat: bool = False, room: int = 0) -> list[int]:
        """Token ids of a prompt, behind which ``room`` tokens must fit into the model's window.

        Raises:
            VocabularyError: the model has no token for part of it.
            PromptTooLong: it does not fit.
            InputError: a chat template is asked for, and the model has none.
        """
        text = self.rendered(prompt, chat=chat)
        self.check_vocabulary(text)
        ids = tokenization.read(self.tokenizer, text, rendered=chat).token_ids
        if not ids:
            raise InputError("the prompt is empty")
        self.check_window(len(ids), room=room)
        return ids

    def rendered(self, prompt: str, *, chat: bool = False) -> str:
        """The text that is given to the model: the prompt, or the user's turn of a conversation that it opens.

        Raises:
            InputError: a chat template is asked for, and the model has none, or it refuses the prompt.
        """
        return rendered(self.tokenizer, prompt, f"model {self.id!r}") if chat else prompt

    def first_tokens(self, prompts: Sequence[list[int]], n: int) -> list[list[int]]:
        """The first ``n`` tokens that the model writes, greedily, behind prompts of token ids; fewer where its window
        ends before them, none where it does not hold the prompt or where logits are not finite."""
        by_room: dict[int, list[tuple[int, list[int]]]] = {}
        for index, ids in enumerate(prompts):
            room = n if self.window is None else min(n, self.window + 1 - len(ids))
            by_room.setdefault(room, []).append((index, ids))
        found: dict[int, list[int] | None] = {}
        for room, alike in by_room.items():
            found |= self._generate(alike, room, 32, ()) if room > 0 else {}
        return [found.get(index) or [] for index in range(len(prompts))]

    def suited(self, template: str, program: str, answers: Sequence[str]) -> str:
        """The template for programs like this one: see :func:`debug.prompts.answers.suited`."""
        return places.suited(self.tokenizer, template, program, answers)

    def answer_forms(self, prompt: str, answers: Sequence[str]) -> tuple[list[int], list[places.Form]]:
        """Token ids of the prompt, and the ways in which the answers can follow it, each told apart by one token.

        Raises:
            InputError: as :meth:`encode`; or the answers cannot be told apart by one token.
        """
        ids = self.encode(prompt, room=1)
        found = places.forms(self.tokenizer, tokenization.read(self.tokenizer, prompt).text, ids, answers)
        apart = [form for form in found if len(set(form.tokens)) == len(answers)]
        if not apart:
            raise InputError(
                f"{len(answers)} answers cannot be told apart by one token behind {prompt[-40:]!r}, and so not "
                "be scored by their logits; generate them"
            )
        self.check_window(len(ids) + max(len(form.lead) for form in apart), room=1)
        return ids, apart

    def check_window(self, n_tokens: int, *, room: int = 0) -> None:
        """Refuse a prompt of so many tokens, behind which ``room`` more are to follow.

        Raises:
            PromptTooLong: they are more than the model reads at once.
        """
        if self.window is not None and n_tokens + room > self.window:
            follow = f", {room} are to follow," if room else ""
            raise PromptTooLong(f"the prompt has {n_tokens} tokens{follow} and model {self.id!r} reads {self.window}")

    def check_vocabulary(self, text: str) -> None:
        """Refuse a text that the tokenizer would lose part of.

        Raises:
            VocabularyError: names the words with characters for which the model has no token.
        """
        try:
            encoding = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        except Exception as error:  # tokenizers raises bare Exception where a vocabulary has no unknown token
            pieces = self.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
            known = self.tokenizer.get_vocab()
            raise self._no_token(text, [at for piece, (at, _) in pieces if piece not in known], str(error)) from error
        unknown = self.tokenizer.unk_token_id
        kept = bytearray(len(text))
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            if token != unknown or unknown is None:
                kept[start:end] = b"\1" * (end - start)
        missing = [at for at, is_kept in enumerate(kept) if not is_kept and not text[at].isspace()]
        if missing:
            raise self._no_token(text, missing)

    def _no_token(self, text: str, missing: Sequence[int], error: str = "") -> VocabularyError:
        """Names the words of the text in which the missing characters are, the first ones."""
        of = [word for word in re.findall(r"\w+|\W", text) for _ in word]  # of each character
        words = list(dict.fromkeys(of[at] for at in missing))
        shown = " ".join(repr(word[:40]) for word in sorted(words, key=lambda word: not word.isalnum())[:5])
        said = f"{shown} and {len(words) - 5} other words" if len(words) > 5 else shown or error
        if self.id == "tiny":
            said += "; the bundled model knows variable binding only, lines such as 'a = 7' and 'b = a'"
        return VocabularyError(f"model {self.id!r} has no token for part of this prompt: {said}")


def first_end(tokens: list[int], ends: set[int]) -> int:
    """The place of the first token that ends a text; how many there are where none does."""
    return next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
