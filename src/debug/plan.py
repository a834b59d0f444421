"""What to patch, or to cut, in every pair: the one definition of every option. Imports no torch."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import TYPE_CHECKING, Annotated

from debug.attention_knockout import HYPOTHESES
from debug.causal_map.sources import DIRECTIONS, FIRST_TOKEN, PAIR_SOURCES, SCORED_BY, SOURCES
from debug.errors import InputError, did_you_mean
from debug.kinds import Json
from debug.models.hook_points import COMPONENTS
from debug.options import Known, OneOf, check_choices
from debug.prompts import CODE, PROMPTS, get_prompt

if TYPE_CHECKING:
    from debug.models import LoadedModel

KNOCKOUT = "attention_knockout"
INTERVENTION_TYPES = (*COMPONENTS, KNOCKOUT)
METHODS = ("patching", "attribution")
Template = Annotated[str, Known(PROMPTS)]


@dataclass(frozen=True)
class Plan:
    """What to patch, or to cut, in every pair: the one definition of every option.

    Command-line flags with their help, logged params, ``config.json`` and the widgets of the dashboard's Re-run page
    are derived from these fields. Lists may hold numbers as text, and ``["all"]`` is ``"all"``, as a command line has
    it. Of an ``attention_knockout``, ``positions`` are hypotheses: names of presets or "queries->keys" of targets; by
    default every preset.
    """

    intervention_type: Annotated[str, OneOf(INTERVENTION_TYPES)] = "residual_stream"
    """Component whose activations are patched (the residual stream at layer l is resid_pre of layer l);
    attention_knockout cuts attention edges before the softmax instead."""
    layers: Sequence[int] | None = None
    """Rows of the map: the first layer of each. Without: all."""
    positions: str | Sequence[str | int] = "all"
    """Columns of the map: "all" tokens, the "targets", or names of targets and token positions, which are then the
    targets; a+b patches both together, ref_depth_2_line a whole line. Of attention_knockout: direct_pointer,
    chain_following, or targets as queries->keys."""
    targets: str | Sequence[str] | None = None
    """What means over pairs are taken at: "roles" for every role from the root's value on, or names of targets."""
    prompt_template: Template = CODE
    """Name of a prompt template, or a text with {code}."""
    chat: bool = False
    """Put the prompt into the model's chat template, as the user's turn."""
    require_correct: bool = True
    """Skip pairs of which the model does not answer both programs."""
    exclude_shallow: bool = False
    """Skip pairs whose root value is assigned on line 1 or 2."""
    save_activations: Annotated[str, OneOf(("none", "targets", "all"))] = "none"
    """Positions whose activations are kept with each result."""
    save_attention: int = 0
    """Of how many pairs, the first that are tried, the attention patterns of the clean forward pass are kept, from the
    targets' tokens to all; 0 for none."""
    source: Annotated[str, OneOf(SOURCES)] = "counterfactual"
    """Where patched activations come from; zero, mean and resample are ablations."""
    source_run: str | None = None
    """The logged run whose activations are patched, with source "stored"."""
    direction: Annotated[str, OneOf(DIRECTIONS)] = "into_original"
    """Which program is patched: the original, from its counterfactual, or the reverse."""
    layer_window: int | None = None
    """Layers that a row changes together, from its own up. Without: one, and of a knockout all."""
    heads: Sequence[int | Sequence[int]] | str | None = None
    """Of attention_heads: "together" for all heads of a layer, or heads and sets of them (0 2 3+5); without, each head
    alone. Of attention_knockout: the heads whose edges are cut; without, all."""
    control: bool = True
    """Patch the targets from a program of the same answer, too; of a knockout, cut as many random edges, too."""
    random_draws: int = 5
    """Of a knockout: how often random edges are drawn for each pair and hypothesis."""
    match_attention: bool = False
    """Of a knockout: random edges are matched by the mean attention of the clean heads, too."""
    logit_lens: bool = True
    """Read the clean residual stream through the unembedding, at the single positions."""
    method: Annotated[str, OneOf(METHODS)] = "patching"
    """Exact patching; or attribution patching, a linear estimate in two forward passes and one backward pass."""
    scored_by: Annotated[str, OneOf(SCORED_BY)] = FIRST_TOKEN
    """What a patched run answers: its top token, which begins an answer; of all candidates the whole_answer of the
    highest probability; or what it writes, greedy, with the patch held. The last two are for answers of several tokens,
    such as numbers that begin alike, and take more forward passes."""
    answer_lead: str | None = None
    """White space that the model itself writes before an answer, read as part of the prompt. Without: found out from
    the first programs, when the run begins."""

    def __post_init__(self) -> None:
        check_choices(self)
        if (self.source == "stored") != (self.source_run is not None):
            raise InputError(
                f"source is {self.source!r} and source_run {self.source_run!r}; 'stored' goes with a run's id"
            )
        if self.source == "stored" and self.knockout:
            raise InputError("source is 'stored', but attention_knockout patches nothing")
        self._set("prompt_template", get_prompt(self.prompt_template)[1])
        if not isinstance(self.chat, bool):
            raise InputError(f"chat is {self.chat!r:.80}; expected true or false")
        if self.answer_lead is not None and self.answer_lead.strip():
            raise InputError(f"answer_lead is {self.answer_lead!r}; expected white space, or None to find it out")
        self._set("positions", _words(self.positions, "all", "targets"))
        if not len(self.positions):
            raise InputError("positions is an empty list; expected 'all', 'targets', or names of targets and numbers")
        if self.layers is not None:
            try:
                numbers = [int(each) if isinstance(each, str) else operator.index(each) for each in self.layers]
            except (TypeError, ValueError) as error:
                raise InputError(f"layers is {self.layers!r:.80}; expected layer numbers, or None for all") from error
            self._set("layers", numbers)
            if not self.layers:
                raise InputError("layers is an empty list; expected layer numbers, or None for all")
        if not isinstance(self.random_draws, Integral) or self.random_draws < 1:
            raise InputError(
                f"random_draws is {self.random_draws!r:.80}; expected 1 or more, or control=False for none"
            )
        if not isinstance(self.save_attention, Integral) or self.save_attention < 0:
            raise InputError(
                f"save_attention is {self.save_attention!r:.80}; expected a number of pairs, or 0 for none"
            )
        window = self.layer_window
        if window is not None and (not isinstance(window, Integral) or window < 1):
            raise InputError(f"layer_window is {window!r:.80}; expected 1 layer or more")
        if self.targets is not None and not isinstance(self.positions, str):
            raise InputError("positions names the targets already; give targets only with positions 'all' or 'targets'")
        if self.targets is not None:
            self._set("targets", _words(self.targets, "roles"))
        if self.heads is not None:
            self._set("heads", self._heads())
        if self.method == "attribution" and (self.knockout or self.source != "counterfactual" or self.window(1) > 1):
            raise InputError(
                "method 'attribution' estimates patches of one layer from the counterfactual, nothing else"
            )
        if self.scored_by != FIRST_TOKEN and (self.method == "attribution" or self.source == "stored"):
            raise InputError(
                f"scored_by is {self.scored_by!r}; method 'attribution' and source 'stored' know first tokens alone"
            )
        for name in self._names():
            self._check_name(name, _TARGET)

    def check_targets_of_binding(self, hops: Sequence[int | str | None] = (None,)) -> None:
        """Raises InputError where a name is no target of variable binding (of other texts spans may have any name), or
        has a referential depth that no program of so many hops has."""
        for name in self._names():
            self._check_name(name, _TARGET_OF_BINDING)
            depth = max(map(int, re.findall(r"ref_depth_(\d+)", str(name))), default=0)
            if all(isinstance(each, int) and depth > each for each in hops):
                asked = " or ".join(map(str, hops))
                raise InputError(f"{name!r} is on line {depth} of a chain, and chains of {asked} hops are asked for")

    def _names(self) -> list[str | int]:
        return [n for given in (self.positions, self.targets) if isinstance(given, list | tuple) for n in given]

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _heads(self) -> list[list[int]] | str:
        """Sets of heads, or "together"."""
        if self.intervention_type not in ("attention_heads", KNOCKOUT):
            raise InputError(f"heads is given, but {self.intervention_type} has none; attention_heads has")
        given = [] if isinstance(self.heads, str) or self.heads is None else list(self.heads)
        if (self.heads if isinstance(self.heads, str) else given) in ("together", ["together"]) and not self.knockout:
            return "together"
        try:
            words = [heads.split("+") if isinstance(heads, str) else heads for heads in given]
            sets = [[int(head) for head in (of if isinstance(of, Iterable) else [of])] for of in words]
        except (TypeError, ValueError) as error:
            raise InputError(f"heads is {self.heads!r:.80}; expected numbers of heads, or sets of them: 3+5") from error
        if isinstance(self.heads, str):
            raise InputError(f"heads is {self.heads!r}; expected None, 'together' (attention_heads), or numbers")
        if not sets or not all(sets):
            raise InputError("heads is an empty list; expected numbers of heads, or None for all")
        return sets

    def _check_name(self, name: str | int, targets: re.Pattern[str]) -> None:
        if self.knockout and str(name) not in HYPOTHESES and "->" not in str(name):
            raise InputError(
                f"{name!r} is no hypothesis{did_you_mean(str(name), HYPOTHESES)}; expected {', '.join(HYPOTHESES)}, or "
                "'queries->keys' with names of targets"
            )
        for part in re.split(r"\+|->", name) if isinstance(name, str) and name not in HYPOTHESES else ():
            if not targets.fullmatch(part):
                raise InputError(
                    f"{name!r} is no target{did_you_mean(part, _WORDS)}; expected 'all', 'targets', 'roles' (of "
                    "targets alone), a token position, ref_depth_<k>_<lhs|equals|rhs|newline|line>, "
                    "query_<hash|var|colon>, final, a span's name, or several of them joined by '+'"
                )

    def elsewhere(self) -> Plan:
        """What is carried out of the plan on a model that is elsewhere (NDIF), from which no activation comes back: it
        goes without the logit lens, and keeps no activations and no attention patterns.

        Raises:
            InputError: activations are to come from elsewhere than the pair's own programs, or a partner's; or it is no
                exact patching that is scored by first tokens.
        """
        able = {"source": ("counterfactual", "resample"), "method": ("patching",), "scored_by": (FIRST_TOKEN,)}
        for name, allowed in able.items():
            if (value := getattr(self, name)) not in allowed:
                raise InputError(f"{name} is {value!r}; on NDIF models it can be {' or '.join(map(repr, allowed))}")
        return replace(self, logit_lens=False, save_activations="none", save_attention=0)

    def params(self, model: LoadedModel) -> dict[str, Json]:
        """What runs of this plan log as params: every option that says something, rows and defaults by name."""
        said = {each.name: getattr(self, each.name) for each in fields(Plan)}
        said |= {
            "layers": self.layers_of(model),
            "targets": self.targets or "default",
            "heads": self.heads or "each",
            "prompt_template": get_prompt(self.prompt_template)[0],
            "answer_lead": repr(self.answer_lead) if self.answer_lead else None,
            "chat": self.chat or None,  # as of runs from before it was an option
            "save_attention": self.save_attention or None,  # the same
        }
        return {
            name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            for name, value in said.items()
            if value is not None
        }

    @property
    def knockout(self) -> bool:
        return self.intervention_type == KNOCKOUT

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

    def window(self, n_layers: int) -> int:
        """Layers that a row of the map changes together."""
        return self.layer_window or (n_layers if self.knockout else 1)

    def layers_of(self, model: LoadedModel) -> list[int]:
        """The rows of the map: the first layer of each."""
        model.require_patchable()
        layers = model.n_layers + (self.intervention_type == "residual_stream")
        if (window := self.window(model.n_layers)) > layers:
            raise InputError(f"layer_window is {window}; {self.intervention_type} of {model.id!r} has {layers} layers")
        rows = layers - window + 1
        if self.layers is None:
            return list(range(rows))
        if bad := [layer for layer in self.layers if not 0 <= layer < rows]:
            raise InputError(
                f"layers {bad} are out of range; {self.intervention_type} of {model.id!r} has 0 to {rows - 1}"
                + (f", {window} together" if window > 1 else "")
            )
        return sorted(set(self.layers))

    def heads_of(self, model: LoadedModel) -> list[list[int]]:
        """The sets of heads that are patched each on its own; of a knockout, the one set that is cut."""
        every = list(range(model.n_heads))
        if self.heads is None or isinstance(self.heads, str):
            return [[head] for head in every] if self.heads is None else [every]
        sets: list[list[int]] = self.heads  # type: ignore[assignment]  (neither None nor a text)
        if bad := sorted({head for heads in sets for head in heads} - set(every)):
            raise InputError(f"heads {bad} are out of range; {model.id!r} has heads 0 to {model.n_heads - 1}")
        return [sorted({head for heads in sets for head in heads})] if self.knockout else sets


def _words(given: str | Sequence[str | int], *words: str) -> str | list[str | int]:
    """One of some words as it stands; else a list, in which a number may be given as text."""
    values = [given] if isinstance(given, str) else list(given)
    if len(values) == 1 and values[0] in words:
        return values[0]
    return [_number(value) for value in values]


def _number(value: str | int) -> str | int:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?\d+", value) else value
    return operator.index(value)


_TARGET_OF_BINDING = re.compile(r"ref_depth_[1-9]\d*_(lhs|equals|rhs|newline|line)|query_(hash|var|colon)|final|\d+")
_ROLES = [f"ref_depth_{k}_{part}" for k in range(1, 10) for part in ("lhs", "equals", "rhs", "newline", "line")]
_WORDS = ("all", "targets", "roles", "final", "query_hash", "query_var", "query_colon", *_ROLES, *HYPOTHESES)
_TARGET = re.compile(rf"{_TARGET_OF_BINDING.pattern}|(?!ref_depth_|query_)[A-Za-z_][A-Za-z0-9_.-]*")
