"""The report's page: runs, tables, pictures, and the metrics that no other run has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from itertools import islice

import polars as pl
from tqdm import tqdm

from debug import causal_visualization as charts
from debug.causal_experiment_runner import CausalExperimentRunner, CellResult, NoPairLeft
from debug.causal_map import METRICS, MeanCausalMap
from debug.causal_visualization import Metric
from debug.core import ExperimentConfig
from debug.counterfactual import counterfactual, make_pair
from debug.errors import InputError
from debug.generators import make_variable_binding_program, search
from debug.hypotheses import HYPOTHESES, prediction
from debug.kinds import Argument, Json
from debug.paper.claims import ANSWERS, Claim, every, surely_above
from debug.paper.reproduction import Reproduction
from debug.plan import Plan
from debug.programs import ROOT_VALUE, AnyPair, Program, ProgramError, ProgramPair
from debug.progress import hidden
from debug.prompts import get_prompt
from debug.runner import ExperimentResult, ExperimentRunner
from debug.statistics import Interval
from debug.tracking import RunWriter, Store

EXPERIMENT = "reproduce_paper"
SHOWN = 0.05  # targets whose success is below this at every layer are summarized in one line


class Page:
    """The report while it is written, and the summary run that keeps it and its numbers."""

    def __init__(self, what: Reproduction, store: Store, run: RunWriter, dtype: str | None, device: str | None) -> None:
        self.what, self.store, self.run, self.dtype, self.device = what, store, run, dtype, device
        self.lines: list[str] = []
        self.claims: list[Claim] = []
        self.answered: dict[int, bool] = {}
        """By hops: whether the 95% CI of the accuracy, before wrong pairs are excluded, is above ``ANSWERS``."""

    def write(self, *lines: str) -> None:
        """Paragraphs."""
        for line in lines:
            self.lines += [line, ""]

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.lines += [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]
        self.lines.append("")

    def picture(self, stem: str, chart: charts.Picture, caption: str) -> None:
        """A PNG beside the page; the runs themselves hold their charts as HTML too."""
        chart.save(self.run.folder / f"{stem}.png", scale_factor=2)
        self.write(f"![{caption}]({stem}.png)")

    def keep(self, name: str, value: Interval | None, step: int | None = None) -> None:
        """Log an estimate and its ends."""
        if value is not None:
            self.run.log_metrics(value.metrics(re.sub("[ ,:]+", "_", name)), step)

    def keep_all(self, prefix: str, shares: Mapping[str, Interval], step: int | None = None) -> None:
        for name, value in shares.items():
            self.keep(f"{prefix}/{name}", value, step)

    def claim(self, name: str, text: str, criterion: str, holds: bool | None, number: str, *runs: str) -> None:
        self.claims.append(Claim(name, text, criterion, holds, number, runs))

    def accuracy(self, configs: Sequence[ExperimentConfig], *, no_cache: bool = False) -> ExperimentResult:
        runner = ExperimentRunner(
            self.store.uri, batch_size=128, dtype=self.dtype, device=self.device, backend="transformers"
        )
        result = runner.run_study(EXPERIMENT, configs, resume=False, no_cache=no_cache)
        self.run.adopt(result.run_id)
        return result

    def patched(
        self, hops: Sequence[int], intervention_type: str, kind: str = ROOT_VALUE, **plan: Argument
    ) -> dict[int, CellResult]:
        """A causal run per number of hops, on the same pairs; runs that failed are named on the page and excluded."""
        what, cells = self.what, {}
        runner = CausalExperimentRunner(self.store.uri, dtype=self.dtype, device=self.device)
        filters = {"require_correct": True, "exclude_shallow": True, "logit_lens": False}
        full = Plan(intervention_type, prompt_template=what.prompt_template, **filters, **plan)
        for depth in hops:
            params = {"generator": "variable_binding", "hops": depth, "seq_len": what.seq_len, "seed": what.seed}
            params |= {} if kind == ROOT_VALUE else {"counterfactual": kind}
            try:
                result = runner.run_plan(
                    what.model,
                    self.pairs[depth] if kind == ROOT_VALUE else self.pairs_of(kind, depth),
                    full,
                    name=EXPERIMENT,
                    wanted=what.num_pairs,
                    params=params | {"num_seqs": what.num_pairs},
                )
            except NoPairLeft as error:  # all pairs were skipped; the run says so too
                self.write(f"{hops_text(depth)}: FAILED, {plain(str(error))}")
                continue
            self.run.adopt(result.run_id)
            cells[depth] = result.cells[0]
            if kind == ROOT_VALUE:
                self.answered[depth] = bool(surely_above(result.cells[0].accuracy, ANSWERS))
        return cells

    def inside(self, verdicts: Mapping[int, bool | None], fewest_hops: int = 1) -> bool | None:
        """A claim about the mechanism, over all numbers of hops: undecided where the model does not answer."""
        asked = [hops for hops in self.what.hops if hops >= fewest_hops]
        return every(verdicts.get(hops) if self.answered.get(hops) else None for hops in asked)

    @cached_property
    def pairs(self) -> dict[int, list[ProgramPair]]:
        """By hops: pairs whose root is not on the first two lines; a fifth more than wanted, as those that the model
        answers wrong are skipped. Few long chains are like this: running the model on all others only to skip them
        would take most of the time."""
        what, wanted = self.what, self.what.num_pairs + (self.what.num_pairs + 4) // 5
        template, found = get_prompt(what.prompt_template)[1], {}
        for hops in tqdm(what.hops, desc="pairs", unit="hops"):
            made = search(make_variable_binding_program, what.seq_len, what.seed, hops, template)
            pairs = (make_pair(program.program, program.seed) for program in made)
            found[hops] = list(islice((pair for pair in pairs if pair.variable_chain.root.line >= 2), wanted))
            if not found[hops]:
                raise InputError(
                    f"no program of {what.seq_len} lines and {hops_text(hops)} has its root below line 2; ask for "
                    "longer ones"
                )
        return found

    def pairs_of(self, kind: str, hops: int) -> list[AnyPair]:
        """As many pairs of another kind of counterfactual, roots not on the first two lines; of ``pointer`` those alone
        of which all hypotheses predict different answers."""
        what, wanted = self.what, self.what.num_pairs + (self.what.num_pairs + 4) // 5
        template = get_prompt(what.prompt_template)[1]
        made = search(make_variable_binding_program, what.seq_len, what.seed, hops, template)
        found: list[AnyPair] = []
        with tqdm(total=wanted, desc=f"{kind} pairs", unit="pair", disable=hidden()) as bar:
            for program in islice(made, 100 * wanted):
                with suppress(ProgramError):
                    pair = counterfactual(kind, program.program, program.seed, Program.parse)
                    said = {prediction(name, pair, "final") for name in HYPOTHESES}
                    if Program.parse(program.program).chain.root.line >= 2 and (
                        kind != "pointer" or len(said) == len(HYPOTHESES)
                    ):
                        found.append(pair)
                        bar.update()
                if len(found) == wanted:
                    break
        return found

    def maps(self, hops: int, cell: CellResult, said: str = "", **metrics: Metric) -> MeanCausalMap:
        """Write the section of a number of hops: its run, and a picture of its mean map per file stem -> metric."""
        mean = mean_of_cell(cell)
        self.write(f"### {hops_text(hops)}", f"Run `{cell.run_id}`{said}.")
        for stem, metric in metrics.items():
            picture = charts.mean_heatmap(mean, metric)
            self.picture(f"{stem}_{hops}_hops", picture, f"{METRICS[metric].title}, {hops_text(hops)}")
        return mean

    def save(self) -> None:
        (self.run.folder / "report.md").write_text("\n".join(self.lines), "utf-8")
        known = {f"claim_holds/{claim.name}": claim.holds for claim in self.claims}
        self.run.log_metrics({name: None if holds is None else float(holds) for name, holds in known.items()})
        records = [asdict(claim) | {"verdict": claim.verdict} for claim in self.claims]
        self.run.log_json("summary.json", {"claims": records})


def plain(text: str | None) -> str:
    """Text from outside, escaped for Markdown, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~])", r"\\\1", " ".join((text or "").split()))


def accuracy_of(row: dict[str, Json]) -> Interval:
    return Interval(row["accuracy"], row["accuracy_ci_low"], row["accuracy_ci_high"], row["num_samples"], True)


def chart_frame(rows: list[dict[str, Json]]) -> pl.DataFrame:
    named = {"accuracy": "accuracy", "accuracy_ci_low": "ci_low", "accuracy_ci_high": "ci_high", "num_samples": "n"}
    frame = pl.DataFrame(rows, infer_schema_length=None).rename(named)
    return frame.select(pl.col("label").alias("model"), "hops", "seq_len", *named.values())


def hops_text(hops: int) -> str:
    return f"{hops} {'hop' if hops == 1 else 'hops'}"


def without_n(value: Interval | None) -> str:
    """The interval without n, where n stands next to it."""
    return "no value" if value is None else str(value).rpartition(" (n=")[0]


def mean_of_cell(cell: CellResult) -> MeanCausalMap:
    assert cell.mean is not None  # Page.patched excludes cells without a mean
    return cell.mean
