"""Mutation run: each known fault is put into a copy of the source, and the tests named beside it must fail.

    python tests/mutants.py                      # all; some minutes
    python tests/mutants.py --list
    python tests/mutants.py --only padding       # those whose name holds a word
    python tests/mutants.py --since HEAD~5 --minutes 2    # those whose file, or tests, changed since a commit

A mutant is data: the text that it replaces, which must stand in its file exactly once, and the tests that are asked.
They are run on a copy of the package, first unchanged (they must pass), then with the fault. Prints a table in Markdown
(docs/mutants.md holds one); exit status 1 where a mutant survives.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src/debug")
IMPORTED = ["pytest", "hypothesis", "anyio._backends._asyncio", "debug.paper", "debug.rerun", "debug.robust_seeds"]
"""Once, for all that they import: the processes that run tests are forks of one that has it. What anyio needs comes
before nnsight, which gives every object a ``save``."""


class Mutant(NamedTuple):
    """A fault that the tests must see."""

    name: str
    file: str
    """In the package."""
    original: str
    fault: str
    tests: str
    """What pytest is given, separated by spaces: files, or tests in them."""
    said: str = ""
    """What the test that fails must say: where the fault must be seen by a check of the library's own, its error."""

    def source(self) -> str:
        """The file with the fault in it; raises ValueError where the text does not stand there exactly once."""
        text = (ROOT / PACKAGE / self.file).read_text("utf-8")
        if (times := text.count(self.original)) != 1:
            raise ValueError(f"mutant {self.name!r}: stands {times} times in {self.file}, not once:\n{self.original}")
        return text.replace(self.original, self.fault)


ANSWERS: Sequence[Mutant] = (
    Mutant(
        "left padding is seen",
        "models/transformers_model.py",
        "[1] * len(shared) + [0] * n + [1] * (width - n)",
        "[1] * len(shared) + [1] * n + [1] * (width - n)",
        "tests/test_batch_attention.py::test_a_batch_answers_as_each_prompt_alone_does[llama]",
    ),
    Mutant(
        "left padding is seen by the attention of batches",
        "models/cpu/batch_attention.py",
        "allowed = attention_mask[..., -own:]",
        "allowed = torch.ones(tokens, own, dtype=torch.bool).tril(own - tokens).expand(rows, 1, -1, -1)",
        "tests/test_batch_attention.py::test_a_batch_answers_as_each_prompt_alone_does[llama]",
    ),
    Mutant(
        "one token more than the window is read",
        "models/prompting.py",
        "n_tokens + room > self.window:",
        "n_tokens + room > self.window + 1:",
        "tests/test_models.py::test_a_prompt_and_what_follows_it_may_fill_the_window_and_no_more",
    ),
    Mutant(
        "the last token of the window is never used",
        "models/prompting.py",
        "n_tokens + room > self.window:",
        "n_tokens + room >= self.window:",
        "tests/test_models.py::test_a_prompt_and_what_follows_it_may_fill_the_window_and_no_more",
    ),
    Mutant(
        "a causal run's prompts may be longer than the window",
        "causal_tracing/pairs.py",
        "        self.model.check_window(max(len(own.token_ids), len(other.token_ids)))\n",
        "",
        "tests/test_answers.py::test_a_prompt_beyond_the_models_window_is_a_skipped_pair_with_the_reason",
    ),
    Mutant(
        "a space that merges with the answer stays at the prompt's end",
        "prompts/answers.py",
        'if not prompt.endswith(" ") or not merges(prompt, answers):',
        "if True:",
        "tests/test_answers.py::test_a_vocabulary_with_the_space_in_the_number_runs_end_to_end",
    ),
    Mutant(
        "of two forms the first is ranked, whichever the model writes",
        "models/prompting.py",
        "best = int(seen[index].argmax())",
        "best = 0",
        "tests/test_answers.py::test_such_a_model_is_ranked_and_generates_behind_the_same_prompt",
    ),
    Mutant(
        "the plain passes of self-checks drop activations of a model in training",
        "models/transformers_model.py",
        "            module.training = False",
        "            module.training = True",
        "tests/test_models.py::test_a_model_left_in_training_mode_answers_as_in_evaluation_and_stays_in_training",
    ),
    Mutant(
        "the whole effects of pairs without a target are counted",
        "causal_map/mean.py",
        "whole[self._overall_of], weights",
        "whole[: len(weights)], weights",
        "tests/test_mean_map.py::test_a_pair_without_a_target_counts_in_no_share",
    ),
    Mutant(
        "only the configured tokens end a text",
        "prompts/tokenization.py",
        "return {*ends, tokenizer.eos_token_id, turn_end(tokenizer)} - {None}",
        "return ends or {tokenizer.eos_token_id, turn_end(tokenizer)} - {None}",
        "tests/test_tokenization.py::test_ends_are_those_of_the_configuration_the_tokenizer_and_the_template",
    ),
    Mutant(
        "a text of logits that are not finite is read",
        "models/transformers_model.py",
        "yield index, tokens if finite >= min(own, len(tokens)) else None",
        "yield index, tokens",
        "tests/test_models.py::test_only_a_prompt_whose_logits_are_not_finite_has_an_error[3]",
    ),
    Mutant(
        "scores that are not finite are read",
        "models/prompting.py",
        "if not of_answers.isfinite().all():",
        "if False:",
        "tests/test_models.py::test_only_a_prompt_whose_logits_are_not_finite_has_an_error[3]",
    ),
    Mutant(
        "an error counts as a wrong answer",
        "runner/asking.py",
        '"correct": None if unread else correct,',
        '"correct": correct,',
        "tests/test_runner.py::test_a_prompt_longer_than_the_models_window_is_an_error_of_that_sample",
    ),
    Mutant(
        "a pair whose logits are not finite is measured",
        "causal_tracing/experiment.py",
        "if not group.is_finite(number):",
        "if False:",
        "tests/test_causal_tracing.py::test_only_pairs_whose_logits_are_not_finite_are_skipped[plan0]",
    ),
    Mutant(
        "patched logits that are not finite become zeros",
        "engine/forward.py",
        "if not logits.isfinite().all():",
        "logits = logits.nan_to_num(0, 0, 0)\n        if False:",
        "tests/test_engine.py::test_logits_that_are_not_finite_are_refused",
    ),
)
PROVENANCE: Sequence[Mutant] = (
    Mutant(
        "the weights' digest is of what lies on the disk when it is asked for",
        "models/prompting.py",
        "return self.files_digest or self._parameters_digest()",
        "return files_digest(_weight_files(self.path)) if self.files_digest else self._parameters_digest()",
        "tests/test_weights.py::test_a_digest_that_is_asked_for_later_is_of_what_was_read",
    ),
    Mutant(
        "missing weights are random",
        "models/weights.py",
        '{"missing, and would be random": report["missing_keys"], "unknown to it"',
        '{"unknown to it"',
        "tests/test_weights.py::test_files_that_are_not_the_architectures_weights_are_refused_by_name[missing]",
    ),
    Mutant(
        "a cell that is added later inherits what made the study",
        "tracking/store.py",
        "if name not in NOT_INHERITED and not heartbeat.is_tag(name)}\n"
        "        return self._join(earlier, own | tags_of_process(),",
        "}\n        return self._join(earlier, own,",
        "tests/test_tracking.py::test_a_cell_that_is_added_later_says_what_made_it_and_not_what_made_the_study",
    ),
    Mutant(
        "a cell that is added later inherits the commit of before where it has none",
        "tracking/contract.py",
        "*(SUPERSEDED, MIXED, *provenance.OF_PROCESS),",
        "*(SUPERSEDED, MIXED),",
        "tests/test_tracking.py::test_a_cell_that_is_added_later_says_what_made_it_and_not_what_made_the_study",
    ),
)
NUMBERS: Sequence[Mutant] = (
    Mutant(
        "what is called the MLP is the norm before the attention",
        "models/architectures.py",
        'mlp: str = "mlp"',
        'mlp: str = "input_layernorm"',
        "tests/test_plain_hooks.py::test_every_cell_equals_a_hook[llama-mlp]",
    ),
    Mutant(
        "what may not be seen is seen a little",
        "models/transformers_model.py",
        "return zero.where(allowed, lowest)[:, None]",
        "return zero.where(allowed, -5.0)[:, None]",
        "tests/test_plain_hooks.py::test_every_edge_equals_a_hook[gpt2-heads1]",
    ),
    Mutant(
        "every site of an intervention has the first one's source",
        "engine/forward.py",
        "packed.token(index, p), site.source, p, site.heads)",
        "packed.token(index, p), intervention.patched[0].source, p, site.heads)",
        "tests/test_several_sources.py::test_sites_from_three_programs_equal_hooks[llama-mlp]",
    ),
    Mutant(
        "frozen sites are not written",
        "engine/forward.py",
        "if tail is None or site.layer != layer:",
        "if site.source != intervention.base and (tail is None or site.layer != layer):",
        "tests/test_several_sources.py::test_all_later_parts_frozen_leave_the_direct_path[llama-mlp]",
    ),
    Mutant(
        "robust seed ignores the counterfactual",
        "robust_seeds/searching.py",
        "all(wrong if search.all_incorrect else correct)",
        "(wrong if search.all_incorrect else correct)[0]",
        "tests/test_robust_seeds.py::test_a_seed_counts_only_where_both_its_programs_are_as_asked_for",
    ),
    Mutant(
        "a search for seeds asks its first batches again",
        "robust_seeds/searching.py",
        "of_batch = known[len(records) : len(records) + len(batch)]",
        "of_batch = []",
        "tests/test_resuming.py::test_a_search_for_seeds_goes_on_within_its_cell",
    ),
    Mutant(
        "metrics are told again by whoever takes a run up",
        "tracking/writing.py",
        "if self._said.get((name, step or 0)) != float(value):",
        "if True:",
        "tests/test_resuming.py::test_metrics_that_were_logged_when_a_process_was_killed_are_not_logged_twice",
    ),
    Mutant(
        "a kill cuts off what a training folder has logged",
        "training/loop.py",
        'partial.write_text(text, "utf-8")',
        'path.write_text(text, "utf-8")',
        "tests/test_training.py::test_what_a_kill_or_a_full_disk_cuts_off_leaves_the_file_that_was_there",
    ),
    Mutant(
        "accuracy on the counterfactuals is that on the originals",
        "causal_experiment_runner/gathering.py",
        "wilson(sum(pair[which] for pair in self.correct), n) for which in (0, 1)",
        "wilson(sum(pair[which] for pair in self.correct), n) for which in (0, 0)",
        "tests/test_causal_experiment_runner.py::test_accuracies_are_those_of_the_pairs_asked_for_original_and_counterfactual",
    ),
    Mutant(
        "accuracy counts replacement pairs",
        "causal_experiment_runner/gathering.py",
        'and len(self.correct) < self.params["num_seqs"]',
        "",
        "tests/test_causal_experiment_runner.py::test_accuracies_are_those_of_the_pairs_asked_for_original_and_counterfactual",
    ),
    Mutant(
        "weights move no mean",
        "statistics/intervals.py",
        "means = weight @ values / weight.sum()",
        "means = values.mean(axis=0)",
        "tests/test_statistics.py::test_weights_move_the_mean_and_its_interval",
    ),
    Mutant(
        "weights move no interval of shares",
        "statistics/intervals.py",
        "shares = of_shares(np.round(np.clip((values - low) / (high - low), 0, 1), 12), weight)",
        "shares = of_shares(np.round(np.clip((values - low) / (high - low), 0, 1), 12), np.ones(n))",
        "tests/test_statistics.py::test_weights_move_the_mean_and_its_interval",
    ),
    Mutant(
        "weights move no interval of other values",
        "statistics/intervals.py",
        "ends = _of_any(values, weight, confidence)",
        "ends = _of_any(values, np.ones(n), confidence)",
        "tests/test_statistics.py::test_a_weighted_mean_is_as_uncertain_as_the_jackknife_has_it",
    ),
    Mutant(
        "the means of maps take no weights",
        "causal_map/means.py",
        "is_rate=is_rate, weights=weights)",
        "is_rate=is_rate)",
        "tests/test_causal_tracing.py::test_rates_are_successes_over_interventions_where_pairs_have_different_targets",
    ),
    Mutant(
        "the peak is the last of equals",
        "causal_map/routes.py",
        "row = max(chosen, key=",
        "row = max(reversed(chosen), key=",
        "tests/test_mean_map.py::test_of_equal_layers_the_first_is_the_peak",
    ),
    Mutant(
        "the peak is measured on the pairs that choose it",
        "causal_map/routes.py",
        "mean_of(True, rows[1::2, row]), chosen[row])",
        "mean_of(True, rows[::2, row]), chosen[row])",
        "tests/test_mean_map.py::test_the_peak_is_chosen_on_pairs_of_even_number_and_measured_on_the_others",
    ),
    Mutant(
        "the attention of several tokens is the largest",
        "engine/attention_patterns.py",
        "program.positions(target)].mean(2)",
        "program.positions(target)].max(2)",
        "tests/test_paper.py::test_the_attention_of_several_tokens_is_their_mean",
    ),
    Mutant(
        "a number drawn by chance may be the right one",
        "paper/strategies.py",
        'right, others = by["dereferencing"], by["any number"] - by["dereferencing"]\n        if answer not in others:',
        'right, others = by["dereferencing"], by["any number"]\n        if answer not in others - right:',
        "tests/test_strategies.py",
    ),
    Mutant(
        "a heuristic may give a wrong answer that is right",
        "paper/strategies.py",
        "found = by[name] - right",
        "found = by[name]",
        "tests/test_strategies.py",
    ),
    Mutant(
        "a line drawn by chance may lead to the right number",
        "paper/strategies.py",
        "values = [value for value in values if value not in right]",
        "",
        "tests/test_strategies.py",
    ),
    Mutant(
        "a success that flips is within tolerance",
        "rerun/causal.py",
        "DIFFERENT if flipped or controls or answers or",
        "DIFFERENT if controls or answers or",
        "tests/test_rerun.py::test_an_outcome_that_flips_is_different_however_little_the_logits_moved",
    ),
    Mutant(
        "an outcome of the control that flips is within tolerance",
        "rerun/causal.py",
        "DIFFERENT if flipped or controls or answers or",
        "DIFFERENT if flipped or answers or",
        "tests/test_rerun.py::test_an_outcome_that_flips_is_different_however_little_the_logits_moved",
    ),
    Mutant(
        "an answer that flips is within tolerance",
        "rerun/causal.py",
        "DIFFERENT if flipped or controls or answers or",
        "DIFFERENT if flipped or controls or",
        "tests/test_rerun.py::test_an_outcome_that_flips_is_different_however_little_the_logits_moved",
    ),
)
SOURCES: Sequence[Mutant] = (
    Mutant(
        "the control is skipped where the counterfactual does not differ yet",
        "causal_tracing/patching.py",
        "group.interventions(number, group.control_row[number], first)",
        "group.interventions(number, group.control_row[number])",
        "tests/test_causal_tracing.py::test_the_control_runs_where_its_own_program_differs_first",
    ),
    Mutant(
        "each pair's control is another pair's",
        "causal_tracing/patching.py",
        "group.interventions(number, group.control_row[number], first)",
        "group.interventions(number, group.control_row[max({*group.control_row} - {number}, default=number)], first)",
        "tests/test_causal_tracing.py::test_the_control_is_the_same_patch_from_a_program_of_the_same_answer[plan0]",
    ),
    Mutant(
        "each pair is patched from the next pair's counterfactual",
        "causal_tracing/group.py",
        "self.source_row[number] = len(given) + number",
        "self.source_row[number] = len(given) + (number + 1) % len(given)",
        "tests/test_causal_tracing.py::test_each_pair_is_patched_from_its_own_counterfactual",
    ),
    Mutant(
        "each number of a map is the next square's",
        "causal_tracing/patching.py",
        "interventions.append(intervention)\n                where.append((number, False, at))",
        "where.append((number, False, at))\n                interventions.insert(-1, intervention)",
        "tests/test_causal_tracing.py::test_each_pair_is_patched_from_its_own_counterfactual",
    ),
    Mutant(
        "a row of a map is patched one layer up",
        "causal_tracing/group.py",
        "Site(plan.intervention_type, at, tuple(column), heads, source=row) for at in layers",
        "Site(plan.intervention_type, min(at + 1, 3), tuple(column), heads, source=row) for at in layers",
        "tests/test_causal_tracing.py::test_each_pair_is_patched_from_its_own_counterfactual",
    ),
    Mutant(
        "a pair's own program is in its mean",
        "causal_tracing/reference.py",
        "(total - times * at.double() - again * other.double()) / len(others)",
        "total / len(every)",
        "tests/test_causal_tracing.py::test_a_pairs_own_program_is_not_in_its_mean[into_original]",
    ),
    Mutant(
        "a pair may be resampled from its own program",
        "causal_tracing/reference.py",
        "[each for each in alike if each[1].token_ids not in left_out]",
        "[*alike]",
        "tests/test_causal_tracing.py::test_a_pair_alone_has_no_other_to_patch_from[mean]",
    ),
    Mutant(
        "a partner may have an answer of the pair",
        "causal_tracing/reference.py",
        "others = [each for each in others if each[0].answer not in answers]",
        "others = list(others)",
        "tests/test_causal_tracing.py::test_no_partner_has_an_answer_of_the_pair",
    ),
    Mutant(
        "random edges cut the queried chain",
        "attention_knockout.py",
        "free = sorted(edge for edge in every - edges if not chain.issuperset(edge))",
        "free = sorted(every - edges)",
        "tests/test_attention_knockout.py::test_the_random_control_cuts_as_many_other_edges",
    ),
    Mutant(
        "random edges have any distance",
        "attention_knockout.py",
        "own.sort(key=lambda edge: (abs((query - key) - (edge[0] - edge[1])), abs(query - edge[0])))",
        "",
        "tests/test_attention_knockout.py::test_random_edges_have_the_distance_and_where_asked_the_mass_of_those_that_are_cut",
    ),
    Mutant(
        "random edges have any mass",
        "attention_knockout.py",
        "chosen.add(min(some, key=lambda edge: abs(mass[edge] - mass[query, key])))",
        "chosen.add(some[0])",
        "tests/test_attention_knockout.py::test_random_edges_have_the_distance_and_where_asked_the_mass_of_those_that_are_cut",
    ),
)


def redirected(test: str, component: str, name: str, file: str, original: str, fault: str) -> Mutant:
    """The engine writes, or cuts, beside the place that it was told: a run's own self-checks must end it."""
    tests = f"tests/test_self_checks.py::{test}[qwen3_sliding-{component}]"
    return Mutant(f"{component}: {name}", file, original, fault, tests, "SelfCheckError")


_HITS = "row, token, source, position, heads = (list(column) for column in zip(*hits, strict=True))"
PARTS = ("attention_heads", "attention", "mlp")
KNOCKOUT = "attention_knockout"
REDIRECTIONS: Sequence[tuple[Sequence[str], str, str, str, str]] = (
    (
        ("residual_stream", *PARTS),
        "the layer below's activation is written",
        "engine/writing.py",
        "stored = passes.activations[component][layer]",
        "stored = passes.activations[component][layer - 1]",
    ),
    (
        ("residual_stream", *PARTS),
        "the next position's activation is written",
        "engine/writing.py",
        _HITS,
        f"{_HITS}\n    position = [(p + 1) % passes.length for p in position]",
    ),
    (
        ("residual_stream", *PARTS),
        "another forward pass's activation is written",
        "engine/writing.py",
        _HITS,
        f"{_HITS}\n    source = [(s + 1) % len(passes) for s in source]",
    ),
    (
        ("residual_stream", *PARTS),
        "the next row of the batch is written to",
        "engine/writing.py",
        _HITS,
        f"{_HITS}\n    row = [(r + 1) % value.shape[0] for r in row]",
    ),
    (
        ("residual_stream", *PARTS),
        "the next position is written to",
        "engine/packing.py",
        "return row, offset + position - self.interventions[intervention].start",
        "return row, offset + position - self.interventions[intervention].start + (position < self.length - 1)",
    ),
    (
        ("residual_stream", *PARTS, KNOCKOUT),
        "each intervention has the next one's logits",
        "engine/forward.py",
        "logits = model.logits.save()\n    return logits[0].float()",
        "logits = model.logits.save()\n    return logits[0].float().roll(1, 0)",
    ),
    (
        ("residual_stream", *PARTS, KNOCKOUT),
        "the clean prefix is another forward pass's",
        "engine/forward.py",
        "(keys[of_rows, :, :prefix], values[of_rows, :, :prefix])",
        "(keys[of_rows - 1, :, :prefix], values[of_rows - 1, :, :prefix])",
    ),
    (
        ("residual_stream", *PARTS, KNOCKOUT),
        "interventions start from another forward pass's hidden states",
        "engine/forward.py",
        '["residual_stream"][entry][row_bases[:, None], positions]',
        '["residual_stream"][entry][row_bases[:, None] - 1, positions]',
    ),
    (
        (*PARTS, KNOCKOUT),
        "in the last layer each intervention has the next one's MLP and attention",
        "engine/forward.py",
        "full[lasts] = output[0]",
        "full[lasts] = output[0].roll(1, 0)",
    ),
    (
        PARTS,
        "a position that runs alone reads the next position's clean state",
        "engine/writing.py",
        "self.positions.append(position)",
        "self.positions.append((position + 1) % packed.length)",
    ),
    (
        PARTS,
        "what ran alone is put back at another's place",
        "engine/forward.py",
        "hidden[tail.rows, tail.tokens] =",
        "hidden[tail.rows[1:] + tail.rows[:1], tail.tokens[1:] + tail.tokens[:1]] =",
    ),
    (
        PARTS,
        "what is recorded is the next layer's",
        "engine/unpatched.py",
        "logits = logits[:, -1].float().to(model.device)",
        "logits = logits[:, -1].float().to(model.device)\n"
        "    kept |= {name: kept[name][1:] + kept[name][:1] for name in {*kept} - {'residual_stream'}}",
    ),
    (
        PARTS,
        "what is recorded is the next position's",
        "engine/unpatched.py",
        "logits = logits[:, -1].float().to(model.device)",
        "logits = logits[:, -1].float().to(model.device)\n"
        "    kept |= {name: [at.roll(1, 1) for at in kept[name]] for name in {*kept} - {'residual_stream'}}",
    ),
    (
        ("attention_heads",),
        "the next head is written to",
        "engine/writing.py",
        "(every if of_hit is None else of_hit)",
        "([(h + 1) % len(every) for h in every if of_hit is None or h in of_hit])",
    ),
    (
        ("attention_heads",),
        "the next head's activation is written",
        "engine/writing.py",
        "= slices[hit, head]",
        "= slices[hit, [(h + 1) % model.n_heads for h in head]]",
    ),
    (
        (KNOCKOUT,),
        "the next layer's edges are cut",
        "engine/forward.py",
        "cuts[site.layer].append((index, site))",
        "cuts[min(site.layer + 1, n_layers - 1)].append((index, site))",
    ),
    (
        (KNOCKOUT,),
        "the next head's edges are cut",
        "engine/writing.py",
        "chosen = range(model.n_heads) if cut.heads is None else cut.heads",
        "chosen = range(model.n_heads) if cut.heads is None else [(head + 1) % model.n_heads for head in cut.heads]",
    ),
    (
        (KNOCKOUT,),
        "the next query's edges are cut",
        "engine/writing.py",
        "[offset + q - intervention.start for q, _ in cut.edges]",
        "[offset + min(q + 1, packed.length - 1) - intervention.start for q, _ in cut.edges]",
    ),
    (
        (KNOCKOUT,),
        "edges to the key before are cut",
        "engine/writing.py",
        "if k >= intervention.start else k for _, k in cut.edges]",
        "if k >= intervention.start else max(k - 1, 0) for _, k in cut.edges]",
    ),
    (
        (KNOCKOUT,),
        "edges to the keys of an intervention's own tokens go one token beside them",
        "engine/writing.py",
        "[prefix + offset + k - intervention.start if",
        "[max(0, prefix - 1) + offset + k - intervention.start if",
    ),
    (
        (KNOCKOUT,),
        "edges of the next row of the batch are cut",
        "engine/writing.py",
        "row, offset = packed.offsets[index]",
        "row, offset = (packed.offsets[index][0] + 1) % len(packed.bases), packed.offsets[index][1]",
    ),
)
JOINT: Sequence[tuple[Sequence[str], str, str, str, str]] = (
    (
        ("residual_stream", *PARTS),
        "of several positions only the first is patched",
        "engine/forward.py",
        "packed.token(index, p), site.source, p, site.heads) for p in site.positions",
        "packed.token(index, p), site.source, p, site.heads) for p in site.positions[:1]",
    ),
    (
        PARTS,
        "of several positions that run alone only the first is patched",
        "engine/writing.py",
        "for position in site.positions:\n            at = packed.token",
        "for position in site.positions[:1]:\n            at = packed.token",
    ),
    (
        ("residual_stream", *PARTS),
        "of several layers only the first is patched",
        "engine/forward.py",
        "if tail is None or site.layer != layer:",
        "if site.layer == intervention.layer and (tail is None or site.layer != layer):",
    ),
)
RIVALS: Sequence[Mutant] = (
    Mutant(
        "hypotheses are scored on pairs on which all predict the same",
        "hypotheses/scoring.py",
        "if len({*tokens.values()}) < 2:",
        "if not tokens:",
        "tests/test_hypotheses.py::test_pairs_on_which_all_predict_the_same_are_no_evidence",
    ),
    Mutant(
        "a hypothesis that is not told from the next one wins",
        "hypotheses/scoring.py",
        "compared[other].p_value >= LEVEL]",
        "compared[other].p_value > 1]",
        "tests/test_hypotheses.py::test_the_winner_is_told_apart_by_mcnemars_test_or_it_is_a_tie",
    ),
    Mutant(
        "of a run into the counterfactual hypotheses are asked as of one into the original",
        "hypotheses/scoring.py",
        'pair.reversed if causal_map.direction == "into_counterfactual" else pair',
        "pair",
        "tests/test_hypotheses.py::test_of_a_run_into_the_counterfactual_hypotheses_are_asked_the_other_way_round",
    ),
    Mutant(
        "candidates' logits stand under other answers",
        "causal_tracing/patching.py",
        "(of[0] for of in one.candidates.values())]",
        "(of[0] for of in reversed(list(one.candidates.values())))]",
        "tests/test_hypotheses.py::test_logits_of_all_candidates_are_those_of_the_patched_run",
    ),
    Mutant(
        "a pointer by order is looked up in the source's program",
        "hypotheses/models.py",
        "_root_of(original, original.assignments[root.line])",
        "_root_of(source, source.assignments[root.line])",
        "tests/test_hypotheses.py::test_the_published_example_is_a_pair_on_which_value_name_and_place_differ",
    ),
)
MUTANTS: Sequence[Mutant] = (
    *ANSWERS,
    *PROVENANCE,
    *NUMBERS,
    *SOURCES,
    *RIVALS,
    *(
        redirected(test, component, *change)
        for test, redirections in (
            ("test_a_run_passes_its_own_checks", REDIRECTIONS),
            ("test_a_run_of_joint_positions_and_layers_passes_its_own_checks", JOINT),
        )
        for components, *change in redirections
        for component in components
    ),
)


class Run(NamedTuple):
    """What pytest ended with (0: all tests passed, 1: some failed), the end of what it printed, and its seconds."""

    status: int
    output: str
    seconds: float


def run(tests: str, mutant: Mutant | None, end: float) -> Run | None:
    """The tests, on a copy of the package with the fault in it; None where they would begin after ``end``."""
    if time.time() > end:
        return None
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        package = Path(folder, "debug")
        shutil.copytree(ROOT / PACKAGE, package, ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
        (package / "checkpoints").symlink_to(ROOT / PACKAGE / "checkpoints")
        if mutant is not None:
            (package / mutant.file).write_text(mutant.source(), "utf-8")
        os.environ["PYTHONPATH"] = folder
        sys.path.insert(0, folder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "debug"]:
            del sys.modules[name]  # the copy's is imported instead
        os.chdir(ROOT)
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        import pytest

        status = int(pytest.main(["-x", "-p", "no:cacheprovider", "--no-header", "-W", "ignore", *tests.split()]))
        output.seek(0)
        return Run(status, output.read().decode(errors="replace")[-4000:], time.monotonic() - began)


def verdict(unchanged: Run | None, changed: Run | None, said: str = "") -> str:
    """``killed``, or what went otherwise: tests that fail without the fault tell nothing."""
    if unchanged is None or changed is None:
        return "not run"
    if unchanged.status != 0 or changed.status not in (0, 1):
        return "NOT ASKED"
    if changed.status == 0:
        return "SURVIVED"
    return "killed" if said in changed.output else "ANOTHER ERROR"


def changed_since(commit: str) -> set[str]:
    """Files that differ from those of a commit; none where git does not know it, as in a copy without its history."""
    command = ["git", "diff", "--name-only", "--relative", commit, "--"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError as error:
        print(f"no mutant is chosen: {error}")
        return set()
    if done.returncode:
        print(f"no mutant is chosen: {done.stderr.partition(chr(10))[0]}")
    return set(done.stdout.split())


def chosen(only: str, since: str | None) -> list[Mutant]:
    """Those whose name holds a word; first those whose file changed since a commit, then those whose tests did."""
    named = [mutant for mutant in MUTANTS if only in mutant.name]
    if since is None:
        return named
    changed = changed_since(since)
    of_source = [mutant for mutant in named if str(PACKAGE / mutant.file) in changed]
    of_tests = [mutant for mutant in named if changed & {name.partition("::")[0] for name in mutant.tests.split()}]
    return list(dict.fromkeys([*of_source, *of_tests]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only print their names")
    parser.add_argument("--only", default="", metavar="WORD", help="those whose name holds this")
    parser.add_argument("--since", metavar="COMMIT", help="those whose file or tests changed since this commit")
    parser.add_argument("--minutes", type=float, default=60, help="none is begun after so many (default 60)")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    mutants = chosen(options.only, options.since)
    if options.list:
        print("\n".join(f"{mutant.file}: {mutant.name}" for mutant in mutants))
        return 0
    end = time.time() + 60 * options.minutes
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    print("| file | mutant | verdict | seconds |\n| --- | --- | --- | ---: |")
    verdicts = []
    with ProcessPoolExecutor(options.processes, context, max_tasks_per_child=1) as pool:
        unchanged, changed = {}, {}
        for mutant in mutants:  # in this order, so that a run that ends early has whole verdicts
            if mutant.tests not in unchanged:
                unchanged[mutant.tests] = pool.submit(run, mutant.tests, None, end)
            changed[mutant.name] = pool.submit(run, mutant.tests, mutant, end)
        for mutant in mutants:
            before, after = unchanged[mutant.tests].result(), changed[mutant.name].result()
            verdicts.append(verdict(before, after, mutant.said))
            seconds = f"{after.seconds:.0f}" if after else ""
            print(f"| {mutant.file} | {mutant.name} | {verdicts[-1]} | {seconds} |", flush=True)
            if verdicts[-1] in ("NOT ASKED", "ANOTHER ERROR"):
                print((before if before and before.status else after or before).output, file=sys.stderr)
    bad = len(verdicts) - verdicts.count("killed") - verdicts.count("not run")
    print(
        f"\n{verdicts.count('killed')} of {len(mutants)} mutants killed, {bad} not, {verdicts.count('not run')} not run"
    )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
