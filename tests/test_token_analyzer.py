"""Roles in a program's text are found at the right tokens, whatever a tokenizer merges, splits or leaves out."""

import re
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vocabularies
from debug.counterfactual import make_pair
from debug.generators import generate, make_variable_binding_program
from debug.programs import Program, pair_from_record
from debug.prompts import FEW_SHOT_BINDING
from debug.token_analyzer import PairError, TokenizedProgram, analyze, analyze_pair

TOKENIZERS = [*vocabularies.REAL, *vocabularies.ARTIFICIAL]
BOS = {"mistral": "<s>", "mistral_legacy": "<s>", "merged_bos": "<s>"}
ANSWER_MERGES = {"answer_merges"}
NEWLINE = "\n"

# Around the program: the same variable names, queries and numbers, which must not be taken for the program's own.
TEMPLATES = ["{code}", FEW_SHOT_BINDING, "a = 1\nb = a\n#b: 1\n\n{code}", "x = 10\n#x: 10\n{code}\n#x: "]


@pytest.fixture(scope="session", params=TOKENIZERS)
def name(request: pytest.FixtureRequest) -> str:
    """A tokenizer's name; the test is skipped, once, where the package that carries its vocabulary is absent."""
    vocabularies.tokenizer(request.param)
    return request.param


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A drawn program, its root perhaps a number of several digits."""
    seq_len, seed = draw(st.integers(1, 20)), draw(st.integers(0, 2**32 - 1))
    program = Program.parse(generate(make_variable_binding_program, seq_len, seed).program)
    return program.with_root(draw(st.just(program.answer) | st.integers(10, 999)))


def chain_lines(text: str) -> list[int]:
    """Line numbers of the variable chain, the root's first."""
    *lines, query = text.split("\n")
    chains: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        left, right = line.split(" = ")
        chains[left] = [*chains.get(right, []), number]
    return chains[query[1:-2]]


def role_texts(text: str) -> dict[str, tuple[int, str]]:
    """Each role's place in the program and its text, found by counting characters."""
    lines = text.split("\n")
    starts = [0, *accumulate(len(line) + 1 for line in lines)]
    roles = {}
    for depth, number in enumerate(chain_lines(text), start=1):
        left, right = lines[number].split(" = ")
        start = starts[number]
        roles[f"ref_depth_{depth}_lhs"] = (start, left)
        roles[f"ref_depth_{depth}_equals"] = (start + len(left) + 1, "=")
        roles[f"ref_depth_{depth}_rhs"] = (start + len(left) + 3, right)
        roles[f"ref_depth_{depth}_newline"] = (start + len(lines[number]), "\n")
    start = starts[len(lines) - 1]
    roles["query_hash"] = (start, "#")
    roles["query_var"] = (start + 1, lines[-1][1:-2])
    roles["query_colon"] = (start + len(lines[-1]) - 2, ":")
    return roles


def spans(tokens: TokenizedProgram, name: str) -> dict[int, tuple[int, int]]:
    """Characters of each token, from the lengths of the texts that come before it.

    A beginning-of-sequence token has none; nor has the space that Mistral and metaspace put before the text, where
    that is a token of its own.
    """
    without = 1 if name in BOS else 0
    if tokens.tokens[without] == "▁":
        without += 1
    ends = accumulate(map(len, tokens.tokens[without:]), initial=0)
    return {without + position: span for position, span in enumerate(pairwise(ends))}


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=15)
@given(program=programs())
def test_the_tokens_are_those_that_the_model_reads_and_joined_they_are_the_prompt(
    name: str, template: str, program: Program
) -> None:
    tokenizer = vocabularies.tokenizer(name)
    analyzed = analyze(tokenizer, program, template)
    assert analyzed.prompt == template.replace("{code}", program.text)
    assert analyzed.token_ids == tokenizer(analyzed.prompt)["input_ids"]
    assert len(analyzed.tokens) == len(analyzed.token_ids)
    texts = [analyzed.tokens[position] for position in spans(analyzed, name)]
    assert "".join(texts) == analyzed.prompt
    assert all(texts)
    if name in BOS:
        assert analyzed.tokens[0] == BOS[name]


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=15)
@given(program=programs())
def test_a_role_is_exactly_the_tokens_that_hold_its_text(name: str, template: str, program: Program) -> None:
    analyzed = analyze(vocabularies.tokenizer(name), program, template)
    before = template.index("{code}")
    expected = role_texts(program.text)
    assert analyzed.roles.keys() == {*expected, "final"}
    for role, (start, text) in expected.items():
        positions = analyzed.roles[role]
        first, last = before + start, before + start + len(text)
        assert positions == [p for p, (a, b) in spans(analyzed, name).items() if a < last and first < b]
        assert text in "".join(analyzed.tokens[position] for position in positions)
    assert analyzed.roles["final"] == [len(analyzed.token_ids) - 1]


@settings(max_examples=25)
@given(program=programs())
def test_roles_on_the_same_positions_are_one_target(name: str, program: Program) -> None:
    analyzed = analyze(vocabularies.tokenizer(name), program)
    for targets in (analyzed.targets(), analyzed.targets(list(analyzed.roles))):
        positions = [tuple(target) for target in targets.values()]
        assert len(set(positions)) == len(positions)
        assert all(analyzed.roles[target] == list(found) for target, found in zip(targets, positions, strict=True))
        assert "final" in targets
        assert "ref_depth_1_rhs" in targets
    assert {tuple(target) for target in analyzed.targets().values()} == {
        tuple(positions)
        for role, positions in analyzed.roles.items()
        if re.fullmatch(r"ref_depth_\d+_rhs|query_var|query_colon|final", role)
    }
    assert len(analyzed.targets(list(analyzed.roles))) == len(set(map(tuple, analyzed.roles.values())))


@pytest.mark.parametrize("template", TEMPLATES[:2])
@settings(max_examples=15)
@given(program=programs(), digit=st.integers(1, 9))
def test_a_pair_differs_at_the_root_and_its_answers_right_after_the_prompt(
    name: str, template: str, program: Program, digit: int
) -> None:
    tokenizer = vocabularies.tokenizer(name)
    root = str(program.answer)
    value = int(f"{digit if root[0] != str(digit) else digit % 9 + 1}{root[1:]}")  # another number of as many digits
    pair = make_pair(program, root_value=value)
    if name in ANSWER_MERGES:
        with pytest.raises(PairError, match="the prompt's tokens change when the answer follows"):
            analyze_pair(tokenizer, pair, template)
        return
    analyzed = analyze_pair(tokenizer, pair, template)
    both = zip(analyzed.original.token_ids, analyzed.counterfactual.token_ids, strict=True)
    differing = [position for position, (a, b) in enumerate(both) if a != b]
    assert set(differing) <= set(analyzed.original.roles["ref_depth_1_rhs"])
    assert analyzed.first_difference == differing[0]
    assert analyzed.original.roles == analyzed.counterfactual.roles
    prompt = analyzed.original.prompt
    for token, answer in zip(analyzed.answer_tokens, (value, root), strict=True):
        continued = tokenizer(f"{prompt}{answer}")["input_ids"]
        assert continued[: len(analyzed.original.token_ids) + 1] == [*analyzed.original.token_ids, token]


def test_a_beginning_of_sequence_token_moves_every_position_by_one() -> None:
    program = Program.parse("a = 10\nb = a\n#b: ")
    without, with_bos = (analyze(vocabularies.tokenizer(name), program) for name in ("merged", "merged_bos"))
    assert {role: [p + 1 for p in positions] for role, positions in without.roles.items()} == with_bos.roles


@pytest.mark.parametrize(
    ("name", "tokens", "targets"),
    [
        (
            "merged",
            ["b", " =", " 10", "\n", "a", " =", " b", "\n", "#a", ": "],
            {"ref_depth_1_rhs": [2], "ref_depth_2_rhs": [6], "query_var": [8], "final": [9]},
        ),
        (
            "characters",
            [*"b = 10\na = b\n#a: "],
            {
                **{"ref_depth_1_rhs": [4, 5], "ref_depth_2_rhs": [11]},
                **{"query_var": [14], "query_colon": [15], "final": [16]},
            },
        ),
        (
            "with_newline",
            ["b", " = ", "10\n", "a", " = ", "b\n", "#a: "],
            {"ref_depth_1_rhs": [2], "ref_depth_2_rhs": [5], "final": [6]},
        ),
        (
            "tiny",
            ["b", " = ", "1", "0", "\n", "a", " = ", "b", "\n", "#", "a", ": "],
            {"ref_depth_1_rhs": [2, 3], "ref_depth_2_rhs": [7], "query_var": [10], "final": [11]},
        ),
        (
            "qwen",
            ["b", " =", " ", "1", "0", "\n", "a", " =", " b", "\n", "#a", ":", " "],
            {
                **{"ref_depth_1_rhs": [3, 4], "ref_depth_2_rhs": [8]},
                **{"query_var": [10], "query_colon": [11], "final": [12]},
            },
        ),
        (
            "mistral",
            ["<s>", "b", " =", " ", "1", "0", "\n", "a", " =", " b", "\n", "#", "a", ":", " "],
            {
                **{"ref_depth_1_rhs": [4, 5], "ref_depth_2_rhs": [9]},
                **{"query_var": [12], "query_colon": [13], "final": [14]},
            },
        ),
    ],
)
def test_targets_of_a_two_line_program(name: str, tokens: list[str], targets: dict[str, list[int]]) -> None:
    analyzed = analyze(vocabularies.tokenizer(name), Program.parse("b = 10\na = b\n#a: "))
    assert analyzed.tokens == tokens
    assert analyzed.targets() == targets


def test_targets_can_be_asked_for_by_name_and_are_named_for_what_holds_by_construction() -> None:
    program = Program.parse("a = 10\nb = a\n#b: ")
    merged = analyze(vocabularies.tokenizer("merged"), program)
    asked = ["ref_depth_1_newline", "ref_depth_2_equals", "query_hash", "query_var"]
    assert merged.targets(asked) == {"ref_depth_1_newline": [3], "ref_depth_2_equals": [5], "query_hash": [8]}
    sticky = analyze(vocabularies.tokenizer("with_newline"), program)
    assert sticky.targets(["query_hash"]) == {"final": [6]}
    assert sticky.targets(["ref_depth_1_newline", "ref_depth_2_newline"]) == {
        "ref_depth_1_rhs": [2],
        "ref_depth_2_newline": [5],
    }


@pytest.mark.parametrize("target", ["ref_depth_2_rhs", "ref_depth_2_line", "root", "", "query_line", "-1", "1.5"])
@pytest.mark.parametrize("joined", ["{}", "final+{}", "{}+final"])
def test_a_target_that_the_program_does_not_have_is_refused_with_those_it_has(target: str, joined: str) -> None:
    analyzed = analyze(vocabularies.tokenizer("tiny"), Program.parse("a = 1\n#a: "))
    with pytest.raises(PairError, match=f"no target '{target}' in this program; it has: ref_depth_1_lhs, .*, final$"):
        analyzed.targets(["final", joined.format(target)])


@pytest.mark.parametrize("number", [7, -1, "7", 10**30])
def test_a_position_that_the_prompt_does_not_have_is_refused_with_those_it_has(number: int | str) -> None:
    analyzed = analyze(vocabularies.tokenizer("tiny"), Program.parse("a = 1\n#a: "))
    with pytest.raises(PairError, match=f"position {number} is out of range; the prompt has tokens 0 to 6"):
        analyzed.targets([number])


def test_positions_lines_and_several_targets_can_be_asked_for() -> None:
    analyzed = analyze(vocabularies.tokenizer("tiny"), Program.parse("c = 7\nb = 10\na = b\n#a: "))
    assert analyzed.tokens == ["c", " = ", "7", "\n", "b", " = ", "1", "0", "\n", "a", " = ", "b", "\n", "#", "a", ": "]
    asked = ["ref_depth_1_line", "ref_depth_2_line", "query_var+ref_depth_1_rhs", 0, "9+1", "final+14"]
    assert analyzed.targets(asked) == {
        "ref_depth_1_line": [4, 5, 6, 7, 8],
        "ref_depth_2_line": [9, 10, 11, 12],
        "query_var+ref_depth_1_rhs": [6, 7, 14],
        "position_0": [0],
        "9+1": [1, 9],
        "final+14": [14, 15],
    }
    assert analyzed.targets([9, "6+7", 14, "15+15"]) == {
        "ref_depth_2_lhs": [9],
        "ref_depth_1_rhs": [6, 7],
        "query_var": [14],
        "final": [15],
    }


def test_the_equals_sign_does_not_take_the_value_along() -> None:
    """ " =" and " b" are two tokens; the space after the sign belongs to the second, which is the right-hand side."""
    analyzed = analyze(vocabularies.tokenizer("merged"), Program.parse("b = 1\na = b\n#a: "))
    assert analyzed.roles["ref_depth_2_equals"] == [5]
    assert analyzed.roles["ref_depth_2_rhs"] == [6]


def test_the_space_put_before_the_text_is_no_variable() -> None:
    analyzed = analyze(vocabularies.tokenizer("metaspace"), Program.parse("b = 1\n#b: "))
    assert analyzed.tokens == ["▁", *"b = 1\n#b: "]
    assert analyzed.roles["ref_depth_1_lhs"] == [1]


@pytest.mark.parametrize("name", [name for name in vocabularies.REAL if name != "tiny"])  # tiny has no such words
def test_special_tokens_and_split_characters_in_the_prompt_move_no_role(name: str) -> None:
    template = "<|im_start|>user\n🦆 naïve: {code}<|im_end|>\n"
    analyzed = analyze(vocabularies.tokenizer(name), Program.parse("b = 10\n#b: "), template)
    assert "".join(text for text in analyzed.tokens if text in template).startswith("<|im_start|>user\n🦆 naïve:")
    assert [analyzed.tokens[position] for position in analyzed.roles["ref_depth_1_rhs"]] == ["1", "0"]
    assert "#" in analyzed.tokens[analyzed.roles["query_hash"][0]]
    assert analyzed.roles["final"][0] > analyzed.roles["query_colon"][0] + 1


@pytest.mark.parametrize("template", ["no program", "{code} and {code}", "{program}", ""])
def test_a_template_needs_exactly_one_place_for_the_program(template: str) -> None:
    with pytest.raises(ValueError, match=r"must have exactly one \{code\}"):
        analyze(vocabularies.tokenizer("tiny"), Program.parse("a = 1\n#a: "), template)


def test_a_pair_of_different_lengths_is_refused_and_shown() -> None:
    pair = make_pair("a = 10\n#a: ", root_value=7)
    with pytest.raises(PairError) as refused:
        analyze_pair(vocabularies.tokenizer("characters"), pair)
    assert str(refused.value) == (
        "original has 11 tokens, counterfactual 10; the root value must tokenize to the same number of tokens "
        f"(root '10' -> '7'); from token 0 on: original {list(pair.original.text)}, "
        f"counterfactual {list(pair.counterfactual.text)}"
    )


def test_of_long_prompts_the_rows_are_shown_around_the_place_where_they_part() -> None:
    text = "one two\n" * 200
    record = {"original": f"{text}left, right", "counterfactual": f"{text}left, wrong!", "spans": {"a": [0, 3]}}
    pair = pair_from_record(record | {"expected_original": "a", "expected_counterfactual": "b"})
    with pytest.raises(PairError) as refused:
        analyze_pair(vocabularies.tokenizer("characters"), pair)
    assert str(refused.value) == (
        "original has 1611 tokens, counterfactual 1612; they must tokenize to the same number of tokens (answer 'a' -> "
        "'b'); from token 1599 on: original ['\\n', 'l', 'e', 'f', 't', ',', ' ', 'r', 'i', 'g', 'h', 't'], "
        "counterfactual ['\\n', 'l', 'e', 'f', 't', ',', ' ', 'w', 'r', 'o', 'n', 'g', ...]"
    )


def test_a_pair_that_differs_outside_the_root_is_refused_and_shown() -> None:
    tokenizer = vocabularies.split(r"a = (?=1)| = |7\n|[\s\S]")  # the root decides how the text beside it is cut
    with pytest.raises(PairError) as refused:
        analyze_pair(tokenizer, make_pair("a = 1\n#a: ", root_value=7))
    assert str(refused.value) == (
        "the prompts differ at tokens [0, 1, 2], but the root value is at [1] (root '1' -> '7'); from token 0 on: "
        f"original {['a = ', '1', NEWLINE, '#', 'a', ':', ' ']}, "
        f"counterfactual {['a', ' = ', '7' + NEWLINE, '#', 'a', ':', ' ']}"
    )


def test_two_roots_that_the_tokenizer_does_not_tell_apart_are_refused() -> None:
    pair = make_pair("a = 1000\n#a: ", root_value=2000)  # both are unknown to it
    with pytest.raises(PairError, match=r"the prompts differ at tokens \[\], but the root value is at \[2\]"):
        analyze_pair(vocabularies.tokenizer("numbers"), pair)


@pytest.mark.parametrize(("original", "value"), [(1, 10), (10, 1), (12, 17)])
def test_answers_that_begin_with_the_same_token_are_refused(original: int, value: int) -> None:
    tokenizer = vocabularies.split(r"= \d+|[\s\S]")  # the root is one token, the answer one for each digit
    with pytest.raises(PairError, match=f"answers {value} and {original} begin with the same token"):
        analyze_pair(tokenizer, make_pair(f"a = {original}\n#a: ", root_value=value))


@pytest.mark.parametrize(("original", "value"), [(7, 3), (3, 7)])
def test_an_answer_that_changes_the_prompts_tokens_is_refused_and_shown(original: int, value: int) -> None:
    tokenizer = vocabularies.split(r"= \d|(?<=:) 7|[\s\S]")  # only 7 merges with the space before it
    with pytest.raises(PairError, match=r"change when the answer follows: .*' 7'\] after .*' '\]; a prompt template"):
        analyze_pair(tokenizer, make_pair(f"a = {original}\n#a: ", root_value=value))
