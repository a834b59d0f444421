"""Samples per second of the accuracy backends beside the text-generation pipeline of transformers, called in a loop.

python benchmarks/accuracy.py                                   # SmolLM2, 17 lines, 0, 3 and 16 solved examples
python benchmarks/accuracy.py --backends pipeline transformers vllm
python benchmarks/accuracy.py --model tiny --seq-len 5 --few-shot 0
python benchmarks/accuracy.py --few-shot 0 --max-new-tokens 64
python benchmarks/accuracy.py --backends transformers vllm --few-shot 0 --seq-len 9 --num-seqs 500 --rounds 1

The same prompts, greedy, the same number of new tokens, the same dtype, in one process. The pipeline gets one prompt
after another, as this research first did it. Rounds alternate between the backends, so that a machine that slows down
slows all of them; what is printed is the median round, and the ratio within each round. Loading is not counted; vLLM's
start is printed apart. Its prefix cache is emptied before every round. Where two backends' texts differ, it is printed
how far apart, in transformers, the logits of the two first different tokens lie: a tie but for rounding, or not.

The limit is what no backend can pass on this machine at this dtype: each token once through every matrix that it must
meet (a beginning that all prompts share, once in all), at the median speed of a batch's products in every round.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from statistics import median
from typing import Any

from tqdm.auto import tqdm

from debug import cli


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seq-len", type=int, default=17)
    parser.add_argument("--few-shot", type=int, nargs="+", default=[0, 3, 16], help="solved examples (default: 0 3 16)")
    parser.add_argument("--num-seqs", type=int, default=64, help="programs in each round (default 64)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--backends", nargs="+", default=["pipeline", "transformers"], help="and vllm")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    import torch
    from transformers import pipeline

    from debug import models, prompts
    from debug.generators import make_variable_binding_program, search
    from debug.models.cpu.packed_linear import PackedLinear
    from debug.prompts.answers import common_prefix
    from matrix_products import matrix_products, unavoidable_flop

    model = models.load(options.model)
    packed = PackedLinear(model.hf)  # the limit's products are those of the backend
    with packed:
        matrix_products(model, 1, model.n_layers)
    looped = pipeline("text-generation", model=model.hf, tokenizer=model.tokenizer)
    engine: Any = None  # a VllmModel where one is asked for
    if "vllm" in options.backends:
        started = time.perf_counter()
        engine = models.load_vllm(options.model, dtype=model.dtype)
        print(f"vLLM started in {time.perf_counter() - started:.0f} s")

    def with_pipeline(asked: list[str]) -> list[str]:
        chosen = {"max_new_tokens": options.max_new_tokens, "do_sample": False, "return_full_text": False}
        return [looped(prompt, **chosen)[0]["generated_text"] for prompt in asked]

    def with_model(asked: list[str]) -> list[str]:
        done = dict(model.generate(asked, max_new_tokens=options.max_new_tokens, batch_size=options.batch_size))
        return [done[index].text for index in range(len(asked))]

    def with_engine(asked: list[str]) -> list[str]:
        engine.llm.reset_prefix_cache()
        done = dict(engine.generate(asked, max_new_tokens=options.max_new_tokens))
        return [done[index].text for index in range(len(asked))]

    @torch.inference_mode()
    def apart(prompt: str, one: str, other: str) -> float:
        """How far apart the logits of the first tokens lie at which two texts behind a prompt differ."""
        end = model.tokenizer.eos_token_id
        first, second = ([*model.tokenizer(prompt + text)["input_ids"], end] for text in (one, other))
        place = next(n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        logits = model.hf(torch.tensor([first[:place]], device=model.device)).logits[0, -1]
        return abs(float(logits[first[place]] - logits[second[place]]))

    ways: dict[str, Callable[[list[str]], list[str]]] = {
        "pipeline": with_pipeline,
        "transformers": with_model,
        "vllm": with_engine,
    }
    ways = {name: ways[name] for name in options.backends}
    print(
        f"{options.model}, {options.seq_len} lines, {model.dtype} on {model.device}, {torch.get_num_threads()} threads"
    )
    for few_shot in options.few_shot:
        template = prompts.VARIABLE_BINDING
        if few_shot:
            template = prompts.few_shot(make_variable_binding_program, options.seq_len, few_shot)
        drawn = islice(search(make_variable_binding_program, options.seq_len, 0), options.num_seqs)
        asked = [prompts.fill(template, made.program) for made in drawn]
        encoded = [model.encode(prompt) for prompt in asked]
        tokens, shared = median(map(len, encoded)), len(common_prefix(encoded))
        own = Counter({(0, 1): options.max_new_tokens - 1}) + Counter([(0, round(tokens - shared))])
        flop = unavoidable_flop(model, "residual_stream", own)
        if shared:
            flop += unavoidable_flop(model, "residual_stream", Counter([(0, shared)])) / len(asked)
        for way in ways.values():
            way(asked[:2])
        rates: dict[str, list[float]] = {name: [] for name in ways}
        texts: dict[str, list[str]] = {}
        speeds: list[float] = []
        for _ in tqdm(range(options.rounds), desc=f"{few_shot} solved examples", unit="round"):
            with packed:
                speeds += matrix_products(model, options.batch_size * round(tokens - shared), 10)
            for name, way in ways.items():
                started = time.perf_counter()
                texts[name] = way(asked)
                rates[name].append(len(asked) / (time.perf_counter() - started))
        print(f"\n{few_shot} solved examples, {tokens:.0f} tokens a prompt, {len(asked)} prompts a round")
        first = options.backends[0]
        for name in ways:
            ratios = [mine / theirs for mine, theirs in zip(rates[name], rates[first], strict=True)]
            differ = [n for n, both in enumerate(zip(texts[name], texts[first], strict=True)) if both[0] != both[1]]
            ties = sorted(apart(asked[n], texts[name][n], texts[first][n]) for n in differ)
            print(
                f"  {name:14}{median(rates[name]):8.2f} samples/s   {median(ratios):5.1f} times {first} "
                f"({min(ratios):.1f} to {max(ratios):.1f})   same text: {len(asked) - len(differ)} of {len(asked)}"
                + (f"; logits apart where not: {', '.join(f'{tie:.2g}' for tie in ties)}" if ties else "")
            )
        limit = median(speeds) / flop
        print(
            f"  {'limit':14}{limit:8.2f} samples/s   {limit / median(rates[first]):5.1f} times {first}; "
            f"{flop / 1e9:.3g} GFLOP a sample at {median(speeds) / 1e9:.3g} GFLOP/s"
        )


if __name__ == "__main__":
    cli.run(main, arguments())
