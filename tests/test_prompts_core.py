"""Templates, parsers, and the configuration of an accuracy experiment."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from debug import ExperimentConfig, generators, prompts, quick_experiment
from debug.core import (
    PARSERS,
    TASKS,
    answer_span,
    cut_off,
    parse_answer,
    parse_boolean,
    parse_integer,
    parse_last_boolean,
    parse_last_integer,
    parse_variable_binding,
)
from debug.kinds import Argument
from debug.programs import Program
from debug.prompts import few_shot, fill, get_prompt

# Templates


@given(st.text())
def test_a_program_goes_into_the_prompt_as_it_is_braces_and_all(program):
    assert fill(prompts.VARIABLE_BINDING, program) == program
    before, after = prompts.RANGE_TRACKING.split("{code}")
    assert fill(prompts.RANGE_TRACKING, program) == before + program + after


@pytest.mark.parametrize("name", prompts.PROMPTS)
def test_a_template_is_known_by_its_name_and_by_its_text(name):
    assert get_prompt(name) == (name, prompts.PROMPTS[name])
    assert get_prompt(prompts.PROMPTS[name])[1] == prompts.PROMPTS[name]


def test_texts_of_ones_own_are_told_apart():
    first, second = get_prompt("Run: {code}"), get_prompt("Do: {code}")
    assert first[0].startswith("custom-")
    assert first[0] != second[0]
    assert first == get_prompt("Run: {code}")


@pytest.mark.parametrize("template", ["", "Run this", "{code} {code}", "VARIABLE_BINDNIG"])
def test_a_template_without_exactly_one_place_for_the_program_is_refused(template):
    with pytest.raises(ValueError, match="expected it exactly once"):
        get_prompt(template)


def test_the_solved_examples_of_the_fixed_template_are_solved_correctly():
    *examples, question = prompts.FEW_SHOT_BINDING.split("\n\n")
    assert question == "{code}"
    programs = [Program.parse(example[: example.rindex(":") + 2]) for example in examples]
    assert [program.hops for program in programs] == [1, 2, 3]
    for example, program in zip(examples, programs, strict=True):
        assert example == f"{program.text}{program.answer}"
    seeds = {1: 900013, 2: 900021, 3: 900034}
    for program in programs:
        rng = np.random.RandomState(seeds[program.hops])
        assert generators.make_variable_binding_program(5, rng)[0] == program.text


def test_few_shot_examples_are_the_programs_of_their_seeds_with_their_answers():
    template = few_shot("variable_binding", seq_len=4, n=3, seed=70)
    drawn = islice(generators.search(generators.make_variable_binding_program, 4, 70), 3)
    assert template == "\n\n".join([*(f"{d.program}{d.answer}" for d in drawn), "{code}"])
    assert few_shot("range", 2, 1, 5, prompts.RANGE_TRACKING).count("The final value of x is:") == 2
    with pytest.raises(ValueError, match="n is 0"):
        few_shot("range", 2, 0, 5)


@pytest.mark.parametrize("name", generators.GENERATORS)
def test_solved_examples_of_every_task_are_different_and_solved_as_its_parser_reads_them(name):
    template, parser = TASKS[name]
    text = few_shot(name, 4, 3, template=template)
    before, after = prompts.PROMPTS[template].split("{code}")
    *examples, question = text.split("\n\n" + before) if before else text.split("\n\n")
    assert question == "{code}" + after
    assert len(set(examples)) == 3
    solved = [made for made, _ in zip(generators.search(generators.GENERATORS[name], 4, 900_000), range(60))]  # noqa: B905
    answers = {made.program: made.answer for made in solved}
    for example in examples:
        example = example.removeprefix(before)
        [program] = [program for program in answers if example.startswith(program + after)]
        assert PARSERS[parser](example.removeprefix(program + after)) == answers[program]


def test_examples_are_not_given_where_they_cannot_be():
    with pytest.raises(ValueError, match="range gave 9 different programs of 2 lines; 10 were asked for"):
        few_shot("range", 2, 10)
    with pytest.raises(ValueError, match="CHAIN_OF_THOUGHT asks for reasoning"):
        few_shot("range", 2, 1, template="CHAIN_OF_THOUGHT")


def test_a_config_puts_examples_of_each_cells_own_length_into_its_prompt():
    config = quick_experiment(**GOOD, few_shot=2)
    for seq_len in (3, 5):
        *examples, question = config.prompt_text(seq_len).split("\n\n")
        assert question == "{code}"
        lengths = [Program.parse(example[: example.rindex(":") + 2]).seq_len for example in examples]
        assert lengths == [seq_len] * 2


# Parsers

# Raw outputs of Qwen3 models on range and exception programs, as recorded in this research's first runs.
RECORDED = [
    ("3 is: 6\n```\n\n```python", 6),
    ("6 is: 12\n```\n\nSo", 12),
    ("0 is: 0 is: 0 is", 0),
    ("10\n```\n\nSo, the correct output", 10),
    ("21. So, the correct output is", 21),
    ("8. So, the output should be:", 8),
    ("17\n```python\nresult = 0", 17),
    ("-3\n```python\nresult = 0", -3),
]


@pytest.mark.parametrize(("completion", "answer"), RECORDED)
def test_recorded_outputs_are_read_as_a_person_reads_them(completion, answer):
    assert parse_integer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" 12", 12),
        ("x = -4", -4),
        ("x is 1,024.", 1024),
        ("[1,2]", 1),
        ("1234,567", 1234),
        ("is: **7**", 7),
        ("is:\n```\n7\n```", 7),
        ("\N{MINUS SIGN}5", -5),
        ("3-1", 3),
        ("", None),
        ("I do not know", None),
        ("3.5", None),
        ("x2 and 2nd", None),
        ("1" * 5000, None),
        (",".join(["111"] * 2000), None),
    ],
)
def test_integers_in_the_forms_that_models_write(completion, answer):
    assert parse_integer(completion) == answer


REPEATED = "x = 0\nfor i in range(3):\n    x += 2"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (f"```python\n{REPEATED}\n```\nThe final value of x is: 6", 6),
        (f"{REPEATED}\n\n6", 6),
        (REPEATED, None),
        ("result = 0\ntry:\n    result += 6 // 0\nexcept ZeroDivisionError:\n    result += -3\n", None),
        ("x = 0\nx += 3  # step 1\nx is now 3", 3),
        ("x = 5\nx = abs(x)", None),
        ("x = 6", 6),
        ("x = 6  # after the loop", 6),
        ("x = 0 + 6 = 6", 6),  # the result of an equation
    ],
)
def test_a_program_that_is_repeated_is_no_answer(completion, answer):
    assert parse_integer(completion) == answer


@pytest.mark.parametrize("name", sorted(n for n, (_, parser) in TASKS.items() if parser in ("integer", "boolean")))
def test_no_program_of_a_task_is_read_as_an_answer(name):
    """Repeating the question is no answer, not a wrong one; what follows it is read all the same."""
    parsers = (parse_boolean, parse_last_boolean) if name == "boolean" else (parse_integer, parse_last_integer)
    for seed in range(300):
        made = generators.generate(generators.GENERATORS[name], 1 + seed % 17, seed)
        for parser in parsers:
            assert parser(made.program) is None, made.program
            assert parser(f"```python\n{made.program}\n```\n") is None
            assert parser(f"{made.program}\n\nThe final value of x is: {made.answer}\n") == made.answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("x starts at 0. After step 1 it is 2, after step 2 it is 4, so 6", 6),
        ("1. x = 0\n2. x = 0 + 2 = 2\n3. x = 2 + 2 = 4\n\nAnswer: 4", 4),
        ("First 2, then 4.\n**Answer:** `6`\n\nThere were 3 steps.", 6),
        ("The answer is \\boxed{-12}. I used 2 rules.", -12),
        ("Answer: 5? No, wait. Answer: 6.", 6),
        ("Answer: x = 1,024", 1024),
        ("Step 1: x += 2\nx += 2\nso it is 6\nx += 2", 6),
        ("I cannot tell.", None),
        ("", None),
    ],
)
def test_after_reasoning_the_last_number_counts(completion, answer):
    assert parse_last_integer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "first", "last"),
    [
        (" True\n```", True, True),
        ("x is: false", False, False),
        ("True, then False.\nAnswer: True", True, True),
        ("True and then False", True, False),
        ("It is not True.", False, False),
        ("Truely", None, None),
        ("1", None, None),
        ("x = True\nx = x and False\nx = not x", None, None),
    ],
)
def test_booleans_in_the_forms_that_models_write(completion, first, last):
    assert (parse_boolean(completion), parse_last_boolean(completion)) == (first, last)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" apple", "apple"),
        (" apple. Box B contains the key", "apple"),
        ("the Apple.", "apple"),
        ("\nAnswer: **tea**", "tea"),
        (" a cup", "cup"),
        ("answer", "answer"),
        ("", None),
        (" 3", None),
        ("x2", None),
        ("tea-pot", None),
    ],
)
def test_words_in_the_forms_that_models_write(completion, answer):
    assert PARSERS["word"](completion) == answer
    span = answer_span(PARSERS["word"], completion)
    assert (completion[slice(*span)].lower() if span else None) == answer


def test_a_text_that_did_not_end_has_no_last_answer_yet():
    assert cut_off(parse_last_integer, "First it is 3, then")
    assert cut_off(parse_last_boolean, "Answer: 3")
    assert not cut_off(parse_last_integer, "Answer: 3\n\nAnother")
    assert not cut_off(parse_integer, "4\n#b: ")
    assert cut_off(parse_last_integer, "<think>\nThe answer is 3. But wait")


integers = st.integers(-(10**17), 10**17)
# What says something of the number beside it, by the rules. Texts are drawn from the source's own words, too.
RULED = re.compile(
    r"\d|[-\N{MINUS SIGN}]|step|line|iteration|round|loop|time|question|problem|exercise|example|not|n['’]t|never"
    r"|no longer|neither|nor|sometimes|minus|negative|answer|think>",
    re.IGNORECASE,
)
numberless = st.text().filter(lambda text: not RULED.search(text))


@given(integers, numberless)
def test_a_number_is_read_whatever_words_surround_it(number, words):
    assert parse_integer(f"{words} {number} {words}") == number
    assert parse_integer(f"{words} {number:,} {words}") == number
    assert parse_integer(f"9 is: {number}\n{words}") == number
    assert parse_integer(words) is None


@given(integers, st.text())
def test_a_binding_answer_is_what_the_completion_begins_with(number, rest):
    assert parse_variable_binding(f" {number}\n{rest}") == number
    assert parse_variable_binding(f"b{number}\n{rest}") is None


def test_text_after_a_binding_answer_does_not_change_it():
    assert parse_variable_binding("4\n#b: 3") == 4
    assert parse_variable_binding("x\n4") is None
    assert parse_variable_binding("4b") is None


@given(integers, numberless)
def test_a_last_number_is_read_whatever_words_surround_it(number, words):
    assert parse_last_integer(f"3 is one.\n{words} {number} {words}") == number
    assert parse_last_integer(f"Answer: {number:,}\n{words} 3") == number


@given(st.text() | st.text("x = 0+-*/%\n,.:` aAnswer1isTruefolnd", max_size=80))
def test_parsers_give_an_answer_of_their_kind_or_none_for_any_text(text):
    for name, parser in PARSERS.items():
        answer = parse_answer(parser, text)
        assert answer is None or type(answer) is (bool if "boolean" in name else str if name == "word" else int)


def test_no_text_takes_a_parser_long():
    started = time.perf_counter()
    units = [
        "x = ",
        "a and ",
        "1,",
        "-",
        "x - ",
        "not ",
        "Answer: ",
        "answer is ",
        "\n",
        "x += 1\n",
        " * ` ",
        "1. ",
        "= 1 ",
    ]
    for unit in units:
        for parser in PARSERS.values():
            parser(unit * 3000)
    assert parse_integer("Q: 1+1\n" * 15_000) is None  # each question went through all that was before it
    assert time.perf_counter() - started < 20


def test_a_parser_that_fails_is_an_error_that_shows_the_text():
    with pytest.raises(ValueError, match=r"parser failed on 'four': ValueError"):
        parse_answer(int, "four")
    with pytest.raises(ValueError, match="parser returned"):
        parse_answer(list, "four")  # type: ignore[arg-type]  (refused)


# Configuration

GOOD: dict[str, Argument] = {
    "name": "depth",
    "prompt_template": prompts.VARIABLE_BINDING,
    "program_generator": generators.make_variable_binding_program,
    "models": ["tiny"],
    "num_seqs": 10,
    "seq_lens": [3, 5],
}


def test_a_config_names_its_parts_and_keeps_its_lists_from_change():
    config = quick_experiment(**GOOD, hops=[None, 3])
    assert (config.generator[0], config.parser[0]) == ("variable_binding", "variable_binding")
    assert (config.seq_lens, config.hops, config.seed) == ((3, 5), (None, 3), 0)
    assert config == ExperimentConfig(**GOOD, hops=[None, 3])
    assert quick_experiment(**dict(GOOD, program_generator="range")).parser[0] == "integer"
    assert quick_experiment(**dict(GOOD, seq_lens=list(np.arange(2, 4)))).to_record()["seq_lens"] == [2, 3]


def test_the_parser_follows_from_the_task_and_the_template():
    for name, (template, parser) in TASKS.items():
        own = quick_experiment(**dict(GOOD, program_generator=name, prompt_template=template))
        assert (own.parser[0], own.max_new_tokens) == (parser, 8)
        reasoned = quick_experiment(**dict(GOOD, program_generator=name, prompt_template=prompts.STEP_BY_STEP))
        assert reasoned.parser[0] == ("last_boolean" if name == "boolean" else "last_integer")
        assert reasoned.max_new_tokens == 512


def test_cells_that_no_program_has_are_left_out():
    assert quick_experiment(**dict(GOOD, seq_lens=[2, 3]), hops=[1, 3]).cells == [(1, 2), (1, 3), (3, 3)]


def test_ones_own_generator_and_parser_are_named_by_their_functions():
    def make_zero(seq_len, rng):
        return "x = 0", 0

    def parse_zero(completion):
        return 0

    config = quick_experiment(**dict(GOOD, program_generator=make_zero, answer_parser=parse_zero))
    assert (config.generator, config.parser) == (("make_zero", make_zero), ("parse_zero", parse_zero))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": " "}, "name is"),
        ({"models": []}, "models is"),
        ({"models": "tiny"}, "models is 'tiny'; expected a list"),
        ({"models": ["tiny", "tiny"]}, "each may be there once"),
        ({"models": [3]}, "models contains 3"),
        ({"num_seqs": 0}, "num_seqs is 0"),
        ({"num_seqs": True}, "num_seqs is True"),
        ({"seed": -1}, "seed is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"few_shot": -1}, "few_shot is -1"),
        ({"chat": 1}, "chat is 1"),
        ({"scoring": "guess"}, "scoring is 'guess'; expected one of generate, logits"),
        ({"scoring": "logits", "chat": True}, "must come right after the prompt"),
        ({"few_shot": 1, "prompt_template": "STEP_BY_STEP"}, "asks for reasoning"),
        ({"seq_lens": []}, "seq_lens is"),
        ({"seq_lens": [0]}, "seq_len is 0"),
        ({"seq_lens": [3], "hops": [4]}, "a program of 3 lines has 1 to 3 hops"),
        ({"hops": [0]}, "num_hops is 0"),
        ({"hops": [2], "program_generator": "range"}, "takes no num_hops"),
        ({"prompt_template": "Run this"}, "exactly once"),
        ({"program_generator": "no_such"}, "unknown generator 'no_such'; there are: variable_binding"),
        ({"answer_parser": "no_such"}, "unknown answer parser 'no_such'; there are: integer"),
    ],
)
def test_a_config_that_cannot_run_is_refused_with_what_was_given(wrong, message):
    with pytest.raises(ValueError, match=message):
        quick_experiment(**GOOD | wrong)


def test_importing_the_package_costs_neither_torch_nor_mlflow():
    check = (
        "import sys, debug; from debug import generators, prompts, quick_experiment; "
        "assert debug.prompts is prompts; sys.exit(' '.join({'torch', 'mlflow', 'polars'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stderr.strip() == ""


def test_a_name_that_the_package_lacks_is_an_attribute_error():
    import debug

    with pytest.raises(AttributeError, match="no attribute 'quick_experimnt'"):
        debug.quick_experimnt  # noqa: B018
