"""The optimiser and its learning rate, from the section `optimizer` of the configuration."""

from typing import Any, assert_never

import jax
import optax

from mrl_jax.config import OptimizerConfig


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by step: linear warm-up over the share `warmup` of the steps, then cosine decay or constant."""
    warmup = round(config.warmup * steps)
    match config.schedule:
        case "cosine":
            after = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - warmup))
        case "constant":
            after = optax.constant_schedule(config.learning_rate)
        case _:
            assert_never(config.schedule)
    rise = optax.linear_schedule(config.learning_rate / (warmup + 1), config.learning_rate, max(1, warmup))
    return optax.join_schedules([rise, after], [warmup])


def create(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW, or SGD with Nesterov momentum, preceded by gradient clipping if configured.

    The chain is flat, as in the checkpoints of earlier versions; `optax.adamw` inside a chain would nest its state.
    """
    decay = optax.add_decayed_weights(config.weight_decay, _matrices)
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    match config.name:
        case "adamw":
            rule = [optax.scale_by_adam(b1=config.momentum), decay]
        case "sgd":
            rule = [decay, optax.trace(config.momentum, nesterov=True)]
        case _:
            assert_never(config.name)
    return optax.chain(*clip, *rule, optax.scale_by_learning_rate(rate))


def _matrices(params: Any) -> Any:
    """Mask of the parameters that decay: matrices, not biases, scales of norms and other vectors."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)
