"""The slow, obvious way, against which the engine is tested: one nnsight trace per cell, the whole prompt, no cache."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, product

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor

from debug.counterfactual import make_pair
from debug.engine import Cut, ForwardPasses, Intervention, Site, forward_passes, patched_logits
from debug.generators import make_variable_binding_program, search
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS
from debug.programs import ProgramPair
from debug.token_analyzer import TokenizedPair, analyze_pair


def run(model: LoadedModel, token_ids: Int[Tensor, "token"], component: str) -> tuple[Tensor, list[Tensor]]:
    """Logits of the last position, and the component's activations at every layer."""
    point = model.hook_point(component)
    with torch.no_grad(), model.nnsight.trace(token_ids[None]):
        kept = nnsight.save([])
        for layer in range(len(point)):
            kept.append(point[layer].flatten(2))
        logits = model.nnsight.output.logits[0, -1].save()
    return logits, kept


def patch(
    model: LoadedModel, token_ids: Int[Tensor, "token"], sites: Sequence[Site], *sources: dict[str, list[Tensor]]
) -> Float[Tensor, "vocabulary"]:
    """Logits of the last position with the sites' activations replaced by their sources', which these are."""
    points = {name: model.hook_point(name) for name in COMPONENTS}
    with torch.no_grad(), model.nnsight.trace(token_ids[None]):
        for layer in range(model.n_layers + 1):
            for name, point in points.items():
                for site in sites:
                    if (site.component, site.layer) != (name, layer):
                        continue
                    original = point[layer]
                    value = original.clone().view(1, len(token_ids), -1)
                    width = value.shape[-1] // model.n_heads
                    given = sources[site.source][name][layer].view(value.shape)
                    for position in site.positions:
                        if site.heads is None:
                            value[0, position] = given[0, position]
                        for head in site.heads or ():
                            channels = slice(head * width, (head + 1) * width)
                            value[0, position, channels] = given[0, position, channels]
                    point[layer] = value.view_as(original)
        logits = model.nnsight.output.logits[0, -1].save()
    return logits  # noqa: RET504 (what a trace saves exists after it)


def knock_out(model: LoadedModel, token_ids: Int[Tensor, "token"], cuts: list[Cut]) -> Float[Tensor, "vocabulary"]:
    """Logits of the last position with the attention edges cut, one at a time, in a mask of the whole prompt."""
    length = len(token_ids)
    position = torch.arange(length)
    distance = (position[:, None] - position[None])[None]
    lowest = torch.finfo(torch.float32).min
    mask = model.attention_mask(distance >= 0, distance)
    with torch.no_grad(), model.trace(token_ids[None], attention_mask=mask, position_ids=position[None]):
        for layer in range(model.n_layers):
            arguments, keywords = model.attention(layer).inputs
            mask = keywords["attention_mask"].repeat(1, model.n_heads, 1, 1)
            for cut in cuts:
                for query, key in cut.edges if cut.layer == layer else ():
                    for head in range(model.n_heads) if cut.heads is None else cut.heads:
                        mask[0, head, query, key] = lowest
            model.attention(layer).inputs = (arguments, {**keywords, "attention_mask": mask})
        logits = model.nnsight.output.logits[0, -1].save()
    return logits  # noqa: RET504


# --- What is compared: pairs, cells, and the logits of cells either way ---


def pairs(n: int, seq_len: int = 5, hops: int | None = 3, seed: int = 0) -> list[ProgramPair]:
    made = search(make_variable_binding_program, seq_len, seed, hops)
    return [make_pair(program.program, program.seed) for program in islice(made, n)]


def tokenized(model: LoadedModel, given: Sequence[ProgramPair]) -> list[TokenizedPair]:
    return [analyze_pair(model.tokenizer, pair) for pair in given]


def passes_of(model: LoadedModel, given: Sequence[TokenizedPair]) -> ForwardPasses:
    """The runs of all originals, then of all counterfactuals."""
    programs = [*(pair.original for pair in given), *(pair.counterfactual for pair in given)]
    return forward_passes(model, torch.tensor([program.token_ids for program in programs]), COMPONENTS)


def whole_effects(passes: ForwardPasses, given: Sequence[TokenizedPair]) -> Float[Tensor, "pair"]:
    """|z_cf[c] - z_clean[c]| of each pair."""
    c = torch.tensor([pair.answer_tokens[0] for pair in given])
    original, counterfactual = passes.logits.split(len(given))
    return (counterfactual - original).abs().gather(1, c[:, None])[:, 0]


def strongest(model: LoadedModel, n: int, seq_len: int = 3, hops: int | None = 2) -> list[TokenizedPair]:
    """Of some pairs those whose two programs this model tells apart best."""
    given = tokenized(model, pairs(16, seq_len, hops))
    return [given[i] for i in whole_effects(passes_of(model, given), given).topk(n).indices]


def grid(model: LoadedModel, component: str, length: int, run: int, source: int) -> list[Intervention]:
    """Every cell of a component: each layer x position x head."""
    layers = range(model.n_layers + (component == "residual_stream"))
    heads = [(head,) for head in range(model.n_heads)] if COMPONENTS[component].per_head else [None]
    return [
        Intervention(run, (Site(component, *at, source=source),))
        for at in product(layers, ((p,) for p in range(length)), heads)
    ]


def fast(
    model: LoadedModel, passes: ForwardPasses, interventions: Sequence[Intervention], batch_tokens: int | None = None
) -> Tensor:
    logits = torch.full((len(interventions), passes.logits.shape[1]), torch.nan)
    for indices, batch in patched_logits(model, passes, interventions, batch_tokens):
        assert logits[indices].isnan().all(), "a cell came back twice"
        logits[indices] = batch
    return logits


def slow(
    model: LoadedModel, passes: ForwardPasses, interventions: Sequence[Intervention]
) -> Float[Tensor, "cell vocabulary"]:
    """Of ``runs`` only the token ids are read: what is patched from is run here, in a trace of its own."""
    kept: dict[int, dict[str, list[Tensor]]] = defaultdict(dict)
    logits = []
    for intervention in interventions:
        token_ids = passes.token_ids[intervention.base]
        if cuts := [site for site in intervention.sites if isinstance(site, Cut)]:
            logits.append(knock_out(model, token_ids, cuts))
            continue
        for site in intervention.patched:
            if site.component not in kept[site.source]:
                kept[site.source][site.component] = run(model, passes.token_ids[site.source], site.component)[1]
        rows = sorted({site.source for site in intervention.patched})
        numbered = [replace(site, source=rows.index(site.source)) for site in intervention.patched]
        logits.append(patch(model, token_ids, numbered, *(kept[row] for row in rows)))
    return torch.stack(logits)
