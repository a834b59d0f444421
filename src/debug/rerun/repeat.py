"""A logged run repeated; what it found, beside what the log says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import torch

from debug.kinds import Argument
from debug.models.backends import LOCAL, is_remote
from debug.provenance import differences
from debug.rerun.accuracy import RUNNER, compare_samples, repeat_accuracy
from debug.rerun.causal import compare_maps, repeat_causal
from debug.rerun.config import model_of
from debug.rerun.verdict import Rerun, RerunError, Verdict, measured_otherwise, name_of
from debug.tracking import LoggedRun, Store, load_run


def rerun(
    run: str | LoggedRun,
    *,
    tracking_uri: str | None = None,
    model: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    pairs: Sequence[int] | None = None,
    **changes: Argument,
) -> list[Rerun]:
    """Repeat a logged causal or accuracy run, each cell of it where it is a study.

    Args:
        run: a run, its id, the beginning of its id, or its name.
        tracking_uri: the store that it is in, and that the repetition is logged to.
        model: other weights than those that the run names; the same ones in another place are no change.
        dtype, device: other than logged. The programs and the question stay, so there is a verdict all the same.
        pairs: numbers of pairs (of samples, in an accuracy run) to which the repetition is limited.
        changes: fields of :class:`debug.plan.Plan`; in accuracy runs of :class:`debug.core.ExperimentConfig`,
            and backend, batch_size, quantization, engine_args, base_url and price, which are no change of the question
            either. Nor is a program_generator or answer_parser of the logged name: of functions that are not this
            project's a log holds no more than that, and needs them again (the generator for solved examples only).

    Raises:
        RerunError: it cannot be repeated; the message says what is missing.
        debug.tracking.TrackingError: there is no such run, or its artifacts are broken.
    """
    logged = run if isinstance(run, LoggedRun) else Store(tracking_uri).load_run(run)
    cells = logged.children if logged.role == "study" else [logged]
    repeat = _REPEAT.get(logged.kind or "")
    if repeat is None or not cells:
        raise RerunError(
            f"run {logged.run_id} is of kind {logged.kind!r} and has {len(cells)} cells; what can be repeated are runs "
            f"of kind {', '.join(_REPEAT)}"
        )
    return [_rerun_cell(cell, repeat, model, dtype, device, pairs, changes) for cell in cells]


def _rerun_cell(
    cell: LoggedRun,
    repeat: Callable[..., str],
    model: str | None,
    dtype: str | None,
    device: str | None,
    pairs: Sequence[int] | None,
    changes: dict[str, Argument],
) -> Rerun:
    named = {"model": model, "dtype": dtype, "device": device, "pairs": pairs and list(pairs)}
    asked = {name: value for name, value in named.items() if value is not None} | changes
    tags = {"debug.rerun_of": cell.run_id} | (
        {"debug.rerun_changes": json.dumps(asked, default=name_of)} if asked else {}
    )
    run_id = repeat(
        cell,
        model or model_of(cell),
        {"dtype": dtype or cell.params.get("dtype"), "device": device or _device_of(cell)},
        pairs,
        changes,
        tags,
    )
    new = load_run(run_id, cell.store.uri)
    weights = {run.tags.get("debug.weights_digest") for run in (cell, new)}
    own = {
        "program_generator": "generator",
        "answer_parser": "answer_parser",
    }  # functions, known to a log by name alone
    same = {name for name, param in own.items() if name in changes and name_of(changes[name]) == cell.params.get(param)}
    question = changes.keys() - RUNNER.keys() - same
    if question or pairs is not None or (model is not None and len(weights) > 1):
        return Rerun(cell.run_id, run_id, None, tuple(measured_otherwise(asked, cell, new, pairs)))
    compare = compare_samples if cell.kind == "accuracy" else compare_maps
    outcome, findings = compare(cell, new)
    verdict = Verdict(outcome, findings, differences(cell.environment, new.environment))
    new.store.set_tags(run_id, {"debug.rerun_verdict": str(verdict)[:8000]})
    return Rerun(cell.run_id, run_id, verdict)


def _device_of(cell: LoggedRun) -> str | None:
    """The run's device where this machine has it; else this machine's own choice, which the verdict then names.

    A log does not choose where programs and a key are sent: that is the caller's device.
    """
    device = cell.params.get("device")
    if is_remote(device) and device != LOCAL:
        raise RerunError(
            f"run {cell.run_id} was run on {device}; a log does not choose where programs and "
            "a key are sent, so name the server yourself where you trust it (--ndif-host URL, or --remote)"
        )
    return None if device is None or (device.startswith("cuda") and not torch.cuda.is_available()) else device


_REPEAT: dict[str, Callable[..., str]] = {
    **dict.fromkeys(("causal_tracing", "attention_knockout", "attribution"), repeat_causal),
    "accuracy": repeat_accuracy,
}
"""By kind of run."""
