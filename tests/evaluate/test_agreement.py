"""How alike two rankings are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax.evaluate import agreement

# Two rankings and their RBO_EXT at p = 0.9, as the package rbo 0.1.3 computes it (`RankingSimilarity.rbo_ext`).
PUBLISHED = (
    ("abcde", "abcde", 1.0),
    ("abcde", "bacde", 0.9),
    ("abcde", "edcba", 0.7377750000000001),
    ("abcdefghij", "acbxyfghzj", 0.7331314952285715),
    ("abcde", "vwxyz", 0.0),
)


def rows(ranking: str) -> np.ndarray:
    return np.array([[ord(letter) for letter in ranking]])


@pytest.mark.parametrize(("a", "b", "expected"), PUBLISHED)
def test_rank_biased_overlap_is_that_of_another_program(a: str, b: str, expected: float) -> None:
    (value,) = agreement.outcomes(rows(a), rows(b))["rbo"]
    assert value == pytest.approx(expected, abs=1e-12)


def by_hand(a: list[int], b: list[int]) -> tuple[float, float]:
    """Overlap of the first ten and rank-biased overlap, depth by depth."""
    a, b = [x for x in a if x >= 0], [x for x in b if x >= 0]
    if not b:
        return 0.0, 0.0
    shares = [len({*a[:d]} & {*b[:d]}) / d for d in range(1, len(b) + 1)]
    rbo = sum(0.1 * 0.9**d * share for d, share in enumerate(shares)) + shares[-1] * 0.9 ** len(b)
    return shares[: min(10, len(b))][-1], rbo


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(0, 15))
@settings(max_examples=60)
def test_agreement_follows_the_definition(seed: int, depth: int, none: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (np.stack([rng.permutation(40)[:depth] for _ in range(3)]) for _ in range(2))
    a[0, max(0, depth - none) :] = b[0, max(0, depth - none) :] = -1
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(agreement, "QUERIES_AT_ONCE", 2)
        values = agreement.outcomes(a, b)
    expected = np.array([by_hand(*map(list, pair)) for pair in zip(a, b, strict=True)])
    np.testing.assert_allclose(np.stack([values["overlap@10"], values["rbo"]], axis=1), expected, atol=1e-12)


def test_a_ranking_agrees_with_itself_and_with_no_other_documents() -> None:
    a = np.arange(100)[None]
    for values, expected in ((agreement.outcomes(a, a), 1.0), (agreement.outcomes(a, a + 100), 0.0)):
        assert values["overlap@10"] == expected
        assert values["rbo"] == pytest.approx(expected)


def test_without_queries_there_is_no_outcome() -> None:
    none = np.zeros((0, 5), np.int32)
    assert {len(values) for values in agreement.outcomes(none, none).values()} == {0}
