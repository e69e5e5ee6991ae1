"""The optimiser and its learning rate, from the section `optimizer` of the configuration."""

from typing import Any

import jax
import optax

from mrl_jax.config import OptimizerConfig


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by step: a linear rise during the share `warmup`, then cosine to zero, or constant."""
    warmup = round(config.warmup * steps)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - warmup))
    else:
        after = optax.constant_schedule(config.learning_rate)
    rise = optax.linear_schedule(config.learning_rate / (warmup + 1), config.learning_rate, max(1, warmup))
    return optax.join_schedules([rise, after], [warmup])


def create(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW or SGD with Nesterov momentum, after clipping if that is asked for.

    The chain stays flat, as `optax.adamw` inside a chain would nest its state: checkpoints of earlier versions hold
    this one.
    """
    decay = optax.add_decayed_weights(config.weight_decay, _matrices)
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.name == "adamw":
        rule = [optax.scale_by_adam(b1=config.momentum), decay]
    else:
        rule = [decay, optax.trace(config.momentum, nesterov=True)]
    return optax.chain(*clip, *rule, optax.scale_by_learning_rate(rate))


def _matrices(params: Any) -> Any:
    """Where weights decay: not biases, scales of norms and other vectors."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)
