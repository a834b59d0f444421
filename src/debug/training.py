"""How the bundled model is made: vocabulary, initial weights, training programs, the loop, and the held-out programs.

The loop needs a folder and nothing else: it keeps its state and its metrics there, and goes on from there after a kill,
on one thread bit for bit. Knows no MLflow (``runs/train_bundled_model.py`` logs what the loop yields) and no nnsight.

Plain training stays at "any number of this program" for thousands of steps; with the first two of these measures, at
"any number that some line reads":

- initial weights in the manner of mimetic initialization (Trockman, Kolter 2023, arXiv 2305.09828), :func:`new_model`;
- a naming loss on the first layer, alone at first, then beside the answers, then off. It names variables, never values;
- a curriculum that begins with many chains of two hops at once, :data:`CURRICULUM`: where only one chain is longer than
  the others, its root is the answer, and nothing has to be looked up;
- copies of the size of an embedding, and names in directions of their own, again :func:`new_model`.
"""

from __future__ import annotations

import json
import signal
import string
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from debug.counterfactual import make_pair
from debug.generators import generate, make_variable_binding_program, search
from debug.models import from_files
from debug.programs import ProgramPair
from debug.statistics import Interval, wilson

# ---------------------------------------------------------------------------------------------- vocabulary and model

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = (END_OF_TEXT, *string.ascii_lowercase, *string.digits, " = ", "\n", "#", ": ")
LETTER, DIGIT = VOCABULARY.index("a"), VOCABULARY.index("0")
END, EQUALS, NEWLINE, HASH, COLON = (VOCABULARY.index(word) for word in (END_OF_TEXT, " = ", "\n", "#", ": "))

MAX_POSITIONS = 512
RHS_OF_LINE, NEWLINE_OF_LINE = 2, 3  # tokens of a line: letter, equals, what it reads, newline


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of the 41 words; offsets are exact and decoding gives the text back.

    There is no unknown word: a text with any other character is refused ("Missing [UNK] token from the vocabulary"),
    it does not vanish.
    """
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" = |: |[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )


def name_rotation(hidden: int) -> Float[Tensor, "hidden hidden"]:
    """A fixed orthogonal matrix: token x has other directions as the *name* of a line than where it is read.

    If they shared directions, ``x = y`` could not tell the line that it is from the line that it reads, and looking up
    ``y`` would find ``x = y`` itself and every other line that reads ``y``.
    """
    return torch.nn.init.orthogonal_(torch.empty(hidden, hidden), generator=torch.Generator().manual_seed(0))


def new_model(
    seed: int, n_layers: int = 6, n_heads: int = 4, head_size: int = 32, initialization: str = "mimetic"
) -> Qwen3ForCausalLM:
    """A Qwen3 model with initial weights in the manner of mimetic initialization; ``"ordinary"``: as transformers does.

    In layers 1 and up keys are queries of the rotated stream, so that what a token reads is compared with what lines
    are named; the output projection is a fraction of the transpose of the value projection, so that what is attended to
    is copied, at the size of a token embedding: larger copies drown what the position itself says.
    """
    torch.manual_seed(seed)
    hidden = n_heads * head_size
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        head_dim=head_size,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
        use_cache=True,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    if initialization == "ordinary":
        return model
    weights = model.state_dict()  # the very tensors of the model
    torch.nn.init.normal_(weights["model.embed_tokens.weight"], std=hidden**-0.5)
    rotation = name_rotation(hidden)
    for layer in range(1, n_layers):
        query, key, value, output = (weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name in "qkvo")
        torch.nn.init.orthogonal_(query)
        key.copy_(query @ rotation)
        torch.nn.init.orthogonal_(value)
        output.copy_(value.T * (0.75 * hidden**-0.5))
        weights[f"model.layers.{layer}.self_attn.q_norm.weight"].fill_(2)
    return model


def export(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Write model and tokenizer as a Hugging Face folder (safetensors, float32)."""
    model.generation_config.update(eos_token_id=END, pad_token_id=END, bos_token_id=None, do_sample=False)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def load_weights(folder: Path) -> Qwen3ForCausalLM:
    """The model of an exported folder, through plain transformers. Raises WeightsMismatch where it lacks weights."""
    return from_files(Qwen3ForCausalLM, folder, dtype=torch.float32)


# ------------------------------------------------------------------------------------------------- held-out programs

Cell = tuple[int | None, int]  # hops (None: any) and seq_len

LENGTHS = range(2, 18)
MAX_HOPS = 4

HELD_OUT: dict[Cell, int] = {
    **{(None, seq_len): 4000 if seq_len == 17 else 1000 for seq_len in LENGTHS},
    **{(hops, seq_len): 1000 for seq_len in (5, 17) for hops in range(1, MAX_HOPS + 1)},
}
"""(hops, seq_len) -> how many programs are held out: those of the first seeds, from 0, that have these hops
(None: any). They and their counterfactuals are never trained on, whichever variable is queried."""


BEYOND: dict[Cell, int] = {(None, 20): 1000, (None, 26): 1000, **{(hops, 17): 500 for hops in range(5, 9)}}
"""Cells outside the training distribution (longer programs, deeper queries), reported whatever they are."""

PUBLISHED = {(1, 5): 11, (2, 5): 3, (3, 5): 2, (1, 17): 5, (2, 17): 14, (3, 17): 12}
"""(hops, seq_len) -> seed of the programs published with the paper; all of them are held out."""


def first_pairs(cells: dict[Cell, int]) -> dict[Cell, list[ProgramPair]]:
    """The pairs of the first seeds of each (hops, seq_len), as many as asked for."""
    pairs = {}
    for (hops, seq_len), count in tqdm(cells.items(), desc="held-out programs", unit="cell"):
        found = islice(search(make_variable_binding_program, seq_len, 0, hops), count)
        pairs[hops, seq_len] = [make_pair(made.program, made.seed) for made in found]
    return pairs


def published_pairs() -> dict[Cell, list[ProgramPair]]:
    """The six programs published with the paper, and their counterfactuals."""
    texts = {cell: generate(make_variable_binding_program, cell[1], seed).program for cell, seed in PUBLISHED.items()}
    return {cell: [make_pair(text, PUBLISHED[cell])] for cell, text in texts.items()}


def reserved_texts(pairs: Iterable[ProgramPair]) -> set[bytes]:
    """The assignment lines of both programs of each pair, query left out, as tokens: what may not be trained on."""
    index = {word: number for number, word in enumerate(VOCABULARY)}
    return {
        bytes(token for line in program.assignments for token in (index[line.lhs], EQUALS, index[line.rhs], NEWLINE))
        for pair in pairs
        for program in (pair.original, pair.counterfactual)
    }


# ------------------------------------------------------------------------------------------------- training programs


@dataclass(frozen=True)
class Programs:
    """Assignment lines of many programs of one length; every array is [program, line] of integers."""

    lhs: Int[np.ndarray, "program line"]
    """Letter, 0 for a."""
    source: Int[np.ndarray, "program line"]
    """The line that the right-hand side reads, -1 where it is a digit."""
    depth: Int[np.ndarray, "program line"]
    root: Int[np.ndarray, "program line"]
    """The line that assigns the root value of this line."""
    value: Int[np.ndarray, "program line"]

    @property
    def tokens(self) -> Int[np.ndarray, "program 4*line"]:
        read = np.take_along_axis(self.lhs, np.maximum(self.source, 0), axis=1)
        rhs = np.where(self.source < 0, DIGIT + self.value, LETTER + read)
        lines = np.stack([LETTER + self.lhs, np.full_like(rhs, EQUALS), rhs, np.full_like(rhs, NEWLINE)], axis=2)
        return lines.reshape(len(rhs), -1)

    def keep(self, chosen: Bool[np.ndarray, " program"]) -> Programs:
        return Programs(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def sample_programs(
    rng: np.random.Generator,
    count: int,
    seq_len: int,
    constant_share: float | Float[np.ndarray, "program 1"] = 0.3,
    depth_power: float | Float[np.ndarray, "program 1"] = 3.0,
) -> Programs:
    """Programs of :func:`debug.generators.make_variable_binding_program`'s distribution, many at once.

    Letters are not assigned again, so that seq_len is at most 26.

    Args:
        constant_share: probability that a line assigns a digit; 0.3 as published.
        depth_power: a variable is read with probability proportional to its referential depth to this power; 3 as
            published.
    """
    lhs = rng.permuted(np.tile(np.arange(26), (count, 1)), axis=1)[:, :seq_len]
    digits = rng.integers(10, size=(count, seq_len))
    constant = rng.random((count, seq_len)) < constant_share
    draw = rng.random((count, seq_len))
    rows = np.arange(count)
    source = np.full((count, seq_len), -1)
    depth = np.ones((count, seq_len), dtype=int)
    root = np.tile(np.arange(seq_len), (count, 1))
    for line in range(1, seq_len):
        heap = np.cumsum(depth[:, :line].astype(float) ** depth_power, axis=1)
        read = (draw[:, line, None] * heap[:, -1:] >= heap).sum(axis=1)
        source[:, line] = np.where(constant[:, line], -1, read)
        depth[:, line] = np.where(constant[:, line], 1, depth[rows, read] + 1)
        root[:, line] = np.where(constant[:, line], line, root[rows, read])
    return Programs(lhs, source, depth, root, np.take_along_axis(digits, root, axis=1))


def sample_queries(rng: np.random.Generator, programs: Programs, count: int) -> Int[np.ndarray, "program query"]:
    """Lines whose variables are queried: each depth from 1 to 4 of a program equally likely, within a depth each root,
    within those each variable.

    The published draw of the query is not balanced: "the root of the largest chain" answers 85 to 90% of its queries,
    and training on it stops there.
    """
    depth, root = programs.depth, programs.root
    same_depth = depth[:, :, None] == depth[:, None, :]
    weight = 1 / (same_depth & (root[:, :, None] == root[:, None, :])).sum(axis=2)
    weight /= (same_depth * weight[:, None, :]).sum(axis=2)
    heap = np.cumsum(np.where(depth <= MAX_HOPS, weight, 0), axis=1)
    draw = rng.random((len(depth), count)) * heap[:, -1:]
    return (draw[:, :, None] >= heap[:, None, :]).sum(axis=2)


# ------------------------------------------------------------------------------------------------------------ packing


@dataclass(frozen=True)
class Batch:
    """Programs with several queries each, one sequence a program; each query is computed as if it were alone.

    A sequence is the assignment lines, ``#``, then ``x`` and ``: `` of each query, then the last query's answer. The
    ``#`` has the same past for every query and serves all. The mask shows a query the program, the ``#`` and itself;
    position numbers are those of the plain text.
    """

    input_ids: Int[Tensor, "program position"]
    position_ids: Int[Tensor, "1 position"]
    mask: Bool[Tensor, "1 1 query_position key_position"]
    answers: Int[Tensor, "program query"]
    """Token to be predicted at each query's ``: ``; after the last query's answer comes the end of text."""
    names: Int[Tensor, "program name"]
    """For the naming loss: token to be named at ``name_positions``."""
    colon_positions: slice
    name_positions: list[int]


def pack(programs: Programs, queries: Int[np.ndarray, "program query"], naming_site: str = "rhs") -> Batch:
    """``naming_site`` is the token of each line that the naming loss reads; at ``: `` it reads in any case."""
    count, n_queries = queries.shape
    named = NEWLINE_OF_LINE if naming_site == "newline" else RHS_OF_LINE
    text = programs.tokens
    lines = text.shape[1]
    variables = LETTER + np.take_along_axis(programs.lhs, queries, axis=1)
    answers = DIGIT + np.take_along_axis(programs.value, queries, axis=1)
    asked = np.stack([variables, np.full_like(variables, COLON)], axis=2).reshape(count, -1)
    input_ids = np.concatenate([text, np.full((count, 1), HASH), asked, answers[:, -1:]], axis=1)
    position_ids = np.concatenate([np.arange(lines + 1), np.tile([lines + 1, lines + 2], n_queries), [lines + 3]])
    owner = np.concatenate([np.full(lines + 1, -1), np.repeat(np.arange(n_queries), 2), [n_queries - 1]])
    causal = np.tri(len(owner), dtype=bool)
    mask = causal & ((owner[None, :] == -1) | (owner[None, :] == owner[:, None]))
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids)[None],
        mask=torch.from_numpy(mask)[None, None],
        answers=torch.from_numpy(answers),
        names=torch.from_numpy(np.concatenate([LETTER + programs.lhs, variables], axis=1)),
        colon_positions=slice(lines + 2, lines + 1 + 2 * n_queries, 2),
        name_positions=[*range(named, lines, 4), *range(lines + 2, lines + 1 + 2 * n_queries, 2)],
    )


def losses(model: Qwen3ForCausalLM, batch: Batch, naming: bool) -> tuple[dict[str, Tensor], float]:
    """Cross-entropies and the share of queries answered.

    ``answer``: at each ``: ``. ``end``: end of text after the answer. ``naming`` (where asked for): the first layer's
    output, read through final norm and unembedding, names the queried variable at each ``: ``, and, read through
    :func:`name_rotation` too, the left-hand side of the line at each right-hand side (or at its newline,
    :attr:`Settings.naming_site`).
    """
    outputs = model.model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.mask,
        use_cache=False,
        output_hidden_states=naming,
    )
    logits = model.lm_head(outputs.last_hidden_state[:, batch.colon_positions])
    ends = model.lm_head(outputs.last_hidden_state[:, -1])
    found = {
        "answer": F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten()),
        "end": F.cross_entropy(ends, torch.full_like(ends[:, 0], END, dtype=torch.long)),
    }
    if naming:
        first = model.model.norm(outputs.hidden_states[1][:, batch.name_positions])
        lines = batch.names.shape[1] - batch.answers.shape[1]
        first = torch.cat([first[:, :lines] @ name_rotation(first.shape[-1]).T, first[:, lines:]], dim=1)
        first = model.lm_head(first)
        found["naming"] = F.cross_entropy(first.flatten(0, 1), batch.names.flatten())
    return found, (logits.argmax(-1) == batch.answers).float().mean().item()


# --------------------------------------------------------------------------------------------------------- evaluation


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


def evaluate(model: Qwen3ForCausalLM, pairs: dict[Cell, list[ProgramPair]]) -> dict[Cell, tuple[Interval, Interval]]:
    """Of each (hops, seq_len): accuracy on the programs, and the share of pairs with both programs answered."""
    accuracies = {}
    for cell, members in pairs.items():
        right = [
            answered(model, [program.text for program in programs], [program.answer for program in programs])
            for programs in ([pair.original for pair in members], [pair.counterfactual for pair in members])
        ]
        accuracies[cell] = tuple(wilson(int(each.sum()), len(each)) for each in (right[0], right[0] & right[1]))
    return accuracies


def cell_name(cell: Cell) -> str:
    """``lines_17_hops_3``, or ``lines_17`` where the hops are any: how a cell's metrics are named."""
    hops, seq_len = cell
    return f"lines_{seq_len}" + ("" if hops is None else f"_hops_{hops}")


def markdown_table(accuracies: dict[Cell, tuple[Interval, Interval]]) -> str:
    rows = ["| lines | hops | programs answered | both programs of a pair answered |", "| --- | --- | --- | --- |"]
    for (hops, seq_len), (program, pair) in accuracies.items():
        rows.append(f"| {seq_len} | {'any' if hops is None else hops} | {program} | {pair} |")
    return "\n".join(rows)


# ----------------------------------------------------------------------------------------------------------- the loop


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
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(options)}")

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
    settings: Settings, folder: Path, held_out: dict[Cell, list[ProgramPair]]
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train, or go on training, in ``folder``; yields all (step, metrics) of its ``metrics.jsonl``, old and new.

    The folder holds ``settings.json``, ``metrics.jsonl``, ``state.safetensors`` (weights, optimizer moments, where the
    run stands) and ``checkpoints/step_000000`` and on, each a Hugging Face folder. A run that was killed goes on from
    ``state.safetensors``; what it had logged after that is logged again. Ctrl-C ends the step, saves and raises.

    Programs of ``held_out`` are not trained on; the first PROBE_SIZE of each cell are what evaluation steps read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reserved = reserved_texts(pair for pairs in held_out.values() for pair in pairs)
    probes = {cell: pairs[:PROBE_SIZE] for cell, pairs in held_out.items()}
    model = new_model(settings.seed, settings.n_layers, initialization=settings.initialization)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay, fused=True
    )
    stopped = (folder / "state.safetensors").exists()
    state = load_state(folder, model, optimizer) if stopped else State(stage=settings.first_stage)
    (folder / "settings.json").write_text(json.dumps(asdict(settings), indent=1))
    kept = [(step, metrics) for step, metrics in history(folder) if step <= state.step]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, **metrics}) + "\n" for step, metrics in kept)
    )
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
