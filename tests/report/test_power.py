"""Variance components and power, against simulation and the test that reports use."""

import numpy as np
import pytest

from mrl_jax.report import power, statistics
from mrl_jax.report.power import Components


def draw(of: Components, seeds: int, examples: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    return (
        mean
        + np.sqrt(of.seed) * rng.normal(size=(seeds, 1))
        + np.sqrt(of.example) * rng.normal(size=(1, examples))
        + np.sqrt(of.residual) * rng.normal(size=(seeds, examples))
    )


def test_components_are_those_that_differences_were_drawn_with() -> None:
    rng, of = np.random.default_rng(0), Components(0.3, 2.0, 5.0)
    found = np.mean([power.components(draw(of, 6, 300, 0.4, rng)) for _ in range(200)], axis=0)
    np.testing.assert_allclose(found, of, rtol=0.1)


def test_components_add_up_to_the_variance_of_the_mean() -> None:
    rng, of = np.random.default_rng(1), Components(0.3, 2.0, 5.0)
    means = [draw(of, 4, 50, 0, rng).mean() for _ in range(4000)]
    assert np.var(means) == pytest.approx(of.variance(4, 50), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "seeds", "examples", "difference"),
    [
        (Components(1e-6, 0.01, 0.03), 5, 500, 0.012),
        (Components(1e-4, 0.001, 0.01), 4, 500, 0.02),
        (Components(0.0, 0.02, 0.05), 3, 400, 0.02),
    ],
)
def test_the_power_is_how_often_the_test_of_reports_settles(
    of: Components, seeds: int, examples: int, difference: float
) -> None:
    rng, settled, simulations = np.random.default_rng(2), 0, 400
    for _ in range(simulations):
        d = draw(of, seeds, examples, difference, rng)
        (found,) = statistics.differences({8: d}, {8: np.zeros_like(d)}, replicates=999)
        settled += found.p < statistics.LEVEL
    assert settled / simulations == pytest.approx(power.power(of, seeds, examples, difference), abs=0.08)


def test_power_grows_with_seeds_examples_and_the_difference() -> None:
    of = Components(1e-5, 0.02, 0.05)
    assert 0.03 < power.power(of, 5, 1000, 0.0) <= statistics.LEVEL  # a little less: intervals are a little wide
    powers = [power.power(of, seeds, 1000, 0.01) for seeds in (2, 3, 5, 10)]
    assert powers == sorted(powers)
    assert power.power(of, 5, 4000, 0.01) > power.power(of, 5, 1000, 0.01)
    assert power.power(of, 5, 1000, 0.02) > power.power(of, 5, 1000, 0.01)
    assert power.power(of, 5, 1000, -0.01) == pytest.approx(power.power(of, 5, 1000, 0.01), abs=1e-9)


def test_the_fewest_seeds_settle_and_one_less_does_not() -> None:
    of = Components(1e-5, 0.01, 0.05)
    needed = power.seeds_needed(of, 2000, 0.008)
    assert needed is not None
    assert needed > 2
    assert power.power(of, needed, 2000, 0.008) >= power.POWER > power.power(of, needed - 1, 2000, 0.008)
    assert power.seeds_needed(of, 100, 0.002) is None  # the examples alone are too few
    assert power.seeds_needed(Components(0, 0, 0), 100, 0.002) == 2
    assert power.by_dim({8: np.zeros((1, 5))}, {8: np.zeros((1, 5))}) == {}
