"""An accuracy study before it runs: cells, prompts, tokens, time and memory. Loads no weights, writes to no store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING

from debug.core import ExperimentConfig
from debug.errors import DebugError
from debug.models import heuristics
from debug.runner.asking import given, records_of, suited_to
from debug.runner.programs import Drawn, draw_programs
from debug.runner.runner import ExperimentRunner
from debug.runner.study import Study

if TYPE_CHECKING:
    from debug.models import LoadedModel
    from debug.models.blueprint import Blueprint

_IN_WORDS = {"vllm": "vLLM's time is not estimated", "openai": "a server's time is its own"}


@dataclass(frozen=True)
class CellPlan:
    """What an accuracy cell would do."""

    name: str
    samples: int
    prompt_tokens: tuple[int, int] | None
    """Of the shortest and of the longest prompt; None: a rule, or a server that does not say."""
    new_tokens: int
    """Of each answer, at most."""
    seconds: float | None
    """At most, without loading the model; None: not timed."""
    bytes: int | None
    """On the device: weights, and the keys and values of the largest batch. None: not known, as of vLLM, which takes a
    share of the device, and of quantized weights."""
    errors: int
    """Samples that cannot be asked: no program, or one that does not fit the model."""
    note: str = ""

    def __str__(self) -> str:
        tokens = ""
        if self.prompt_tokens is not None:
            short, long = self.prompt_tokens
            tokens = f", prompts of {short if short == long else f'{short} to {long}'} tokens"
        lines = [f"{self.name}: {self.samples} programs{tokens}, up to {self.new_tokens} new tokens each"]
        time_ = "" if self.seconds is None else f"at most about {self.seconds:.1f} s"
        memory = "" if self.bytes is None else f"about {self.bytes / 2**30:.2f} GiB of memory beside Python's own"
        lines += [f"  {', '.join(filter(None, (time_, memory, self.note)))}"] if time_ or memory or self.note else []
        return "\n".join([*lines, *([f"  {self.errors} cannot be asked"] if self.errors else [])])


def dry_run(
    name: str,
    configs: Sequence[ExperimentConfig],
    runner: ExperimentRunner,
    *,
    timed: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[CellPlan]:
    """What :meth:`ExperimentRunner.run_study` would do, cell by cell. Loads no weights and writes nothing.

    Args:
        timed: estimate the time: the first batch of each cell is asked of random weights (those of layers beyond 2 GiB
            shared), which write as many tokens as they may.
        clock: ``time.process_time`` where CPU time is meant.

    Raises:
        debug.models.ModelNotFound, TooFewPrograms: as the study itself.
    """
    study = Study(name, configs, runner.how)
    drawn: dict[tuple[int, int | None, int], Drawn] = {}
    known: tuple[str, Blueprint | None, LoadedModel | None] = ("", None, None)
    for cell in study.cells:
        key = (cell.config, cell.hops, cell.seq_len)
        if key not in drawn:
            drawn[key] = draw_programs(configs[cell.config], cell.hops, cell.seq_len)
        if known[0] != cell.model_id:
            known = (cell.model_id, *_models(cell.model_id, runner, timed))
        plan = _planned(configs[cell.config], drawn[key], cell.seq_len, known[1], known[2], runner.batch_size, clock)
        rule = heuristics.find(cell.model_id) is not None
        note = "a rule in the place of a model" if rule else _IN_WORDS.get(runner.backend, "")
        if runner.backend != "transformers" or runner.quantization:
            plan = replace(plan, bytes=None)
        yield replace(plan, name=study.name_of(cell), note=note)


def _models(model_id: str, runner: ExperimentRunner, timed: bool) -> tuple[Blueprint | None, LoadedModel | None]:
    """The model without weights, and with random ones where it is to be timed; rules and servers have neither."""
    if heuristics.find(model_id) is not None or runner.backend == "openai":
        return None, None
    from debug.models.blueprint import blueprint, with_random_weights

    model = blueprint(model_id, dtype=runner.dtype, device=runner.device)
    if not timed or runner.backend != "transformers" or runner.quantization:
        return model, None
    return model, with_random_weights(blueprint(model_id, dtype=runner.dtype, device=runner.device))


def _planned(
    config: ExperimentConfig,
    drawn: Drawn,
    seq_len: int,
    model: Blueprint | None,
    random: LoadedModel | None,
    batch_size: int,
    clock: Callable[[], float],
) -> CellPlan:
    samples, new = len(drawn.programs) + len(drawn.failed), 0 if config.scoring == "logits" else config.max_new_tokens
    plan = CellPlan("", samples, None, new or 0, None, None, len(drawn.failed))
    if model is None:
        return plan
    config, drawn = suited_to(model, config, drawn)
    lengths: list[int] = []
    for prompt in given(model, drawn.template, [program.program for program in drawn.programs]):
        try:
            lengths.append(len(model.encode(prompt, chat=config.chat, room=plan.new_tokens)))
        except DebugError:
            plan = replace(plan, errors=plan.errors + 1)
    if not lengths:
        return plan
    at_once = min(batch_size, len(lengths))
    size = model.weight_bytes + at_once * (max(lengths) + plan.new_tokens) * _token_bytes(model)
    plan = replace(plan, prompt_tokens=(min(lengths), max(lengths)), bytes=size)
    if random is None:
        return plan
    first = replace(drawn, programs=drawn.programs[:batch_size], failed=[])
    for _ in islice(records_of(random, replace(first, programs=first.programs[:1]), config, seq_len, 1), 1):
        pass  # the first time costs more
    started = clock()
    for _ in records_of(random, first, config, seq_len, batch_size):
        pass
    return replace(plan, seconds=(clock() - started) * ceil(len(drawn.programs) / batch_size))


def _token_bytes(model: Blueprint) -> int:
    """Of a token: its keys and values in all layers."""
    text = model.config
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * model.n_layers * heads * width * (4 if model.dtype == "float32" else 2)
