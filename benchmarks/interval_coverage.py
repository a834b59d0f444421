"""How often each interval of debug.statistics holds the truth: of 95% intervals it should be 95% of samples.

python benchmarks/interval_coverage.py                 # the table of docs/statistics.md, two minutes
python benchmarks/interval_coverage.py --samples 1000  # coarser

Rates and paired differences are summed over all outcomes, which is exact; the rest is simulated, with a standard error
of 0.3 points at 5,000 samples. A cell of the table is the lowest and the highest coverage over the shares of SHARES.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float
from scipy import stats

from debug.causal_map import ratio_of_means
from debug.statistics import Interval, _paired, bootstrap_means, mcnemar, rate_until, wilson

SIZES = (10, 20, 50, 200)
SHARES = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97)
SAMPLES = 5000

Draw = Callable[[np.random.Generator, int, int], tuple[Float[np.ndarray, "n sample"], float]]
"""(generator, n, samples) -> the values of each sample, and the true mean."""


def holds(interval: Interval, truth: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low - 1e-12 <= truth <= interval.high + 1e-12


def of_rates(n: int, share: float) -> float:
    """Wilson's interval of k of n."""
    k = np.arange(n + 1)
    return float(stats.binom.pmf(k, n, share) @ [holds(wilson(int(each), n), share) for each in k])


def of_paired(n: int, apart: float, first: float) -> float:
    """The interval of :func:`mcnemar`: a share ``apart`` of programs tells two models apart, ``first`` of it for the
    first model."""
    chances = apart * first, apart * (1 - first), 1 - apart
    total = 0.0
    for b in range(n + 1):
        c = np.arange(n + 1 - b)
        outcomes = np.stack([np.full_like(c, b), c, n - b - c], axis=1)
        chance = np.exp(stats.multinomial(n, chances).logpmf(outcomes))
        likely = np.flatnonzero(chance > 1e-7)
        total += sum(float(chance[i]) * holds(_paired(b, int(c[i]), n)[0], apart * (2 * first - 1)) for i in likely)
    return total


def of_stopped(wanted: int, most: int, share: float) -> float:
    """The interval of :func:`rate_until`: ``wanted`` successes, or ``most`` trials."""
    n = np.arange(wanted, most + 1)
    found = stats.nbinom.pmf(n - wanted, wanted, share) @ [holds(rate_until(wanted, int(m), wanted), share) for m in n]
    k = np.arange(wanted)
    missed = stats.binom.pmf(k, most, share) @ [holds(rate_until(int(each), most, wanted), share) for each in k]
    return float(found + missed)


def of_means(draw: Draw, n: int, samples: int = SAMPLES, seed: int = 0, **options) -> float:
    """The interval of :func:`bootstrap_means`, a column a sample."""
    values, truth = draw(np.random.default_rng([seed, n]), n, samples)
    found = bootstrap_means(values, **options)
    return float(np.mean([each.low is not None and holds(each, truth) for each in found]))


def shares(share: float, interventions: int, correlation: float) -> Draw:
    """Each pair's share of ``interventions`` that succeed, alike within a pair: beta-binomial."""

    def draw(rng, n, samples):
        chance: Float[np.ndarray, "n sample"] = np.full((n, samples), share)
        if correlation == 1:
            return (rng.random((n, samples)) < share).astype(float), share
        if correlation:
            size = 1 / correlation - 1
            chance = rng.beta(share * size, (1 - share) * size, (n, samples))
        return rng.binomial(interventions, chance) / interventions, share

    return draw


def differences(share: float, correlation: float) -> Draw:
    """Of each pair, a share less another one of mean 1/2 that has half of its interventions in common."""

    def draw(rng, n, samples):
        one, _ = shares(share, 8, correlation)(rng, n, samples)
        other, _ = shares(0.5, 8, correlation)(rng, n, samples)
        return one - (one + other) / 2, (share - 0.5) / 2

    return draw


def near_two_points(share: float, noise: float) -> Draw:
    """Normalized logit differences: near 1 where the patch works, near 0 elsewhere."""
    return lambda rng, n, samples: (
        (rng.random((n, samples)) < share) + noise * rng.standard_normal((n, samples)),
        share,
    )


def beta(a: float, b: float) -> Draw:
    return lambda rng, n, samples: (rng.beta(a, b, (n, samples)), a / (a + b))


MEANS: dict[str, Draw] = {
    "normal": lambda rng, n, samples: (rng.standard_normal((n, samples)), 0.0),
    "uniform": beta(1, 1),
    "rank agreement, mean 0.95 (beta 19, 1)": beta(19, 1),
    "exponential": lambda rng, n, samples: (rng.exponential(1, (n, samples)), 1.0),
    "log-normal, skewness 1.8": lambda rng, n, samples: (rng.lognormal(0, 0.5, (n, samples)), np.exp(0.125)),
    **{f"near 0 or 1, noise 0.3, share {p}": near_two_points(p, 0.3) for p in (0.03, 0.1, 0.3, 0.5)},
    **{f"near 0 or 1, noise 0.05, share {p}": near_two_points(p, 0.05) for p in (0.3, 0.5)},
}
"""Values without bounds whose means the intervals hold."""
RARE: dict[str, Draw] = {f"near 0 or 1, noise 0.05, share {p}": near_two_points(p, 0.05) for p in (0.03, 0.1)} | {
    "log-normal, skewness 6.2": lambda rng, n, samples: (rng.lognormal(0, 1, (n, samples)), np.exp(0.5))
}
"""What no interval can know: samples that lack the rare values do not differ from those of a world without them."""


def of_effects(n: int, share: float | None = None, samples: int = SAMPLES) -> float:
    """Normalized logit differences: Fieller's interval of the mean effect over the mean whole effect. Of each pair the
    patch brings 0.6 of it, or all of it in a ``share`` of pairs."""
    rng = np.random.default_rng([1, n])
    whole = rng.gamma(9, 1, (n, samples))
    works = np.full((n, samples), 0.6) if share is None else rng.random((n, samples)) < share
    effect = works * whole + rng.standard_normal((n, samples))
    truth = 0.6 if share is None else share
    return float(np.mean([found is not None and holds(found, truth) for found in ratio_of_means(effect, whole, 0.0)]))


def of_weighted(n: int, share: float, samples: int = SAMPLES) -> float:
    """Means of shares of pairs with 4 to 40 interventions each."""
    rng = np.random.default_rng([2, n])
    interventions = rng.integers(4, 41, n)
    chance = rng.beta(share * 7 / 3, (1 - share) * 7 / 3, (n, samples))
    values = rng.binomial(interventions[:, None], chance) / interventions[:, None]
    return float(np.mean([holds(each, share) for each in bootstrap_means(values, is_rate=True, weights=interventions)]))


def of_cells(n: int, samples: int = 500, cells: int = 3) -> float:
    """Paired answers to the programs of n seeds, one in each of several cells, that stand or fall together."""
    rng, kept = np.random.default_rng([3, n]), 0
    seeds = np.repeat(np.arange(n), cells)
    for _ in range(samples):
        hard = np.repeat(rng.beta(1.5, 1.5, n), cells)
        first, second = rng.random(n * cells) < hard**0.5, rng.random(n * cells) < hard
        kept += holds(
            mcnemar(first, second, seeds=seeds).difference, float(stats.beta.expect(lambda x: x**0.5 - x, (1.5, 1.5)))
        )
    return kept / samples


def table(samples: int) -> Iterator[str]:
    """The rows, as Markdown."""

    def row(name: str, coverage: Callable[[int], list[float]]) -> str:
        ends = [(min(found), max(found)) for found in map(coverage, SIZES)]
        shown = [f"{100 * low:.1f}" + (f" to {100 * high:.1f}" if high > low else "") for low, high in ends]
        return f"| {name} | {' | '.join(shown)} |"

    yield f"| interval | {' | '.join(f'n = {n}' for n in SIZES)} |"
    yield f"| --- |{' --- |' * len(SIZES)}"
    yield row("rate: Wilson", lambda n: [of_rates(n, share) for share in SHARES])
    for interventions, correlation in ((5, 0), (5, 0.3), (5, 0.7), (30, 0), (30, 0.1), (30, 0.3), (30, 0.7)):
        name = f"mean of shares of {interventions}, correlation {correlation}"
        yield row(
            name,
            lambda n, of=(interventions, correlation): [
                of_means(shares(share, *of), n, samples, is_rate=True) for share in SHARES
            ],
        )
    yield row("the same of 4 to 40, weighted, 0.3", lambda n: [of_weighted(n, share, samples) for share in SHARES])
    for correlation in (0, 0.3):
        yield row(
            f"difference of shares, correlation {correlation}",
            lambda n, c=correlation: [
                of_means(differences(share, c), n, samples, is_rate=True, bounds=(-1, 1)) for share in SHARES
            ],
        )
    for name, draw in (MEANS | RARE).items():
        yield row(f"mean: {name}", lambda n, draw=draw: [of_means(draw, n, samples)])
    yield row("share of the whole effect, 0.6 of each pair's", lambda n: [of_effects(n, None, samples)])
    for share in (0.03, 0.1, 0.3, 0.5):
        name = f"share of the whole effect, all of it in {share} of pairs"
        yield row(name, lambda n, s=share: [of_effects(n, s, samples)])
    for first in (0.5, 0.75, 1):
        yield row(
            f"paired difference, {first:.0%} of those apart for the first",
            lambda n, f=first: [of_paired(n, apart, f) for apart in SHARES],
        )
    yield row("the same over 3 cells, by seed", lambda n: [of_cells(n, max(200, samples // 10))])
    for wanted in (1, 5):
        yield row(
            f"rate until {wanted} of at most n x {wanted}",
            lambda n, w=wanted: [of_stopped(w, n * w, share) for share in SHARES],
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"of each simulated cell (default {SAMPLES})")
    for line in table(parser.parse_args().samples):
        print(line, flush=True)
