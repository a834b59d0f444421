"""The whole report: its chapters, and the table of claims."""

from __future__ import annotations

from dataclasses import asdict

from debug import models
from debug.models import LoadedModel
from debug.paper.accuracy import report_accuracy
from debug.paper.claims import ANSWERS, SMALLEST
from debug.paper.heads import report_heads
from debug.paper.hypotheses import report_hypotheses
from debug.paper.knockout import report_knockout
from debug.paper.page import EXPERIMENT, Page, plain
from debug.paper.reproduction import Reproduction
from debug.paper.residual_stream import report_residual_stream
from debug.paper.trajectory import report_trajectory, training_run
from debug.prompts import get_prompt
from debug.tracking import LoggedRun, Store


def reproduce(
    what: Reproduction, tracking_uri: str | None = None, *, dtype: str | None = None, device: str | None = None
) -> LoggedRun:
    """Make the runs and the report.

    Returns:
        The summary run; its ``artifact("report.md")`` is the page, its ``children`` are the studies.

    Raises:
        InputError, SelfCheckError, TrackingError: as the runners' ``run``.
    """
    store = Store(tracking_uri)
    model = models.load(what.model, dtype=dtype, device=device)
    training = training_run(store, what)
    with store.start(EXPERIMENT, f"{model.id} · report", kind="causal_tracing") as run:
        run.log_params(asdict(what) | {"model": model.id, "training_run": training and training.run_id})
        run.set_tags(model.provenance())
        page = Page(what, store, run, dtype, device)
        _head(page, model)
        claims_at = len(page.lines)
        asked = report_accuracy(page, model)
        report_trajectory(page, model, training, asked)
        report_residual_stream(page)
        report_hypotheses(page)
        report_heads(page, model)
        report_knockout(page)
        body, page.lines = page.lines[claims_at:], page.lines[:claims_at]
        _claims(page)
        page.lines += body
        page.save()
    return store.load_run(run.run_id)


def _head(page: Page, model: LoadedModel) -> None:
    what, config = page.what, model.config
    parameters = sum(parameter.numel() for parameter in model.hf.parameters())
    positions = "rotary positions" if getattr(config, "rope_parameters", None) else "positions as configured"
    page.write(
        f"# How {plain(model.id)} tracks variables",
        "The findings of Wu, Geiger and Millière, *How Do Transformers Learn Variable Binding in Symbolic Programs?* "
        f"(ICML 2025, arXiv 2505.20896), measured on this model. Summary run `{page.run.run_id}`. Every number "
        "below is a metric of the run named next to it, or of the summary run where none is named. Brackets are 95% "
        "CIs: Wilson's for rates of programs or pairs, over pairs for means. Normalized logit differences are ratios "
        "of means.",
        f"**This model.** {plain(config.model_type)}: {model.n_layers} layers, {model.n_heads} heads a layer, width "
        f"{config.hidden_size}, {parameters:,} parameters, vocabulary of {config.vocab_size:,}, {positions}, "
        f"{model.dtype}. Layer and head indices below are this model's and do not correspond to the "
        f"paper's. Programs: {what.seq_len} lines, the published generator and format, "
        f"prompt {plain(get_prompt(what.prompt_template)[0])}, seeds from {what.seed} on.",
    )
    if model.id == "tiny":
        page.write(
            "The bundled model differs from the paper's in more than size: balanced and varied training programs, a "
            "curriculum, an auxiliary naming loss on right-hand sides at the start of training, and an initialization "
            "that favours looking up a name (see its model card). Without one of these, the same architecture mostly "
            "does not carry the value line by line (docs/ablation.md). That this model does is therefore not a "
            "discovery. This page shows that the method finds the value, at the layers and tokens where it is."
        )


def _claims(page: Page) -> None:
    page.write(
        "## The paper's claims on this model",
        f"A claim *holds* where its criterion is met by the 95% CI, with n of {SMALLEST} or more. It *does not* hold "
        "where the 95% CI contradicts it, and is *undecided* otherwise: more pairs may decide it. Claims about the "
        f"mechanism are decided only where the accuracy on the pairs has a 95% CI above {ANSWERS:.0%}: below that, "
        "right answers may be luck. Heads, checkpoints and hand-overs are selected on one half of the pairs or "
        "programs and measured on the other.",
    )
    page.table(
        ["claim", "criterion", "verdict", "result", "runs"],
        [
            [c.text, c.criterion, f"**{c.verdict}**", c.number, " ".join(f"`{run[:8]}`" for run in c.runs)]
            for c in page.claims
        ],
    )
