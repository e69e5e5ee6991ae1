"""The optimiser against a loop in NumPy float64, and what its settings promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax.config import OptimizerConfig
from mrl_jax.training import optimizer

GRADIENTS = np.random.default_rng(0).normal(size=(5, 6, 4)) * 10.0 ** np.arange(-3, 3)[:, None]  # rows of unlike sizes


def updates(config: OptimizerConfig, gradients: np.ndarray) -> np.ndarray:
    """The last update of a matrix of zeros after these gradients [steps, n, m]."""
    rule = optimizer.create(config, lambda step: 1.0)
    params = jnp.zeros(gradients.shape[1:])
    state = rule.init(params)
    for gradient in gradients:
        update, state = rule.update(jnp.asarray(gradient, jnp.float32), state, params)
    return np.asarray(update)


@pytest.mark.parametrize("adaptivity", [0.0, 0.3, 0.5, 1.0])
def test_partial_adaptivity_is_its_formula(adaptivity: float) -> None:
    m, v = np.zeros((6, 4)), np.zeros((6, 4))
    for gradient in GRADIENTS:
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    m, v = m / (1 - 0.9 ** len(GRADIENTS)), v / (1 - 0.999 ** len(GRADIENTS))
    expected = -m / np.sqrt(v**adaptivity * v.mean() ** (1 - adaptivity))
    np.testing.assert_allclose(updates(OptimizerConfig(adaptivity=adaptivity), GRADIENTS), expected, rtol=1e-4)


def test_full_adaptivity_is_adam_to_the_bit() -> None:
    jaxpr = [
        str(jax.make_jaxpr(rule.update)(jnp.ones((3, 2)), rule.init(jnp.ones((3, 2)))))
        for rule in (optimizer.scale_by_adam(0.9, 1.0), optimizer.optax.scale_by_adam(b1=0.9))
    ]
    assert jaxpr[0] == jaxpr[1]


@given(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 3))
def test_the_unit_of_the_loss_does_not_matter(adaptivity: float, exponent: float) -> None:
    config = OptimizerConfig(adaptivity=adaptivity)
    scaled = updates(config, GRADIENTS * 10**exponent)
    np.testing.assert_allclose(scaled, updates(config, GRADIENTS), rtol=1e-2)


def test_what_has_no_gradient_stays_where_it_is() -> None:
    gradients = np.zeros((3, 2, 2))
    assert not updates(OptimizerConfig(adaptivity=0.5), gradients).any()
    gradients[:, 0] = 1.0
    moved = updates(OptimizerConfig(adaptivity=0.5), gradients)
    assert moved[0].all()
    assert not moved[1].any()
