"""How fast patching is: against the original way, TransformerLens, and the arithmetic that cannot be avoided.

    python benchmarks/patching.py                           # everything; leave the machine alone meanwhile
    python benchmarks/patching.py --sections limit --workloads F --json limit.json
    python benchmarks/patching.py --quick                   # a smoke run on the bundled model; its numbers mean little

Prints one table. What is compared is measured in this one run: a grid is timed several times, before and after what it
is compared with, and the machine's own matrix products before and after each of these. Two workloads on SmolLM2,
float32, every layer x every position: F, few-shot, whose counterfactual differs late, so that most of the grid need not
run; P, the published 17-line program, whose root is token 3. Grids are timed with everything that a caller waits for:
tokenization, the unpatched runs and the self-checks; without the control and the logit lens, which the others lack.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from itertools import islice, product
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

from debug import generators, models, prompts
from debug.causal_tracing import CausalTracingResult, run_causal_tracing_experiment
from debug.counterfactual import make_pair
from debug.engine import default_batch_tokens
from debug.models import LoadedModel
from debug.programs import ProgramPair
from debug.token_analyzer import TokenizedPair, analyze_pair

CACHE = Path(__file__).parent.parent / "build" / "benchmarks"
SECTIONS = ("original", "transformer-lens", "limit", "components", "breakdown", "growth", "memory")
AGREEMENT = 1e-3  # largest difference of a logit from another implementation: kernels sum in other orders


class Scale(NamedTuple):
    """How much is measured."""

    model: str
    sample: int  # cells of a grid that are timed the other ways
    repeats: int  # of each grid
    products: int  # sets of matrix products, before and after each grid
    width: int  # of the models that grow; wide enough that arithmetic dominates
    layers: Sequence[int]
    lines: Sequence[int]
    pairs: Sequence[int]
    batch_tokens: Sequence[int]
    memory: dict[str, int]


QWEN3 = {  # Qwen3-0.6B
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
FULL = Scale("smollm2", 40, 3, 20, 512, (3, 6, 12), (5, 9, 17, 26), (1, 2, 4, 8), (128, 256, 512, 1024, 2048), QWEN3)
QUICK = Scale(
    "tiny", 3, 1, 3, 64, (2, 4), (5, 9), (1, 2), (128, 512), QWEN3 | {"num_hidden_layers": 2, "vocab_size": 41}
)
ASKED = {  # of FULL, by (section, workload)
    ("original", "F"): (">=", 250),
    ("original", "P"): (">=", 20),
    ("transformer-lens", "F"): (">=", 60),
    ("transformer-lens", "P"): (">=", 7),
    ("limit", "F"): ("<=", 2.0),
    ("limit", "P"): ("<=", 1.6),
    ("components", "F"): ("<=", 2.5),
    ("components", "P"): ("<=", 2.5),
    ("memory", ""): ("<=", 8),
}


@dataclass
class Report:
    """The table, printed row by row, and the same as JSON."""

    scale: Scale
    path: Path | None
    content: dict[str, Any] = field(default_factory=lambda: {"machine": {}, "rows": []})

    def row(
        self, section: str, workload: str, what: str, value: float, unit: str, how: str, ratio: bool = False
    ) -> None:
        """``ratio``: this is the number that something was asked of."""
        asked = ASKED.get((section, workload)) if ratio and self.scale is FULL else None
        verdict = ""
        if asked:
            met = value >= asked[1] if asked[0] == ">=" else value <= asked[1]
            verdict = f"{asked[0]} {asked[1]:g} {'met' if met else 'NOT MET'}"
        self.content["rows"].append(
            {"section": section, "workload": workload, "what": what, "value": value, "unit": unit, "how": how}
            | ({"asked": f"{asked[0]} {asked[1]:g}", "met": met} if asked else {})
        )
        self.line(section, workload, what, f"{value:.4g} {unit}", verdict, how)
        self.save()

    def line(self, section: str, workload: str, what: str, value: str, asked: str, how: str) -> None:
        first, *more = textwrap.wrap(how, 76) or [""]
        print(f"{section:<16} {workload:<2} {what:<34} {value:>15}  {asked:<14}  {first}")
        for rest in more:
            print(" " * 88 + rest)
        sys.stdout.flush()

    def save(self) -> None:
        if self.path:
            self.path.write_text(json.dumps(self.content, indent=1))


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "nnsight"))
    return {
        "processor": f"{name[1] if name else platform.processor()}, {os.cpu_count()} cores",
        "torch threads": f"{torch.get_num_threads()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": f"Python {platform.python_version()}, {versions}",
        "load average at start": f"{os.getloadavg()[0]:.2f} over a minute, {os.getloadavg()[1]:.2f} over five; "
        "much more than 0 means that other work shared the machine",
    }


# --- What is measured -------------------------------------------------------------------------------------------------


class Workload(NamedTuple):
    name: str
    pair: ProgramPair
    template: str

    def tokenized(self, model: LoadedModel) -> TokenizedPair:
        return analyze_pair(model.tokenizer, self.pair, self.template)


def binding_pair(lines: int, seed: int) -> ProgramPair:
    return make_pair(generators.make_variable_binding_program(lines, np.random.RandomState(seed))[0], seed)


def early_pairs(lines: int) -> Iterator[ProgramPair]:
    """Pairs whose root is on the first line: almost nothing of their grids can be left out."""
    pairs = (binding_pair(lines, seed) for seed in range(100_000))
    return (pair for pair in pairs if pair.variable_chain.root.line == 0)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "F": lambda: Workload("F", binding_pair(5, 1), prompts.few_shot("variable_binding", 3, 3, 900_000)),
    "P": lambda: Workload("P", binding_pair(17, 12), prompts.VARIABLE_BINDING),
}


def trace(
    model: LoadedModel, pairs: Sequence[ProgramPair], template: str = prompts.VARIABLE_BINDING, **plan: Any
) -> CausalTracingResult:
    """The engine as it is timed here: a map and its self-checks, without the control and the logit lens."""
    return run_causal_tracing_experiment(
        model, pairs, prompt_template=template, control=False, logit_lens=False, **plan
    )


def linear_layers(model: LoadedModel) -> list[dict[str, torch.Tensor]]:
    """Weight matrices of each layer, by name."""
    layers = attrgetter(model.architecture.layers)(model.hf)
    return [{n: m.weight for n, m in layer.named_modules() if isinstance(m, nn.Linear)} for layer in layers]


@torch.no_grad()
def matrix_products(model: LoadedModel, tokens: int, sets: int) -> list[float]:
    """FLOP/s of sets of products: ``tokens`` tokens times all matrices of one layer, the next layer each time."""
    layers = linear_layers(model)
    inputs = {weight.shape[1]: torch.randn(tokens, weight.shape[1]) for weight in layers[0].values()}
    speeds = []
    for number in range(-1, sets):  # the first is not counted
        weights = layers[number % len(layers)].values()
        start = time.perf_counter()
        for weight in weights:
            nn.functional.linear(inputs[weight.shape[1]], weight)
        seconds = time.perf_counter() - start
        speeds.append(2 * tokens * sum(weight.numel() for weight in weights) / seconds)
    return speeds[1:]


def unavoidable_flop(model: LoadedModel, component: str, layer: int, tokens: int) -> float:
    """FLOP of one patch at a layer with ``tokens`` tokens at and after it: 2 for each weight that a token meets.

    Layers above the patch (of the residual stream, the patched one too) at all these tokens, but of the last layer only
    keys and values, and the rest for the token that predicts; the unembedding of that token; and what the patched token
    meets behind the patch in its own layer. Attention's own products are left out: the limit is a little low.
    """
    sizes = {name: weight.numel() for name, weight in linear_layers(model)[0].items()}
    whole = sum(sizes.values())
    keys_values, output, mlp = (
        sum(size for name, size in sizes.items() if re.search(pattern, name))
        for pattern in (r"[kv]_proj", "o_proj", "mlp")
    )
    first = layer + (component != "residual_stream")
    weights = float(attrgetter(model.architecture.unembedding)(model.hf).weight.numel())
    if first < model.n_layers:
        weights += (model.n_layers - 1 - first) * whole * tokens + keys_values * tokens + (whole - keys_values)
    if component in ("attention_heads", "attention"):
        weights += mlp + (output / model.n_heads if component == "attention_heads" else 0)
    return 2 * weights


def cells_run(model: LoadedModel, result: CausalTracingResult, layers: Sequence[int]) -> list[tuple[int, int]]:
    """(layer, tokens at and after the patch) of every cell that has to run, by the same rule as the engine's."""
    cells = []
    for causal_map in result.maps:
        length, last = len(causal_map.tokens), model.n_layers - (causal_map.intervention_type != "residual_stream")
        for layer, column in product(layers, causal_map.columns):
            if max(column) >= causal_map.first_difference and (layer < last or length - 1 in column):
                cells += [(layer, length - min(column))] * max(1, len(causal_map.heads))
    return cells


@dataclass
class Grid:
    """All cells of one component of a workload, timed between matrix products of the size of the engine's batches."""

    model: LoadedModel
    workload: Workload
    products: int
    component: str = "residual_stream"
    positions: str = "all"
    seconds: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    result: CausalTracingResult | None = None

    @cached_property
    def cells(self) -> list[tuple[int, int]]:
        layers = range(self.model.n_layers + (self.component == "residual_stream"))
        return cells_run(self.model, self.trace([self.model.n_layers - 1]), layers)

    @cached_property
    def batch(self) -> int:
        """Tokens of the engine's usual batch: those of a layer's cells, as many as a batch may have."""
        tokens = Counter[int]()
        for layer, count in self.cells:
            tokens[layer] += count
        return int(median(min(count, default_batch_tokens(self.model)) for count in tokens.values()))

    def trace(self, layers: Sequence[int] | None = None) -> CausalTracingResult:
        return trace(
            self.model,
            [self.workload.pair],
            self.workload.template,
            intervention_type=self.component,
            positions=self.positions,
            intervention_layers=layers,
        )

    def time(self, repeats: int) -> Grid:
        batch = self.batch  # its cells come from a trace of one layer, which is also the warm-up
        for _ in range(repeats):
            self.speeds += matrix_products(self.model, batch, self.products)
            start = time.perf_counter()
            self.result = self.trace()
            self.seconds.append(time.perf_counter() - start)
            self.speeds += matrix_products(self.model, batch, self.products)
        ran = sum(result.interventions for result in self.result.results) if self.result else 0
        if ran != len(self.cells):
            raise RuntimeError(f"the engine ran {ran} cells, the limit counts {len(self.cells)}; their rules differ")
        return self

    @property
    def typical(self) -> float:
        return median(self.seconds)

    @property
    def speed(self) -> float:
        """Median of the faster half: slower ones were disturbed."""
        return median(sorted(self.speeds)[len(self.speeds) // 2 :])

    @property
    def flop(self) -> float:
        counts = Counter(self.cells)
        return sum(n * unavoidable_flop(self.model, self.component, *cell) for cell, n in counts.items())

    @property
    def times_the_limit(self) -> float:
        return self.typical / (self.flop / self.speed)

    def how(self) -> str:
        return (
            f"{self.typical:.2f} s (median of {len(self.seconds)}: {min(self.seconds):.2f} to {max(self.seconds):.2f})"
            f" over {self.flop / 1e9:.4g} GFLOP at {self.speed / 1e9:.4g} GFLOP/s (median of the better half of "
            f"{len(self.speeds)} sets of products of {self.batch} tokens; of all {median(self.speeds) / 1e9:.4g}, best "
            f"{max(self.speeds) / 1e9:.4g})"
        )


# --- The other ways ---------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """Some cells done another way: seconds of each, and the logits of c and o."""

    name: str
    seconds: list[float]
    logits: list[list[float]]


@torch.no_grad()
def original_way(model: LoadedModel, tokenized: TokenizedPair, cells: Sequence[tuple[int, int]]) -> Sample:
    """A clean, a counterfactual and a patched trace for each cell, as first written for this research."""
    clean, source = (torch.tensor([p.token_ids]) for p in (tokenized.original, tokenized.counterfactual))
    seconds, logits = [], []
    for layer, position in [cells[0], *cells]:  # the first is not counted
        start = time.perf_counter()
        with model.nnsight.trace(clean):
            model.nnsight.output.logits.save()
        with model.nnsight.trace(source):
            stored = model.layer(layer).input.save()
            model.nnsight.output.logits.save()
        with model.nnsight.trace(clean):
            hidden = model.layer(layer).input.clone()
            hidden[:, position] = stored[:, position]
            model.layer(layer).input = hidden
            patched = model.nnsight.output.logits.save()
        seconds.append(time.perf_counter() - start)
        logits.append(patched[0, -1, list(tokenized.answer_tokens)].tolist())
    return Sample("one nnsight trace each", seconds[1:], logits[1:])


def transformer_lens_python() -> Path:
    """The Python of a virtual environment with the current TransformerLens, made or brought up to date."""
    folder = CACHE / "transformer-lens"
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    uv = shutil.which("uv", path=places)
    if uv is None:
        raise FileNotFoundError("uv, which makes TransformerLens's environment, was not found; `make` installs it")
    python = folder / "bin" / "python"
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")  # see the Makefile
    torch_version = version("torch").split("+")[0]
    make = [uv, "venv", "--quiet", "--python", sys.executable, str(folder)]
    install = [uv, "pip", "install", "--quiet", "--python", str(python), "--upgrade", "transformer-lens"]
    for command in ([] if python.exists() else [make], [[*install, f"torch=={torch_version}"]]):
        for arguments in command:
            subprocess.run(arguments, check=True, env=os.environ | {"UV_FIND_LINKS": links})
    return python


def transformer_lens(
    model: LoadedModel, tokenized: TokenizedPair, cells: Sequence[tuple[int, int]], python: Path, folder: str
) -> Sample:
    """TransformerLens's ``generic_activation_patch`` on the same cells of the same model, in its own process."""
    job = {
        "threads": torch.get_num_threads(),
        "folder": folder,
        "original": tokenized.original.token_ids,
        "counterfactual": tokenized.counterfactual.token_ids,
        "answer_tokens": tokenized.answer_tokens,
        "cells": cells,
    }
    run = subprocess.run(
        [str(python), str(Path(__file__).with_name("transformer_lens_side.py"))],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    answer = json.loads(run.stdout.splitlines()[-1])
    return Sample(
        ", ".join(f"{name} {number}" for name, number in answer["versions"].items()),
        answer["seconds"],
        answer["logits"],
    )


def save_for_transformers(model: LoadedModel, folder: str) -> None:
    """The model as an ordinary folder: what it was quantized from is not said, it is float32 now."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf.hf_quantizer = None
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


# --- Sections ---------------------------------------------------------------------------------------------------------


def residual_stream(
    report: Report, model: LoadedModel, workload: Workload, sections: Sequence[str], lens: tuple[Path, str] | None
) -> None:
    """The whole grid of the residual stream, against each of the other ways and against the limit."""
    scale, tokenized = report.scale, workload.tokenized(model)
    length = len(tokenized.original.token_ids)
    grid = Grid(model, workload, scale.products).time(1)
    every = list(product(range(model.n_layers), range(length)))
    cells = [every[i] for i in np.random.RandomState(0).permutation(len(every))[: scale.sample]]
    samples: dict[str, Sample] = {}
    if "original" in sections:
        samples["original"] = original_way(model, tokenized, cells)
    if lens is not None:
        samples["transformer-lens"] = transformer_lens(model, tokenized, cells, *lens)
    grid.time(scale.repeats - 1)
    assert grid.result is not None
    report.row(
        "grid",
        workload.name,
        "residual stream, time",
        grid.typical,
        "s",
        f"{length} tokens, the first difference is token {tokenized.first_difference}: {len(grid.cells)} of "
        f"{(model.n_layers + 1) * length} cells run, the others have no effect by construction",
    )
    for section, sample in samples.items():
        ours = grid.result.maps[0].z_patched
        difference = max(np.abs(ours[cell] - z).max() for cell, z in zip(cells, sample.logits, strict=True))
        if not difference <= AGREEMENT:
            raise RuntimeError(f"{section}: its logits are {difference:.3g} away from the engine's on the same cells")
        mean, error = np.mean(sample.seconds), np.std(sample.seconds, ddof=1) / len(cells) ** 0.5
        low, high = ((mean + sign * 1.96 * error) * len(every) / grid.typical for sign in (-1, 1))
        report.row(
            section,
            workload.name,
            "times slower than the engine",
            mean * len(every) / grid.typical,
            "x",
            f"95% interval {low:.4g} to {high:.4g}; {mean:.3f} s a cell (mean of {len(cells)} random cells, "
            f"{min(sample.seconds):.3f} to {max(sample.seconds):.3f}) x {len(every)} cells, over {grid.typical:.2f} s; "
            f"logits differ by at most {difference:.1g}; {sample.name}",
            ratio=True,
        )
    if "limit" in sections:
        report.row(
            "limit", workload.name, "residual stream, over the limit", grid.times_the_limit, "x", grid.how(), ratio=True
        )


def components(report: Report, model: LoadedModel, workload: Workload) -> None:
    """Interventions per second, and the time over its own limit, of every component."""
    for component, positions in (
        ("residual_stream", "all"),
        ("attention_heads", "targets"),
        ("attention", "all"),
        ("mlp", "all"),
    ):
        grid = Grid(model, workload, report.scale.products, component, positions).time(report.scale.repeats)
        rate = len(grid.cells) / grid.typical
        name = component.replace("_", " ")
        how = f"{len(grid.cells)} cells ({positions} positions) in {grid.typical:.2f} s"
        report.row("components", workload.name, f"{name}, interventions/s", rate, "/s", how)
        if component != "residual_stream":
            report.row(
                "components",
                workload.name,
                f"{name}, over its limit",
                grid.times_the_limit,
                "x",
                grid.how(),
                ratio=True,
            )


OPERATORS = {  # the rest of torch's operators is normalization and elementwise
    "matrix products": r"aten::(mm|addmm|bmm|baddbmm|linear|matmul|mkldnn_linear|_addmm_activation)$",
    "attention": r"aten::(_?scaled_dot_product|_?softmax|_flash_attention|_safe_softmax)",
    "copies": r"aten::(copy_|clone|cat|index|index_put_|_index_put_impl_|index_select|gather|contiguous|_to_copy|to|"
    r"repeat|repeat_interleave|empty.*|new_.*|zeros.*|zero_|fill_|full.*|embedding|stack)$",
}
REST = "normalization, elementwise"


def breakdown(report: Report, model: LoadedModel, workload: Workload) -> None:
    """Where the time of the residual stream's grid goes, by torch's profiler: each operator less those it calls."""
    grid = Grid(model, workload, report.scale.products).time(1)
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # nnsight runs patches in threads
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], experimental_config=everywhere, acc_events=True) as profiled:
        grid.trace()
        wall = time.perf_counter() - start
    spent = dict.fromkeys([*OPERATORS, REST], 0.0)
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            kind = next((kind for kind, pattern in OPERATORS.items() if re.match(pattern, event.key)), REST)
            spent[kind] += event.self_cpu_time_total / 1e6
    spent["nnsight, Python, profiler"] = wall - sum(spent.values())
    for kind, seconds in spent.items():
        how = f"{seconds:.2f} s of {wall:.2f} s under the profiler ({grid.typical:.2f} s without it)"
        if kind == "matrix products":
            how += f"; the limit's {grid.flop / 1e9:.4g} GFLOP are {grid.flop / grid.speed:.2f} s at the measured speed"
        report.row("breakdown", workload.name, kind, 100 * seconds / wall, "%", how)


def random_model(config: Any, model_id: str) -> LoadedModel:
    """Random weights of any size, with the bundled model's tokenizer."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return models.wrap(hf, AutoTokenizer.from_pretrained(models.CHECKPOINTS / "tiny"), model_id=model_id)


def llama(n_layers: int, width: int) -> LoadedModel:
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": 8, "vocab_size": 41}
    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    return random_model(LlamaConfig(num_hidden_layers=n_layers, **sizes, **ids), f"llama-{n_layers}x{width}")


def growth(report: Report) -> None:
    """Time of the residual stream's grid as one thing grows, the others kept: fitted exponent, and the arithmetic's."""
    scale = report.scale
    middle, lines = scale.layers[len(scale.layers) // 2], scale.lines[len(scale.lines) // 2]
    model = llama(middle, scale.width)
    pairs = list(islice(early_pairs(lines), max(scale.pairs)))

    def length(lines: int) -> int:
        return len(analyze_pair(model.tokenizer, next(early_pairs(lines))).original.token_ids)

    Setting = tuple[int, LoadedModel, list[ProgramPair], int | None]  # what is on the x axis, and what is run
    settings: dict[str, tuple[list[Setting], str]] = {
        "layers": (
            [(n, llama(n, scale.width), pairs[:1], None) for n in scale.layers],
            "a patch at layer l runs the layers above: L (L + 1) / 2, which tends to exponent 2",
        ),
        "tokens": (
            [(length(n), model, [next(early_pairs(n))], None) for n in scale.lines],
            "a patch at token t runs the tokens behind: T (T + 1) / 2, which tends to exponent 2; attention to 3",
        ),
        "pairs": ([(n, model, pairs[:n], None) for n in scale.pairs], "each pair alike: 1"),
        "batch_tokens": (
            [(n, model, pairs[:1], n) for n in scale.batch_tokens],
            "the same arithmetic: 0, below it while small batches leave the processor idle",
        ),
    }
    for what, (runs, theory) in settings.items():
        sizes, seconds, flop = [], [], []
        for size, run_model, run_pairs, batch_tokens in runs:
            times = []
            for _ in range(scale.repeats + 1):  # the first is a warm-up
                start = time.perf_counter()
                result = trace(run_model, run_pairs, batch_tokens=batch_tokens)
                times.append(time.perf_counter() - start)
            cells = Counter(cells_run(run_model, result, range(run_model.n_layers + 1)))
            sizes.append(size)
            seconds.append(min(times[1:]))
            flop.append(sum(n * unavoidable_flop(run_model, "residual_stream", *cell) for cell, n in cells.items()))
        exponent, expected = (np.polyfit(np.log(sizes), np.log(y), 1)[0] for y in (seconds, flop))
        measured = ", ".join(f"{size}: {t:.3g} s" for size, t in zip(sizes, seconds, strict=True))
        report.row(
            "growth",
            "",
            f"{what}, exponent",
            float(exponent),
            "",
            f"{measured}; the arithmetic of these grids grows with exponent {expected:.2f} ({theory}). Llama of width "
            f"{scale.width}, {middle} layers and {lines} lines where they do not grow, least squares on logs",
        )


def peak_memory(config: dict[str, int]) -> dict[str, Any]:
    """Runs in a process of its own: highest resident memory after loading, and after tracing, in GiB."""

    def highest() -> float:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) / 2**20

    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    model = random_model(Qwen3Config(tie_word_embeddings=True, **config, **ids), "qwen3")
    weights = sum(parameter.numel() for parameter in model.hf.parameters()) * 4 / 2**30
    loaded, layers = highest(), [0, model.n_layers // 2, model.n_layers]
    result = trace(model, [binding_pair(17, 12)], intervention_layers=layers)
    cells = result.results[0].interventions
    return {"weights": weights, "loaded": loaded, "peak": highest(), "layers": layers, "cells": cells}


def memory(report: Report) -> None:
    """The most that a process has in memory while it traces a model of 0.6B weights."""
    if not Path("/proc/self/status").exists():
        report.line("memory", "", "peak resident memory", "not measured", "", "needs Linux's /proc")
        return
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        measured = pool.apply(peak_memory, [report.scale.memory])
    report.row(
        "memory",
        "",
        "peak resident memory",
        measured["peak"],
        "GiB",
        f"of a process that traces Qwen3 with random weights ({measured['weights']:.2f} GiB, float32): "
        f"{measured['loaded']:.2f} GiB once loaded; 17 lines, residual stream into layers {measured['layers']} at all "
        f"positions, {measured['cells']} cells",
        ratio=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--no-transformer-lens", action="store_true", help="needs no package index then")
    parser.add_argument("--quick", action="store_true", help="that everything works: small, on the bundled model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too, row by row")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    sections = [
        name for name in arguments.sections if not (arguments.no_transformer_lens and name == "transformer-lens")
    ]
    report = Report(scale, arguments.json)
    report.content["machine"] = machine()
    report.content["model"] = scale.model
    for name, value in report.content["machine"].items():
        print(f"{name}: {value}")
    print(f"model: {scale.model}, float32\n")
    report.line("section", "", "what", "value", "asked", "how it was measured")

    workloads = [WORKLOADS[name]() for name in arguments.workloads]
    on_model = [name for name in sections if name not in ("growth", "memory")]
    if on_model:
        model = models.load(scale.model, dtype="float32", device="cpu")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            lens = None
            if "transformer-lens" in sections:
                lens = (transformer_lens_python(), folder)
                save_for_transformers(model, folder)
            for workload in workloads:
                if {"original", "transformer-lens", "limit"} & set(on_model):
                    residual_stream(report, model, workload, sections, lens)
                if "components" in sections:
                    components(report, model, workload)
                if "breakdown" in sections:
                    breakdown(report, model, workload)
        models.unload(scale.model)
        del model
    if "growth" in sections:
        growth(report)
    if "memory" in sections:
        memory(report)


if __name__ == "__main__":
    main()
