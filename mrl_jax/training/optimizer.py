"""The optimiser and its learning rate, from the section `optimizer` of the configuration."""

import operator
from collections.abc import Callable
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import optax

from mrl_jax.config import OptimizerConfig

TINY = 1e-37  # added where a mean of squares may be 0


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by step: linear warm-up over the share `warmup` of the steps, then cosine or linear decay to
    zero, or constant."""
    if isinstance(config.warmup, jax.Array):
        return _schedule_of_row(config, steps)
    warmup = round(config.warmup * steps)
    match config.schedule:
        case "cosine":
            after = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - warmup))
        case "linear":
            after = optax.linear_schedule(config.learning_rate, 0.0, max(1, steps - warmup))
        case "constant":
            after = optax.constant_schedule(config.learning_rate)
        case _:
            assert_never(config.schedule)
    rise = optax.linear_schedule(config.learning_rate / (warmup + 1), config.learning_rate, max(1, warmup))
    return optax.join_schedules([rise, after], [warmup])


def _schedule_of_row(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """As `schedule`, with an argument of the compiled step as `warmup`, on which optax's schedules cannot branch."""
    warmup = jnp.round(config.warmup * steps)

    def rate(step: Any) -> jax.Array:
        progress = jnp.clip((step - warmup) / jnp.maximum(1, steps - warmup), 0, 1)
        after = {"cosine": (1 + jnp.cos(jnp.pi * progress)) / 2, "linear": 1 - progress}.get(config.schedule, 1.0)
        return config.learning_rate * jnp.where(step < warmup, (step + 1) / (warmup + 1), after)

    return rate


def create(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW, or SGD with Nesterov momentum, preceded by gradient clipping if configured.

    The chain is flat, as in the checkpoints of earlier versions; `optax.adamw` inside a chain would nest its state.
    """
    decay = optax.add_decayed_weights(config.weight_decay, _matrices)
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    match config.name:
        case "adamw":
            rule = [scale_by_adam(config.momentum, config.adaptivity), decay]
        case "sgd":
            rule = [decay, optax.trace(config.momentum, nesterov=True)]
        case _:
            assert_never(config.name)
    return optax.chain(*clip, *rule, optax.scale_by_learning_rate(rate))


def scale_by_adam(momentum: float, adaptivity: float) -> optax.GradientTransformation:
    """Adam, divided less by what is each parameter's own: m / (v^p · mean(v)^(1 − p))^½ with p = `adaptivity`.

    mean(v) is over the array that a parameter stands in, so that rates keep their meaning for every p. Columns that
    never had a gradient do not count: a fixed-size model learns the same in an array wider than itself. With p = 1, in
    Adam, a word of one text in a thousand moves as far as a word of every text, so rare words are soon learnt by heart.
    With p = 0 it moves in proportion to its gradients, as in logistic regression. Partial adaptivity is from Padam
    (Chen et al. 2018, arXiv:1806.06763), which has no mean. The state is that of Adam for every p.
    """
    adam = optax.scale_by_adam(b1=momentum)
    if not isinstance(adaptivity, jax.Array) and adaptivity == 1:
        return adam

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(gradients, state, params)

        def less(update: jax.Array, v: jax.Array) -> jax.Array:
            learnt = jnp.mean(jnp.any(v > 0, axis=tuple(range(v.ndim - 1))))  # share of the columns
            mean = jnp.mean(v) / jnp.maximum(learnt, TINY)
            return update * jnp.sqrt(v / (mean + TINY)) ** (1 - adaptivity)

        return jax.tree.map(less, updates, state.nu), state

    return optax.GradientTransformation(adam.init, update)


def of_part(rule: optax.GradientTransformation, part: Callable[[Any], Any]) -> optax.GradientTransformation:
    """`rule` for the parameters where the tree `part(params)` is True; the others stay, and have no state."""

    def rest(params: Any) -> Any:
        return jax.tree.map(operator.not_, part(params))

    return optax.chain(optax.masked(rule, part), optax.masked(optax.set_to_zero(), rest))


def _matrices(params: Any) -> Any:
    """Mask of the parameters that decay: matrices, not biases, scales of norms and other vectors."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)
