"""The training loop: its state in a folder, gone on with after a kill."""

from __future__ import annotations

import fcntl
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import Qwen3ForCausalLM

from debug.errors import InputError
from debug.programs import ProgramPair
from debug.training.batches import Batch, losses, pack
from debug.training.evaluation import cell_name, evaluate
from debug.training.model import export, new_model
from debug.training.programs import LENGTHS, Shape, reserved_texts, sample_programs, sample_queries


@dataclass(frozen=True)
class Stage:
    max_lines: int
    constant_shares: tuple[float, float]
    depth_powers: tuple[float, float]
    published_share: float
    naming: bool


CURRICULUM = (
    Stage(17, (0.3, 0.6), (-1.0, 3.0), 0.25, True),
    Stage(8, (0.5, 0.8), (-4.0, 0.0), 0.0, True),
    Stage(10, (0.3, 0.6), (-2.0, 3.0), 0.1, True),
    Stage(13, (0.3, 0.6), (-2.0, 3.0), 0.2, True),
    Stage(17, (0.3, 0.6), (-1.0, 3.0), 0.25, False),
)
"""The first stage has the naming loss only, for Settings.naming_steps. Then the next stage comes when the running
accuracy on programs of a stage's full length passes ADVANCE_AT.

In the published distribution one chain dominates, and its root answers 85 to 90% of the queries: trained on it, and on
five-line programs with few constants, a model was seen to answer 91% of two-hop queries on 17 lines, but 40% of those
whose root only one line reads. Powers of depth below 0 make chains short and many."""
ADVANCE_AT = 0.96

PROBE_SIZE = 100
"""Of each (hops, seq_len), how many of the held-out programs an evaluation step reads."""


NAMING_SITES = ("rhs", "newline", "none")
INITIALIZATIONS = ("mimetic", "ordinary")


@dataclass(frozen=True)
class Settings:
    """What decides a training run, beside this file; kept in the run's folder."""

    seed: int = 0
    steps: int = 3600
    tokens_per_step: int = 3072
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    naming_steps: int = 80
    decay_share: float = 0.3
    weight_decay: float = 0.01
    naming_weight: float = 0.05
    max_queries: int = 10
    n_layers: int = 6
    naming_site: str = "rhs"
    """The token of a line at which the naming loss reads its name: one of NAMING_SITES; none: no naming loss at all."""
    initialization: str = "mimetic"
    """One of INITIALIZATIONS."""
    log_every: int = 10
    evaluate_every: int = 250
    save_every: int = 100

    def __post_init__(self) -> None:
        for name, options in (("naming_site", NAMING_SITES), ("initialization", INITIALIZATIONS)):
            if getattr(self, name) not in options:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(options)}")

    @property
    def first_stage(self) -> int:
        """That of the naming loss alone is left out where there is none."""
        return int(self.naming_site == "none")


@dataclass
class State:
    """Where a training run stands, beside weights and optimizer. Programs depend on seed, step and stage alone."""

    step: int = 0
    stage: int = 0
    running_accuracy: float = 0.0
    dropped: int = 0
    """Programs drawn and not trained on because their lines are held out."""


def learning_rate(settings: Settings, step: int) -> float:
    """Warm-up for the naming loss and again for the answers, constant, then linear decay to 0 over ``decay_share``."""
    alone = 0 if settings.first_stage else settings.naming_steps
    warmup = (step + 1 - (step >= alone) * alone) / settings.warmup_steps
    decay = (settings.steps - step) / max(1.0, settings.decay_share * settings.steps)
    return settings.learning_rate * min(1.0, warmup, decay)


def draw_batch(settings: Settings, state: State, reserved: set[bytes]) -> tuple[Batch, int, int]:
    """The batch of a step, its seq_len, and how many programs were dropped because they are held out.

    Half of the steps have the stage's full length, the others any length up to it. Some of the programs are drawn as
    published; the others have their own share of constants and attraction to depth, within the stage's bounds.
    """
    rng = np.random.default_rng([settings.seed, state.step])
    stage = CURRICULUM[state.stage]
    seq_len = stage.max_lines if rng.random() < 0.5 else int(rng.integers(LENGTHS.start, stage.max_lines + 1))
    n_queries = min(seq_len, settings.max_queries)
    count = settings.tokens_per_step // (4 * seq_len + 2 + 2 * n_queries)
    published = rng.random((count, 1)) < stage.published_share
    constant_share = np.where(published, 0.3, rng.uniform(*stage.constant_shares, size=(count, 1)))
    depth_power = np.where(published, 3.0, rng.uniform(*stage.depth_powers, size=(count, 1)))
    programs = sample_programs(rng, count, seq_len, constant_share, depth_power)
    free = np.array([row.tobytes() not in reserved for row in programs.tokens.astype(np.uint8)])
    programs = programs.keep(free)
    queries = sample_queries(rng, programs, n_queries)
    return pack(programs, queries, settings.naming_site), seq_len, int((~free).sum())


def keep_checkpoint(step: int) -> bool:
    """Whether the weights at this step are kept: densely where the trajectory turns (the first numbers come at steps
    100 to 140, the heuristics go by 400), then every 1,000."""
    return step in (0, 50, 100, 110, 120, 130, 140, 160, 200, 300, 400, 600) or (step > 0 and step % 1000 == 0)


def checkpoint_folder(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step_{step:06d}"


def train(
    settings: Settings, folder: Path, held_out: dict[Shape, list[ProgramPair]]
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train, or go on training, in ``folder``; yields all (step, metrics) of its ``metrics.jsonl``, old and new.

    The folder holds ``settings.json``, ``metrics.jsonl``, ``state.safetensors`` (weights, optimizer moments, where the
    run stands) and ``checkpoints/step_000000`` and on, each a Hugging Face folder. A run that was killed goes on from
    ``state.safetensors``; what it had logged after that is logged again. Ctrl-C ends the step, saves and raises.

    Programs of ``held_out`` are not trained on; the first PROBE_SIZE of each cell are what evaluation steps read.

    Raises:
        InputError: another process trains in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        yield from _train(settings, folder, held_out)


def _train(
    settings: Settings, folder: Path, held_out: dict[Shape, list[ProgramPair]]
) -> Iterator[tuple[int, dict[str, float]]]:
    reserved = reserved_texts(pair for pairs in held_out.values() for pair in pairs)
    probes = {cell: pairs[:PROBE_SIZE] for cell, pairs in held_out.items()}
    model = new_model(settings.seed, settings.n_layers, initialization=settings.initialization)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay, fused=True
    )
    stopped = (folder / "state.safetensors").exists()
    state = load_state(folder, model, optimizer) if stopped else State(stage=settings.first_stage)
    _write(folder / "settings.json", json.dumps(asdict(settings), indent=1))
    logged = history(folder) if stopped else ()  # without a state all is done again, its first evaluation too
    kept = [(step, metrics) for step, metrics in logged if step <= state.step]
    _write(folder / "metrics.jsonl", "".join(json.dumps({"step": step, **metrics}) + "\n" for step, metrics in kept))
    yield from kept

    with (
        (folder / "metrics.jsonl").open("a", buffering=1) as log,
        _interrupt_between_steps() as interrupted,
        tqdm(total=settings.steps, initial=state.step, desc="training", unit="step") as bar,
    ):

        def record(metrics: dict[str, float]) -> tuple[int, dict[str, float]]:
            log.write(json.dumps({"step": state.step, **metrics}) + "\n")
            return state.step, metrics

        def probe() -> tuple[int, dict[str, float]]:
            rates = evaluate(model, probes)
            metrics: dict[str, float] = {}
            for cell, (rate, _) in rates.items():
                known = rate.metrics(f"accuracy/{cell_name(cell)}") | {f"num_samples/{cell_name(cell)}": rate.n}
                metrics |= {name: float(value) for name, value in known.items() if value is not None}
            return record(metrics)

        if state.step == 0:
            export(model, checkpoint_folder(folder, 0))
            yield probe()
        while state.step < settings.steps:
            metrics = train_step(settings, state, model, optimizer, reserved)
            bar.update()
            bar.set_postfix(loss=f"{metrics['loss/answer']:.3f}", lines=int(metrics["max_lines"]))
            if state.step % settings.log_every == 0:
                yield record(metrics)
            if state.step % settings.evaluate_every == 0 or state.step == settings.steps:
                yield probe()
            if keep_checkpoint(state.step) or state.step == settings.steps:
                export(model, checkpoint_folder(folder, state.step))
            if state.step % settings.save_every == 0 or state.step == settings.steps or interrupted.is_set():
                save_state(folder, state, model, optimizer)
            if interrupted.is_set():
                raise KeyboardInterrupt(f"stopped at step {state.step}; start again with --resume to go on")


def train_step(
    settings: Settings,
    state: State,
    model: Qwen3ForCausalLM,
    optimizer: torch.optim.Optimizer,
    reserved: set[bytes],
) -> dict[str, float]:
    """One optimizer step; moves ``state`` on by a step, and to the next stage where this one is mastered."""
    stage = CURRICULUM[state.stage]
    batch, seq_len, dropped = draw_batch(settings, state, reserved)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, state.step)
    naming = stage.naming and settings.naming_site != "none"
    found, accuracy = losses(model, batch, naming)
    if state.stage == 0:
        total = found["naming"]
    else:
        total = found["answer"] + 0.1 * found["end"]
        if naming:
            total = total + settings.naming_weight * found["naming"]
    optimizer.zero_grad()
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    metrics = {
        **{f"loss/{name}": loss.item() for name, loss in found.items()},
        "batch_accuracy": accuracy,
        "batch_lines": float(seq_len),
        "max_lines": float(stage.max_lines),
        "stage": float(state.stage),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "held_out_dropped": float(state.dropped + dropped),
    }
    state.step += 1
    state.dropped += dropped
    if seq_len == stage.max_lines:
        state.running_accuracy += 0.1 * (accuracy - state.running_accuracy)
    mastered = state.running_accuracy > ADVANCE_AT if state.stage else state.step >= settings.naming_steps
    if mastered and state.stage + 1 < len(CURRICULUM):
        state.stage, state.running_accuracy = state.stage + 1, 0.0
    return metrics


def history(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, metrics) of everything that a training folder has logged; a last line cut off by a kill is left out."""
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            record = json.loads(line)
            yield record.pop("step"), record


def _write(path: Path, text: str) -> None:
    """In one go: a kill, or a full disk, leaves the file that was there."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises InputError where another process trains in the folder. A lock ends with its process."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another process trains in {folder}; stop it, or name another folder") from error
        yield


def save_state(folder: Path, state: State, model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer) -> None:
    """Weights, optimizer moments and ``state`` in one file, which replaces the last one at once."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach()
        for part, value in optimizer.state[parameter].items():  # none before the first step that reaches it
            tensors[f"{part}/{name}"] = value
    partial = folder / "state.safetensors.partial"
    save_file(tensors, partial, metadata={"state": json.dumps(asdict(state))})
    partial.replace(folder / "state.safetensors")


def load_state(folder: Path, model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer) -> State:
    """Put a training folder's weights and moments into ``model`` and ``optimizer``; return where the run stands."""
    with safe_open(folder / "state.safetensors", framework="pt") as file:
        state, stored = State(**json.loads(file.metadata()["state"])), set(file.keys())
        for name, parameter in model.named_parameters():
            with torch.no_grad():
                parameter.copy_(file.get_tensor(f"weight/{name}"))
            parts = [part for part in ("step", "exp_avg", "exp_avg_sq") if f"{part}/{name}" in stored]
            if parts:
                optimizer.state[parameter] = {part: file.get_tensor(f"{part}/{name}") for part in parts}
    return state


@contextmanager
def _interrupt_between_steps() -> Iterator[threading.Event]:
    """Turns Ctrl-C into an event, so that a step is never cut in half and what is saved is a state of the run."""
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
