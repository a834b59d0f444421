"""Names of a study, its models and their settings in tables and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from debug import tracking
from debug.core import ExperimentConfig
from debug.kinds import Json


def told_apart(cells: Sequence[tracking.LoggedRun], param: str = "label") -> list[str]:
    """The name of each cell's model: its label or name; with the beginning of the weights' digest where other weights
    have the same name (two folders of one name, in older runs)."""
    names = [cell.params.get(param, cell.params["model"]) for cell in cells]
    digests = [cell.tags.get("debug.weights_digest") for cell in cells]
    weights: dict[str, set[str]] = {}
    for name, digest in zip(names, digests, strict=True):
        weights.setdefault(name, set()).update([digest] if digest else [])
    return [
        f"{name} ({digest[:6]})" if digest and len(weights[name]) > 1 else name
        for name, digest in zip(names, digests, strict=True)
    ]


def title_of(configs: Sequence[ExperimentConfig], model_names: Mapping[str, str]) -> str:
    parts = (
        [model_names[model_id] for config in configs for model_id in config.models],
        [config.generator[0] for config in configs],
        [config.prompt[0] for config in configs],
    )
    return " · ".join(", ".join(dict.fromkeys(names)) for names in parts)


def labels_of(configs: Sequence[ExperimentConfig], names: Mapping[str, str]) -> dict[tuple[int, str], str]:
    """The label of each config's model in tables and charts: its name, and its prompt settings where these differ.

    Where two labels are equal and the configs have a cell in common, other settings that differ are added.
    """
    prompts: dict[tuple[str, str], set[str]] = {}
    for config in configs:
        for model_id in config.models:
            prompts.setdefault((config.generator[0], model_id), set()).add(_prompting(config))
    labels = {}
    for c, config in enumerate(configs):
        for model_id in config.models:
            several = len(prompts[config.generator[0], model_id]) > 1
            labels[c, model_id] = names[model_id] + (f", {_prompting(config)}" if several else "")
    alike: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for (c, model_id), label in labels.items():
        alike.setdefault((configs[c].generator[0], label), []).append((c, model_id))
    for places in alike.values():
        cells = [cell for c, _ in places for cell in configs[c].cells]
        if len(set(cells)) == len(cells):
            continue
        records = [configs[c].to_record() for c, _ in places]
        differ = [name for name in _ALSO_NAMED if len({str(record[name]) for record in records}) > 1]
        said = [", ".join(f"{name} {str(record[name])[:40]!r}" for name in differ) for record in records]
        for (c, model_id), words in zip(places, said, strict=True):
            own = words if words and said.count(words) == 1 else f"experiment {c + 1}"
            labels[c, model_id] += f", {own}"
    return labels


_ALSO_NAMED = ("answer_parser", "max_new_tokens", "seed", "num_seqs")


def _prompting(config: ExperimentConfig) -> str:
    """The prompt settings of a config, in words."""
    parts = [config.prompt[0], f"{config.few_shot}-shot" if config.few_shot else "", "chat" if config.chat else ""]
    return " ".join([part for part in parts if part] + (["logits"] if config.scoring == "logits" else []))


def params_of(configs: Sequence[ExperimentConfig]) -> dict[str, Json]:
    """Params that all configs of the study have in common."""
    each = [
        {
            "generator": config.generator[0],
            "prompt_template": config.prompt[0],
            "answer_parser": config.parser[0],
            "seed": config.seed,
            "num_seqs": config.num_seqs,
            "few_shot": config.few_shot,
            "chat": config.chat,
            "scoring": config.scoring,
            "max_new_tokens": config.max_new_tokens,
        }
        for config in configs
    ]
    return {name: value for name, value in each[0].items() if all(params[name] == value for params in each)}
