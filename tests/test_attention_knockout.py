"""The edges of the hypotheses, on a program written by hand; their random controls cut as many and none of them."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

import vocabularies
from debug import causal_tracing, models
from debug.attention_knockout import HYPOTHESES, chain_following, direct_pointer, edges_of, random_control
from debug.causal_map import random_of
from debug.generators import generate, make_variable_binding_program
from debug.plan import KNOCKOUT
from debug.programs import Program
from debug.prompts import FEW_SHOT_BINDING
from debug.token_analyzer import PairError, TokenizedProgram, analyze
from present import present
from reference import pairs

# Models with random weights answer nothing: their pairs are used all the same.
run_causal_tracing_experiment = partial(causal_tracing.run_causal_tracing_experiment, require_correct=False)


#     0     1    2   3     4    5    6   7   8     9    10   11    12   13   14  15    16   17  18
# i = 8 / h = 3 / x = i / w = x / #w: , of which the second line is not of the chain
CODE = "i = 8\nh = 3\nx = i\nw = x\n#w: "
ROOT_LINE, SECOND_LINE, THIRD_LINE, QUERY_LINE = range(0, 4), range(8, 12), range(12, 16), range(16, 19)


def analyzed(text: str = CODE, name: str = "tiny", template: str = "{code}") -> TokenizedProgram:
    return analyze(vocabularies.tokenizer(name), Program.parse(text), template)


def test_the_direct_pointer_goes_from_the_query_line_to_the_roots_line() -> None:
    assert "|".join(analyzed().tokens) == "i| = |8|\n|h| = |3|\n|x| = |i|\n|w| = |x|\n|#|w|: "
    assert direct_pointer(analyzed()) == {(query, key) for query in QUERY_LINE for key in ROOT_LINE}


def test_chain_following_goes_from_line_to_line() -> None:
    expected = {(query, key) for query in QUERY_LINE for key in THIRD_LINE}
    expected |= {(query, key) for query in THIRD_LINE for key in SECOND_LINE}
    expected |= {(query, key) for query in SECOND_LINE for key in ROOT_LINE}
    assert chain_following(analyzed()) == expected


def test_a_chain_of_one_line_has_nothing_to_follow() -> None:
    assert len(direct_pointer(analyzed("a = 1\nb = 2\n#a: "))) == 3 * 4
    with pytest.raises(PairError, match="chain_following needs a chain of 2 lines or more"):
        chain_following(analyzed("a = 1\nb = 2\n#a: "))


def test_a_root_of_several_tokens_and_a_prompt_before_it_are_minded() -> None:
    program = analyzed("a = 105\nb = a\n#b: ", "characters", FEW_SHOT_BINDING)
    before = program.prompt.index("a = 105")
    assert program.roles["ref_depth_1_rhs"] == [before + 4, before + 5, before + 6]
    query_line = range(len(program.tokens) - 4, len(program.tokens))
    assert direct_pointer(program) == {(query, before + key) for query in query_line for key in range(8)}
    assert {key for _, key in chain_following(program)} == {before + key for key in range(14)}


def test_ones_own_hypothesis() -> None:
    program = analyzed()
    assert edges_of(program, "final->ref_depth_1_rhs") == {(18, 2)}
    assert edges_of(program, "query_var+final->ref_depth_1_rhs+ref_depth_2_line") == {
        (query, key) for query in (17, 18) for key in (2, *SECOND_LINE)
    }
    assert edges_of(program, "10->9+10+11") == {(10, 9)}, "no token loses itself, and none sees what follows"
    assert edges_of(program, "direct_pointer") == direct_pointer(program)
    for hypothesis, message in [
        ("2->5", "has no edge: every key comes after every query"),
        ("final->ref_depth_4_rhs", "no target 'ref_depth_4_rhs'"),
        ("19->2", "position 19 is out of range"),
        ("final", "no target ''"),
    ]:
        with pytest.raises(PairError, match=message):
            edges_of(program, hypothesis)


@given(st.integers(0, 2**32 - 1), st.integers(2, 20), st.sampled_from([*HYPOTHESES, "final->ref_depth_1_line"]))
def test_the_random_control_cuts_as_many_other_edges(seed: int, seq_len: int, hypothesis: str) -> None:
    program = analyzed(generate(make_variable_binding_program, seq_len, seed).program)
    assume(hypothesis != "chain_following" or "ref_depth_2_rhs" in program.roles)
    edges, length = edges_of(program, hypothesis), len(program.token_ids)
    chain = {p for role, at in program.roles.items() for p in at}
    off_chain = [edge for edge in product(range(length), repeat=2) if edge[1] < edge[0] and not chain.issuperset(edge)]
    assume(len(edges) <= len(off_chain))
    draws = [random_control(program, edges, draw) for draw in range(3)]
    for control in draws:
        assert len(control) == len(edges)
        assert control <= {*off_chain}, "no edge of the queried chain"
    assert draws == [random_control(program, edges, draw) for draw in range(3)], "drawn by the prompt and the number"
    for control in draws:
        queries, own = Counter(query for query, _ in edges), Counter(query for query, _ in control)
        for query, n in queries.items():
            have = sum(edge[0] == query for edge in off_chain)
            assert own[query] >= min(n, have) - max(0, len(edges) - len(off_chain)), "a query loses as many other keys"


def test_random_edges_have_the_distance_and_where_asked_the_mass_of_those_that_are_cut() -> None:
    text = generate(make_variable_binding_program, 17, 12).program
    program = analyzed(text)
    edges = edges_of(program, "chain_following")
    controls = [random_control(program, edges, draw) for draw in range(5)]
    assert len(set(controls)) == 5

    def distances(of: Iterable[tuple[int, int]]) -> float:
        return float(np.mean([query - key for query, key in of]))

    for control in controls:
        assert abs(distances(control) - distances(edges)) < 0.15 * distances(edges)
    mass = np.random.RandomState(0).rand(len(program.token_ids), len(program.token_ids)) ** 4
    for edge in edges:  # what the heads look at most
        mass[edge] = 0.5 + 0.5 * mass[edge]
    asked = [random_control(program, edges, draw, mass) for draw in range(5)]

    def gap(of: Iterable[frozenset[tuple[int, int]]]) -> float:
        return float(np.mean([stats.wasserstein_distance([mass[e] for e in o], [mass[e] for e in edges]) for o in of]))

    assert gap(asked) < 0.9 * gap(controls)


def test_a_prompt_with_too_few_other_edges_has_no_control() -> None:
    program = analyzed()
    every = frozenset((query, key) for query in range(19) for key in range(query))
    with pytest.raises(PairError, match="171 edges are cut, and the prompt has only 0 others off the queried chain"):
        random_control(program, every)


def test_draws_of_random_edges_are_clustered_by_pair() -> None:
    """Five draws of a pair say less than five pairs: the interval of the difference does not shrink with copies."""
    model, given = models.load("tiny"), pairs(30, 17)
    plan = {"positions": ["direct_pointer"], "require_correct": True}
    one = run_causal_tracing_experiment(model, given, KNOCKOUT, random_draws=1, **plan).mean
    five = run_causal_tracing_experiment(model, given, KNOCKOUT, **plan)
    rate = five.mean["direct_pointer_random"]["answer_kept"][0]
    by_hand = [
        np.mean([m.at_target(t, "answer_kept")[0] for t in m.targets if random_of(t) == "direct_pointer_random"])
        for m in five.maps
    ]
    assert present(rate).estimate == pytest.approx(np.mean(by_hand))
    assert present(rate).n == five.mean.n_pairs == one.n_pairs
    [compared] = five.mean.against_random["direct_pointer"]
    own = present(five.mean["direct_pointer"]["answer_kept"][0]).estimate
    assert compared.difference.estimate == pytest.approx(own - present(rate).estimate)
    assert compared.difference.n == five.mean.n_pairs


def test_one_hop_programs_among_others_are_skipped_with_the_reason() -> None:
    result = run_causal_tracing_experiment("tiny", [*pairs(2), *pairs(1, hops=1)], KNOCKOUT)
    assert [r.index for r in result.skipped] == [2]
    assert "needs a chain of 2 lines or more" in present(present(result.skipped)[0].skipped)
    alone = run_causal_tracing_experiment("tiny", pairs(2, hops=1), KNOCKOUT, positions=["direct_pointer"])
    assert not alone.skipped


def test_the_bundled_model_loses_the_answer_with_the_chain_and_not_with_random_edges() -> None:
    """What the comparison is for: a hypothesis says something where its edges matter more than as many others."""
    mean = run_causal_tracing_experiment(models.load("tiny"), pairs(60), KNOCKOUT, require_correct=True).mean
    kept = {curve.target: curve["answer_kept"][0] for curve in mean.curves}
    assert present(present(kept["chain_following"]).high) < present(present(kept["chain_following_random"]).low)
    assert all(present(rate).n == mean.n_pairs for rate in kept.values())
    drops = {curve.target: present(curve["answer_logit_drop"][0]).estimate for curve in mean.curves}
    assert np.isfinite(list(drops.values())).all()
