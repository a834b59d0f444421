"""Generated programs: the published ones to the byte, and what holds for every seed."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from debug import generators
from debug.core import PARSERS, TASKS
from debug.generators import (
    GENERATORS,
    GeneratedProgram,
    GeneratorError,
    HopsNotAvailable,
    generate,
    get_generator,
    make_counterfactual_pair,
    make_entity_tracking_program,
    make_range_program,
    make_variable_binding_program,
    search,
)
from debug.generators.base import Answer
from debug.programs import Program
from test_programs import evaluate

PUBLISHED = [  # hops, seq_len, seed, answer, program; a stroke stands for a newline
    (1, 5, 11, 4, "z = 1/x = z/s = 0/a = 4/d = 5/#a: "),
    (2, 5, 3, 3, "k = 3/z = 5/u = k/l = 6/a = z/#u: "),
    (3, 5, 2, 8, "i = 8/x = i/h = x/y = 4/w = x/#h: "),
    (
        *(1, 17, 5, 6),
        "d = 6/x = d/i = x/s = 1/z = i/p = 4/w = 9/m = z/j = 5/a = m/o = a/g = a/e = g/y = o/v = e/h = 1/u = 0/#d: ",
    ),
    (
        *(2, 17, 14, 6),
        "l = 6/h = l/m = h/z = 7/e = m/y = m/n = y/f = n/x = 0/p = y/s = 1/u = y/w = 3/b = 1/j = 9/k = f/v = f/#h: ",
    ),
    (
        *(3, 17, 12, 1),
        "l = 1/c = l/y = 5/p = 6/m = 8/q = p/f = m/a = c/j = 9/v = 0/x = f/o = q/r = a/w = 5/g = r/b = r/i = r/#a: ",
    ),
]

SEEDS = st.integers(0, 2**32 - 1)


def draw(seq_len: int, seed: int, num_hops: int | None = None) -> tuple[str, int, dict]:
    return make_variable_binding_program(seq_len, np.random.RandomState(seed), num_hops)


@pytest.mark.parametrize(("hops", "seq_len", "seed", "answer", "program"), PUBLISHED)
@pytest.mark.parametrize("asked", [True, False])
def test_published_programs_come_out_to_the_byte(
    hops: int, seq_len: int, seed: int, answer: int, program: str, asked: bool
) -> None:
    text, given_answer, metadata = draw(seq_len, seed, hops if asked else None)
    assert text.encode() == program.replace("/", "\n").encode()
    assert (given_answer, metadata["hops"]) == (answer, hops)


@given(SEEDS, st.integers(1, 60))
def test_every_drawn_program_parses_and_its_answer_is_pythons(seed: int, seq_len: int) -> None:
    text, answer, metadata = draw(seq_len, seed)
    program = Program.parse(text)
    assert (answer, metadata["chain"]) == evaluate(text)
    assert (program.answer, program.hops, program.seq_len) == (answer, metadata["hops"], seq_len)
    assert metadata["hops"] == len(metadata["chain"])
    assert text.endswith(": ")


@given(SEEDS, st.integers(27, 80))
def test_letters_are_assigned_again_only_after_all_26(seed: int, seq_len: int) -> None:
    names = [assignment.lhs for assignment in Program.parse(draw(seq_len, seed)[0]).assignments]
    assert len(names) == seq_len
    assert len(set(names[:26])) == 26
    assert set(names[26:]) <= set(names[:26])


@given(SEEDS, st.integers(4, 20), st.integers(1, 4))
def test_one_to_four_hops_count_only_where_the_published_draw_has_them(seed: int, seq_len: int, hops: int) -> None:
    published = draw(seq_len, seed)
    if published[2]["hops"] == hops:
        assert draw(seq_len, seed, hops) == published
    else:
        with pytest.raises(HopsNotAvailable, match=rf"queries {published[2]['hops']} hops, not {hops}"):
            draw(seq_len, seed, hops)


@given(SEEDS, st.integers(5, 20), st.integers(5, 9))
def test_more_than_four_hops_are_queried_in_the_lines_of_the_published_draw(seed: int, seq_len: int, hops: int) -> None:
    hops = min(hops, seq_len)
    lines = draw(seq_len, seed)[0].rpartition("\n")[0]
    depths = {a.lhs: a.ref_depth for a in Program.parse(draw(seq_len, seed)[0]).assignments}
    if hops in depths.values():
        text, answer, metadata = draw(seq_len, seed, hops)
        assert text.startswith(lines)
        assert (answer, metadata["chain"]) == evaluate(text)
        assert metadata["hops"] == hops
    else:
        with pytest.raises(HopsNotAvailable, match=f"no variable of referential depth {hops}"):
            draw(seq_len, seed, hops)


def test_more_than_four_hops_are_drawn_with_weights_alike() -> None:
    queried: dict[str, int] = {}
    for made in search(make_variable_binding_program, 9, 0, num_hops=5):
        ends = [a.lhs for a in Program.parse(made.program).assignments if a.ref_depth == 5]
        if len(ends) == 2:
            place = "first" if made.metadata["chain"][0] == ends[0] else "second"
            queried[place] = queried.get(place, 0) + 1
        if sum(queried.values()) == 200:
            break
    assert 70 <= queried["first"] <= 130


@pytest.mark.parametrize("seq_len", [0, -1, 1.5, "5", None, True])
def test_a_length_that_cannot_be_is_refused(seq_len: object) -> None:
    for generator in GENERATORS.values():
        with pytest.raises(ValueError, match=f"seq_len is {seq_len!r}; expected a number of lines, 1 or more"):
            generator(seq_len, np.random.RandomState(0))  # type: ignore[arg-type]  (refused)


@pytest.mark.parametrize("num_hops", [0, -1, 4, 1.0, "2", True])
def test_hops_that_the_length_cannot_hold_are_refused_at_once(num_hops: object) -> None:
    with pytest.raises(ValueError, match=f"num_hops is {num_hops!r}; a program of 3 lines has 1 to 3 hops") as refused:
        make_variable_binding_program(3, np.random.RandomState(0), num_hops)  # type: ignore[arg-type]  (refused)
    assert not isinstance(refused.value, HopsNotAvailable)  # the search must not go on to the next seed
    with pytest.raises(GeneratorError, match="a program of 3 lines has 1 to 3 hops"):
        next(search(make_variable_binding_program, 3, 0, num_hops))  # type: ignore[arg-type]  (refused)


def test_a_search_passes_over_seeds_without_the_hops_and_names_each_that_has_them() -> None:
    found = list(zip(search(make_variable_binding_program, 5, 0, num_hops=3), range(10), strict=False))
    seeds = [made.seed for made, _ in found]
    assert seeds == [seed for seed in range(seeds[-1] + 1) if draw(5, seed)[2]["hops"] == 3]
    assert 2 in seeds
    for made, _ in found:
        assert (made.program, made.hops, made.seq_len) == (draw(5, made.seed)[0], 3, 5)


def test_a_search_without_hops_lists_every_seed() -> None:
    made = [found for found, _ in zip(search(make_variable_binding_program, 5, 7), range(5), strict=False)]
    assert [found.seed for found in made] == [7, 8, 9, 10, 11]


def test_a_search_ends_after_its_bound_with_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert generators.MAX_SEEDS == 100_000
    monkeypatch.setattr("debug.generators.registry.MAX_SEEDS", 50)
    tried = []

    def rare(seq_len: int, rng: np.random.RandomState, num_hops: int | None = None) -> tuple[str, int, dict]:
        tried.append(num_hops)
        if len(tried) != 10:
            raise HopsNotAvailable("not this one")
        return draw(seq_len, 0)

    assert [made.seed for made in search(rare, 5, 100, num_hops=2)] == [109]
    assert tried == [2] * 50


PYTHON = [name for name in GENERATORS if name not in ("boxes", "beliefs")]


def execute(program: str) -> object:
    """What Python says: the queried variable's value, else that of the variable on the last line."""
    builtins = {"range": range, "abs": abs, "ZeroDivisionError": ZeroDivisionError}
    names: dict[str, object] = {"__builtins__": builtins}
    exec(program, names)
    query = re.search(r"#(\w+): $", program)
    return names[query[1] if query else "result" if program.startswith("result") else "x"]


@pytest.mark.parametrize("name", PYTHON)
def test_answers_are_those_of_python(name: str) -> None:
    """Each program is executed, two thousand of them, of 1 to 40 lines."""
    lengths = np.random.RandomState(0).randint(1, 41, size=2000)
    for seed, seq_len in enumerate(lengths):
        made = generate(GENERATORS[name], int(seq_len), seed)
        expected = execute(made.program)
        assert (made.answer, type(made.answer)) == (expected, type(expected)), made.program


@pytest.mark.parametrize("name", GENERATORS)
def test_an_answer_is_read_back_by_the_parser_of_its_task(name: str) -> None:
    parser = PARSERS[TASKS[name][1]]
    for seed in range(200):
        made = generate(GENERATORS[name], 17, seed)
        assert parser(f" {made.answer}\n") == made.answer


@pytest.mark.parametrize(
    ("name", "occurring"),
    [
        ("exception", ["// 0\n", "// 1\n", "result += -"]),
        ("boolean", ["and True", "or False", "^ True", "x = not x"]),
        ("integer", ["+=", "-=", "*=", "//=", "%=", "abs(x)"]),
        ("counter", ["% 2 == 0", "% 4 == 3"]),
        ("arithmetic_sequence", ["+=", "-="]),
    ],
)
def test_every_operation_of_a_task_occurs(name: str, occurring: list[str]) -> None:
    text = "\n".join(generate(GENERATORS[name], 8, seed).program for seed in range(50))
    assert [part for part in occurring if part not in text] == []


@pytest.mark.parametrize("name", ["exception", "boolean", "integer", "entity_tracking"])
def test_answers_are_spread(name: str) -> None:
    """No answer is given so often that naming it always would pass for tracking."""
    answers = [generate(GENERATORS[name], 6, seed).answer for seed in range(500)]
    commonest = max(answers.count(answer) for answer in set(answers))
    assert commonest / 500 < (0.65 if name == "boolean" else 0.3)


@given(SEEDS, st.integers(1, 40))
def test_entities_are_few_and_assigned_again(seed: int, seq_len: int) -> None:
    made = generate(make_entity_tracking_program, seq_len, seed)
    program = Program.parse(made.program)
    assert (program.answer, program.seq_len, program.hops) == (made.answer, seq_len, made.hops)
    assert len({assignment.lhs for assignment in program.assignments}) <= 4
    assert made.metadata["chain"] == list(program.chain.names)


@given(SEEDS, st.integers(1, 30), st.data())
def test_a_counterfactual_pair_shares_its_prefix_and_diverges_where_asked(seed: int, seq_len: int, data) -> None:
    asked = data.draw(st.none() | st.integers(0, seq_len - 1))
    program, answer, about = make_counterfactual_pair(seq_len, np.random.RandomState(seed), asked)
    at = about["diverge_at"]
    assert at == asked or asked is None
    lines, others = program.split("\n"), about["counterfactual"].split("\n")
    assert [n for n, (a, b) in enumerate(zip(lines, others, strict=True)) if a != b] == [at + 1]
    for text, values in ((program, about["values"]), (about["counterfactual"], about["counterfactual_values"])):
        assert values == [execute("\n".join(text.split("\n")[: n + 2])) for n in range(seq_len)]
    same = [a == b for a, b in zip(about["values"], about["counterfactual_values"], strict=True)]
    assert same == [True] * at + [False] * (seq_len - at)
    assert (answer, about["counterfactual_answer"]) == (about["values"][-1], about["counterfactual_values"][-1])


@pytest.mark.parametrize("diverge_at", [-1, 3, True])
def test_a_pair_cannot_diverge_where_there_is_no_line(diverge_at: int) -> None:
    with pytest.raises(ValueError, match="have indices 0 to 2"):
        make_counterfactual_pair(3, np.random.RandomState(0), diverge_at)


@given(SEEDS, st.integers(1, 50))
def test_a_range_program_adds_its_step_seq_len_times(seed: int, seq_len: int) -> None:
    made = generate(make_range_program, seq_len, seed)
    head, loop, body = made.program.split("\n")
    assert (head, loop) == ("x = 0", f"for i in range({seq_len}):")
    assert made.answer == sum(int(body.removeprefix("    x += ")) for _ in range(seq_len))
    assert made.hops is None


@settings(max_examples=20)
@given(SEEDS)
def test_a_seed_names_its_program(seed: int) -> None:
    for generator in GENERATORS.values():
        assert generate(generator, 6, seed) == generate(generator, 6, seed)


@pytest.mark.parametrize(
    ("made", "answer", "metadata"),
    [
        (("text", 3), 3, {}),
        (("text", np.int64(3)), 3, {}),
        (("text", np.bool_(True)), True, {}),
        (("text", True, {"hops": 2}), True, {"hops": 2}),
        (("text", "a", {"note": "mine"}), "a", {"note": "mine"}),
    ],
)
def test_both_forms_of_generator_are_accepted(made: tuple, answer: Answer, metadata: dict) -> None:
    got = generate(lambda seq_len, rng: made, 3, 9)
    assert got == GeneratedProgram(9, 3, "text", answer, metadata)
    assert type(got.answer) is type(answer)
    assert got.hops == metadata.get("hops")


@pytest.mark.parametrize("made", [None, "text", ("text",), (3, "text"), ("text", None), ("text", 3, None), ("a", 1.5)])
def test_a_generator_that_returns_something_else_is_named_with_its_seed(made: object) -> None:
    with pytest.raises(GeneratorError, match=r"returned .* at seed 9; expected \(program, answer\)"):
        generate(lambda seq_len, rng: made, 3, 9)  # type: ignore[arg-type, return-value]  (refused)


def test_a_generator_that_raises_is_named_with_its_seed() -> None:
    with pytest.raises(GeneratorError, match="failed at seed 9, seq_len 3: ZeroDivisionError"):
        generate(lambda seq_len, rng: 1 // 0, 3, 9)  # type: ignore[arg-type, return-value]  (refused)
    with pytest.raises(GeneratorError, match=r"failed at seed 0.*unexpected keyword argument 'num_hops'"):
        next(search(make_range_program, 3, 0, num_hops=2))


def test_generators_go_by_name_or_by_function() -> None:
    assert get_generator("variable_binding") == ("variable_binding", make_variable_binding_program)
    assert get_generator(make_range_program) == ("range", make_range_program)
    assert get_generator(draw) == ("draw", draw)
    with pytest.raises(ValueError, match="unknown generator 'lops'; there are: variable_binding, range"):
        get_generator("lops")
