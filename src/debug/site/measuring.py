"""What a training run's checkpoints answer, and causal maps of them, as runs in the store: for the views by step."""

from __future__ import annotations

from collections.abc import Sequence

from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.core import ExperimentConfig
from debug.runner import ExperimentRunner
from debug.site.checkpoints import Checkpoints

PAIRS = 12
"""Pairs of programs of which each checkpoint's maps are made."""


def measure_checkpoints(
    checkpoints: Checkpoints,
    num_seqs: int,
    *,
    hops: Sequence[int] = (1, 2, 3, 4),
    seq_len: int = 17,
    pairs: int = PAIRS,
) -> None:
    """Ask every checkpoint the same programs, and patch each one's residual stream and heads: three studies.

    A study that is there already (finished, on all checkpoints) is left as it is. Early checkpoints answer hardly any
    program, so pairs are traced whether or not both programs are answered.

    Args:
        num_seqs: programs of each number of hops.
        pairs: pairs of three hops (or of the deepest, where that is less) on five lines.

    Raises:
        InputError: the numbers are none that a study can have.
        TrackingError: the store cannot be written.
    """
    folders = [str(folder) for folder in checkpoints.folders.values()]
    if not folders:
        return
    uri, name = checkpoints.training.store.uri, f"checkpoints of {checkpoints.training.run_id[:8]}"
    if len(checkpoints.made_with("accuracy")) < len(folders):
        config = ExperimentConfig(
            name, "VARIABLE_BINDING", "variable_binding", folders, num_seqs, [seq_len], list(hops), max_new_tokens=2
        )
        ExperimentRunner(uri).run(config, no_cache=True)
    depth, lines = min(3, max(hops)), min(5, seq_len)
    for component in ("residual_stream", "attention_heads"):
        if len(checkpoints.made_with("causal_tracing", component)) < len(folders):
            plan = CausalConfig(
                component,
                positions="targets",
                require_correct=False,
                models=folders,
                num_seqs=pairs,
                hops=[depth],
                seq_lens=[lines],
                name=name,
            )
            CausalExperimentRunner(uri).run(plan)
