"""The experiment: pairs -> causal maps. Which cells a plan makes of a pair, and what became of each.

A map is rows of layers (or windows of them) x columns of token positions (x sets of heads); every cell of it is data
for the engine's one primitive, and so are the same-answer control at the targets and the self-checks, which run packed
among them. Knows no MLflow, no Streamlit, no file.
The method is that of Wu, Geiger and Millière (ICML 2025, arXiv 2505.20896); attribution patching is Nanda's (2023).
"""

from __future__ import annotations

import logging
import operator
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, product
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from debug import models
from debug.attention_knockout import HYPOTHESES, edges_of, random_control
from debug.causal_map import DIRECTIONS, PAIR_SOURCES, RANDOM, SOURCES, CausalMap, MeanCausalMap, mean_over_pairs
from debug.counterfactual import as_pair, same_answer_program
from debug.engine import (
    COMPONENTS,
    Cell,
    Check,
    Cut,
    Runs,
    SelfCheckError,
    SelfChecks,
    Site,
    checks_of,
    default_batch_tokens,
    gradients,
    measured,
    patched_logits,
    record,
    single_places,
    unembedded,
)
from debug.known_answers import SAFETY, known_answers
from debug.models import LoadedModel, VocabularyError
from debug.programs import ProgramError, ProgramPair
from debug.prompts import get_prompt
from debug.read_back import ReadBack
from debug.token_analyzer import CODE, PairError, TokenizedPair, TokenizedProgram, analyze, analyze_pair

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

KNOCKOUT = "attention_knockout"
INTERVENTION_TYPES = (*COMPONENTS, KNOCKOUT)
METHODS = ("patching", "attribution")
WINDOW = 64  # pairs that are looked at together: those of one length share forward passes, means and partners
ROWS_OF_LENS = 256  # hidden states that are read through the unembedding at a time
AGREEMENT_CELLS = 64  # of a pair, patched exactly to compare an attribution with


@dataclass(frozen=True)
class PairResult:
    """What became of one pair: its causal map, or the reason why it was skipped."""

    index: int
    pair: ProgramPair | None
    skipped: str | None = None
    correct: tuple[bool, bool] | None = None
    """Whether the model's top token answers the original, and the counterfactual; None where it was not asked."""
    answers: tuple[str, str] | None = None
    """Those top tokens, as text."""
    prompt: str | None = None
    causal_map: CausalMap | None = None
    checks: SelfChecks | None = None
    activations: dict[str, np.ndarray] = field(default_factory=dict)
    """``<clean|counterfactual>/<component>`` -> [layer, position, width], "positions", and both runs' "token_ids"."""
    interventions: int = 0
    """Cells that were run, controls too; those whose effect is zero because nothing differs there are not."""
    rank_agreement: float | None = None
    """Of an attribution: Spearman's correlation with exact patching over some cells; None where all are equal."""


class StoredRun(NamedTuple):
    """A program's run as a log kept it: what patching from it needs, so that it is not run again."""

    positions: list[int]
    activations: Mapping[str, Float[np.ndarray, "layer position width"]]
    """Component -> its activations at these positions."""
    logits: dict[int, float]
    """Of both answers' tokens."""
    top_token: int


StoredRuns = Callable[[Sequence[int]], StoredRun]
"""Token ids of a prompt -> its run; raises PairError where there is none."""


class Columns(NamedTuple):
    """The columns of a map, and what a knockout cuts in each."""

    positions: list[int]
    columns: list[list[int]]
    targets: dict[str, list[int]]
    target_columns: dict[str, int]
    edges: list[tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Plan:
    """What to patch, or to cut, in every pair.

    ``layers`` None: all. ``positions`` are the columns of the map: "all" tokens, the "targets", or names of targets and
    numbers of tokens (which are then the targets); "a+b" patches both together, ``ref_depth_2_line`` a whole line.
    ``targets`` are what means over pairs are taken at: None for the default ones, "roles" for every role from the
    root's value on, or names. Of an ``attention_knockout``, ``positions`` are hypotheses: names of presets or
    "queries->keys" of targets; by default every preset.
    """

    intervention_type: str = "residual_stream"
    layers: Sequence[int] | None = None
    positions: str | Sequence[str | int] = "all"
    targets: str | Sequence[str] | None = None
    prompt_template: str = CODE
    require_correct: bool = False
    exclude_shallow: bool = False
    save_activations: str = "none"
    """Which positions' activations come with each result: "none", "targets" or "all"."""
    source: str = "counterfactual"
    """Where patched activations come from, one of SOURCES."""
    source_run: str | None = None
    """The id of the logged run whose activations are the source, where that is "stored"."""
    direction: str = "into_original"
    """Which program is patched: "into_original", from its counterfactual, or "into_counterfactual", the reverse."""
    layer_window: int | None = None
    """Layers that a row changes together, from its own up; None: one, and of a knockout all."""
    heads: Sequence[int | Sequence[int]] | str | None = None
    """Of ``attention_heads``: None for each head alone, "together" for all of a layer, or heads and sets of heads. Of a
    knockout: the heads whose edges are cut, None for all."""
    control: bool = True
    """Patch the targets from a program of the same answer too; of a knockout, cut as many random edges too."""
    logit_lens: bool = True
    """Read the clean run's residual stream through the unembedding, at the single positions."""
    method: str = "patching"
    """"patching", exact; or "attribution", a linear estimate in two forwards and one backward."""

    def __post_init__(self) -> None:
        def one_of(name: str, options: Iterable[str]) -> None:
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(options)}")

        one_of("intervention_type", INTERVENTION_TYPES)
        one_of("save_activations", ("none", "targets", "all"))
        one_of("source", SOURCES)
        one_of("direction", DIRECTIONS)
        one_of("method", METHODS)
        if (self.source == "stored") != (self.source_run is not None):
            raise ValueError(
                f"source is {self.source!r} and source_run {self.source_run!r}; 'stored' goes with a run's id"
            )
        if self.source == "stored" and self.knockout:
            raise ValueError("source is 'stored', but attention_knockout patches nothing")
        object.__setattr__(self, "prompt_template", get_prompt(self.prompt_template)[1])
        if isinstance(self.positions, str):
            if self.positions not in ("all", "targets"):
                object.__setattr__(self, "positions", [self.positions])
        elif not len(self.positions):
            raise ValueError("positions is an empty list; expected 'all', 'targets', or names of targets and numbers")
        else:
            object.__setattr__(
                self, "positions", [p if isinstance(p, str) else operator.index(p) for p in self.positions]
            )
        if self.layers is not None:
            object.__setattr__(self, "layers", [int(layer) for layer in self.layers])
            if not self.layers:
                raise ValueError("layers is an empty list; expected layer numbers, or None for all")
        if self.layer_window is not None and self.layer_window < 1:
            raise ValueError(f"layer_window is {self.layer_window}; expected 1 layer or more")
        if self.targets is not None and not isinstance(self.positions, str):
            raise ValueError("positions names the targets already; give targets only with positions 'all' or 'targets'")
        if isinstance(self.targets, str) and self.targets != "roles":
            object.__setattr__(self, "targets", [self.targets])
        if self.heads is not None:
            self._check_heads()
        if self.method == "attribution" and (self.knockout or self.source != "counterfactual" or self._window(1) > 1):
            raise ValueError(
                "method 'attribution' estimates patches of one layer from the counterfactual, nothing else"
            )
        names = [n for given in (self.positions, self.targets) if isinstance(given, list | tuple) for n in given]
        for name in names:
            self._check_name(name)

    def _check_heads(self) -> None:
        if self.intervention_type not in ("attention_heads", KNOCKOUT):
            raise ValueError(f"heads is given, but {self.intervention_type} has none; attention_heads has")
        if isinstance(self.heads, str):
            if self.heads != "together" or self.knockout:
                raise ValueError(f"heads is {self.heads!r}; expected None, 'together' (attention_heads), or numbers")
            return
        given: Iterable[Any] = () if self.heads is None else self.heads
        sets = [[int(head) for head in (heads if isinstance(heads, Iterable) else [heads])] for heads in given]
        if not sets or not all(sets):
            raise ValueError("heads is an empty list; expected numbers of heads, or None for all")
        object.__setattr__(self, "heads", sets)

    def _check_name(self, name: str | int) -> None:
        if self.knockout and str(name) not in HYPOTHESES and "->" not in str(name):
            raise ValueError(
                f"{name!r} is no hypothesis; expected {', '.join(HYPOTHESES)}, or 'queries->keys' with names of targets"
            )
        for part in re.split(r"\+|->", name) if isinstance(name, str) and name not in HYPOTHESES else ():
            if not _TARGET.fullmatch(part):
                raise ValueError(
                    f"{name!r} is no target; expected 'all', 'targets', a token position, ref_depth_<k>_<lhs|equals|"
                    "rhs|newline|line>, query_<hash|var|colon> or final, or several of them joined by '+'"
                )

    @property
    def knockout(self) -> bool:
        return self.intervention_type == KNOCKOUT

    @property
    def kind(self) -> str:
        """The kind of run that it makes in the tracking store."""
        return KNOCKOUT if self.knockout else "attribution" if self.method == "attribution" else "causal_tracing"

    @property
    def patches_pairs(self) -> bool:
        """Whether the counterfactual's activations are moved: only then a cell can succeed."""
        return not self.knockout and self.source in PAIR_SOURCES

    def _window(self, n_layers: int) -> int:
        return self.layer_window or (n_layers if self.knockout else 1)

    def layers_of(self, model: LoadedModel) -> list[int]:
        """The rows of the map: the first layer of each."""
        layers = model.n_layers + (self.intervention_type == "residual_stream")
        if (window := self._window(model.n_layers)) > layers:
            raise ValueError(f"layer_window is {window}; {self.intervention_type} of {model.id!r} has {layers} layers")
        rows = layers - window + 1
        if self.layers is None:
            return list(range(rows))
        if bad := [layer for layer in self.layers if not 0 <= layer < rows]:
            raise ValueError(
                f"layers {bad} are out of range; {self.intervention_type} of {model.id!r} has 0 to {rows - 1}"
                + (f", {window} together" if window > 1 else "")
            )
        return sorted(set(self.layers))

    def heads_of(self, model: LoadedModel) -> list[list[int]]:
        """The sets of heads that are patched each on its own; of a knockout, the one set that is cut."""
        every = list(range(model.n_heads))
        if self.heads is None or isinstance(self.heads, str):
            return [[head] for head in every] if self.heads is None else [every]
        sets: list[list[int]] = self.heads  # type: ignore[assignment]
        if bad := sorted({head for heads in sets for head in heads} - set(every)):
            raise ValueError(f"heads {bad} are out of range; {model.id!r} has heads 0 to {model.n_heads - 1}")
        return [sorted({head for heads in sets for head in heads})] if self.knockout else sets

    def columns_of(self, tokenized: TokenizedPair) -> Columns:
        """Raises PairError where the program has not every target, or not every edge, that is asked for."""
        original = tokenized.original
        if self.knockout:
            return self._hypotheses_of(original)
        if not isinstance(self.positions, str):
            targets = original.targets(self.positions)
        elif self.targets == "roles":
            first = tokenized.first_difference if self.source in PAIR_SOURCES else 0
            targets = original.targets([role for role, at in original.roles.items() if at[-1] >= first])
        else:
            targets = original.targets(self.targets)  # type: ignore[arg-type]
        single = (
            range(len(original.token_ids)) if self.positions == "all" else {p for at in targets.values() for p in at}
        )
        positions = sorted(single)
        joint = [at for at in targets.values() if len(at) > 1]
        columns = [*([p] for p in positions), *joint]
        return Columns(positions, columns, targets, {t: columns.index(at) for t, at in targets.items()}, [])

    def _hypotheses_of(self, program: TokenizedProgram) -> Columns:
        edges = {}
        for name in HYPOTHESES if isinstance(self.positions, str) else map(str, self.positions):
            edges[name] = edges_of(program, name)
            if self.control:
                edges[f"{name}{RANDOM}"] = random_control(program, edges[name])
        targets = {name: sorted({p for edge in of for p in edge}) for name, of in edges.items()}
        numbers = {name: number for number, name in enumerate(targets)}
        return Columns([], list(targets.values()), targets, numbers, [tuple(sorted(of)) for of in edges.values()])


_TARGET = re.compile(r"ref_depth_[1-9]\d*_(lhs|equals|rhs|newline|line)|query_(hash|var|colon)|final|\d+")


class _Given(NamedTuple):
    """A pair as it will be run: into which program, with which columns, and the other programs that it needs."""

    index: int
    pair: ProgramPair
    tokenized: TokenizedPair
    """Its ``original`` is the program that is patched, whatever the direction."""
    columns: Columns
    control: TokenizedProgram | None
    partner: TokenizedProgram | None = None
    """The other pair's program whose run is the source, where the plan resamples."""
    stored: StoredRun | None = None
    """The counterfactual's run, where it is the source as stored."""


def trace_pairs(
    model: LoadedModel,
    pairs: Iterable[ProgramPair | dict[str, Any] | str],
    plan: Plan,
    batch_tokens: int | None = None,
    stored: StoredRuns | None = None,
) -> Iterator[PairResult]:
    """Run a plan on pair after pair and yield what became of each, in order. Pairs of one length share forward passes.

    A pair that cannot be used is yielded with its reason, and the rest go on. Memory does not grow with their number.
    ``stored`` gives the counterfactuals' runs of a plan whose source they are.

    Raises:
        ValueError: the plan does not fit the model.
        SelfCheckError: logits are not finite, or the self-checks of the pairs that were yielded last failed.
    """
    plan.layers_of(model)  # raises, before anything runs
    plan.heads_of(model)
    if plan.source == "stored" and stored is None:
        raise ValueError("source is 'stored'; CausalExperimentRunner patches from activations of logged runs")
    batch_tokens = batch_tokens or default_batch_tokens(model)
    tolerances: dict[int, float] = {}
    stream = enumerate(pairs)
    while window := list(islice(stream, WINDOW)):
        done: dict[int, PairResult] = {}
        by_length: dict[int, list[_Given]] = defaultdict(list)
        for index, given in window:
            pair = None
            try:
                pair = as_pair(given)
                ready = _prepare(model, index, pair, plan, stored)
            except (ProgramError, PairError, VocabularyError) as error:
                done[index] = PairResult(index, pair, skipped=str(error))
            else:
                by_length[len(ready.tokenized.original.token_ids)].append(ready)
        pending = [index for index, _ in window]
        for length, group in by_length.items():
            mean = None
            if plan.source in ("mean", "resample") and not plan.knockout:
                if len(group) == 1:
                    reason = (
                        f"source {plan.source!r} needs another pair of {length} tokens among the {WINDOW} around it"
                    )
                    done[group[0].index] = PairResult(group[0].index, group[0].pair, skipped=reason)
                    continue
                partners = [*group[1:], group[0]]
                group = [g._replace(partner=p.tokenized.original) for g, p in zip(group, partners, strict=True)]
                if plan.source == "mean":
                    mean = _mean_activations(model, [g.tokenized.original for g in group], plan, batch_tokens)
            work = (
                len(plan.layers_of(model)) * len(group[0].columns.columns) * length // 2
            )  # tokens that a pair's cells run
            if COMPONENTS.get(plan.intervention_type, COMPONENTS["mlp"]).per_head:
                work *= len(plan.heads_of(model))
            # As many pairs as share forward passes well, and as few as one would mind to lose when interrupted.
            size = max(1, min(batch_tokens // (2 * length), 32 * batch_tokens // max(1, work)))

            def traced(part: Sequence[_Given], mean: dict[str, list[Tensor]] | None = mean) -> list[PairResult]:
                return list(_Group(model, part, plan, mean, batch_tokens, tolerances).results())

            for results in _in_parts(group, size, traced):
                done |= {result.index: result for result in results}
                checks = [result.checks for result in done.values() if result.checks]
                while pending and pending[0] in done:
                    yield done.pop(pending.pop(0))
                for check in checks:
                    check.require()
        for index in pending:
            yield done.pop(index)


def _prepare(model: LoadedModel, index: int, pair: ProgramPair, plan: Plan, stored: StoredRuns | None = None) -> _Given:
    """Raises ProgramError, PairError or VocabularyError: the reason why this pair is skipped."""
    directed = pair if plan.direction == "into_original" else pair.reversed
    for program in (directed.original, directed.counterfactual):
        model.check_vocabulary(plan.prompt_template.replace(CODE, program.text))
    tokenized = analyze_pair(model.tokenizer, directed, plan.prompt_template)
    control = None
    if plan.control and plan.patches_pairs and plan.method == "patching":
        control = _control(model, tokenized, plan)
    columns = plan.columns_of(tokenized)
    source = _stored_source(tokenized, columns, plan, stored) if stored and plan.source == "stored" else None
    return _Given(index, pair, tokenized, columns, control, stored=source)


def _stored_source(tokenized: TokenizedPair, columns: Columns, plan: Plan, stored: StoredRuns) -> StoredRun:
    """The counterfactual's run; raises PairError where not all that the plan patches from it is stored."""
    run = stored(tokenized.counterfactual.token_ids)
    if plan.intervention_type not in run.activations:
        raise PairError(
            f"no {plan.intervention_type} of this pair is stored in run {plan.source_run}, which has "
            f"{', '.join(sorted(run.activations))}"
        )
    changed = [column for column in columns.columns if max(column) >= tokenized.first_difference]
    if missing := sorted({position for column in changed for position in column} - {*run.positions}):
        raise PairError(
            f"positions {missing} of this pair are not stored in run {plan.source_run}; name positions that are "
            "('targets'), or log that run with save_activations 'all'"
        )
    if unknown := [token for token in tokenized.answer_tokens if token not in run.logits]:
        raise PairError(f"logits of the answer tokens {unknown} are not stored in run {plan.source_run}")
    return run


def _control(model: LoadedModel, tokenized: TokenizedPair, plan: Plan) -> TokenizedProgram | None:
    """The same-answer program whose tokens lie as the original's do; None where some draws found none."""
    for attempt in range(10):
        program = same_answer_program(tokenized.pair.original, attempt)
        if program is None:
            return None
        try:
            model.check_vocabulary(plan.prompt_template.replace(CODE, program.text))
        except VocabularyError:
            continue
        control = analyze(model.tokenizer, program, plan.prompt_template)
        if control.roles == tokenized.original.roles and len(control.token_ids) == len(tokenized.original.token_ids):
            return control
    return None


def _recorded(plan: Plan) -> tuple[str, ...]:
    return () if plan.knockout else (plan.intervention_type, *COMPONENTS[plan.intervention_type].full_patch)


def _mean_activations(
    model: LoadedModel, programs: Sequence[TokenizedProgram], plan: Plan, batch_tokens: int
) -> dict[str, list[Float[Tensor, "1 token width"]]]:
    """Mean over the runs of programs of one length, position by position; memory holds some runs at a time."""
    size = max(1, batch_tokens // len(programs[0].token_ids))
    sums: dict[str, list[Tensor]] = {}

    def run(part: Sequence[TokenizedProgram]) -> Runs:
        return record(model, torch.tensor([program.token_ids for program in part]), _recorded(plan))

    for runs in _in_parts(programs, size, run):
        for name, layers in runs.activations.items():
            parts = [layer.float().sum(0, keepdim=True) / len(programs) for layer in layers]
            sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)] if name in sums else parts
    return sums


def _in_parts(items: Sequence[T], size: int, run: Callable[[Sequence[T]], R]) -> Iterator[R]:
    """Run so many items at a time; half as many where memory runs out."""
    start = 0
    while start < len(items):
        part = items[start : start + size]
        try:
            result = run(part)
        except RuntimeError as error:  # torch's errors of memory are of this kind
            if len(part) == 1 or "memory" not in str(error):
                raise
            size = len(part) // 2
            logger.warning("out of memory: going on with %d programs at a time", size)
            continue
        start += len(part)
        yield result


class _Group:
    """Pairs whose prompts have one length: the unpatched runs of all, then all cells of all."""

    def __init__(
        self,
        model: LoadedModel,
        given: Sequence[_Given],
        plan: Plan,
        mean: dict[str, list[Tensor]] | None,
        batch_tokens: int,
        tolerances: dict[int, float],
    ) -> None:
        """``tolerances``, by length, are measured where they are not; single places are then checked, too."""
        self.model, self.given, self.plan, self.batch_tokens = model, given, plan, batch_tokens
        self.tolerances = tolerances
        programs = [g.tokenized.original for g in given]
        # Where the counterfactuals' runs are stored, one is run all the same: the self-checks compare with a whole run.
        programs += [g.tokenized.counterfactual for g in (given[:1] if plan.source == "stored" else given)]
        self.source_row: dict[int, int] = {}
        self.control_row: dict[int, int] = {}
        for number, one in enumerate(given):
            for program, row in ((one.control, self.control_row), (one.partner, self.source_row)):
                if program is not None:
                    row[number] = len(programs)
                    programs.append(program)
            if plan.source == "counterfactual":
                self.source_row[number] = len(given) + number
        self.runs = record(model, torch.tensor([program.token_ids for program in programs]), _recorded(plan))
        if not self.runs.logits.isfinite().all():
            raise SelfCheckError(
                f"logits of model {model.id!r} ({model.dtype}) are not finite; its weights may be broken"
            )
        if not plan.knockout and plan.source in ("zero", "mean"):
            zeros = {
                name: [torch.zeros_like(at[:1]) for at in layers] for name, layers in self.runs.activations.items()
            }
            extra = zeros if plan.source == "zero" or mean is None else mean
            self.source_row = dict.fromkeys(range(len(given)), len(self.runs))
            dtype = self.runs.activations["residual_stream"][0].dtype
            self.runs = self.runs.with_sources(
                {name: [at.to(dtype) for at in layers] for name, layers in extra.items()}
            )
        if plan.source == "stored":
            self.source_row = {number: len(self.runs) + number for number in range(len(given))}
            self.runs = self.runs.with_sources(self._stored_activations())
        self.tops = self.runs.logits.argmax(-1).tolist()

    def _stored_activations(self) -> dict[str, list[Float[Tensor, "source token width"]]]:
        """The stored runs in the places of runs; what is not stored is NaN, which no logits survive."""
        found = {}
        for name, layers in self.runs.activations.items():
            found[name] = [torch.full((len(self.given), *at.shape[1:]), torch.nan, dtype=at.dtype) for at in layers]
            for number, run in enumerate(one.stored for one in self.given):
                if run is None or name not in run.activations:
                    continue
                stored = torch.tensor(np.asarray(run.activations[name]))
                if stored.shape != (len(layers), len(run.positions), layers[0].shape[-1]):
                    raise ValueError(
                        f"stored {name} of run {self.plan.source_run} is {tuple(stored.shape)}; {self.model.id!r} has "
                        f"{len(layers)} layers of width {layers[0].shape[-1]}"
                    )
                for at, values in zip(found[name], stored, strict=True):
                    at[number, run.positions] = values.to(at.dtype)
            found[name] = [at.to(self.runs.logits.device) for at in found[name]]
        return found

    def _counterfactual(self, number: int) -> tuple[Float[Tensor, "2"], int]:
        """Of the counterfactual's run: the logits of both answers, and the top token."""
        answers = list(self.given[number].tokenized.answer_tokens)
        if (stored := self.given[number].stored) is not None:
            return torch.tensor([stored.logits[token] for token in answers]), stored.top_token
        row = len(self.given) + number
        return self.runs.logits[row, answers].cpu(), self.tops[row]

    def results(self) -> Iterator[PairResult]:
        used = []
        for number, one in enumerate(self.given):
            if reason := self._reason_to_skip(number):
                yield PairResult(one.index, one.pair, reason, **self._said(number))
            else:
                used.append(number)
        if not used:
            return
        checks = self._checks(used)
        fill = self._estimate if self.plan.method == "attribution" else self._patch
        maps, measurements, ran, agreement = fill(used, checks)
        for number in used:
            one = self.given[number]
            yield PairResult(
                one.index,
                one.pair,
                **self._said(number),
                causal_map=maps[number],
                checks=measurements,
                activations=self._kept_activations(number),
                interventions=ran[number],
                rank_agreement=agreement.get(number),
            )

    def _rows(self, number: int) -> tuple[int, int]:
        """Of the run that is patched, and of its counterfactual's."""
        return number, len(self.given) + number

    def _said(self, number: int) -> dict[str, Any]:
        """What the model says to the pair's original and its counterfactual, whichever of them is patched."""
        one, tops = self.given[number], (self.tops[number], self._counterfactual(number)[1])
        c, o = one.tokenized.answer_tokens
        correct = (tops[0] == o, tops[1] == c)
        answers = tuple(self.model.tokenizer.decode([top]) for top in tops)
        prompts = (one.tokenized.original.prompt, one.tokenized.counterfactual.prompt)
        if self.plan.direction == "into_counterfactual":
            correct, answers, prompts = correct[::-1], answers[::-1], prompts[::-1]
        return {"correct": correct, "answers": answers, "prompt": prompts[0]}

    def _reason_to_skip(self, number: int) -> str | None:
        root_line = self.given[number].pair.variable_chain.root.line
        if self.plan.exclude_shallow and root_line < 2:
            return f"shallow: the root value is assigned on line {root_line + 1}"
        correct = self._said(number)["correct"]
        if self.plan.require_correct and not all(correct):
            wrong = [name for name, right in zip(("original", "counterfactual"), correct, strict=True) if not right]
            return f"the model does not answer the {' and the '.join(wrong)} program"
        return None

    def _first(self, number: int) -> int:
        """The first position at which the patched run and its source can differ."""
        return self.given[number].tokenized.first_difference if self.plan.patches_pairs else 0

    def _checks(self, used: list[int]) -> list[Check]:
        used = [0] if self.plan.source == "stored" else used
        pairs = [self._rows(number) for number in used]
        differing = [self.given[number].tokenized.differing for number in used]
        self._check_rows(used)
        what = (self.model, self.runs, self.plan.intervention_type)
        checks = checks_of(*what, pairs, differing)
        if self.runs.length not in self.tolerances:
            chosen = len(used) // 2  # rows of runs are numbered on both sides of it
            known, self.tolerances[self.runs.length] = known_answers(*what, pairs[chosen], differing[chosen])
            checks += known
        return checks

    def _check_rows(self, used: Sequence[int]) -> None:
        """Raises SelfCheckError where a row that is patched, or patched from, is not the run of the pair's program."""
        for number in used:
            one, (clean, counterfactual) = self.given[number].tokenized, self._rows(number)
            rows = {clean: one.original, counterfactual: one.counterfactual}
            if self.plan.source == "counterfactual":
                rows[self.source_row[number]] = one.counterfactual
            if (control := self.given[number].control) is not None:
                rows[self.control_row[number]] = control
            for row, program in rows.items():
                if self.runs.token_ids[row].tolist() != program.token_ids:
                    raise SelfCheckError(
                        f"run {row} is not that of pair {self.given[number].index}'s {program.prompt!r}"
                    )

    def _cells(self, number: int) -> Iterator[tuple[tuple[int, ...], Cell]]:
        """(where it stands in the grid: row, (heads,) column; the cell), of all that can have an effect."""
        model, plan, columns = self.model, self.plan, self.given[number].columns
        window = plan._window(model.n_layers)
        for (i, layer), (k, column) in product(enumerate(plan.layers_of(model)), enumerate(columns.columns)):
            layers = range(layer, layer + window)
            if plan.knockout:
                heads = None if plan.heads is None else tuple(plan.heads_of(model)[0])
                yield (i, k), Cell(number, tuple(Cut(at, columns.edges[k], heads) for at in layers))
            elif any(
                _can_matter(plan, at, column, self._first(number), self.runs.length, model.n_layers) for at in layers
            ):
                for j, heads in enumerate(self._head_sets()):
                    sites = tuple(Site(plan.intervention_type, at, tuple(column), heads) for at in layers)
                    at = (i, k) if heads is None else (i, j, k)
                    yield at, Cell(number, sites, self.source_row[number])

    def _claim(self, number: int, is_control: bool, at: tuple[int, ...]) -> Cell:
        """The cell that the axes of a pair's map name, for which a number in it will be taken; see :meth:`_cells`."""
        model, plan, columns = self.model, self.plan, self.given[number].columns
        window, column = plan._window(model.n_layers), at[-1]
        if is_control:
            column = list(columns.target_columns.values())[column]
        layers = [plan.layers_of(model)[at[0]] + above for above in range(window)]
        if plan.knockout:
            cut = None if plan.heads is None else tuple(plan.heads_of(model)[0])
            return Cell(number, tuple(Cut(layer, columns.edges[column], cut) for layer in layers))
        heads = tuple(plan.heads_of(model)[at[1]]) if len(at) == 3 else None
        positions = tuple(columns.columns[column])
        source = (self.control_row if is_control else self.source_row)[number]
        return Cell(number, tuple(Site(plan.intervention_type, layer, positions, heads) for layer in layers), source)

    def _read_back(
        self, where: Sequence[tuple[int, bool, tuple[int, ...]]], cells: Sequence[Cell], checks: Sequence[Check]
    ) -> ReadBack:
        """Of the first cells, those of maps, what their places in the maps say; the others are the checks' own."""
        others = dict(enumerate(cells[len(where) :], len(where)))
        return ReadBack(lambda n: others[n] if n in others else self._claim(*where[n]), single_places(checks, others))

    def _head_sets(self) -> Sequence[tuple[int, ...] | None]:
        if self.plan.knockout or not COMPONENTS[self.plan.intervention_type].per_head:
            return [None]
        return [tuple(heads) for heads in self.plan.heads_of(self.model)]

    def _shape(self, number: int) -> tuple[int, ...]:
        heads = self._head_sets()
        axis = () if heads == [None] else (len(heads),)
        return (len(self.plan.layers_of(self.model)), *axis, len(self.given[number].columns.columns))

    def _patch(
        self, used: list[int], checks: list[Check]
    ) -> tuple[dict[int, CausalMap], SelfChecks, dict[int, int], dict[int, float | None]]:
        """Run every cell: of the grids, of the controls at the targets, of the checks, all packed together."""
        runs = self.runs
        cells: list[Cell] = []
        where: list[
            tuple[int, bool, tuple[int, ...]]
        ] = []  # of each cell of a map: pair, is it the control's, grid index
        z_patched, tops, controls = {}, {}, {}
        for number in used:
            one, shape = self.given[number], self._shape(number)
            answers = list(one.tokenized.answer_tokens)
            z_patched[number] = runs.logits[number, answers].cpu().expand(*shape, 2).clone()
            tops[number] = torch.full(shape, self.tops[number])
            at_target = {column: t for t, column in enumerate(one.columns.target_columns.values())}
            if number in self.control_row:
                controls[number] = torch.full((*shape[:-1], len(at_target)), self.tops[number])
            for at, cell in self._cells(number):
                cells.append(cell)
                where.append((number, False, at))
                if number in self.control_row and at[-1] in at_target:
                    cells.append(Cell(number, cell.sites, self.control_row[number]))
                    where.append((number, True, (*at[:-1], at_target[at[-1]])))
        n_cells = len(cells)
        checked = dict.fromkeys(c for check in checks for c in (check.cell, check.expected) if isinstance(c, Cell))
        cells += checked
        logits_of: dict[Cell, Tensor] = {}
        read_back = self._read_back(where, cells, checks)
        with tqdm(total=n_cells, desc="cells", leave=False, disable=None) as bar:
            for indices, logits in patched_logits(self.model, runs, cells, self.batch_tokens, read_back):
                of_maps = [i for i, index in enumerate(indices) if index < n_cells]
                logits_of |= {
                    cells[index]: row.clone() for index, row in zip(indices, logits, strict=True) if index >= n_cells
                }
                tokens = [self.given[where[indices[i]][0]].tokenized.answer_tokens for i in of_maps]
                answers = logits[of_maps].gather(1, torch.tensor(tokens, device=logits.device).view(-1, 2)).cpu()
                top = logits[of_maps].argmax(-1).cpu()
                for i, answer, token in zip(of_maps, answers, top, strict=True):
                    number, is_control, at = where[indices[i]]
                    if is_control:
                        controls[number][at] = token
                    else:
                        z_patched[number][at] = answer
                        tops[number][at] = token
                bar.update(len(of_maps))
        ran = np.bincount([number for number, *_ in where], minlength=len(self.given)).tolist()
        maps = {
            number: self._map(number, z_patched[number].numpy(), tops[number].numpy(), _numpy(controls.get(number)))
            for number in used
        }
        return maps, measured(runs, checks, logits_of, self.tolerances[runs.length], read_back), ran, {}

    def _estimate(
        self, used: list[int], checks: list[Check]
    ) -> tuple[dict[int, CausalMap], SelfChecks, dict[int, int], dict[int, float | None]]:
        """Estimate every cell by its gradient, and patch some exactly to compare with."""
        model, plan, runs = self.model, self.plan, self.runs
        component, heads = plan.intervention_type, self._head_sets()
        tokens = torch.tensor([self.given[number].tokenized.answer_tokens[0] for number in used])
        slopes = gradients(model, runs.token_ids[used], tokens, component)
        cells, sampled, maps = [], [], {}
        for row, number in enumerate(used):
            one, shape = self.given[number], self._shape(number)
            clean, counterfactual = self._rows(number)
            answers = list(one.tokenized.answer_tokens)
            z_clean = runs.logits[number, answers].cpu()
            z_patched = z_clean.expand(*shape, 2).clone()
            z_patched[..., 1] = torch.nan  # the estimate is of c's logit alone
            by_layer = []
            for layer in plan.layers_of(model):
                stored = runs.activations[component][layer]
                effect = (stored[counterfactual] - stored[clean]).float() * slopes[layer][row].float()
                by_layer.append(
                    effect.unflatten(-1, (model.n_heads, -1)).sum(-1) if heads != [None] else effect.sum(-1)
                )
            for at, cell in self._cells(number):
                effect = by_layer[at[0]][list(cell.sites[0].positions)].sum(0)
                chosen = cell.sites[0].heads if isinstance(cell.sites[0], Site) else None
                z_patched[(*at, 0)] += (effect[list(chosen)].sum() if chosen is not None else effect).item()
            every = list(self._cells(number))
            rng = np.random.RandomState(zlib.crc32(one.tokenized.original.prompt.encode()))
            for i in rng.permutation(len(every))[:AGREEMENT_CELLS]:
                sampled.append((number, False, every[i][0]))
                cells.append(every[i][1])
            maps[number] = self._map(number, z_patched.numpy(), np.full(shape, -1), None)
        n_cells = len(cells)
        cells += dict.fromkeys(c for check in checks for c in (check.cell, check.expected) if isinstance(c, Cell))
        exact: dict[int, list[tuple[float, float]]] = defaultdict(list)
        logits_of: dict[Cell, Tensor] = {}
        read_back = self._read_back(sampled, cells, checks)
        for indices, logits in patched_logits(model, runs, cells, self.batch_tokens, read_back):
            for index, row_logits in zip(indices, logits, strict=True):
                if index >= n_cells:
                    logits_of[cells[index]] = row_logits.clone()
                    continue
                number, _, at = sampled[index]
                c = self.given[number].tokenized.answer_tokens[0]
                exact[number].append((row_logits[c].item(), float(maps[number].z_patched[(*at, 0)])))
        agreement = {number: _spearman(both) for number, both in exact.items()}
        ran = {number: len(both) for number, both in exact.items()} | dict.fromkeys(set(used) - exact.keys(), 0)
        return maps, measured(runs, checks, logits_of, self.tolerances[runs.length], read_back), ran, agreement

    def _map(self, number: int, z_patched: np.ndarray, top: np.ndarray, control: np.ndarray | None) -> CausalMap:
        model, plan, one = self.model, self.plan, self.given[number]
        z_counterfactual, top_counterfactual = self._counterfactual(number)
        answers = list(one.tokenized.answer_tokens)
        seen = {*np.unique(top).tolist(), *answers, self.tops[number], top_counterfactual}
        seen |= set() if control is None else {*np.unique(control).tolist()}
        lens = self._lens(number) if plan.logit_lens and one.columns.positions else (None, None)
        heads = [] if self._head_sets() == [None] else [list(heads) for heads in self._head_sets() if heads]
        return CausalMap(
            intervention_type=plan.intervention_type,
            pair=one.index,
            tokens=one.tokenized.original.tokens,
            layers=plan.layers_of(model),
            positions=one.columns.positions,
            columns=one.columns.columns,
            targets=one.columns.targets,
            target_columns=one.columns.target_columns,
            n_layers=model.n_layers,
            first_difference=self._first(number),
            answer_tokens=one.tokenized.answer_tokens,
            top_tokens=(self.tops[number], top_counterfactual),
            min_effect=models.smallest_effect(model.dtype, self.tolerances[self.runs.length] / SAFETY),
            vocabulary={token: model.tokenizer.decode([token]) for token in sorted(seen - {-1})},
            z_clean=self.runs.logits[number, answers].cpu().numpy(),
            z_counterfactual=z_counterfactual.numpy(),
            z_patched=z_patched,
            top=top,
            layer_window=plan._window(model.n_layers),
            heads=heads,
            source="knockout" if plan.knockout else plan.source,
            direction=plan.direction,
            method=plan.method,
            control_top=control,
            lens_logits=lens[0],
            lens_ranks=lens[1],
        )

    def _lens(self, number: int) -> tuple[Float[np.ndarray, "row position 2"], Int[np.ndarray, "row position 2"]]:
        """Logits and ranks of both answers, read off the clean run's residual stream (nostalgebraist 2020)."""
        positions, answers = self.given[number].columns.positions, list(self.given[number].tokenized.answer_tokens)
        hidden = torch.stack([layer[number, positions] for layer in self.runs.activations["residual_stream"]])
        logits, ranks = [], []
        for part in hidden.flatten(0, 1).split(ROWS_OF_LENS):
            read = unembedded(self.model, part)
            logits.append(read[:, answers].cpu())
            ranks.append(torch.stack([(read > read[:, [answer]]).sum(-1) for answer in answers], -1).cpu())
        shape = (len(hidden), len(positions), 2)
        return torch.cat(logits).view(shape).numpy(), torch.cat(ranks).view(shape).numpy()

    def _kept_activations(self, number: int) -> dict[str, np.ndarray]:
        if self.plan.save_activations == "none" or self.plan.source == "stored":  # these are the source run's
            return {}
        positions = sorted({p for column in self.given[number].columns.targets.values() for p in column})
        if self.plan.save_activations == "all":
            positions = list(range(self.runs.length))
        programs = (self.given[number].tokenized.original, self.given[number].tokenized.counterfactual)
        kept = {"positions": np.array(positions), "token_ids": np.array([program.token_ids for program in programs])}
        for name, row in zip(("clean", "counterfactual"), self._rows(number), strict=True):
            for component, layers in self.runs.activations.items():
                stacked = torch.stack([layer[row, positions] for layer in layers]).cpu()
                kept[f"{name}/{component}"] = stacked.float().numpy()  # numpy has no bfloat16; float32 holds it exactly
        return kept


def _numpy(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()


def _spearman(both: list[tuple[float, float]]) -> float | None:
    exact, estimated = (np.array(values) for values in zip(*both, strict=True))
    if len(both) < 2 or (exact == exact[0]).all() or (estimated == estimated[0]).all():
        return None
    result: Any = stats.spearmanr(exact, estimated)
    return float(result.statistic)


def _can_matter(
    plan: Plan, layer: int, column: Sequence[int], first_difference: int, length: int, n_layers: int
) -> bool:
    """Whether patching these positions can change the answer at all.

    Before the first differing token both runs are the same; above the last attention only the last token is read.
    """
    last_attention = n_layers if plan.intervention_type == "residual_stream" else n_layers - 1
    return max(column) >= first_difference and (layer < last_attention or length - 1 in column)


@dataclass(frozen=True)
class CausalTracingResult:
    """The maps of an experiment in memory, with what was skipped and what the engine measured of itself."""

    model: str
    plan: Plan
    results: list[PairResult]

    @cached_property
    def maps(self) -> list[CausalMap]:
        """One per used pair; its ``pair`` is the index into the programs given."""
        return [result.causal_map for result in self.results if result.causal_map]

    @property
    def skipped(self) -> list[PairResult]:
        return [result for result in self.results if result.skipped]

    @cached_property
    def checks(self) -> SelfChecks:
        checks = [result.checks for result in self.results if result.checks]
        merged = checks[0]
        for other in checks[1:]:
            merged |= other
        return merged

    @property
    def rank_agreement(self) -> list[float]:
        """Of an attribution: Spearman's correlation with exact patching, pair by pair."""
        return [result.rank_agreement for result in self.results if result.rank_agreement is not None]

    @cached_property
    def mean(self) -> MeanCausalMap:
        """The mean over pairs, aligned by target."""
        return mean_over_pairs(self.maps)


def run_causal_tracing_experiment(
    model_id: str | LoadedModel,
    programs: Sequence[ProgramPair | dict[str, Any] | str],
    intervention_type: str = "residual_stream",
    intervention_layers: Sequence[int] | None = None,
    positions: str | Sequence[str | int] = "all",
    *,
    dtype: str | None = None,
    device: str | None = None,
    batch_tokens: int | None = None,
    **plan: Any,
) -> CausalTracingResult:
    """Patch every pair's counterfactual activations into its original run, cell by cell, and keep the maps in memory.

    Nothing is logged; :class:`debug.causal_experiment_runner.CausalExperimentRunner` does the same as an MLflow run.

    Args:
        model_id: an id (see :func:`debug.models.load`), or a model that is loaded.
        programs: pairs, dicts with "original" and perhaps "counterfactual", or texts of programs.
        intervention_type: one of ``INTERVENTION_TYPES``.
        intervention_layers: rows of the map; None for all (0 .. n_layers for the residual stream).
        positions: "all", "targets", or names of targets and token positions.
        plan: any other field of :class:`Plan`: targets, source, direction, heads, layer_window, require_correct, ...

    Raises:
        ValueError: an argument cannot be, or no pair was left to patch (the message has the reasons).
        SelfCheckError: a self-check failed.
    """
    if not programs:
        raise ValueError("programs is empty; expected at least one pair")
    what = Plan(intervention_type, intervention_layers, positions, **plan)
    model = model_id if isinstance(model_id, LoadedModel) else models.load(model_id, dtype=dtype, device=device)
    results = list(tqdm(trace_pairs(model, programs, what, batch_tokens), "pairs", len(programs), disable=None))
    result = CausalTracingResult(model.id, what, results)
    if not result.maps:
        raise ValueError(f"no pair was left to patch; the first was skipped because: {results[0].skipped}")
    return result
