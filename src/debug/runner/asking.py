"""Programs into a model, and a record of each answer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from debug.core import ExperimentConfig, cut_off, parse_answer
from debug.errors import DebugError
from debug.generators import GeneratedProgram
from debug.kinds import Json
from debug.models.heuristics import Heuristic
from debug.prompts import fill, get_prompt, without_final_space
from debug.runner.programs import Drawn
from debug.runner.scoring import COUNTED

if TYPE_CHECKING:  # rules alone cost no torch
    from debug.models import LoadedModel, ServedModel, VllmModel
    from debug.models.replies import Completion, Scores

    Model = LoadedModel | VllmModel | ServedModel | Heuristic


_NO_SAMPLE = dict.fromkeys(("hops", "program", "prompt", "expected", "raw_output", "parsed", "correct", "chain"), None)


def records_of(
    model: Model,
    drawn: Drawn,
    config: ExperimentConfig,
    seq_len: int,
    batch_size: int,
    known: Sequence[dict[str, Json]] = (),
) -> Iterator[dict[str, Json]]:
    """The record of each sample that is not known yet, as batches finish; fields as the tracking contract has them.

    ``correct`` is null where there is an error that kept the sample from being asked or read. Batches are those that
    all samples make, so that what is known changes no number; one that is known as a whole is not run.
    """
    seeds = {record["seed"] for record in known}
    for failure in drawn.failed:
        if failure.seed in seeds:
            continue
        yield {"seed": failure.seed, "seq_len": seq_len} | _NO_SAMPLE | {"error": failure.error}
    programs = drawn.programs
    prompts = given(model, drawn.template, [program.program for program in programs])
    done = {index for index, program in enumerate(programs) if program.seed in seeds}
    answers: Iterator[tuple[int, dict[str, Json]]]
    if config.scoring == "logits":
        answers = _ranked(model, prompts, programs, batch_size, done)
    else:
        answers = _written(model, prompts, config, batch_size, done)
    for index, answer in answers if len(done) < len(programs) else ():
        program = programs[index]
        if index in done:
            continue
        parsed, unread = answer["parsed"], answer.pop("unread")
        correct = type(parsed) is type(program.answer) and parsed == program.answer  # True is not 1
        yield {
            "seed": program.seed,
            "seq_len": program.seq_len,
            "hops": program.hops,
            "program": program.program,
            "prompt": _sent(model, prompts[index], config),
            "expected": program.answer,
            "chain": program.metadata.get("chain"),
            **answer,
            "correct": None if unread else correct,
        }


def suited_to(model: Model, config: ExperimentConfig, drawn: Drawn) -> tuple[ExperimentConfig, Drawn]:
    """Both with the template without its final space, where the model's vocabulary has that in the answers' tokens."""
    if isinstance(model, Heuristic) or config.chat or not drawn.programs:
        return config, drawn
    possible = [str(answer) for answer in _possible(drawn.programs)]
    template = model.suited(config.prompt_template, drawn.programs[0].program, possible)
    if template == config.prompt[1]:
        return config, drawn
    config = replace(config, prompt_template=without_final_space(config.prompt_template))
    return config, replace(drawn, template=get_prompt(without_final_space(drawn.template))[1])


def given(model: Model, template: str, programs: Sequence[str]) -> list[str]:
    """What a model is given of each program: the prompt; a heuristic is given the program."""
    return [program if isinstance(model, Heuristic) else fill(template, program) for program in programs]


def _sent(model: Model, prompt: str, config: ExperimentConfig) -> str:
    """The text that the model was given."""
    try:
        return prompt if isinstance(model, Heuristic) else model.rendered(prompt, chat=config.chat)
    except DebugError:  # no chat template: the sample's error says so
        return prompt


def _written(
    model: Model, prompts: list[str], config: ExperimentConfig, batch_size: int, done: Collection[int]
) -> Iterator[tuple[int, dict[str, Json]]]:
    """Answers parsed from what the model writes."""
    assert config.max_new_tokens is not None
    how = {"max_new_tokens": config.max_new_tokens, "batch_size": batch_size, "chat": config.chat}
    completions = model.generate(prompts, **how, done=done)
    for index, completion in completions:
        if completion.error is not None:
            yield index, {"raw_output": None, "parsed": None, "error": completion.error, "unread": True}
            continue
        parsed, error, unread = None, None, False
        if not completion.ended and cut_off(config.parser[1], completion.text):
            error = f"no end after {config.max_new_tokens} tokens, and the answer comes last; raise max_new_tokens"
        else:
            try:
                parsed = parse_answer(config.parser[1], completion.text)
            except DebugError as failure:
                error, unread = str(failure), True
        if not completion.text.strip():
            error = error or "the model wrote nothing"
        answer = {"raw_output": completion.text, "parsed": parsed, "error": error, "unread": unread}
        yield index, answer | _counted(completion)


def _counted(reply: Completion | Scores) -> dict[str, Json]:
    """Tokens, where a server counted them."""
    return {} if reply.tokens is None else dict(zip(COUNTED, reply.tokens, strict=True))


def _possible(programs: Sequence[GeneratedProgram]) -> list[Json]:
    """The answers that are ranked: the digits, True and False, or all answers of the cell's programs."""
    expected = {program.answer for program in programs}
    if all(isinstance(answer, bool) for answer in expected):
        return [False, True]
    if all(isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer <= 9 for answer in expected):
        return list(range(10))
    return sorted(expected, key=str)


def _ranked(
    model: Model, prompts: list[str], programs: list[GeneratedProgram], batch_size: int, done: Collection[int]
) -> Iterator[tuple[int, dict[str, Json]]]:
    """The most probable of the possible answers.

    ``answer_rank`` counts, from 1, the possible answers that are no less probable than the right one.
    """
    possible = _possible(programs)
    for index, scores in model.score(prompts, [str(answer) for answer in possible], batch_size=batch_size, done=done):
        if scores.error is not None:
            yield index, {"raw_output": None, "parsed": None, "error": scores.error, "unread": True}
            continue
        values = np.array(scores.log_probabilities)
        best = np.flatnonzero(values == values.max())
        right = possible.index(programs[index].answer)
        yield (
            index,
            {
                "raw_output": str(possible[best[0]]),
                "parsed": possible[best[0]] if len(best) == 1 else None,
                "error": None if len(best) == 1 else f"{len(best)} answers are equally probable",
                "unread": False,
                "answer_rank": int((values >= values[right]).sum()),
                "answer_probability": float(np.exp(values[right])),
            }
            | _counted(scores),
        )
