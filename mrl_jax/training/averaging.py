"""The exponential moving average of the weights along training: `optimizer.ema`.

    average ← average + (1 − d_t) · (weights − average),    d_t = min(ema, (1 + t) / (10 + t)) after t steps

The average is what is validated, kept, evaluated and exported; training itself goes on from the last weights. Running
statistics of batch norm are averaged alike, as they belong to the weights that they were measured with. The rising d_t
keeps the initial weights out of the average of a short run (`tf.train.ExponentialMovingAverage` with `num_updates`).
Averages of iterates: Polyak and Juditsky, 1992; of networks: Szegedy et al. 2015, arXiv:1512.00567, section 8.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Averaged(NamedTuple):
    """The state of the optimiser, and the average of the weights. Runs without an average have the first alone, so
    their checkpoints are those of versions before there was one."""

    rule: Any  # of optax
    weights: Any  # `step.Weights`


def begin(rule: Any, weights: Any) -> Averaged:
    """The average of no steps: a copy, as a step donates the buffers of its state."""
    return Averaged(rule, jax.tree.map(jnp.copy, weights))


def follow(average: Any, weights: Any, step: jax.Array, decay: float) -> Any:
    """The average after one more step.

    Args:
        average: pytree, of the weights so far.
        weights: the same, after the step.
        step: int32 [], number of steps before.
        decay: share of the average that stays, once it has seen enough steps.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda mean, new: mean + (1 - kept) * (new - mean), average, weights)
