"""Mixtures of two images of a batch, and of their labels.

    x'_i = λ x_i + (1 − λ) x_j,   loss = λ L(z', y) + (1 − λ) L(z', y_j),   j = B + 1 − i
    mixup   of every pixel, λ ~ max(λ, 1 − λ) of Beta(α, α)          Zhang et al., 2018, arXiv:1710.09412
    cutmix  in a square whose area is 1 − λ, x_j; elsewhere x_i      Yun et al., 2019, arXiv:1905.04899

One λ for a batch, so that the loss is a sum of two ordinary ones. With both, each step draws one of them.
"""

from typing import Any

import jax
import jax.numpy as jnp

KEY = 0x313  # folded into the key of a step, whose other draws stay what they are without


def draws(config: Any) -> bool:
    """Whether an encoder mixes images in training."""
    return bool(getattr(config, "mixup", 0.0) or getattr(config, "cutmix", 0.0))


def draw(key: jax.Array, config: Any) -> jax.Array:
    """What a step mixes: float32 [4], λ, the side of the square (0: all pixels are mixed) and its corner, as shares."""
    which_key, blend_key, cut_key, corner_key = jax.random.split(jax.random.fold_in(key, KEY), 4)
    cuts = jax.random.bernoulli(which_key) if config.mixup else jnp.bool_(True)
    cuts = cuts if config.cutmix else jnp.bool_(False)
    blend = jax.random.beta(blend_key, config.mixup or 1.0, config.mixup or 1.0)
    area = jax.random.beta(cut_key, config.cutmix or 1.0, config.cutmix or 1.0)
    share = jnp.where(cuts, area, jnp.maximum(blend, 1 - blend))
    side = jnp.where(cuts, jnp.sqrt(1 - area), 0.0)
    return jnp.stack([share, side, *(jax.random.uniform(corner_key, (2,)) * (1 - side))])


def mixed(x: jax.Array, mix: jax.Array | None) -> jax.Array:
    """The images [B, h, w, c] mixed with those of the batch in reverse order, as `draw` says; None: as they are."""
    if mix is None:
        return x
    share, side, top, left = mix

    def covered(size: int, start: jax.Array) -> jax.Array:
        """How much of each pixel of a line lies in the square: whole ones, and parts of those at its edges."""
        at = jnp.arange(size)
        return jnp.clip((start + side) * size - at, 0, 1) - jnp.clip(start * size - at, 0, 1)

    inside = covered(x.shape[1], top)[:, None] * covered(x.shape[2], left)[None, :]
    own = jnp.where(side > 0, 1 - inside, share)[:, :, None]
    return own * x + (1 - own) * x[::-1]
