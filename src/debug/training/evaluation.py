"""Accuracy of a model in training on held-out programs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from transformers import Qwen3ForCausalLM

from debug.programs import ProgramPair
from debug.statistics import Interval, wilson
from debug.training.programs import Shape
from debug.training.vocabulary import END, make_tokenizer


@torch.no_grad()
def answered(model: Qwen3ForCausalLM, programs: Sequence[str], answers: Sequence[int]) -> Bool[np.ndarray, " program"]:
    """Whether greedy decoding gives each program's answer and then ends; all programs have as many tokens."""
    tokenizer = make_tokenizer()
    texts = [f"{program}{answer}" for program, answer in zip(programs, answers, strict=True)]
    input_ids = torch.tensor(tokenizer(texts)["input_ids"])
    right = []
    for part in input_ids.split(256):
        top = model(part, logits_to_keep=2, use_cache=False).logits.argmax(-1)
        right.append((top[:, 0] == part[:, -1]) & (top[:, 1] == END))
    return torch.cat(right).numpy()


def evaluate(model: Qwen3ForCausalLM, pairs: dict[Shape, list[ProgramPair]]) -> dict[Shape, tuple[Interval, Interval]]:
    """Of each (hops, seq_len): accuracy on the programs, and the share of pairs with both programs answered."""
    accuracies = {}
    for cell, members in pairs.items():
        right = [
            answered(model, [program.text for program in programs], [program.answer for program in programs])
            for programs in ([pair.original for pair in members], [pair.counterfactual for pair in members])
        ]
        accuracies[cell] = tuple(wilson(int(each.sum()), len(each)) for each in (right[0], right[0] & right[1]))
    return accuracies


def cell_name(cell: Shape) -> str:
    """``lines_17_hops_3``, or ``lines_17`` where the hops are any: how a cell's metrics are named."""
    hops, seq_len = cell
    return f"lines_{seq_len}" + ("" if hops is None else f"_hops_{hops}")


def markdown_table(accuracies: dict[Shape, tuple[Interval, Interval]]) -> str:
    rows = ["| lines | hops | programs answered | both programs of a pair answered |", "| --- | --- | --- | --- |"]
    for (hops, seq_len), (program, pair) in accuracies.items():
        rows.append(f"| {seq_len} | {'any' if hops is None else hops} | {program} | {pair} |")
    return "\n".join(rows)
