"""A model in vLLM: for accuracy alone, nothing inside can be read."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from debug.kinds import Argument, Tokenizer
from debug.models.backends import choose_backend
from debug.models.errors import BackendMissing
from debug.models.files import locate, name_of
from debug.models.numbers import DTYPES
from debug.models.prompting import AnswersPrompts
from debug.models.transformers_model import rope_switch
from debug.models.weights import check_reachable, from_files
from debug.prompts import tokenization

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class VllmModel(AnswersPrompts):
    """A model in vLLM, with the tokenizer that the transformers backend has."""

    id: str
    path: str
    dtype: str
    device: str
    llm: Any  # vllm.LLM, imported only where one is started
    tokenizer: Tokenizer
    ends: set[int]
    quantization: str | None = None
    files_digest: str | None = None
    backend = "vllm"

    @property
    def window(self) -> int | None:
        return self.llm.llm_engine.model_config.max_model_len

    @property
    def end_tokens(self) -> set[int]:
        return self.ends

    def _run(self, prompts: list[tuple[int, list[int]]], sampling: list[dict]) -> Iterator[tuple[int, Any]]:  # vLLM's
        from vllm import SamplingParams

        outputs = self.llm.generate(
            [{"prompt_token_ids": ids} for _, ids in prompts],
            [SamplingParams(temperature=0, detokenize=False, **options) for options in sampling],
            use_tqdm=False,
        )
        for (index, _), output in zip(prompts, outputs, strict=True):
            yield index, output.outputs[0]

    def _generate(
        self, prompts: list[tuple[int, list[int]]], max_new_tokens: int, batch_size: int, done: Collection[int] = ()
    ) -> Iterator[tuple[int, list[int] | None]]:
        # One log probability for each token, its own: of logits that are not finite it is nan.
        options = {"max_tokens": max_new_tokens, "stop_token_ids": sorted(self.ends), "logprobs": 0}
        prompts = [prompt for prompt in prompts if prompt[0] not in done]
        for index, output in self._run(prompts, [options] * len(prompts)):
            yield index, list(output.token_ids) if math.isfinite(output.cumulative_logprob) else None

    def _score(
        self,
        prompts: list[tuple[int, list[int]]],
        tokens: dict[int, list[int]],
        batch_size: int,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, Float[Tensor, " answer"]]]:
        prompts = [prompt for prompt in prompts if prompt[0] not in done]
        for index, output in self._run(
            prompts, [{"max_tokens": 1, "logprob_token_ids": tokens[i]} for i, _ in prompts]
        ):
            yield index, torch.tensor([output.logprobs[0][token].logprob for token in tokens[index]])


def start_vllm(
    model_id: str, dtype: str, device: str, arguments: dict[str, Argument], trust_remote_code: bool
) -> VllmModel:
    choose_backend("vllm")
    path, files = locate(model_id)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    defaults: dict[str, Argument] = {"enable_prefix_caching": True, "seed": 0}
    if device == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # a process of its own brings nothing here
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # this process's other threads stay as they are
        defaults["enforce_eager"] = True  # compiling takes longer than these programs do
        defaults["block_size"] = 32  # tokens; a shared prefix is kept in whole blocks, and vLLM's own have 128 on a CPU
    try:
        check_reachable(path)
        options = {"trust_remote_code": trust_remote_code, **files}
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        switch = rope_switch(AutoConfig.from_pretrained(path, **options))
        if switch is not None and arguments.get("max_model_len", switch) > switch:
            logger.warning(
                "with max_model_len above %d vLLM reads every text with the rotary frequencies that model %r has for "
                "texts longer than that; shorter ones are read as they should be by backend 'transformers'",
                *(switch, model_id),
            )
        elif switch is not None:
            defaults["max_model_len"] = switch
        with tempfile.TemporaryDirectory(prefix="debug-vllm-") as folder:
            if files:  # vLLM reads no GGUF of every architecture; transformers unpacks it
                weights = from_files(AutoModelForCausalLM, path, dtype=DTYPES[dtype], **options)
                del weights.config.quantization_config
                weights.hf_quantizer = None
                weights.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                del weights
            from vllm import LLM

            llm = LLM(
                **defaults
                | {"model": folder if files else path, "dtype": dtype, "trust_remote_code": trust_remote_code}
                | arguments
            )
            ends = llm.llm_engine.model_config.try_get_generation_config().get("eos_token_id")  # a number or several
    except Exception as error:  # vLLM's engine, pydantic and the hub's client share no base class
        raise BackendMissing(
            f"vLLM cannot run model {model_id!r} from {path} with {arguments}: "
            f"{type(error).__name__}: {str(error).strip()[:500]}. Backend 'transformers' may"
        ) from error
    ends = tokenization.end_tokens(tokenizer, ends)
    return VllmModel(name_of(model_id), path, dtype, device, llm, tokenizer, ends, arguments.get("quantization"))
