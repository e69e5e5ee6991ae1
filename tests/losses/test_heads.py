"""Classifiers on prefixes: their beginnings, and what they read."""

import jax
import numpy as np
import pytest

from mrl_jax.losses import heads

DIMS, CLASSES = (4, 16, 64), 50


@pytest.fixture(scope="module")
def separate() -> heads.Head:
    return heads.init(jax.random.key(0), "separate", DIMS, CLASSES)


@pytest.fixture(scope="module")
def tied() -> heads.Head:
    return heads.init(jax.random.key(0), "tied", DIMS, CLASSES)


def test_separate_heads_begin_as_a_rescaled_slice_of_one_draw(separate):
    widest = np.asarray(separate["kernel"][-1])
    for m, kernel, bias in zip(DIMS, separate["kernel"], separate["bias"], strict=True):
        assert kernel.shape == (m, CLASSES)
        np.testing.assert_allclose(kernel, widest[:m] * np.sqrt(DIMS[-1] / m), rtol=1e-6)
        np.testing.assert_array_equal(bias, np.zeros(CLASSES))


def test_a_head_of_width_m_begins_with_standard_deviation_one_over_root_m(separate, tied):
    for m, kernel in [*zip(DIMS, separate["kernel"], strict=True), (DIMS[-1], np.concatenate(tied["kernel"]))]:
        # The standard error of a standard deviation from n draws is σ / √(2n).
        assert np.std(kernel) == pytest.approx(1 / np.sqrt(m), rel=4 / np.sqrt(2 * m * CLASSES))


def test_a_fixed_size_head_begins_as_the_head_of_its_granularity(separate):
    """The widest head of an arm trained alone starts from the numbers that it has in the population."""
    alone = heads.init(jax.random.key(0), "separate", DIMS[-1:], CLASSES)
    np.testing.assert_array_equal(alone["kernel"][0], separate["kernel"][-1])


def test_separate_heads_read_their_own_prefix_and_their_own_bias(separate):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, DIMS[-1])).astype(np.float32)
    head = {"kernel": separate["kernel"], "bias": [rng.normal(size=CLASSES).astype(np.float32) for _ in DIMS]}
    logits = heads.logits(head, "separate", z, DIMS)
    for m, kernel, bias, got in zip(DIMS, head["kernel"], head["bias"], logits, strict=True):
        wanted = z[:, :m].astype(np.float64) @ np.asarray(kernel, np.float64) + bias
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_tied_head_answers_at_dims_it_was_not_made_for(tied):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(3, DIMS[-1])).astype(np.float32)
    head = tied | {"bias": rng.normal(size=CLASSES).astype(np.float32)}
    for m, got in zip((7, 40), heads.logits(head, "tied", z, (7, 40)), strict=True):
        wanted = z[:, :m].astype(np.float64) @ np.concatenate(head["kernel"]).astype(np.float64)[:m] + head["bias"]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_separate_heads_answer_only_at_the_dims_they_were_made_for(separate):
    with pytest.raises(ValueError, match="longer"):
        heads.logits(separate, "separate", np.zeros((1, DIMS[-1]), np.float32), DIMS[:2])


def test_a_share_of_the_gradient_is_not_for_tiles_of_classes(separate):
    z, labels = np.ones((2, DIMS[-1]), np.float32), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="a share of the gradient is not for logits in tiles of classes"):
        heads.nested_loss(separate, "separate", z, labels, np.ones(3), DIMS, streamed=True, share=0.5)
