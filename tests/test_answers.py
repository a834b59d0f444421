"""Where an answer's token is, for all kinds of run; and how an answer is read from a text, against a second reading."""

import copy
import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import families
import vocabularies
from debug import models
from debug.causal_tracing import as_written, trace_pairs
from debug.core import PARSERS, answer_span, parse_integer, parse_last_integer
from debug.generators import GENERATORS, search
from debug.plan import Plan
from debug.programs import Program
from debug.prompts import answers, fill, get_prompt
from debug.token_analyzer import analyze, analyze_pair
from present import present

ROOTS = Plan(positions="targets", targets=["ref_depth_1_rhs", "final"], require_correct=False)


def programs(n: int, seq_len: int = 3, seed: int = 7) -> list[str]:
    return [made.program for made, _ in zip(search(GENERATORS["variable_binding"], seq_len, seed), range(n))]  # noqa: B905


def of_kind(name: str, **settings: int) -> models.LoadedModel:
    """A random model of a family whose published vocabulary has the space in the number's token, with such a one."""
    tokenizer, config = vocabularies.tokenizer(name), copy.deepcopy(families.CONFIGS[name])
    config.update({"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id} | settings)
    return families.of(config, name, tokenizer)


# Where the token is


@pytest.mark.parametrize("name", vocabularies.SPACE_IN_THE_NUMBER)
def test_a_vocabulary_with_the_space_in_the_number_runs_end_to_end(name: str) -> None:
    """No pair was usable: behind ``#b: `` there is no token of an answer's own."""
    model = of_kind(name)
    given = programs(20)
    text = answers.suited(model.tokenizer, "VARIABLE_BINDING", given[0], answers.DIGITS)
    assert fill(text, given[0]) == given[0].removesuffix(" ")
    plan, pairs = as_written(model, ROOTS, given)
    done = [result for result in trace_pairs(model, pairs, plan) if result.skipped is None]
    assert len(done) >= 15
    for result in done:
        assert result.causal_map is not None
        assert result.prompt is not None
        assert result.prompt.endswith(":")
        tokenized = analyze_pair(
            model.tokenizer, present(result.pair), plan.prompt_template, lead=plan.answer_lead or ""
        )
        with torch.no_grad():
            logits = model.hf(torch.tensor([tokenized.counterfactual.token_ids])).logits[0, -1]
        top = model.tokenizer.decode([int(logits.argmax())]).strip()
        assert result.correct is not None
        assert result.correct[1] == (top == str(present(result.pair).expected_counterfactual))


def test_the_template_is_the_same_whichever_program_comes_first() -> None:
    """With a query line without its space in front, those behind it kept theirs and were all skipped."""
    model = of_kind("gpt2")
    one, *others = programs(3)
    for order in ([one.removesuffix(" "), *others], [*others, one.removesuffix(" ")]):
        plan, _ = as_written(model, ROOTS, order)
        assert plan.prompt_template == get_prompt("VARIABLE_BINDING")[1].replace("{code}", "{code.removesuffix(' ')}")


@pytest.mark.parametrize("name", vocabularies.SPACE_IN_THE_NUMBER)
def test_such_a_model_is_ranked_and_generates_behind_the_same_prompt(name: str) -> None:
    model = of_kind(name)
    program = programs(1)[0]
    prompt = fill(answers.suited(model.tokenizer, "VARIABLE_BINDING", program, answers.DIGITS), program)
    [(_, scores)] = model.score([prompt], list(answers.DIGITS))
    assert scores.error is None
    with torch.no_grad():
        logits = model.hf(torch.tensor([model.encode(prompt)])).logits[0, -1].log_softmax(-1)
    forms = {space: [model.encode(f"{prompt}{space}{digit}")[-1] for digit in answers.DIGITS] for space in ("", " ")}
    best = max(forms.values(), key=lambda tokens: float(logits[tokens].max()))
    torch.testing.assert_close(torch.tensor(scores.log_probabilities), logits[best].log_softmax(-1), atol=1e-4, rtol=0)


def test_a_vocabulary_in_which_nothing_merges_keeps_its_template() -> None:
    tokenizer = vocabularies.tokenizer("tiny")
    text = answers.suited(tokenizer, "VARIABLE_BINDING", programs(1)[0], answers.DIGITS)
    assert text == get_prompt("VARIABLE_BINDING")[1]


def test_a_prompt_beyond_the_models_window_is_a_skipped_pair_with_the_reason() -> None:
    """567 tokens went into 512 without a word, and an IndexError ended the run where positions are learned."""
    config = copy.deepcopy(families.CONFIGS["gpt2"])
    config.n_positions = 30
    model = families.of(config, "gpt2")
    given = [*programs(2, seq_len=3), *programs(2, seq_len=9), *programs(2, seq_len=3, seed=40)]
    results = list(trace_pairs(model, given, ROOTS))
    assert [result.skipped is None for result in results] == [True, True, False, False, True, True]
    assert re.fullmatch(r"the prompt has \d\d tokens and model 'gpt2' reads 30", results[2].skipped or "")


def test_what_a_model_writes_behind_a_prompt_is_asked_only_of_prompts_that_it_can_read() -> None:
    """Where no space ends the prompts, a long one among the first ended the run with an IndexError."""
    model = of_kind("gpt2", n_positions=30)
    given = [*programs(2, seq_len=9), *programs(4)]
    results = list(trace_pairs(model, given, ROOTS))
    assert [result.skipped is None for result in results[2:]] == [True] * 4
    assert all("model 'gpt2' reads 30" in (result.skipped or "") for result in results[:2])


def test_a_prompt_near_the_end_of_the_window_shortens_what_is_written_behind_no_other() -> None:
    model = of_kind("gpt2", n_positions=30)
    short, long = ([model.encode(text.removesuffix(" ")) for text in programs(3, seq_len=n)] for n in (3, 6))
    assert [len(ids) for ids in long] == [27] * 3
    fill_up = [ids + ids[:3] for ids in long]  # to the last token of the window: one more can be written
    alone, together = model.first_tokens(short, 4), model.first_tokens([*short, *fill_up], 4)
    assert together[:3] == alone
    assert [len(tokens) for tokens in together] == [4] * 3 + [1] * 3


def test_a_prompt_that_just_fits_the_window_is_run() -> None:
    config = copy.deepcopy(families.CONFIGS["gpt2"])
    [text] = programs(1)
    tokens = len(vocabularies.tokenizer("tiny")(text)["input_ids"])
    for window, runs in ((tokens, True), (tokens - 1, False)):
        config.n_positions = window
        [result] = trace_pairs(families.of(config, "gpt2"), [text], ROOTS)
        assert (result.skipped is None) == runs


def test_a_pair_whose_answers_the_model_begins_alike_is_not_compared() -> None:
    """Behind ``#a:`` the answers 12 and 10 are tokens of their own with a space, and one digit the same without."""
    tokenizer = vocabularies.tokenizer("answer_merges")
    prompt = analyze(tokenizer, Program.parse("a = 10\n#a:"))
    of = tokenizer.get_vocab()
    assert answers.agreed(tokenizer, prompt, "", ["12", "10"], [[of["1"], of["0"]], [of["1"], of["2"]]]) is None
    spaced = of[" 12"], of[" 10"]
    assert answers.agreed(tokenizer, prompt, "", ["12", "10"], [[spaced[1]], [spaced[0]]]) == spaced


# How an answer is read

READ = [
    ("integer", "5 + 10 = 15", 15),
    ("integer", "x is 3 * 4 = 12.", 12),
    ("integer", "12.0", 12),
    ("integer", "- 5", -5),
    ("integer", "$72.00", 72),
    ("integer", "-$5", -5),
    ("integer", "2^3 = 8", 8),
    ("integer", "x is 5 - 3", None),
    ("integer", "3.5", None),
    ("integer", "Step 1: x = 0. Step 2: x = 3. Answer: 6", 6),
    ("last_integer", "Step 1: x = 0. Then it grows. Answer: 6", 6),
    ("last_integer", "Answer: 72. Question 2: how many? Answer: 9", 72),
    ("last_integer", "Answer: 72\n\nQ: and now?\nA: 9", 72),
    ("last_integer", "1. x = 0\n2. x = 4", 4),
    ("boolean", "True and False = False", False),
    ("boolean", "Not true", False),
    ("boolean", "It isn't True.", False),
    ("boolean", "not False", True),
    ("last_boolean", "x is True, then it is no longer True. Answer: False", False),
    ("integer", "6 = 2 * 3", 6),
    ("integer", "6 (= 2 * 3)", 6),
    ("integer", "5\u00a0+\u00a010\u00a0= 15", 15),
    ("integer", "x, y = y, x gives x = 3", 3),
    ("integer", "Answer: 6 = 2*3", 6),
    ("integer", "$1,234.50", None),
    ("integer", "$\\frac{6}{2} = 3$", 3),
    ("integer", "\\boxed{\\frac{1}{2}}", None),
    ("integer", "|x| = |-6| = 6", 6),
    ("integer", "|-6| = 6", 6),
    ("integer", "x &= 6", 6),
    ("integer", "x += 2 → x = 6", 6),
    ("integer", "minus 3", -3),
    ("integer", "It is negative 3.", -3),
    ("integer", "not 5 but 6", 6),
    ("integer", "The answer isn't 5, it's 6.", 6),
    ("integer", "The answer is no longer 5", None),
    ("last_integer", "x is 6, not 5", 6),
    ("integer", "x is always 6", 6),
    ("integer", "In steps 1-3 it grows to 6", 6),
    ("integer", "Step 1/3 and step 2 of 3: x = 6", 6),
    ("integer", "The loop `for i in range(3)` ends: x is 6", 6),
    ("integer", "The loop runs 3 times, so x = 6", 6),
    ("integer", "The final value of x after 3 iterations is 6", 6),
    ("integer", "3 times 2 is 6", 6),
    ("integer", "Answer: the loop runs 3 times, so x = 6", 6),
    ("integer", "Answer: x is 6, because 2 + 4 = 6", 6),
    ("last_integer", "1. x = 0\n2. It grows to 6.\n3. The loop ends.", 6),
    ("last_integer", "**1.** x = 0\n**2.** It grows to 6.\n**3.** It ends.", 6),
    ("last_integer", "1) - 3\n2) - 6", -6),
    ("last_integer", "x is 6.\n#### 2. Check\nThis is 6.", 6),
    ("last_integer", "<answer>6</answer> for a = 3", 6),
    ("last_integer", "The answer should be 6. There a = 3.", 6),
    ("integer", "<think>\nx = 0, so the answer is 3?\n</think>\n\n6", 6),
    ("last_integer", "the answer is 3?\n</think>\n\nIt is 6.", 6),
    ("last_integer", "<think>\nThe answer is 3, or", None),
    ("boolean", "So False = True and False", False),
    ("boolean", "x is no longer True", False),
    ("boolean", "x is always True", True),
    ("boolean", "x is not always True", None),
    ("boolean", "¬True", False),
    ("boolean", "True ∧ False", None),
    ("variable_binding", "6 = 2 * 3", 6),
    ("variable_binding", "- 5", -5),
    ("variable_binding", "5 + 10 = 15", 15),
    ("variable_binding", " 4\n#b: 3", 4),
    ("variable_binding", "The value is 4", None),
]


@pytest.mark.parametrize(("parser", "text", "answer"), READ)
def test_the_forms_that_were_misread(parser: str, text: str, answer: int | bool | None) -> None:
    read = PARSERS[parser](text)
    assert (read, type(read)) == (answer, type(answer))


@pytest.mark.parametrize(("parser", "text", "answer"), READ)
def test_the_characters_that_were_read_say_the_answer(parser: str, text: str, answer: int | bool | None) -> None:
    span = answer_span(PARSERS[parser], text)
    assert (span is None) == (answer is None)
    if span is not None:
        assert PARSERS[parser](text[slice(*span)]) == answer


@dataclass(frozen=True)
class Said:
    """A sentence and what it says, known because it was made from it: the second reading."""

    text: str
    value: int | None
    marked: bool = False
    question: bool = False
    no_integer: bool = False


def _equation(a: int, b: int, sign: str) -> Said:
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return Said(f"Now {a} {sign} {b} = {result}." if a > b else f"Now {result} = {a} {sign} {b}.", result)


def _spelled(value: int, how: str) -> str:
    forms = {"plain": f"{value}", "decimal": f"{value}.0", "grouped": f"{value:,}", "bold": f"**{value}**"}
    return forms[how] if how != "spaced" else re.sub("-", "- ", f"{value}")


VALUES = st.integers(-99_999, 99_999)
SPELLED = st.tuples(VALUES, st.sampled_from(["plain", "decimal", "grouped", "bold", "spaced"]))
SENTENCES = st.one_of(
    st.tuples(VALUES, st.integers(0, 99), st.sampled_from("+-*")).map(lambda drawn: _equation(*drawn)),
    SPELLED.map(lambda drawn: Said(f"It is {_spelled(*drawn)}.", drawn[0])),
    SPELLED.map(lambda drawn: Said(f"Answer: {_spelled(*drawn)}.", drawn[0], marked=True)),
    SPELLED.map(lambda drawn: Said(f"The answer is {_spelled(*drawn)}.", drawn[0], marked=True)),
    VALUES.map(lambda value: Said(f"So we have \\boxed{{{value}}}.", value, marked=True)),
    st.integers(1, 30).map(lambda n: Said(f"Step {n}: we go on.", None)),
    st.integers(1, 9).map(lambda n: Said(f"The mean is 3.{n}.", None, no_integer=True)),
    st.tuples(VALUES, VALUES).map(lambda drawn: Said(f"It is {drawn[0]}, not {drawn[1]}.", drawn[0])),
    st.integers(1, 30).map(lambda n: Said(f"The loop `for i in range({n})` runs {n} times.", None)),
    st.integers(1, 30).map(lambda n: Said(f"\n{n}. We begin.\n{n + 1}. We end.", None)),
    st.just(Said("```\nx = 0\nx += 3\n```", None)),
    st.just(Said("We think about it.", None)),
    st.integers(2, 9).map(lambda n: Said(f"Question {n}: what next?", None, question=True)),
)


def second_reading(said: list[Said], last: bool) -> int | None:
    """What a person reads: up to a new question behind an answer, marked ones before others; 3.5 is no integer."""
    values: list[Said] = []
    for one in said:
        if one.question and values:
            break
        values += [one] if one.value is not None or one.no_integer else []
    counted = [one for one in values if one.marked] or values
    return None if not counted else counted[-1 if last else 0].value


@settings(max_examples=600, deadline=None)
@given(st.lists(SENTENCES, max_size=7), st.sampled_from([" ", "\n", "\n\n"]), st.booleans())
def test_a_text_is_read_as_it_was_put_together(said: list[Said], between: str, last: bool) -> None:
    text = between.join(one.text if "```" not in one.text else f"\n{one.text}\n" for one in said)
    parser = parse_last_integer if last else parse_integer
    assert parser(text) == second_reading(said, last), text
