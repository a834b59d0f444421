"""Cells of a comparison: their values and settings, which parameter goes where, and what all models have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import polars as pl
from view import file_name_of

from debug.causal_map import ESTIMATED
from debug.causal_visualization.comparison import MOST_DASHES, natural, ordered

# Settings of a cell besides model, hops and lines. Cells that differ in one of these are never averaged.
SETTING = {
    "kind": "{}",
    "generator": "{}",
    "prompt_template": "prompt {}",
    "few_shot": "{}-shot",
    "chat": "chat {}",
    "scoring": "scoring {}",
    "answer_parser": "parser {}",
    "component": "{}",
    "source": "source {}",
    "direction": "{}",
    "layer_window": "layer window {}",
    "positions": "positions {}",
}
# What cells may differ in -> its name on screen. Of parameters that vary alike the first is drawn.
FACTORS = {"model": "model", "hops": "hops", "seq_len": "lines", **{name: name.replace("_", " ") for name in SETTING}}
FACTORS |= {"generator": "program", "prompt_template": "prompt", "few_shot": "few-shot", "component": "method"}
FACTORS |= {"label": "label", "experiment": "experiment"}
NAMES = ("label", "experiment")  # what people call cells: never the x axis, unless somebody asks for it
MOST_COLOURS, MOST_PANELS, MOST_PLACES = 16, 12, 40
MOST_POINTS = 100  # of a chart in which dashes can still be followed
ABLATIONS = {source: f"{source} ablation" for source in ("zero", "mean", "resample")}
UNKNOWN = "not recorded"


def measured(chosen: pl.DataFrame, measure: str) -> pl.DataFrame:
    """One row per run that has the metric, newest first: its parameters as text, value, 95% CI and n.

    What an imported run was asked is told by the name of its experiment alone: that stands for its program.
    """
    estimated = pl.when(pl.col("kind") == "attribution").then(pl.lit(f" ({ESTIMATED})")).otherwise(pl.lit(""))
    params = [name for name in SETTING if name not in ("kind", "component", "generator")]
    known = {name: pl.col(f"params.{name}").replace("null", None) for name in (*params, "generator", "label")}
    frame = chosen.filter(pl.col(f"metrics.{measure}").is_not_null()).select(
        "run_id",
        pl.coalesce("params.model", known["label"], pl.lit("(no model)")).alias("model"),
        pl.col("params.hops").fill_null("any").alias("hops"),
        pl.col("params.seq_len").fill_null("any").alias("seq_len"),
        pl.col("kind").fill_null(""),
        pl.when(pl.col("kind") == "imported")
        .then(pl.coalesce(known["generator"], "experiment"))
        .otherwise(known["generator"].fill_null(""))
        .alias("generator"),
        pl.format("{}{}", pl.col("params.intervention_type").fill_null(""), estimated).alias("component"),
        *(known[name].fill_null("").alias(name) for name in params),
        pl.col("experiment"),
        known["label"].fill_null("").alias("label"),
        pl.coalesce("parent_run_id", "run_id").alias("study"),
        pl.col("name"),
        pl.col(f"metrics.{measure}").alias("value"),
        pl.col(f"metrics.{measure}_ci_low").alias("ci_low"),
        pl.col(f"metrics.{measure}_ci_high").alias("ci_high"),
        pl.col(f"metrics.{measure}_n").alias("n"),
        "made",
        "weights_digest",
    )
    weights = pl.col("weights_digest")
    several = weights.drop_nulls().n_unique().over("model") > 1  # two folders of one name are two models
    own = pl.format("{} ({})", "model", weights.str.slice(0, 6))
    frame = frame.with_columns(pl.when(several & weights.is_not_null()).then(own).otherwise("model").alias("model"))
    return frame.drop("weights_digest")


# --- which parameter goes where --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The parameters of a chart: on the x axis, as colour and shape, as dashes, and as panels."""

    x: str
    colour: str
    dash: str | None = None
    panel: str | None = None

    @property
    def places(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.x, self.colour, self.dash, self.panel) if name))


def varying(frame: pl.DataFrame, names: Sequence[str] = tuple(FACTORS)) -> list[str]:
    """The parameters in which cells differ."""
    return [name for name in names if frame[name].n_unique() > 1]


def layout(frame: pl.DataFrame, asked: Mapping[str, str | None]) -> Layout:
    """Where each parameter goes that is not ``asked`` for: on the x axis what varies most, as colour the model, as
    dashes the next one, as panels the one after it. Those that another one tells already are not drawn."""
    levels = {name: frame[name].n_unique() for name in FACTORS}
    most = sorted(varying(frame), key=lambda name: -levels[name])  # stable: ties in the order of FACTORS

    def adds(name: str, to: Sequence[str]) -> bool:
        """Whether cells that are alike in ``to`` differ in this one."""
        return name not in to and bool(frame.group_by(list(to)).agg(pl.col(name).n_unique())[name].max() > 1)  # type: ignore[operator]  (a number)

    x, colour = asked.get("x"), asked.get("colour")
    if x is None:
        others = [name for name in most if name not in ("model", colour, *NAMES) and adds(name, ["model"])]
        x = others[0] if others and levels["model"] <= MOST_COLOURS else "model"
    if colour is None:
        others = [name for name in most if adds(name, [x]) and levels[name] <= MOST_COLOURS]
        colour = "model" if x != "model" else next(iter(others), "model")
    used = list(dict.fromkeys(each for each in (x, colour, asked.get("dash"), asked.get("panel")) if each))
    dash, panel = asked.get("dash"), asked.get("panel")
    for name in most:
        if not adds(name, used):
            continue
        points = levels[x] * levels[colour] * levels[name]
        few = levels[name] <= MOST_DASHES and points <= MOST_POINTS
        if dash is None and "dash" not in asked and few:
            dash = name
        elif panel is None and "panel" not in asked:
            panel = name
        else:
            continue
        used.append(name)
    return Layout(x, colour, dash, panel)


def not_drawn(frame: pl.DataFrame, of: Layout) -> list[str]:
    """The parameters in which cells at one place differ all the same: these may not be averaged."""
    others = [name for name in FACTORS if name not in of.places]
    most = frame.group_by(of.places).agg(pl.col(others).n_unique()).select(pl.col(others).max())
    return [name for name in others if (most[name][0] or 0) > 1]


def one_value_each(frame: pl.DataFrame, names: Sequence[str]) -> tuple[pl.DataFrame, list[str]]:
    """The cells with the most frequent value of each of these, so that no place mixes several; and what is left out."""
    left_out = []
    for name in names:
        if frame[name].n_unique() < 2:
            continue
        kept, others = most_frequent(frame, name, 1)
        frame = frame.filter(pl.col(name).is_in(kept))
        left_out.append(f"{FACTORS[name]} other than {kept[0] or UNKNOWN}: {', '.join(o or UNKNOWN for o in others)}")
    return frame, left_out


def that_fit(frame: pl.DataFrame, of: Layout) -> tuple[pl.DataFrame, list[str]]:
    """The cells that one chart can show: of a parameter with too many values those of the most cells; and the rest."""
    limits = {of.dash: MOST_DASHES, of.panel: MOST_PANELS, of.x: MOST_PLACES}
    if of.colour != of.x:
        limits[of.colour] = MOST_COLOURS
    left_out = []
    for name, most in limits.items():
        if name and frame[name].n_unique() > most:
            kept, others = most_frequent(frame, name, most)
            frame = frame.filter(pl.col(name).is_in(kept))
            left_out.append(
                f"{len(others)} of {len(kept) + len(others)} values of {FACTORS[name]}: {', '.join(others)}"
            )
    return frame, left_out


def most_frequent(frame: pl.DataFrame, name: str, most: int) -> tuple[list[str], list[str]]:
    """The values of a parameter that most cells have, and the others, both in natural order."""
    counted = frame.group_by(name).len().sort(pl.col("len"), descending=True)
    by_size = sorted(counted.iter_rows(), key=lambda row: (-row[1], natural(row[0])))
    kept, others = ([value for value, _ in part] for part in (by_size[:most], by_size[most:]))
    return sorted(kept, key=natural), sorted(others, key=natural)


def shown(frame: pl.DataFrame) -> pl.DataFrame:
    """Parameters as a reader meets them: settings in words, and what is not known said."""
    words = [pl.when(pl.col(name) == "").then(pl.lit(UNKNOWN)).otherwise(pl.col(name)).alias(name) for name in FACTORS]
    return frame.with_columns(pl.col("source").replace(ABLATIONS)).with_columns(words)


def sizes(frame: pl.DataFrame) -> str | None:
    """Of how many programs or pairs the values are, where that differs: by model where each has its own number."""
    known = frame.drop_nulls("n")
    if known["n"].n_unique() < 2:
        return None
    of_models: dict[tuple[int, int], list[str]] = {}
    for model in ordered(known["model"]):
        ns = known.filter(pl.col("model") == model)["n"].cast(pl.Int64)
        of_models.setdefault((int(ns.min()), int(ns.max())), []).append(model)  # type: ignore[arg-type]  (numbers)
    if len(of_models) < 2:
        [(low, high)] = of_models
        return f"n is from {low:,} to {high:,}"
    most = max(of_models, key=lambda span: len(of_models[span]))
    told = []
    for (low, high), models in sorted(of_models.items()):
        who = f"{len(models)} models" if (low, high) == most and len(models) > 3 else ", ".join(models)
        told.append((f"{low:,} to {high:,}" if high > low else f"{low:,}") + f" for {who}")
    return f"n differs between models: {'; '.join(told)}"


def file_name(what: str, measure: str, frame: pl.DataFrame) -> str:
    """Of an export: metric, models, hops, lines and date."""

    def few(name: str) -> str:
        values = ordered(frame[name])
        return "-".join(values) if len(values) <= 3 else f"{values[0]}-to-{values[-1]}"

    models = few("model") if frame["model"].n_unique() <= 3 else f"{frame['model'].n_unique()} models"
    return file_name_of([what, measure, models, f"hops {few('hops')}", f"lines {few('seq_len')}", str(date.today())])


# --- what all models have in common ----------------------------------------------------------------------------------


def common(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The cells that can be compared, with the column ``row`` (a model in one setting), and what is excluded.

    Every row has the same numbers of hops, each on the same numbers of lines, and one run per cell: the newest.
    Settings are those that all models have.
    """
    left_out = []
    newest = frame.unique(["model", *SETTING, "hops", "seq_len"], keep="first", maintain_order=True)
    if older := len(frame) - len(newest):
        left_out.append(f"older runs of repeated cells: {older}")
    asked = pl.struct(*SETTING)
    alike = newest.filter(pl.col("model").n_unique().over(asked) == newest["model"].n_unique())
    if len(alike) < len(newest):
        others = newest.join(alike, on="run_id", how="anti")
        told = others.select(setting(varying(newest, tuple(SETTING)))).to_series().unique(maintain_order=True)
        left_out.append(f"cells with settings that not all models have: {len(others)} ({'; '.join(told)})")
    if alike.is_empty():
        return alike.with_columns(row=pl.lit("")), left_out
    names = varying(alike, tuple(SETTING))
    alike = alike.with_columns(
        row=pl.concat_str("model", setting(names), separator=" · ") if names else pl.col("model")
    )
    rows = alike["row"].n_unique()
    shared = alike.filter(pl.col("row").n_unique().over("hops", "seq_len") == rows)
    on_all = shared.filter(pl.col("hops").n_unique().over("seq_len") == shared["hops"].n_unique())
    if on_all.is_empty() and len(shared):  # no number of lines has all hops: that with the most of them
        most = pl.col("hops").n_unique().over("seq_len")
        on_all = shared.filter(
            pl.col("seq_len") == shared.sort(most, descending=True, maintain_order=True)["seq_len"][0]
        )
    if len(on_all) < len(alike):
        others = alike.join(on_all, on="run_id", how="anti")
        cells = others.select(pl.format("hops {} · {} lines", "hops", "seq_len")).to_series()
        left_out.append(
            f"cells with hops and lines that not all models have: {len(others)} ({'; '.join(ordered(cells))})"
        )
    return on_all, left_out


def setting(names: Sequence[str]) -> pl.Expr:
    words = [pl.when(pl.col(n) != "").then(as_words(n)).otherwise(pl.lit(f"no {n}")) for n in names]
    return pl.concat_str(words, separator=" · ") if words else pl.lit("")


def as_words(name: str) -> pl.Expr:
    """A setting of a cell as text."""
    value = pl.col(name).replace(ABLATIONS) if name == "source" else pl.col(name)
    return pl.format(SETTING[name], value)
