"""Baselines: what each rule answers, and what a model must therefore beat."""

from itertools import islice

import pytest

from debug import ExperimentRunner, quick_experiment
from debug.generators import make_variable_binding_program, search
from debug.models import heuristics
from debug.programs import Program
from present import present

PROGRAM = "a = 3\nb = a\nc = 5\nd = c\ne = d\n#b: "


def answers(name, programs):
    given = dict(present(heuristics.find(f"heuristic:{name}")).generate(programs, max_new_tokens=1))
    return [given[index].text for index in range(len(programs))]


def test_rules_answer_what_they_say():
    assert answers("largest-chain", [PROGRAM]) == ["5"]
    assert answers("first-two-lines", [PROGRAM]) == ["3"]
    programs = [PROGRAM.replace("a = 3", f"a = {n}") for n in (1, 2, 3, 4, 6, 7, 8, 9)] * 3
    drawn = answers("any-number", programs)
    assert drawn == answers("any-number", programs)  # the same program, the same answer
    assert {answer == "5" for answer in drawn} == {True, False}
    assert all(answer in "5" + program[4] for answer, program in zip(drawn, programs, strict=True))


def test_a_rule_without_a_number_or_a_program_gives_none():
    assert answers("any-number", ["x = True\nx = not x"]) == [""]
    [(_, completion)] = present(heuristics.find("heuristic:largest-chain")).generate(
        ["x = 0\nx += 3"], max_new_tokens=1
    )
    assert present(completion.error).startswith("heuristic:largest-chain: the last line is 'x += 3'")


def test_the_largest_chain_is_the_shortcut_that_it_is_known_to_be():
    """On the generator's own draw of five lines it is right most of the time: an accuracy there shows little."""
    programs = [made.program for made in islice(search(make_variable_binding_program, 5, 0), 1000)]
    right = [
        answer == str(Program.parse(p).answer)
        for answer, p in zip(answers("largest-chain", programs), programs, strict=True)
    ]
    assert 0.8 < sum(right) / 1000 < 0.95


def test_baselines_run_beside_models_and_are_compared_with_them(uri):
    config = quick_experiment(
        name="baselines",
        prompt_template="VARIABLE_BINDING",
        program_generator="variable_binding",
        models=["tiny", "heuristic:first-two-lines"],
        num_seqs=40,
        seq_lens=[9],
        few_shot=0,
    )
    result = ExperimentRunner(uri).run(config)
    tiny, baseline = result.summary["cells"]
    assert tiny["accuracy"] == 1
    assert baseline["backend"] == "heuristic"
    assert baseline["correct"] < 40
    [comparison] = result.summary["comparisons"]
    assert comparison["only_first"] == 40 - baseline["correct"]
    assert comparison["p_adjusted"] == comparison["p_value"] < 0.05
    assert "tiny - heuristic:first-two-lines" in str(result)


def test_a_baseline_that_is_not_there_names_those_that_are():
    with pytest.raises(ValueError, match="unknown 'heuristic:luck'; there are: heuristic:first-two-lines"):
        heuristics.find("heuristic:luck")
    assert heuristics.find("tiny") is None
