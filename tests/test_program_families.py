"""Families with states and roles: programs that Python confirms line by line, and sentences that are read again."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from debug.generators import GENERATORS, GeneratedProgram, HopsNotAvailable, generate, get_generator
from debug.interpreter import Code
from debug.kinds import Json

ROOT = Path(__file__).parents[1]
ENGLISH = ("boxes", "beliefs")
PYTHON = [name for name in GENERATORS if name not in ENGLISH]
DIGESTS = {
    "binding_arithmetic": "4896661e04f789bb",
    "reassignment": "2c7583593ba4dcdb",
    "conditionals": "7a545bee3d78de35",
    "loops": "b3a04ba8892f17a1",
    "functions": "1e7a23fcab920b8f",
    "containers": "5631dd17ad425eb3",
    "permutations": "d4ed8d499b881016",
    "boxes": "c679ba92fbb14a6d",
    "beliefs": "c502f8b73cc32fd1",
}
SEEDS = st.integers(0, 2**32 - 1)


def draw(name: str, seq_len: int, seed: int, **knobs: Json) -> tuple[str, Json, dict[str, Json]]:
    return get_generator(name)[1](seq_len, np.random.RandomState(seed), **knobs)


@pytest.mark.parametrize("name", DIGESTS)
def test_a_seed_has_the_program_that_it_always_had(name: str) -> None:
    made = [generate(GENERATORS[name], 1 + seed % 9, seed) for seed in range(40)]
    text = json.dumps([(one.program, one.answer, one.metadata) for one in made], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", PYTHON)
def test_every_variable_after_every_line_is_pythons(name: str) -> None:
    """Ten thousand programs of 1 to 20 lines, by Python's own line tracing in a process of its own."""
    process = subprocess.run(
        [sys.executable, "tests/traced_programs.py", name, "10000"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert (process.returncode, process.stderr) == (0, ""), process.stdout
    assert process.stdout.startswith("0 of 10000 programs differ")


@pytest.mark.parametrize("name", DIGESTS)
def test_spans_and_states_are_json_and_the_texts_own(name: str) -> None:
    for seed in range(50):
        made = generate(GENERATORS[name], 1 + seed % 12, seed)
        spans, states = made.metadata["spans"], made.metadata["states"]
        assert json.loads(json.dumps(made.metadata)) == made.metadata
        assert all(0 <= start < end <= len(made.program) for start, end in spans.values())
        if name in PYTHON:
            code = Code.parse(made.program)
            assert {role: tuple(span) for role, span in spans.items()} == code.spans
            assert states == [state.to_record() for state in code.states]
            assert made.program.endswith(f"#{code.query}: ")


@pytest.mark.parametrize("name", DIGESTS)
def test_no_answer_is_given_too_often(name: str) -> None:
    answers = [generate(GENERATORS[name], 6, seed).answer for seed in range(500)]
    assert max(answers.count(answer) for answer in set(answers)) / 500 < 0.3


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("binding_arithmetic", {"largest": 0}),
        ("binding_arithmetic", {"arithmetic": 1.5}),
        ("binding_arithmetic", {"operators": ("*",)}),
        ("binding_arithmetic", {"operators": ()}),
        ("reassignment", {"variables": 1}),
        ("reassignment", {"copies": -1}),
        ("conditionals", {"variables": 0}),
        ("conditionals", {"nesting": 5}),
        ("loops", {"kinds": ("until",)}),
        ("loops", {"kinds": "for"}),
        ("loops", {"accumulators": 4}),
        ("loops", {"nesting": True}),
        ("functions", {"depth": 5}),
        ("functions", {"arguments": 0}),
        ("containers", {"kinds": ("set",)}),
        ("containers", {"size": 10}),
        ("containers", {"containers": 4}),
        ("containers", {"aliases": True}),
        ("permutations", {"items": 1}),
        ("boxes", {"boxes": 27}),
        ("boxes", {"things": 5}),
        ("beliefs", {"people": 9}),
        ("beliefs", {"containers": 0}),
        ("beliefs", {"seen": 2}),
    ],
)
def test_a_difficulty_that_cannot_be_is_refused(name: str, knobs: dict[str, Json]) -> None:
    [knob] = knobs
    with pytest.raises(ValueError, match=rf"{knob} is .*; "):
        draw(name, 3, 0, **knobs)


# --- Python -----------------------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 40), st.sampled_from([1, 9, 99, 5000]), st.sampled_from([("+",), ("-",), ("+", "-")]))
def test_computed_values_stay_within_their_bounds(seed: int, seq_len: int, largest: int, operators: tuple) -> None:
    text, answer, about = draw("binding_arithmetic", seq_len, seed, largest=largest, arithmetic=1, operators=operators)
    assert all(0 <= value <= largest for state in about["states"] for value in state["variables"].values())
    assert set(re.findall(r" [-+] ", text)) <= {f" {sign} " for sign in operators}
    assert 0 <= answer <= largest
    assert (len(about["chain"]), text.count("\n")) == (about["hops"], seq_len)
    lines = dict(line.split(" = ") for line in text.split("\n")[:-1])
    if seq_len <= 26:
        for above, below in zip(about["chain"][1:], about["chain"], strict=False):
            assert lines[below].split()[0] == above
        assert lines[about["chain"][-1]].isdecimal()


def test_references_compute_as_often_as_asked() -> None:
    assert not re.search(r"[-+]", "".join(draw("binding_arithmetic", 9, seed, arithmetic=0)[0] for seed in range(50)))
    text = "".join(draw("binding_arithmetic", 9, seed, largest=9, arithmetic=1)[0] for seed in range(50))
    assert not re.search(r"= [a-z]\n", text)


@given(SEEDS, st.integers(1, 9), st.integers(1, 4))
def test_hops_are_those_asked_for_in_the_same_lines(seed: int, seq_len: int, hops: int) -> None:
    if hops > seq_len:
        with pytest.raises(ValueError, match=f"a program of {seq_len} lines has 1 to {seq_len} hops"):
            draw("binding_arithmetic", seq_len, seed, num_hops=hops)
        return
    try:
        text, _, about = draw("binding_arithmetic", seq_len, seed, num_hops=hops)
    except HopsNotAvailable:
        return
    assert about["hops"] == len(about["chain"]) == hops
    assert text.partition("#")[0] == draw("binding_arithmetic", seq_len, seed)[0].partition("#")[0]


def test_a_reassigned_variable_tells_the_readings_apart() -> None:
    told = {"alias": 0, "first_write": 0}
    for seed in range(300):
        text, answer, about = draw("reassignment", 8, seed)
        lines = [line.split(" = ") for line in text.split("\n")[:-1]]
        query = text[-3]
        last = dict(lines)
        name, seen = query, set()
        while name in last and name not in seen:
            seen.add(name)
            name = last[name]
        assert about["alias"] == (int(name) if name.isdecimal() else None)
        first = next(n for n, (lhs, _) in enumerate(lines) if lhs == query)
        assert about["first_write"] == Code.parse("\n".join(text.split("\n")[: first + 1]), query).answer
        told = {reading: told[reading] + (about[reading] != answer) for reading in told}
    assert told["alias"] > 150
    assert told["first_write"] > 150
    assert len(set(re.findall(r"^[a-z]", draw("reassignment", 60, 0, variables=5)[0], re.MULTILINE))) == 5
    assert not re.search(r"= [a-z]", draw("reassignment", 60, 0, copies=0)[0])


@pytest.mark.parametrize("nesting", [1, 2, 3])
def test_conditionals_nest_as_deep_as_asked_and_take_all_kinds_of_branch(nesting: int) -> None:
    made = [draw("conditionals", 4, seed, nesting=nesting, variables=3) for seed in range(60)]
    text = "\n".join(program for program, _, _ in made)
    deepest = max(len(line) - len(line.lstrip()) for line in text.split("\n")) // 4
    assert deepest == nesting
    assert {"if", "elif", "else:"} <= set(text.split())
    taken = [state["taken"] for _, _, about in made for state in about["states"] if state["taken"] is not None]
    assert 0.3 < sum(taken) / len(taken) < 0.7
    for program, _, _ in made:
        assert len(re.findall(r"^if ", program, re.MULTILINE)) == 4
        assert len(re.findall(r"^[a-z] = ", program, re.MULTILINE)) == 3


@given(SEEDS, st.integers(1, 30), st.integers(1, 3), st.integers(1, 2), st.sampled_from(["for", "while"]))
def test_a_loop_runs_as_often_as_asked(seed: int, seq_len: int, accumulators: int, nesting: int, kind: str) -> None:
    knobs = {"kinds": (kind,), "accumulators": accumulators, "nesting": nesting}
    text, _, about = draw("loops", seq_len, seed, **knobs)
    head = next(n for n, line in enumerate(text.split("\n"), 1) if line.startswith(kind))
    assert [state["taken"] for state in about["states"] if state["line"] == head] == [True] * seq_len + [False]
    assert ("for j in range(" in text) == (nesting == 2)
    assert len(set(about["states"][-1]["variables"]) - {"i", "j"}) == accumulators


@given(SEEDS, st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_functions_call_one_another_as_deep_as_asked(seed: int, seq_len: int, depth: int, arguments: int) -> None:
    text, _, about = draw("functions", seq_len, seed, depth=depth, arguments=arguments)
    assert max(state["depth"] for state in about["states"]) == depth
    assert text.count("def ") == depth
    assert all(line.count(",") == arguments - 1 for line in text.split("\n") if "(" in line)
    assert len([line for line in text.split("\n") if re.match(r"[a-z] = ", line)]) == seq_len


@given(SEEDS, st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.sampled_from([0, 0.5, 1]))
def test_containers_are_as_many_and_as_large_as_asked(
    seed: int, seq_len: int, size: int, containers: int, aliases: float
) -> None:
    knobs: dict[str, Json] = {"size": size, "containers": containers, "aliases": aliases}
    for kinds in (("list",), ("dict",), ("list", "dict")):
        text, answer, about = draw("containers", seq_len, seed, kinds=kinds, **knobs)
        made = re.findall(r"^[xyzuvw] = [\[{](.*)[\]}]$", text, re.MULTILINE)
        assert [items.count(",") + 1 for items in made] == [size] * containers
        assert ("[" in text.split("\n")[0]) == (kinds[0] == "list") or len(kinds) == 2
        assert (len(re.findall(r"^[xyzuvw] = [xyzuvw]$", text, re.MULTILINE)) == 0) or aliases > 0
        assert 0 <= answer <= 9
        assert re.fullmatch(r".* = [xyzuvw]\[.*\]", text.split("\n")[-2])
        values = [v for state in about["states"] for v in state["variables"].values() if not isinstance(v, int)]
        assert all(1 <= len(value) <= 9 for value in values)


@pytest.mark.parametrize(("items", "swaps"), [(2, 8), (5, 8), (5, 128), (10, 64), (26, 128)])
def test_a_permutation_is_its_swaps_one_after_another(items: int, swaps: int) -> None:
    for seed in range(20):
        text, answer, about = draw("permutations", swaps, seed, items=items)
        lines = text.split("\n")
        values = [line.split(" = ") for line in lines[:items]]
        assert len({number for _, number in values}) == items
        held = dict(values)
        for line in lines[items:-1]:
            [(a, b)] = re.findall(r"^([a-z]), ([a-z]) = \2, \1$", line)
            held[a], held[b] = held[b], held[a]
        assert len(lines) == items + swaps + 1
        assert answer == int(held[text[-3]])
        assert [values[n][1] for n in about["permutation"]] == list(held.values())
        assert answer < max(items, 10)


# --- English ----------------------------------------------------------------------------------------------------------


def sentences(text: str) -> tuple[list[str], str]:
    """The sentences of a text, and the query behind the last."""
    *told, query = text.split(". ")
    return told, query


def role(made: GeneratedProgram, name: str) -> str:
    return made.program[slice(*made.metadata["spans"][name])]


@given(SEEDS, st.integers(1, 30), st.integers(2, 9), st.data())
def test_boxes_have_what_was_moved_into_them_last(seed: int, seq_len: int, boxes: int, data) -> None:
    things = data.draw(st.integers(1, boxes - 1))
    text, answer, about = draw("boxes", seq_len, seed, boxes=boxes, things=things)
    told, query = sentences(text)
    inside: dict[str, str] = {}
    for number, sentence in enumerate(told):
        if found := re.fullmatch(r"The (\w+) is in box (\w)", sentence):
            thing, to = found.groups()
        else:
            [(thing, source, to)] = re.findall(r"^The (\w+) is moved from box (\w) to box (\w)$", sentence)
            assert inside.pop(source) == thing
        assert to not in inside
        inside[to] = thing
        assert about["states"][number] == {"sentence": number + 1, "boxes": inside}
        span = slice(*about["spans"][f"sentence_{number + 1}_to"])
        assert (text[span], text[slice(*about["spans"][f"sentence_{number + 1}_end"])]) == (to, ".")
        assert text[: span.start].count(".") == number
    assert (len(told), len(about["states"]), len(inside)) == (things + seq_len, things + seq_len, things)
    [box] = re.findall(r"^Box (\w) contains the$", query)
    assert (inside[box], text[slice(*about["spans"]["query_box"])]) == (answer, box)


@given(SEEDS, st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.sampled_from([0, 0.5, 1]))
def test_people_believe_what_they_did_or_saw_last(
    seed: int, seq_len: int, people: int, containers: int, seen: float
) -> None:
    text, answer, about = draw("beliefs", seq_len, seed, people=people, containers=containers, seen=seen)
    told, query = sentences(text)
    assert len(told) == seq_len * people
    contents: dict[str, str] = {}
    beliefs: dict[tuple[str, str], str] = {}
    container = drink = ""
    for number, sentence in enumerate(told):
        if found := re.fullmatch(r"(\w+) fills the (\w+) with (\w+)", sentence):
            name, container, drink = found.groups()
            assert contents.get(container) != drink
            contents[container] = beliefs[name, container] = drink
        elif sentence.endswith(" does not see it"):
            assert seen < 1
        else:
            assert seen > 0
            beliefs[sentence.removesuffix(" sees it"), container] = drink
        state = about["states"][number]
        assert (state["sentence"], state["contents"]) == (number + 1, contents)
        told_beliefs = {(name, c): d for name, held in state["beliefs"].items() for c, d in held.items()}
        assert told_beliefs == beliefs
    [(name, container)] = re.findall(r"^(\w+) believes that the (\w+) contains$", query)
    assert (answer, about["content"]) == (beliefs[name, container], contents[container])
    assert text[slice(*about["spans"]["query_name"])] == name


def test_false_beliefs_are_asked_for_often_and_none_where_all_is_seen() -> None:
    made = [generate(GENERATORS["beliefs"], 6, seed) for seed in range(300)]
    assert 100 < sum(one.answer != one.metadata["content"] for one in made) < 250
    assert all(
        answer == about["content"] for _, answer, about in (draw("beliefs", 6, seed, seen=1) for seed in range(50))
    )


def test_roles_of_sentences_are_their_words() -> None:
    made = generate(GENERATORS["beliefs"], 1, 0)
    first = [role(made, f"sentence_1_{name}") for name in ("name", "container", "drink", "end")]
    assert made.program.startswith("{} fills the {} with {}{}".format(*first))
    assert role(made, "sentence_2_sight") in ("sees", "does not see")
