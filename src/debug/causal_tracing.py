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
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice, product
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from debug import answers, models
from debug.attention_knockout import HYPOTHESES, edges_of, random_control
from debug.attention_patterns import attention_pattern
from debug.causal_map import (
    DIRECTIONS,
    PAIR_SOURCES,
    RANDOM,
    SOURCES,
    CausalMap,
    MeanCausalMap,
    mean_over_pairs,
    ratio_of_means,
)
from debug.counterfactual import as_pair, same_answer_program
from debug.engine import (
    COMPONENTS,
    Cell,
    Cut,
    Runs,
    SelfCheckError,
    Site,
    default_batch_tokens,
    gradients,
    patched_logits,
    record,
    unembedded,
)
from debug.models import LoadedModel, PromptTooLong, VocabularyError, out_of_memory
from debug.programs import Program, ProgramError, ProgramPair
from debug.prompts import CODE, fill, get_prompt
from debug.self_checks import Asked, Check, ReadBack, SelfChecks, checks_of, measured, plain_logits, rounding, telling
from debug.statistics import Interval, bootstrap_mean
from debug.token_analyzer import PairError, TokenizedPair, TokenizedProgram, analyze, analyze_pair

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

KNOCKOUT = "attention_knockout"
INTERVENTION_TYPES = (*COMPONENTS, KNOCKOUT)
METHODS = ("patching", "attribution")
WINDOW = 64  # pairs that are looked at together: those of one length share forward passes
REFERENCE = 64  # usable programs that means are over, and that partners are drawn from
ROWS_OF_LENS = 256  # hidden states that are read through the unembedding at a time
LOCALIZED_CELLS = 4  # of an attribution's exact sample, run once more the plain way
PROBED = 8  # programs whose answers tell whether the model writes white space before them
AGREEMENT_CELLS = 64  # of a pair, drawn to be patched exactly, to compare an attribution with
LARGEST_CELLS = 32  # and those beside them that the attribution calls the largest: few of those drawn matter
MATTERS = 0.1  # share of the counterfactual's whole effect from which on a cell does


class Agreement(NamedTuple):
    """An attribution beside exact patching, at cells of one pair.

    The cells are ``AGREEMENT_CELLS`` drawn from all that were estimated, each alike, and the ``LARGEST_CELLS`` with the
    largest estimates. One of the latter stands for itself, one of the others for as many as were not drawn.
    """

    exact: Float[np.ndarray, " cell"]
    """Effects on the logit of c as shares of the counterfactual's whole effect."""
    estimated: Float[np.ndarray, " cell"]
    weights: Float[np.ndarray, " cell"]
    """For how many cells each stands."""

    @property
    def matters(self) -> Bool[np.ndarray, " cell"]:
        """Whether the exact effect is at least the share ``MATTERS`` of the whole one."""
        return np.abs(self.exact) >= MATTERS

    @property
    def rank(self) -> float | None:
        """Spearman's correlation among the cells that matter; None of fewer than 3, or where all are equal."""
        return _spearman(self.exact[self.matters], self.estimated[self.matters], self.weights[self.matters], 3)

    @property
    def slope(self) -> tuple[float, float]:
        """Of the estimate on the exact effect, through zero, among the cells that matter: numerator and denominator."""
        exact, estimated, weights = self.exact[self.matters], self.estimated[self.matters], self.weights[self.matters]
        return float((weights * exact * estimated).sum()), float((weights * exact**2).sum())

    @property
    def missed(self) -> tuple[float, float]:
        """How many cells matter that the estimate says do not, or turn the other way; how many matter."""
        seen = self.estimated * np.sign(self.exact) >= MATTERS
        return float(self.weights[self.matters & ~seen].sum()), float(self.weights[self.matters].sum())


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
    """Of an attribution: Spearman's correlation with exact patching over cells drawn alike from all, most of which do
    nothing; None where all are equal."""
    agreement: Agreement | None = None
    """Of an attribution: where it matters; None where the pair's whole effect is too small for a share of it."""


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
    random_draws: int = 5
    """Of a knockout: how often random edges are drawn for each pair and hypothesis."""
    match_attention: bool = False
    """Of a knockout: random edges are matched by what the clean run's heads attend to them too, on the mean."""
    logit_lens: bool = True
    """Read the clean run's residual stream through the unembedding, at the single positions."""
    method: str = "patching"
    """"patching", exact; or "attribution", a linear estimate in two forwards and one backward."""
    answer_lead: str | None = None
    """White space that the model itself writes before an answer, read as part of the prompt (:mod:`debug.answers`);
    None: found out from the first programs, when the run begins."""

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
        if self.answer_lead is not None and self.answer_lead.strip():
            raise ValueError(f"answer_lead is {self.answer_lead!r}; expected white space, or None to find it out")
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
        if self.random_draws < 1:
            raise ValueError(f"random_draws is {self.random_draws}; expected 1 or more, or control=False for none")
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
    def template(self) -> str:
        """The template of the prompts as they are run: behind their last token comes the answer's."""
        return self.prompt_template + (self.answer_lead or "")

    @property
    def kind(self) -> str:
        """The kind of run that it makes in the tracking store."""
        return KNOCKOUT if self.knockout else "attribution" if self.method == "attribution" else "causal_tracing"

    @property
    def needs_reference(self) -> bool:
        """Whether activations come from other pairs' programs."""
        return not self.knockout and self.source in ("mean", "resample")

    @property
    def patches_pairs(self) -> bool:
        """Whether the counterfactual's activations are moved: only then a cell can succeed."""
        return not self.knockout and self.source in PAIR_SOURCES

    def _window(self, n_layers: int) -> int:
        return self.layer_window or (n_layers if self.knockout else 1)

    def layers_of(self, model: LoadedModel) -> list[int]:
        """The rows of the map: the first layer of each."""
        model.require_patchable()
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

    def columns_of(self, model: LoadedModel, tokenized: TokenizedPair) -> Columns:
        """Raises PairError where the program has not every target, or not every edge, that is asked for."""
        original = tokenized.original
        if self.knockout:
            return self._hypotheses_of(model, original)
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

    def _hypotheses_of(self, model: LoadedModel, program: TokenizedProgram) -> Columns:
        edges, mass = {}, None
        if self.control and self.match_attention:
            mass = attention_pattern(model, torch.tensor(program.token_ids)).mean((0, 1))
        for name in HYPOTHESES if isinstance(self.positions, str) else map(str, self.positions):
            edges[name] = edges_of(program, name)
            if self.control:
                with suppress(PairError):  # a prompt that is all chain: it has no control, which n then shows
                    draws = [random_control(program, edges[name], n, mass) for n in range(self.random_draws)]
                    edges |= {f"{name}{RANDOM}" + (f"_{n + 1}" if n else ""): of for n, of in enumerate(draws)}
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
    """The program of the reference set whose run is the source, where the plan resamples."""
    stored: StoredRun | None = None
    """The counterfactual's run, where it is the source as stored."""


def trace_pairs(
    model: LoadedModel,
    pairs: Iterable[ProgramPair | dict[str, Any] | str],
    plan: Plan,
    batch_tokens: int | None = None,
    stored: StoredRuns | None = None,
    reference: Reference | None = None,
) -> Iterator[PairResult]:
    """Run a plan on pair after pair and yield what became of each, in order. Pairs of one length share forward passes.

    A pair that cannot be used is yielded with its reason, and the rest go on. Memory does not grow with their number.
    ``stored`` gives the counterfactuals' runs of a plan whose source they are, ``reference`` the programs that means
    are over and partners are drawn from; without it these are the first usable ones of the pairs.

    Raises:
        ValueError: the plan does not fit the model.
        SelfCheckError: logits of a patched run, or of all pairs, are not finite; or the self-checks of the pairs that
            were yielded last failed.
    """
    plan.layers_of(model)  # raises, before anything runs
    plan.heads_of(model)
    if plan.source == "stored" and stored is None:
        raise ValueError("source is 'stored'; CausalExperimentRunner patches from activations of logged runs")
    batch_tokens = batch_tokens or default_batch_tokens(model)
    plan, pairs = as_written(model, plan, pairs)
    if plan.needs_reference and reference is None:
        pairs = list(pairs)
        reference = Reference.found(model, pairs, plan, batch_tokens)
    finite = overflowed = False
    stream = enumerate(pairs)
    while window := list(islice(stream, WINDOW)):
        done: dict[int, PairResult] = {}
        prepared: list[_Given] = []
        by_length: dict[int, list[_Given]] = defaultdict(list)
        for index, given in window:
            pair = None
            try:
                pair = as_pair(given)
                ready = _prepare(model, index, pair, plan, stored)
                if reference is not None:
                    ready = ready._replace(partner=reference.partner(ready, plan))
            except (ProgramError, PairError, VocabularyError, PromptTooLong) as error:
                done[index] = PairResult(index, pair, skipped=str(error))
            else:
                prepared.append(ready)
        for ready in _where_written(model, plan, prepared):
            if isinstance(ready, PairResult):
                done[ready.index] = ready
            else:
                by_length[len(ready.tokenized.original.token_ids)].append(ready)
        pending = [index for index, _ in window]
        for length, group in by_length.items():
            work = (
                len(plan.layers_of(model)) * len(group[0].columns.columns) * length // 2
            )  # tokens that a pair's cells run
            if COMPONENTS.get(plan.intervention_type, COMPONENTS["mlp"]).per_head:
                work *= len(plan.heads_of(model))
            # As many pairs as share forward passes well, and as few as one would mind to lose when interrupted.
            size = max(1, min(batch_tokens // (2 * length), 32 * batch_tokens // max(1, work)))

            def traced(part: Sequence[_Given]) -> list[PairResult]:
                return list(_Group(model, part, plan, reference, batch_tokens).results())

            for results in _in_parts(group, size, traced):
                finite |= any(result.skipped != model.not_finite for result in results)
                overflowed |= any(result.skipped == model.not_finite for result in results)
                done |= {result.index: result for result in results}
                checks = [result.checks for result in done.values() if result.checks]
                while pending and pending[0] in done:
                    yield done.pop(pending.pop(0))
                for check in checks:
                    check.require()
        for index in pending:
            yield done.pop(index)
    if overflowed and not finite:
        raise SelfCheckError(model.not_finite)


def _prepare(model: LoadedModel, index: int, pair: ProgramPair, plan: Plan, stored: StoredRuns | None = None) -> _Given:
    """Raises ProgramError, PairError, VocabularyError or PromptTooLong: the reason why this pair is skipped."""
    directed = pair if plan.direction == "into_original" else pair.reversed
    for program in (directed.original, directed.counterfactual):
        model.check_vocabulary(fill(plan.template, program.text))
    tokenized = analyze_pair(model.tokenizer, directed, plan.template)
    model.check_window(len(tokenized.original.token_ids))
    control = None
    if plan.control and plan.patches_pairs and plan.method == "patching":
        control = _control(model, tokenized, plan)
    columns = plan.columns_of(model, tokenized)
    source = _stored_source(tokenized, columns, plan, stored) if stored and plan.source == "stored" else None
    return _Given(index, pair, tokenized, columns, control, stored=source)


def as_written(
    model: LoadedModel, plan: Plan, pairs: Iterable[ProgramPair | dict[str, Any] | str]
) -> tuple[Plan, Iterator[ProgramPair | dict[str, Any] | str]]:
    """The plan with its prompts as they are run (:mod:`debug.answers`), decided on the first pairs; and all pairs.

    Without the template's final space, where that merges with an answer; with the white space that the model itself
    writes before most answers, where a prompt does not end in any.
    """
    rest, first, prompts = iter(pairs), [], []
    for given in islice(rest, PROBED):
        first.append(given)
        try:
            program = as_pair(given).original.text
        except ProgramError:
            continue
        template = answers.suited(model.tokenizer, plan.prompt_template, program, answers.DIGITS)
        plan = replace(plan, prompt_template=template)
        prompts.append(fill(plan.prompt_template, program))
        if plan.answer_lead is not None or prompts[-1][-1:].isspace():
            break
    if plan.answer_lead is None and prompts:
        plan = replace(plan, answer_lead=answers.lead(model, prompts))
    return plan, chain(first, rest)


def _where_written(model: LoadedModel, plan: Plan, given: Sequence[_Given]) -> Iterator[_Given | PairResult]:
    """Pairs with the answers' tokens as the model itself begins to write them; the others with the reason.

    Behind prompts that end in white space there is nothing to find out.
    """
    asked = [one for one in given if not fill(plan.prompt_template, one.pair.original.text)[-1:].isspace()]
    both = [program for one in asked for program in (one.tokenized.original, one.tokenized.counterfactual)]
    written = answers.written(model, [program.prompt.removesuffix(plan.answer_lead or "") for program in both])
    found = {one.index: written[2 * number : 2 * number + 2] for number, one in enumerate(asked)}
    for one in given:
        if one.index not in found:
            yield one
            continue
        pair = one.tokenized.pair
        values = [str(pair.expected_counterfactual), str(pair.expected_original)]
        tokens = answers.agreed(
            model.tokenizer, one.tokenized.original, plan.answer_lead or "", values, found[one.index]
        )
        if tokens is not None:
            yield one._replace(tokenized=replace(one.tokenized, answer_tokens=tokens))
            continue
        said = [model.tokenizer.decode(ids) for ids in found[one.index]]
        correct = (answers.says(said[0], values[1]), answers.says(said[1], values[0]))
        prompts = [one.tokenized.original.prompt, one.tokenized.counterfactual.prompt]
        if plan.direction == "into_counterfactual":
            said, correct, prompts = said[::-1], (correct[1], correct[0]), prompts[::-1]
        shown = [model.tokenizer.convert_ids_to_tokens(ids) for ids in found[one.index]]
        reason = (
            f"where the answer begins is not decided: behind {one.tokenized.original.tokens[-3:]} the model writes "
            f"{shown[0]}, for the other program of the pair {shown[1]}; in this run answers come "
            + (f"behind {plan.answer_lead!r}" if plan.answer_lead else "right behind the prompt")
        )
        yield PairResult(one.index, one.pair, reason, correct=correct, answers=(said[0], said[1]), prompt=prompts[0])


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
            model.check_vocabulary(fill(plan.template, program.text))
        except VocabularyError:
            continue
        control = analyze(model.tokenizer, program, plan.template)
        if control.roles == tokenized.original.roles and len(control.token_ids) == len(tokenized.original.token_ids):
            return control
    return None


def _recorded(plan: Plan) -> tuple[str, ...]:
    return () if plan.knockout else (plan.intervention_type, *COMPONENTS[plan.intervention_type].full_patch)


class Reference:
    """The programs that means are over and partners are drawn from: one fixed set for all pairs of a cell.

    A pair's own program is in neither: its mean is over the others of its length (leave-one-out), its partner another
    one, whose answer is that of neither of its two programs.
    """

    def __init__(
        self,
        model: LoadedModel,
        programs: Iterable[tuple[Program, TokenizedProgram]],
        plan: Plan,
        batch_tokens: int | None = None,
    ) -> None:
        self.model, self.plan, self.programs = model, plan, list(programs)
        self.batch_tokens = batch_tokens or default_batch_tokens(model)
        self._sums: dict[int, dict[str, list[Tensor]]] = {}

    @classmethod
    def found(
        cls, model: LoadedModel, pairs: Iterable[ProgramPair | dict[str, Any] | str], plan: Plan, batch_tokens: int
    ) -> Reference:
        """The originals of the first REFERENCE pairs that a plan's filters let through."""
        stream, programs = iter(pairs), []
        while len(programs) < REFERENCE and (window := list(islice(stream, REFERENCE))):
            by_length: dict[int, list[tuple[int, _Given]]] = defaultdict(list)
            for number, given in enumerate(window):
                with suppress(ProgramError, PairError, VocabularyError, PromptTooLong):
                    one = _prepare(model, number, as_pair(given), replace(plan, control=False))
                    by_length[len(one.tokenized.original.token_ids)].append((number, one))
            usable: dict[int, tuple[Program, TokenizedProgram]] = {}
            for length, group in by_length.items():

                def asked(part: Sequence[tuple[int, _Given]]) -> list[tuple[int, int]]:
                    both = [(one.tokenized.original, one.tokenized.counterfactual) for _, one in part]
                    token_ids = torch.tensor([program.token_ids for pair in both for program in pair])
                    tops = record(model, token_ids, ()).logits.argmax(-1).view(-1, 2).tolist()
                    return [(top, other) for top, other in tops]

                tops = [t for part in _in_parts(group, max(1, batch_tokens // (2 * length)), asked) for t in part]
                for (number, one), top in zip(group, tops, strict=True):
                    if _reason_to_skip(one, plan, top) is None:
                        usable[number] = (one.pair.original, _own(one, plan))
            programs += [usable[number] for number in sorted(usable)]
        return cls(model, programs[:REFERENCE], plan, batch_tokens)

    @classmethod
    def of_texts(cls, model: LoadedModel, texts: Iterable[str], plan: Plan, batch_tokens: int) -> Reference:
        """The set of a logged run, from its programs' texts.

        Raises:
            ProgramError, VocabularyError: a text is no program, or the model has no token for part of it.
        """
        programs = []
        for program in map(Program.parse, texts):
            model.check_vocabulary(fill(plan.template, program.text))
            programs.append((program, analyze(model.tokenizer, program, plan.template)))
        return cls(model, programs, plan, batch_tokens)

    @property
    def texts(self) -> list[str]:
        return [program.text for program, _ in self.programs]

    def others(self, one: _Given) -> list[tuple[Program, TokenizedProgram]]:
        """Those of as many tokens that are not the pair's own."""
        own = _own(one, self.plan).token_ids
        return [each for each in self.programs if len(each[1].token_ids) == len(own) and each[1].token_ids != own]

    def partner(self, one: _Given, plan: Plan) -> TokenizedProgram | None:
        """Of a resampling plan, another program; drawn by the prompt's text.

        Raises:
            PairError: there is none, or none to take a mean over.
        """
        answers = {one.pair.expected_original, one.pair.expected_counterfactual}
        others = self.others(one)
        if plan.source == "resample":
            others = [each for each in others if each[0].answer not in answers]
        if not others:
            length, which = len(one.tokenized.original.token_ids), " with another answer" * (plan.source == "resample")
            raise PairError(
                f"source {plan.source!r} needs another program of {length} tokens{which}; the reference set of "
                f"{len(self.programs)} has none"
            )
        rng = np.random.RandomState(zlib.crc32(one.tokenized.original.prompt.encode()))
        return others[rng.randint(len(others))][1] if plan.source == "resample" else None

    def mean_without(
        self, one: _Given, own: dict[str, list[Float[Tensor, "token width"]]]
    ) -> dict[str, list[Float[Tensor, "token width"]]]:
        """Means over the others, given the activations of the pair's own program; float64, position by position."""
        program = _own(one, self.plan)
        length, others = len(program.token_ids), self.others(one)
        every = [other for _, other in self.programs if len(other.token_ids) == length]
        if length not in self._sums:
            self._sums[length] = self._sum(every)
        times = len(every) - len(others)
        return {
            name: [(total - times * at.double()) / len(others) for total, at in zip(layers, own[name], strict=True)]
            for name, layers in self._sums[length].items()
        }

    def _sum(self, programs: Sequence[TokenizedProgram]) -> dict[str, list[Float[Tensor, "token width"]]]:
        """Over the runs of programs of one length; memory holds some runs at a time."""
        sums: dict[str, list[Tensor]] = {}

        def run(part: Sequence[TokenizedProgram]) -> Runs:
            return record(self.model, torch.tensor([program.token_ids for program in part]), _recorded(self.plan))

        for runs in _in_parts(programs, max(1, self.batch_tokens // len(programs[0].token_ids)), run):
            for name, layers in runs.activations.items():
                parts = [layer.double().sum(0) for layer in layers]
                sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)] if name in sums else parts
        return sums


def _own(one: _Given, plan: Plan) -> TokenizedProgram:
    """The pair's original, whichever of its programs is patched."""
    return one.tokenized.original if plan.direction == "into_original" else one.tokenized.counterfactual


def _reason_to_skip(one: _Given, plan: Plan, tops: tuple[int, int]) -> str | None:
    """What the plan's filters say, given the top tokens of the patched program's run and of its counterfactual's."""
    root_line = one.pair.variable_chain.root.line
    if plan.exclude_shallow and root_line < 2:
        return f"shallow: the root value is assigned on line {root_line + 1}"
    correct = _correct(one, plan, tops)
    if plan.require_correct and not all(correct):
        wrong = [name for name, right in zip(("original", "counterfactual"), correct, strict=True) if not right]
        return f"the model does not answer the {' and the '.join(wrong)} program"
    return None


def _correct(one: _Given, plan: Plan, tops: tuple[int, int]) -> tuple[bool, bool]:
    """Whether the pair's original, and its counterfactual, are answered, whichever of them is patched."""
    c, o = one.tokenized.answer_tokens
    patched, source = tops[0] == o, tops[1] == c
    return (patched, source) if plan.direction == "into_original" else (source, patched)


def _in_parts(items: Sequence[T], size: int, run: Callable[[Sequence[T]], R]) -> Iterator[R]:
    """Run so many items at a time; half as many where memory runs out."""
    start = 0
    while start < len(items):
        part = items[start : start + size]
        try:
            result = run(part)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not out_of_memory(error):
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
        reference: Reference | None,
        batch_tokens: int,
    ) -> None:
        self.model, self.given, self.plan, self.batch_tokens = model, given, plan, batch_tokens
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
        self.finite = self.runs.logits.isfinite().all(-1).tolist()
        if not plan.knockout and plan.source == "zero":
            self._add_sources(
                {name: [torch.zeros_like(at[:1]) for at in layers] for name, layers in self.runs.activations.items()}
            )
        if plan.source == "mean" and reference is not None:
            means = [reference.mean_without(one, self._own_activations(number)) for number, one in enumerate(given)]
            self._add_sources(
                {
                    name: [torch.stack([mean[name][layer] for mean in means]) for layer in range(len(layers))]
                    for name, layers in self.runs.activations.items()
                }
            )
        if plan.source == "stored":
            self._add_sources(self._stored_activations())
        self.tops = self.runs.logits.argmax(-1).tolist()

    def _add_sources(self, activations: dict[str, list[Float[Tensor, "source token width"]]]) -> None:
        """Patch every pair from these, which are no run's: a source for each, or one for all."""
        count = len(next(iter(activations.values()))[0])
        self.source_row = {number: len(self.runs) + number % count for number in range(len(self.given))}
        dtype = self.runs.activations["residual_stream"][0].dtype
        self.runs = self.runs.with_sources(
            {name: [at.to(dtype) for at in layers] for name, layers in activations.items()}
        )

    def _own_activations(self, number: int) -> dict[str, list[Float[Tensor, "token width"]]]:
        row = self._rows(number)[self.plan.direction != "into_original"]
        return {name: [at[row] for at in layers] for name, layers in self.runs.activations.items()}

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
            if not self._finite(number):
                yield PairResult(one.index, one.pair, self.model.not_finite, prompt=self._said(number)["prompt"])
            elif reason := self._reason_to_skip(number):
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
                rank_agreement=agreement[number][0] if number in agreement else None,
                agreement=agreement[number][1] if number in agreement else None,
            )

    def _rows(self, number: int) -> tuple[int, int]:
        """Of the run that is patched, and of its counterfactual's."""
        return number, len(self.given) + number

    def _finite(self, number: int) -> bool:
        """Whether the logits of all runs that a pair's numbers come from are finite."""
        rows = [number, self.source_row.get(number, number), self.control_row.get(number, number)]
        rows += [] if self.given[number].stored else [len(self.given) + number]
        return all(self.finite[row] for row in rows if row < len(self.finite))  # others are of no run

    def _said(self, number: int) -> dict[str, Any]:
        """What the model says to the pair's original and its counterfactual, whichever of them is patched."""
        one, tops = self.given[number], (self.tops[number], self._counterfactual(number)[1])
        answers = tuple(self.model.tokenizer.decode([top]) for top in tops)
        prompts = (one.tokenized.original.prompt, one.tokenized.counterfactual.prompt)
        if self.plan.direction == "into_counterfactual":
            answers, prompts = answers[::-1], prompts[::-1]
        return {"correct": _correct(one, self.plan, tops), "answers": answers, "prompt": prompts[0]}

    def _reason_to_skip(self, number: int) -> str | None:
        tops = (self.tops[number], self._counterfactual(number)[1])
        return _reason_to_skip(self.given[number], self.plan, tops)

    def _first(self, number: int) -> int:
        """The first position at which the patched run and its source can differ."""
        return self.given[number].tokenized.first_difference if self.plan.patches_pairs else 0

    def _checks(self, used: list[int]) -> list[Check]:
        used = [0] if self.plan.source == "stored" else used
        pairs = [self._rows(number) for number in used]
        differing = [self.given[number].tokenized.differing for number in used]
        return checks_of(self.model, self.runs, self.plan.intervention_type, pairs, differing)

    def _cells(
        self, number: int, source: int | None = None, first: int | None = None
    ) -> Iterator[tuple[tuple[int, ...], Cell]]:
        """(where it stands in the grid: row, (heads,) column; the cell), of all that can have an effect.

        Patched from the plan's source, or from another row of ``runs`` that differs from position ``first`` on.
        """
        source = self.source_row.get(number) if source is None else source
        first = self._first(number) if first is None else first
        model, plan, columns = self.model, self.plan, self.given[number].columns
        window = plan._window(model.n_layers)
        for (i, layer), (k, column) in product(enumerate(plan.layers_of(model)), enumerate(columns.columns)):
            layers = range(layer, layer + window)
            if plan.knockout:
                heads = None if plan.heads is None else tuple(plan.heads_of(model)[0])
                yield (i, k), Cell(number, tuple(Cut(at, columns.edges[k], heads) for at in layers))
            elif any(_can_matter(plan, at, column, first, self.runs.length, model.n_layers) for at in layers):
                for j, heads in enumerate(self._head_sets()):
                    sites = tuple(Site(plan.intervention_type, at, tuple(column), heads) for at in layers)
                    at = (i, k) if heads is None else (i, j, k)
                    yield at, Cell(number, sites, source)

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
    ) -> tuple[dict[int, CausalMap], SelfChecks, dict[int, int], dict[int, tuple[float | None, Agreement | None]]]:
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
            if one.control is None:
                continue
            both = zip(one.tokenized.original.token_ids, one.control.token_ids, strict=True)
            first = next(position for position, (own, other) in enumerate(both) if own != other)
            for at, cell in self._cells(number, self.control_row[number], first):
                if at[-1] in at_target:
                    cells.append(cell)
                    where.append((number, True, (*at[:-1], at_target[at[-1]])))
        n_cells = len(cells)
        checked = dict.fromkeys(c for check in checks for c in (check.cell, check.expected) if isinstance(c, Cell))
        cells += checked
        logits_of: dict[Cell, Tensor] = {}
        read_back = ReadBack(self.model, runs)
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
        ran_at: dict[int, dict[tuple[int, ...], Cell]] = {number: {} for number in (used[0], used[-1])}
        for cell, (number, is_control, at) in zip(cells, where, strict=False):
            if number in ran_at and not is_control:
                ran_at[number][at] = cell
        asked = {
            (number, at): cells_at[at]
            for number, cells_at in ran_at.items()
            for at in telling(z_patched[number].numpy(), cells_at, 3 if number == used[0] else 1)
        }
        tolerance, localized = self._localized(asked, {at: z_patched[at[0]][at[1]] for at in asked})
        return maps, measured(self.model, runs, checks, logits_of, Asked(tolerance, localized, read_back)), ran, {}

    def _localized(
        self, asked: dict[tuple[int, tuple[int, ...]], Cell], found: dict[tuple[int, tuple[int, ...]], Tensor]
    ) -> tuple[float, float | None]:
        """What rounding may do, and how far cells of the maps are from the same cells run the plain way: the largest
        difference of an answer's logit."""
        if not asked:
            return rounding(self.model, self.runs, [0])[0], None
        logits, tolerance = plain_logits(self.model, self.runs, list(asked.values()))
        tokens = torch.tensor([self.given[number].tokenized.answer_tokens for number, _ in asked])
        plain = logits.cpu().gather(1, tokens)
        return tolerance, (plain - torch.stack(list(found.values()))).abs().max().item()

    def _estimate(
        self, used: list[int], checks: list[Check]
    ) -> tuple[dict[int, CausalMap], SelfChecks, dict[int, int], dict[int, tuple[float | None, Agreement | None]]]:
        """Estimate every cell by its gradient, and patch some exactly to compare with."""
        model, plan, runs = self.model, self.plan, self.runs
        component, heads = plan.intervention_type, self._head_sets()
        tokens = torch.tensor([self.given[number].tokenized.answer_tokens[0] for number in used])
        slopes = gradients(model, runs.token_ids[used], tokens, component)
        cells, sampled, maps = [], {}, {}
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
            size = np.array([abs(float(z_patched[(*at, 0)] - z_clean[0])) for at, _ in every])
            drawn = rng.permutation(len(every))[:AGREEMENT_CELLS].tolist()
            largest = np.argsort(-size, kind="stable")[:LARGEST_CELLS].tolist()
            others = len({*drawn} - {*largest})
            for i in dict.fromkeys([*drawn, *largest]):
                weight = 1.0 if i in largest else (len(every) - len(largest)) / others
                sampled[len(cells)] = (number, every[i][0], i in drawn, weight)
                cells.append(every[i][1])
            maps[number] = self._map(number, z_patched.numpy(), np.full(shape, -1), None)
        n_cells = len(cells)
        cells += dict.fromkeys(c for check in checks for c in (check.cell, check.expected) if isinstance(c, Cell))
        exact: dict[int, list[tuple[float, float, bool, float]]] = defaultdict(list)
        logits_of: dict[Cell, Tensor] = {}
        read_back, found = ReadBack(model, runs), {}
        for indices, logits in patched_logits(model, runs, cells, self.batch_tokens, read_back):
            for index, row_logits in zip(indices, logits, strict=True):
                if index >= n_cells:
                    logits_of[cells[index]] = row_logits.clone()
                    continue
                number, at, is_drawn, weight = sampled[index]
                found[number, at] = row_logits[list(self.given[number].tokenized.answer_tokens)].cpu()
                c = self.given[number].tokenized.answer_tokens[0]
                estimate = float(maps[number].z_patched[(*at, 0)])
                exact[number].append((row_logits[c].item(), estimate, is_drawn, weight))
        agreement = {number: _agreement(maps[number], compared) for number, compared in exact.items()}
        ran = {number: len(both) for number, both in exact.items()} | dict.fromkeys(set(used) - exact.keys(), 0)
        clean, cell_at = runs.logits.cpu(), {of[:2]: cells[index] for index, of in sampled.items()}

        def moved(at: tuple[int, tuple[int, ...]]) -> float:
            return (found[at] - clean[at[0], list(self.given[at[0]].tokenized.answer_tokens)]).abs().max().item()

        strongest = sorted(found, key=moved, reverse=True)[:LOCALIZED_CELLS]
        tolerance, localized = self._localized(
            {at: cell_at[at] for at in strongest}, {at: found[at] for at in strongest}
        )
        asked = Asked(tolerance, localized, read_back)
        return maps, measured(model, runs, checks, logits_of, asked), ran, agreement

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
            min_effect=models.SMALLEST_EFFECT[model.dtype],
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


def _agreement(
    causal_map: CausalMap, compared: list[tuple[float, float, bool, float]]
) -> tuple[float | None, Agreement | None]:
    """Of (exact logit, estimated logit, whether it was drawn, weight): the rank agreement of those that were drawn, and
    all as shares of the pair's whole effect."""
    exact, estimated, drawn, weights = (np.array(values) for values in zip(*compared, strict=True))
    rank = _spearman(exact[drawn], estimated[drawn], np.ones(int(drawn.sum())))
    whole = float(causal_map.z_counterfactual[0] - causal_map.z_clean[0])
    if abs(whole) < causal_map.min_effect:
        return rank, None
    exact, estimated = ((values - causal_map.z_clean[0]) / whole for values in (exact, estimated))
    return rank, Agreement(exact, estimated, weights)


def agreement_metrics(pairs: Sequence[Agreement]) -> dict[str, Interval]:
    """Attribution beside exact patching, over pairs: of the cells that matter the mean rank agreement, the slope of the
    estimate on the exact effect, and the share that the estimate misses. What no pair has is left out."""
    found: dict[str, Interval | None] = {}
    if ranks := [pair.rank for pair in pairs if pair.rank is not None]:
        found["rank_agreement_where_it_matters"] = bootstrap_mean(ranks)
    for name, parts in (
        ("attribution_slope", [pair.slope for pair in pairs]),
        ("attribution_missed", [pair.missed for pair in pairs]),
    ):
        if sums := [(part, whole) for part, whole in parts if whole > 0]:
            part, whole = np.array(sums).T[..., None]
            [found[name]] = ratio_of_means(part, whole, 0.0)
    if (missed := found.get("attribution_missed")) is not None:
        low, high = (None if end is None else min(1.0, max(0.0, end)) for end in (missed.low, missed.high))
        found["attribution_missed"] = Interval(missed.estimate, low, high, missed.n, is_rate=True)
    return {name: value for name, value in found.items() if value is not None}


def _spearman(
    exact: Float[np.ndarray, " cell"],
    estimated: Float[np.ndarray, " cell"],
    weights: Float[np.ndarray, " cell"],
    fewest: int = 2,
) -> float | None:
    """Spearman's correlation, each cell counted as often as its weight says; scipy's has none."""
    if len(exact) < fewest or (exact == exact[0]).all() or (estimated == estimated[0]).all():
        return None
    ranks = []
    for values in (exact, estimated):
        below, equal = values[:, None] > values, values[:, None] == values
        ranks.append((below + equal / 2) @ weights)
    covariance = np.cov(*ranks, aweights=weights)
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


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
        """Of an attribution: Spearman's correlation with exact patching, pair by pair, over cells most of which do
        nothing; see :attr:`agreement`."""
        return [result.rank_agreement for result in self.results if result.rank_agreement is not None]

    @property
    def agreement(self) -> list[Agreement]:
        """Of an attribution: beside exact patching, pair by pair, where it matters."""
        return [result.agreement for result in self.results if result.agreement is not None]

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
    model.say_what_prompts_lose()
    results = list(tqdm(trace_pairs(model, programs, what, batch_tokens), "pairs", len(programs), disable=None))
    result = CausalTracingResult(model.id, what, results)
    if not result.maps:
        raise ValueError(f"no pair was left to patch; the first was skipped because: {results[0].skipped}")
    return result
