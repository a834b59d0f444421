"""What explains an answer, and what chance would explain: counted by hand on small programs."""

from debug.paper.strategies import EARLY, SHALLOW, drawn, explained, explanations, wrong_answers
from present import present

# the value of the queried chain, 1, stands on line 1, and most lines lead to it
SHALLOW_IS_RIGHT = "a = 1\nb = 2\nc = 3\nd = a\ne = a\n#e: "
# the value of the queried chain, 3, stands on line 3, and most lines lead to it
DEEP = "a = 1\nb = 2\nc = 3\nd = c\ne = d\n#e: "


def test_chance_of_a_wrong_answer_leaves_the_right_one_out_of_the_draw_and_of_what_explains():
    found = {name: value.estimate for name, value in wrong_answers([(2, SHALLOW_IS_RIGHT)]).items()}
    # of the numbers 2 and 3, and of the lines that lead to these, one is on line 1 or 2; none is the largest chain's
    assert found == {
        "line 1 or 2": 1,
        "line 1 or 2, number drawn": 1 / 2,
        "line 1 or 2, line drawn": 1 / 2,
        "largest chain": 0,
        "largest chain, number drawn": 0,
        "largest chain, line drawn": 0,
        EARLY: 1 / 2,
    }
    found = {name: value.estimate for name, value in wrong_answers([(2, DEEP), (1, DEEP)]).items()}
    assert found["line 1 or 2, number drawn"] == found["line 1 or 2, line drawn"] == 1  # of 1 and 2
    assert found["largest chain, number drawn"] == found["largest chain, line drawn"] == 0


def test_a_line_drawn_favours_the_numbers_that_many_lines_lead_to():
    program = "a = 1\nb = a\nc = b\nd = 2\ne = 3\n#e: "
    found = {name: value.estimate for name, value in wrong_answers([(1, program)]).items()}
    assert (found["largest chain, number drawn"], found["largest chain, line drawn"]) == (1 / 2, 3 / 4)
    # 1 alone is on line 1 or 2; line 4 leads to the other wrong number
    assert (found["line 1 or 2, number drawn"], found["line 1 or 2, line drawn"]) == (1 / 2, 3 / 4)


def test_only_wrong_numbers_of_the_program_are_wrong_answers():
    assert wrong_answers([(3, DEEP), (9, DEEP), (None, DEEP)]) == {}
    assert wrong_answers([(3, DEEP), (1, DEEP)])["line 1 or 2"].n == 1


def test_chance_of_any_answer_keeps_the_right_one():
    assert explanations(DEEP)["any number"] == {1, 2, 3}
    by = drawn([DEEP], "any number")
    assert [by[name].estimate for name in SHALLOW] == [2 / 3, 1 / 3]
    assert by["dereferencing"].estimate == 1 / 3
    assert explained([(3, DEEP), (1, DEEP)])["dereferencing"].estimate == 1 / 2


def test_the_excess_over_a_line_drawn_has_an_interval_also_where_it_is_the_same_in_all_answers():
    early = wrong_answers([(2, SHALLOW_IS_RIGHT)] * 10)[EARLY]
    assert (early.estimate, early.n) == (1 / 2, 10)
    assert -1 < present(early.low) < early.estimate < present(early.high) < 1
