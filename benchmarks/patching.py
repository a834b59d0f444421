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
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedConfig, Qwen3Config

from debug import generators, models, prompts
from debug.causal_tracing import CausalTracingResult, run_causal_tracing_experiment
from debug.counterfactual import make_pair
from debug.engine import default_batch_tokens
from debug.kinds import Argument, Json
from debug.models import LoadedModel
from debug.programs import ProgramPair
from debug.statistics import bootstrap_mean
from debug.token_analyzer import TokenizedPair, analyze_pair
from matrix_products import matrix_products, unavoidable_flop

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
    content: dict[str, Json]

    def row(self, section: str, workload: str, what: str, value: float, unit: str, how: str) -> None:
        entry = {
            "section": section,
            "workload": workload,
            "what": what,
            "value": float(value),
            "unit": unit,
            "how": how,
        }
        verdict = ""
        if self.scale is FULL and unit in ("x", "GiB") and (section, workload) in ASKED:
            sign, bound = ASKED[section, workload]
            entry |= {"asked": f"{sign} {bound:g}", "met": bool(value >= bound if sign == ">=" else value <= bound)}
            verdict = f"{entry['asked']}{'' if entry['met'] else ' NOT'} met"
        self.content["rows"].append(entry)
        self.line(section, workload, what, f"{value:.4g} {unit}", verdict, how)
        if self.path:
            self.path.write_text(json.dumps(self.content, indent=1))

    @staticmethod
    def line(section: str, workload: str, what: str, value: str, asked: str, how: str) -> None:
        wrapped = textwrap.wrap(how, 76) or [""]
        print(f"{section:<16} {workload:<2} {what:<34} {value:>13}  {asked:<13}  {wrapped[0]}")
        print(*(f"{'':86}{rest}" for rest in wrapped[1:]), sep="\n", end="\n" if wrapped[1:] else "", flush=True)


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
    model: LoadedModel
    pair: ProgramPair
    template: str

    @property
    def tokenized(self) -> TokenizedPair:
        return analyze_pair(self.model.tokenizer, self.pair, self.template)


def binding_pair(lines: int, seed: int) -> ProgramPair:
    return make_pair(generators.make_variable_binding_program(lines, np.random.RandomState(seed))[0], seed)


def early_pairs(lines: int) -> Iterator[ProgramPair]:
    """Pairs whose root is on the first line: almost nothing of their grids can be left out."""
    pairs = (binding_pair(lines, seed) for seed in range(100_000))
    return (pair for pair in pairs if pair.variable_chain.root.line == 0)


def heading(model: LoadedModel) -> str:
    """Makes F 85 tokens long, the first difference token 66; the bundled model has no such words."""
    return "" if model.id == "tiny" else "Examples:\n"


WORKLOADS: dict[str, Callable[[LoadedModel], Workload]] = {
    "F": lambda model: Workload(
        "F", model, binding_pair(4, 0), heading(model) + prompts.few_shot("variable_binding", 3, 3, 900_000)
    ),
    "P": lambda model: Workload("P", model, binding_pair(17, 12), prompts.VARIABLE_BINDING),
}


def trace(
    model: LoadedModel, pairs: Sequence[ProgramPair], template: str = prompts.VARIABLE_BINDING, **plan: Argument
) -> CausalTracingResult:
    """The engine as it is timed here: a map and its self-checks, of any answers, without the control and the
    logit lens."""
    return run_causal_tracing_experiment(
        model, pairs, prompt_template=template, require_correct=False, control=False, logit_lens=False, **plan
    )


def cells_run(model: LoadedModel, result: CausalTracingResult) -> Counter[tuple[int, int]]:
    """How many cells of each (layer, tokens at and after the position) run, of all layers: the engine's own rule."""
    cells = Counter[tuple[int, int]]()
    for causal_map in result.maps:
        residual, length = causal_map.intervention_type == "residual_stream", len(causal_map.tokens)
        for layer, column in product(range(model.n_layers + residual), causal_map.columns):
            read = layer < model.n_layers - (not residual) or length - 1 in column
            if read and max(column) >= causal_map.first_difference:
                cells[layer, length - min(column)] += max(1, len(causal_map.heads))
    return cells


@dataclass
class Grid:
    """All cells of one component of a workload, timed between matrix products of the size of the engine's batches."""

    workload: Workload
    products: int
    component: str = "residual_stream"
    positions: str = "all"
    seconds: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)

    def trace(self, layers: Sequence[int] | None = None) -> CausalTracingResult:
        plan = {"intervention_type": self.component, "positions": self.positions, "intervention_layers": layers}
        return trace(self.workload.model, [self.workload.pair], self.workload.template, **plan)

    @cached_property
    def cells(self) -> Counter[tuple[int, int]]:
        """From a trace of one layer, which is also the warm-up."""
        model = self.workload.model
        return cells_run(model, self.trace([model.n_layers - 1]))

    @cached_property
    def batch(self) -> int:
        """Tokens of the engine's usual batch: those of a layer's cells, as many as a batch may have."""
        by_layer = Counter[int]()
        for (layer, tokens), count in self.cells.items():
            by_layer[layer] += tokens * count
        return int(median(min(count, default_batch_tokens(self.workload.model)) for count in by_layer.values()))

    def time(self, repeats: int) -> CausalTracingResult:
        for _ in range(repeats):
            self.speeds += matrix_products(self.workload.model, self.batch, self.products)
            start = time.perf_counter()
            result = self.trace()
            self.seconds.append(time.perf_counter() - start)
            self.speeds += matrix_products(self.workload.model, self.batch, self.products)
            if (ran := result.results[0].interventions) != self.cells.total():
                raise RuntimeError(f"the engine ran {ran} cells, the limit counts {self.cells.total()}: rules differ")
        return result

    @property
    def typical(self) -> float:
        return median(self.seconds)

    @property
    def speed(self) -> float:
        """Median, as of the grid's times: what disturbs the machine disturbs both."""
        return median(self.speeds)

    @property
    def flop(self) -> float:
        return unavoidable_flop(self.workload.model, self.component, self.cells)

    def report_limit(self, report: Report, section: str) -> None:
        name, kind = self.workload.name, self.component.replace("_", " ")
        how = f"{self.cells.total()} cells, {self.positions} positions, in {self.typical:.3g} s"
        report.row(section, name, f"{kind}, interventions/s", self.cells.total() / self.typical, "/s", how)
        how = (
            f"{self.typical:.3g} s (median of {len(self.seconds)}: {min(self.seconds):.3g} to {max(self.seconds):.3g}) "
            f"over {self.flop / 1e9:.4g} GFLOP at {self.speed / 1e9:.4g} GFLOP/s (median of {len(self.speeds)} sets of "
            f"products of {self.batch} tokens: {min(self.speeds) / 1e9:.4g} to {max(self.speeds) / 1e9:.4g})"
        )
        report.row(section, name, f"{kind}, over the limit", self.typical / (self.flop / self.speed), "x", how)


# --- The other ways ---------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """Some cells done another way: seconds of each, and the logits of c and o."""

    name: str
    seconds: list[float]
    logits: list[list[float]]


@torch.no_grad()
def original_way(workload: Workload, cells: Sequence[tuple[int, int]]) -> Sample:
    """A clean, a counterfactual and a patched trace for each cell, as first written for this research."""
    model, tokenized = workload.model, workload.tokenized
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
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        raise FileNotFoundError("uv, which makes TransformerLens's environment, was not found; `make` installs it")
    python = folder / "bin" / "python"
    packages = ["transformer-lens", f"torch=={version('torch').split('+')[0]}"]
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")  # see the Makefile
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", python, "--upgrade", *packages]
    subprocess.run(install, check=True, env=os.environ | {"UV_FIND_LINKS": links})
    return python


def transformer_lens(workload: Workload, cells: Sequence[tuple[int, int]], python: Path, folder: str) -> Sample:
    """TransformerLens's ``generic_activation_patch`` on the same cells of the same model, in its own process."""
    tokenized = workload.tokenized
    job = {
        "threads": torch.get_num_threads(),
        "folder": folder,
        "original": tokenized.original.token_ids,
        "counterfactual": tokenized.counterfactual.token_ids,
        "answer_tokens": tokenized.answer_tokens,
        "cells": cells,
    }
    command, offline = [python, Path(__file__).with_name("transformer_lens_side.py")], {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        command, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True, env=os.environ | offline
    )
    answer = json.loads(run.stdout.splitlines()[-1])
    versions = ", ".join(f"{name} {number}" for name, number in answer["versions"].items())
    return Sample(versions, answer["seconds"], answer["logits"])


def save_for_transformers(model: LoadedModel, folder: str) -> None:
    """The model as an ordinary folder: what it was quantized from is not said, it is float32 now."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf.hf_quantizer = None
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


# --- Sections ---------------------------------------------------------------------------------------------------------


def residual_stream(report: Report, workload: Workload, sections: set[str], lens: tuple[Path, str] | None) -> None:
    """The whole grid of the residual stream, against each of the other ways and against the limit."""
    scale, model, tokenized = report.scale, workload.model, workload.tokenized
    length = len(tokenized.original.token_ids)
    every = list(product(range(model.n_layers), range(length)))
    cells = [every[i] for i in np.random.RandomState(0).permutation(len(every))[: scale.sample]]
    grid, samples = Grid(workload, scale.products), {}
    ours = grid.time(1).maps[0].z_patched
    if "original" in sections:
        samples["original"] = original_way(workload, cells)
    if lens is not None:
        samples["transformer-lens"] = transformer_lens(workload, cells, *lens)
    if scale.repeats > 1:
        grid.time(scale.repeats - 1)
    how = (
        f"{length} tokens, the first difference is token {tokenized.first_difference}: {grid.cells.total()} of "
        f"{(model.n_layers + 1) * length} cells run, the others have no effect by construction"
    )
    report.row("grid", workload.name, "residual stream, time", grid.typical, "s", how)
    for section, sample in samples.items():
        difference = max(np.abs(ours[cell] - z).max() for cell, z in zip(cells, sample.logits, strict=True))
        if not difference <= AGREEMENT:
            raise RuntimeError(f"{section}: its logits are {difference:.3g} away from the engine's on the same cells")
        mean = bootstrap_mean(sample.seconds)
        low, ratio, high = (
            (np.nan if end is None else end) * len(every) / grid.typical for end in (mean.low, mean.estimate, mean.high)
        )
        how = (
            f"95% interval {low:.4g} to {high:.4g}; {mean.estimate:.3f} s a cell (mean of {len(cells)} random cells, "
            f"{min(sample.seconds):.3f} to {max(sample.seconds):.3f}) x {len(every)} cells, over {grid.typical:.3g} s; "
            f"logits differ by at most {difference:.1g}; {sample.name}"
        )
        report.row(section, workload.name, "times slower than the engine", float(ratio), "x", how)
    if "limit" in sections:
        grid.report_limit(report, "limit")


def components(report: Report, workload: Workload) -> None:
    """Interventions per second, and the time over its own limit, of every other component."""
    for component, positions in (("attention_heads", "targets"), ("attention", "all"), ("mlp", "all")):
        grid = Grid(workload, report.scale.products, component, positions)
        grid.time(report.scale.repeats)
        grid.report_limit(report, "components")


OPERATORS = {  # the rest of torch's operators is normalization and elementwise
    "matrix products": r"aten::(mm|addmm|bmm|baddbmm|linear|matmul|mkldnn_linear|_addmm_activation)$",
    "attention": r"aten::(_?scaled_dot_product|_?softmax|_flash_attention|_safe_softmax)",
    "copies": r"aten::(copy_|clone|cat|index|index_put_|_index_put_impl_|index_select|gather|contiguous|_to_copy|to|"
    r"repeat|repeat_interleave|empty.*|new_.*|zeros.*|zero_|fill_|full.*|embedding|stack)$",
}
REST = "normalization, elementwise"


def breakdown(report: Report, workload: Workload) -> None:
    """Where the time of the residual stream's grid goes, by torch's profiler: each operator less those it calls."""
    grid = Grid(workload, report.scale.products)
    grid.time(1)
    flop, linear = 0, nn.functional.linear

    def counted(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The profiler would keep the inputs of every operator to count this: 20 GiB of P's."""
        nonlocal flop
        flop += 2 * inputs.numel() * weight.shape[0]
        return linear(inputs, weight, bias)

    start = time.perf_counter()
    with patch.object(nn.functional, "linear", counted), profile(activities=[ProfilerActivity.CPU]) as profiled:
        grid.trace()
        wall = time.perf_counter() - start
    spent = dict.fromkeys([*OPERATORS, REST], 0.0)
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            kind = next((kind for kind, pattern in OPERATORS.items() if re.match(pattern, event.key)), REST)
            spent[kind] += event.self_cpu_time_total / 1e6
    spent["nnsight, Python, profiler"] = wall - sum(spent.values())
    for kind, seconds in spent.items():
        how = f"{seconds:.3g} s of {wall:.3g} s under the profiler ({grid.typical:.3g} s without it)"
        if kind == "matrix products":
            how += f"; {flop / 1e9:.4g} GFLOP, which at the measured speed are {flop / grid.speed:.3g} s"
        report.row("breakdown", workload.name, kind, 100 * seconds / wall, "%", how)
    how = f"{flop / 1e9:.4g} over {grid.flop / 1e9:.4g} GFLOP; self-checks, unpatched runs and padding are the rest"
    report.row("breakdown", workload.name, "matrix products done, over the limit", flop / grid.flop, "x", how)


IDS = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}


def random_model(config: PreTrainedConfig) -> LoadedModel:
    """Random weights of any size, with the bundled model's tokenizer."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return models.wrap(hf, AutoTokenizer.from_pretrained(models.CHECKPOINTS / "tiny"), model_id="random")


def llama(n_layers: int, width: int) -> LoadedModel:
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": 8, "vocab_size": 41}
    return random_model(LlamaConfig(num_hidden_layers=n_layers, **sizes, **IDS))


def growth(report: Report) -> None:
    """Time of the residual stream's grid as one thing grows, the others kept: fitted exponent, and the arithmetic's."""
    scale = report.scale
    n_layers, lines = scale.layers[len(scale.layers) // 2], scale.lines[len(scale.lines) // 2]
    model, pairs = llama(n_layers, scale.width), list(islice(early_pairs(lines), max(scale.pairs)))
    by_lines = [next(early_pairs(n)) for n in scale.lines]
    lengths = [len(analyze_pair(model.tokenizer, pair).original.token_ids) for pair in by_lines]
    # What grows -> sizes, the model, pairs and batch_tokens of each, and what the theory says.
    runs: dict[str, tuple[Sequence[int], list[tuple[LoadedModel, list[ProgramPair], int | None]], str]] = {
        "layers": (
            scale.layers,
            [(llama(n, scale.width), pairs[:1], None) for n in scale.layers],
            "a patch at layer l runs the layers above: L (L + 1) / 2, towards exponent 2",
        ),
        "tokens": (
            lengths,
            [(model, [pair], None) for pair in by_lines],
            "a patch at token t runs the tokens behind: T (T + 1) / 2, towards exponent 2; attention towards 3",
        ),
        "pairs": (scale.pairs, [(model, pairs[:n], None) for n in scale.pairs], "each pair alike: 1"),
        "batch_tokens": (
            scale.batch_tokens,
            [(model, pairs[:1], n) for n in scale.batch_tokens],
            "the same arithmetic: 0, below it while small batches leave the processor idle",
        ),
    }
    for what, (sizes, settings, theory) in runs.items():
        seconds, flop = [], []
        for run_model, run_pairs, batch_tokens in settings:
            times = []
            for _ in range(scale.repeats + 1):  # the first is a warm-up
                start = time.perf_counter()
                result = trace(run_model, run_pairs, batch_tokens=batch_tokens)
                times.append(time.perf_counter() - start)
            seconds.append(min(times[1:]))
            flop.append(unavoidable_flop(run_model, "residual_stream", cells_run(run_model, result)))
        exponent, expected = (np.polyfit(np.log(sizes), np.log(y), 1)[0] for y in (seconds, flop))
        times = ", ".join(f"{size}: {t:.3g} s" for size, t in zip(sizes, seconds, strict=True))
        how = (
            f"{times}; the arithmetic of these grids has exponent {expected:.2f} ({theory}). Llama of width "
            f"{scale.width}; {n_layers} layers, {lines} lines where they do not grow; least squares on logs"
        )
        report.row("growth", "", f"time by {what}, exponent", exponent, "", how)


def peak_memory(config: dict[str, int]) -> dict[str, Json]:
    """Runs in a process of its own: highest resident memory after loading, and after tracing, in GiB."""

    def highest() -> float:
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(kilobytes) / 2**20

    model = random_model(Qwen3Config(tie_word_embeddings=True, **config, **IDS))
    weights = sum(parameter.numel() for parameter in model.hf.parameters()) * 4 / 2**30
    loaded, layers = highest(), [0, model.n_layers // 2, model.n_layers]
    result = trace(model, [binding_pair(17, 12)], intervention_layers=layers)
    cells = result.results[0].interventions
    return {"weights": weights, "loaded": loaded, "peak": highest(), "layers": layers, "cells": cells}


def memory(report: Report) -> None:
    """The most that a process has in memory while it traces a model of 0.6B weights."""
    if not Path("/proc/self/status").exists():
        return report.line("memory", "", "peak resident memory", "not measured", "", "needs Linux's /proc")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        measured = pool.apply(peak_memory, [report.scale.memory])
    how = (
        f"of a process that traces Qwen3 with random weights ({measured['weights']:.2f} GiB, float32): "
        f"{measured['loaded']:.2f} GiB once loaded; 17 lines, residual stream into layers {measured['layers']} at all "
        f"positions, {measured['cells']} cells"
    )
    return report.row("memory", "", "peak resident memory", measured["peak"], "GiB", how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--no-transformer-lens", action="store_true", help="needs no package index then")
    parser.add_argument("--quick", action="store_true", help="that everything works: small, on the bundled model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too, row by row")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    sections = set(arguments.sections) - ({"transformer-lens"} if arguments.no_transformer_lens else set())
    report = Report(scale, arguments.json, {"model": scale.model, "machine": machine(), "rows": []})
    print(*(f"{name}: {value}" for name, value in report.content["machine"].items()), sep="\n")
    print(f"model: {scale.model}, float32\n")
    report.line("section", "", "what", "value", "asked", "how it was measured")

    if sections - {"growth", "memory"}:
        model = models.load(scale.model, dtype="float32", device="cpu")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            lens = None
            if "transformer-lens" in sections:
                lens = (transformer_lens_python(), folder)
                save_for_transformers(model, folder)
            for name in arguments.workloads:
                workload = WORKLOADS[name](model)
                if sections & {"original", "transformer-lens", "limit"}:
                    residual_stream(report, workload, sections, lens)
                if "components" in sections:
                    components(report, workload)
                if "breakdown" in sections:
                    breakdown(report, workload)
        models.unload(scale.model)
        del model, workload
    if "growth" in sections:
        growth(report)
    if "memory" in sections:
        memory(report)


if __name__ == "__main__":
    main()
