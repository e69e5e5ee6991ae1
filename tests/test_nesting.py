"""Nesting dims, the block-cumulative logits and truncation, against float64 arithmetic written out in NumPy."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax import nesting

WIDTH, CLASSES, BATCH = 12, 5, 4
DIMS = (1, 3, 8, 12)

widths = st.integers(1, 4096)


def arrays(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An embedding [B, D], a kernel [D, C] and a bias [C], in float64."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(BATCH, WIDTH)), rng.normal(size=(WIDTH, CLASSES)), rng.normal(size=CLASSES)


# --- dims ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "says"),
    [
        ((), "are empty"),
        ((0, 8), r"\[0, 8\] hold 0; every dim is at least 1"),
        ((-4, 8), "hold -4"),
        ((4, 4, 8), r"\[4, 4, 8\] repeat 4"),
        ((4, 2, 8), r"\[4, 2, 8\] are not ascending: 2 follows 4"),
        ((4, 16), r"\[4, 16\] go beyond the embedding width 8"),
        ((2, 4), r"\[2, 4\] must end at the embedding width 8"),
    ],
)
def test_wrong_dims_are_refused_with_the_reason(dims, says):
    with pytest.raises(ValueError, match=says):
        nesting.check_dims(dims, 8)


@given(st.sets(st.integers(1, 4096), min_size=1))
def test_ascending_dims_that_end_at_the_width_are_accepted_unchanged(chosen):
    dims = sorted(chosen)
    assert nesting.check_dims(np.array(dims), dims[-1]) == tuple(dims)


def test_the_schedule_of_the_paper_halves_the_width_down_to_eight():
    assert nesting.log_spaced(2048) == (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    assert nesting.log_spaced(384, smallest=6) == (6, 12, 24, 48, 96, 192, 384)


@given(widths, st.integers(1, 64))
def test_log_spaced_dims_double_until_the_width(width, smallest):
    dims = nesting.check_dims(nesting.log_spaced(width, smallest), width)
    assert all(large == 2 * small for small, large in pairwise(dims))
    assert dims == (width,) or dims[0] >= smallest
    assert dims[0] % 2 == 1 or dims[0] // 2 < smallest  # nothing left to halve


@given(widths, st.integers(1, 64))
def test_uniform_dims_differ_by_equal_steps(width, count):
    dims = nesting.check_dims(nesting.uniform(width, count), width)
    assert len(dims) == min(width, count)
    steps = [large - small for small, large in pairwise((0, *dims))]
    assert max(steps) - min(steps) <= 2  # rounding moves each end by less than one


@given(st.sets(st.integers(1, 4096), min_size=1))
def test_interpolated_dims_lie_strictly_between_and_halfway(chosen):
    dims = sorted(chosen)
    between = nesting.interpolated(dims)
    gaps = [(a, b) for a, b in pairwise(dims) if b > a + 1]
    assert len(between) == len(gaps)
    assert all(a < m < b and abs((m - a) - (b - m)) <= 1 for m, (a, b) in zip(between, gaps, strict=True))


@given(st.sets(st.integers(1, 4096), min_size=1))
def test_blocks_cover_every_coordinate_once(chosen):
    dims = sorted(chosen)
    covered = [i for start, stop in nesting.blocks(dims) for i in range(start, stop)]
    assert covered == list(range(dims[-1]))


# --- nested logits ------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_nested_logits_are_the_product_of_each_prefix(seed):
    z, kernel, bias = arrays(seed)
    logits = nesting.nested_logits(*(jnp.asarray(x, jnp.float32) for x in (z, kernel)), DIMS, jnp.float32(bias))
    assert len(logits) == len(DIMS)
    for m, got in zip(DIMS, logits, strict=True):
        np.testing.assert_allclose(got, z[:, :m] @ kernel[:m] + bias, rtol=1e-5, atol=1e-5)


def test_without_a_bias_the_logits_are_the_bare_products():
    z, kernel, _ = arrays(0)
    for m, got in zip(DIMS, nesting.nested_logits(jnp.float32(z), jnp.float32(kernel), DIMS), strict=True):
        np.testing.assert_allclose(got, z[:, :m] @ kernel[:m], rtol=1e-5, atol=1e-5)


def test_narrow_operands_are_summed_in_float32():
    z, kernel, _ = arrays(0)
    narrow = jnp.bfloat16(z), jnp.bfloat16(kernel)
    for m, got in zip(DIMS, nesting.nested_logits(*narrow, DIMS), strict=True):
        exact = np.asarray(narrow[0], np.float64)[:, :m] @ np.asarray(narrow[1], np.float64)[:m]
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)


def test_gradients_of_nested_logits_are_the_sums_over_prefixes():
    """d/dz Σ_k <G_k, logits_k> = Σ_k G_k W[:m_k]ᵀ on the first m_k coordinates, and likewise for W and the bias."""
    z, kernel, bias = arrays(1)
    weights = np.random.default_rng(2).normal(size=(len(DIMS), BATCH, CLASSES))

    def weighted(z, kernel, bias):
        logits = nesting.nested_logits(z, kernel, DIMS, bias)
        return sum(jnp.sum(w * x) for w, x in zip(jnp.float32(weights), logits, strict=True))

    got = jax.jit(jax.grad(weighted, argnums=(0, 1, 2)))(jnp.float32(z), jnp.float32(kernel), jnp.float32(bias))
    wanted = np.zeros_like(z), np.zeros_like(kernel), weights.sum((0, 1))
    for m, w in zip(DIMS, weights, strict=True):
        wanted[0][:, :m] += w @ kernel[:m].T
        wanted[1][:m] += z[:, :m].T @ w
    for g, exact in zip(got, wanted, strict=True):
        np.testing.assert_allclose(g, exact, rtol=1e-4, atol=1e-4)


# --- gradients of longer prefixes -----------------------------------------------------------------------------------


SHARES = st.sampled_from([0.0, 0.3, 1.0]) | st.floats(0, 1, width=32)


@settings(max_examples=12, deadline=None)
@given(share=SHARES, traced=st.booleans(), seed=st.integers(0, 99))
def test_a_share_of_the_gradient_reaches_shorter_prefixes(share, traced, seed):
    """∂L / ∂z_i = Σ_{k ≥ i} γ^(k − i) · ∂L_k / ∂z_i, by central differences of each loss by itself."""
    rng, dims = np.random.default_rng(seed), (2, 3, 7)
    z, targets = rng.normal(size=(4, 7)), rng.normal(size=(3, 4, 7))

    def loss(k, z):
        return float(np.sum(np.sin(z[:, : dims[k]] * targets[k, :, : dims[k]]) ** 2))

    wanted = np.zeros_like(z)
    for k in range(3):
        for place in np.ndindex(z.shape):
            step = np.zeros_like(z)
            step[place] = 1e-5
            block = next(i for i, m in enumerate(dims) if place[1] < m)
            if block <= k:
                wanted[place] += share ** (k - block) * (loss(k, z + step) - loss(k, z - step)) / 2e-5

    def summed(z, share):
        prefixes = nesting.detached_prefixes(z, dims, share)
        for m, prefix in zip(dims, prefixes, strict=True):
            np.testing.assert_array_equal(prefix.shape, (4, m))
        return sum(jnp.sum(jnp.sin(x * t[:, : x.shape[1]]) ** 2) for x, t in zip(prefixes, targets, strict=True))

    value, got = jax.value_and_grad(summed)(jnp.float32(z), jnp.float32(share) if traced else float(share))
    assert float(value) == pytest.approx(sum(loss(k, z) for k in range(3)), rel=1e-5)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_the_gradient_reaches_the_rows_of_a_tied_head(share):
    rng, dims = np.random.default_rng(3), (2, 3, 7)
    z, kernel, bias = (rng.normal(size=shape) for shape in ((4, 7), (7, 5), (5,)))
    factors = rng.normal(size=(3, 4, 5))  # of the logits, whose weighted sum is the loss

    def loss(z, kernel, bias):
        return sum(map(jnp.vdot, nesting.nested_logits(z, kernel, dims, bias, share), factors))

    got = jax.grad(loss, argnums=(0, 1, 2))(*map(jnp.float32, (z, kernel, bias)))
    for i, (low, high) in enumerate(nesting.blocks(dims)):
        reaching = sum(share ** (k - i) * factors[k] for k in range(i, 3))
        np.testing.assert_allclose(got[0][:, low:high], reaching @ kernel[low:high].T, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got[1][low:high], z[:, low:high].T @ reaching, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got[2], sum(share**k * factors[k].sum(axis=0) for k in range(3)), rtol=1e-4, atol=1e-4)


# --- truncation ---------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(DIMS))
def test_truncation_comes_first_and_scaling_to_unit_length_second(seed, dim):
    z = np.random.default_rng(seed).normal(size=(2, 3, WIDTH)) * 10
    got = np.asarray(nesting.truncate(jnp.float32(z), dim))
    prefix = z[..., :dim]
    np.testing.assert_allclose(got, prefix / np.linalg.norm(prefix, axis=-1, keepdims=True), rtol=1e-5)


def test_a_zero_row_stays_zero_and_passes_a_finite_gradient():
    z = jnp.zeros((2, WIDTH)).at[1].set(1.0)
    assert not np.asarray(nesting.normalize(z))[0].any()
    gradient = jax.grad(lambda z: jnp.sum(nesting.normalize(z) * jnp.arange(WIDTH)))(z)
    assert np.isfinite(gradient).all()


def test_the_gradient_of_scaling_is_the_projection_off_the_row():
    """d/dz <g, z/|z|> = (g − <g, u> u) / |z| with u = z/|z|."""
    rng = np.random.default_rng(3)
    z, g = rng.normal(size=(BATCH, WIDTH)), rng.normal(size=(BATCH, WIDTH))
    got = jax.grad(lambda z: jnp.sum(nesting.normalize(z) * jnp.float32(g)))(jnp.float32(z))
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    unit = z / norm
    np.testing.assert_allclose(got, (g - (g * unit).sum(1, keepdims=True) * unit) / norm, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [0, -1, WIDTH + 1])
def test_truncating_to_a_width_that_is_not_there_is_refused(dim):
    with pytest.raises(ValueError, match=rf"dim={dim} is outside 1…{WIDTH}"):
        nesting.truncate(jnp.ones((1, WIDTH)), dim)


def test_a_kernel_in_blocks_gives_the_logits_and_gradients_of_the_whole_one():
    dims, rng = (2, 3, 8), np.random.default_rng(5)
    z, kernel = rng.normal(size=(4, 8)).astype(np.float32), rng.normal(size=(8, 5)).astype(np.float32)

    def total(kernel, z):
        return sum(jnp.sum(jnp.tanh(x)) for x in nesting.nested_logits(z, kernel, dims))

    whole, of_whole = jax.value_and_grad(total)(jnp.asarray(kernel), z)
    parts, of_parts = jax.value_and_grad(total)([jnp.asarray(kernel[a:b]) for a, b in nesting.blocks(dims)], z)
    assert float(parts) == pytest.approx(float(whole), rel=1e-6)
    np.testing.assert_allclose(np.concatenate(of_parts), of_whole, atol=1e-6)
