"""Linear classifiers on prefixes: a head a granularity (MRL), or one tied head for all of them (MRL-E).

A population of arms trains both kinds in one program: the loss weights of an arm are a row of `K` entries for each
kind, and a kind with zero weights gets zero gradient (see `arms.py`).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mrl_jax import losses
from mrl_jax.losses import tiled
from mrl_jax.nesting import nested_logits

KINDS = ("separate", "tied")

DIRECT_ELEMENTS = 1 << 26  # of all logits of a batch: above, 256 MiB a copy of them, they are made in tiles of classes
TILE_ELEMENTS = 1 << 20  # of the logits of a tile: they should stay in the cache

# separate: K kernels [m_k, C] and K biases [C]; tied: the K blocks of rows of one kernel [D, C], and one bias [C]
Head = dict[str, Any]


def init(key: jax.Array, kind: str, dims: Sequence[int], classes: int) -> Head:
    """Zero biases and normal kernels of standard deviation 1/√m, m the width that the head reads.

    The separate head of granularity k starts as the first m_k rows of one shared [D, C] draw, rescaled to its own
    width, so that a model of width m_k can be started from the same numbers.
    """
    draw = jax.random.normal(key, (dims[-1], classes), jnp.float32)
    if kind == "tied":
        return {"kernel": jnp.split(draw / jnp.sqrt(dims[-1]), dims[:-1]), "bias": jnp.zeros(classes)}
    return {"kernel": [draw[:m] / jnp.sqrt(m) for m in dims], "bias": [jnp.zeros(classes) for _ in dims]}


def logits(head: Head, kind: str, z_BxD: jax.Array, dims: Sequence[int]) -> tuple[jax.Array, ...]:
    """K arrays [B, C]. A tied head takes any `dims`; separate heads only those that they were made for.

    Operands narrower than float32 are accumulated in float32, and so is the gradient of z over separate heads.
    """
    if kind == "tied":
        made_for = tuple(itertools.accumulate(len(rows) for rows in head["kernel"]))
        kernel = head["kernel"] if tuple(dims) == made_for else jnp.concatenate(head["kernel"])
        return nested_logits(z_BxD, kernel, dims, head["bias"])
    # Widened once, narrowed for each product: the K gradients are then added up in float32.
    wide_BxD = z_BxD.astype(jnp.promote_types(z_BxD.dtype, jnp.float32))
    return tuple(
        jnp.matmul(wide_BxD[:, :m].astype(z_BxD.dtype), kernel, preferred_element_type=jnp.float32) + bias
        for m, kernel, bias in zip(dims, head["kernel"], head["bias"], strict=True)
    )


def nested_loss(
    head: Head,
    kind: str,
    z_BxD: jax.Array,
    labels_B: jax.Array,
    weights: jax.Array | Sequence[float],
    dims: Sequence[int],
    label_smoothing: float = 0.0,
    streamed: bool | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`losses.nested_cross_entropy` of a head's logits: the scalar, and the loss of each granularity float32 [K].

    Direct, the logits of all granularities are there at once, `K·B·C` floats and more. Streamed, they are made in tiles
    of classes and made again for the gradient (see `many_classes`): the extra memory grows with neither B·C nor K·B·C,
    and it is faster once the logits leave the cache. `streamed` None chooses by size.
    """
    if not _streamed(head, z_BxD, dims, streamed):
        return losses.nested_cross_entropy(logits(head, kind, z_BxD, dims), labels_B, weights, label_smoothing)
    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != (len(dims),):
        raise ValueError(f"{len(dims)} granularities of logits need as many weights; got shape {weights.shape}")
    tile = _tile(z_BxD, dims)
    losses_KxB = tiled.cross_entropies(_of_head(kind, dims), tile, label_smoothing, head, z_BxD, labels_B)
    losses_K = jnp.mean(losses_KxB, axis=1)
    return jnp.dot(weights, losses_K), losses_K


def score(
    head: Head, kind: str, z_BxD: jax.Array, labels_B: jax.Array, dims: Sequence[int], streamed: bool | None = None
) -> tuple[jax.Array, jax.Array]:
    """Whether the largest logit is that of the label, bool [K, B], and the cross-entropy, float32 [K, B]."""
    if _streamed(head, z_BxD, dims, streamed):
        make, tile = _of_head(kind, dims), _tile(z_BxD, dims)
        predicted_KxB = tiled.answers(make, tile, head, z_BxD)
        return predicted_KxB == labels_B, tiled.cross_entropies(make, tile, 0.0, head, z_BxD, labels_B)
    made = logits(head, kind, z_BxD, dims)
    predicted_KxB = jnp.stack([jnp.argmax(logits_BxC, axis=-1) for logits_BxC in made])
    return predicted_KxB == labels_B, jnp.stack([losses.cross_entropy(logits_BxC, labels_B) for logits_BxC in made])


def _streamed(head: Head, z_BxD: jax.Array, dims: Sequence[int], wanted: bool | None) -> bool:
    classes = jax.tree.leaves(head)[0].shape[-1]
    return len(dims) * len(z_BxD) * classes > DIRECT_ELEMENTS if wanted is None else wanted


def _tile(z_BxD: jax.Array, dims: Sequence[int]) -> int:
    """Classes of a tile, a multiple of 128."""
    return max(1, TILE_ELEMENTS // (128 * len(dims) * len(z_BxD))) * 128


def _of_head(kind: str, dims: Sequence[int]) -> tiled.Logits:
    return lambda head, z_BxD: logits(head, kind, z_BxD, dims)


def classifiers(head: Head, kind: str, dims: Sequence[int], wanted: Sequence[int]) -> dict[int, tuple[Any, Any]]:
    """For each of the `wanted` dims that the head can read, its kernel [m, C] and bias [C].

    A tied head reads any prefix; separate heads only those that they were made for, `dims`.
    """
    if kind == "tied":
        kernel = jnp.concatenate(head["kernel"])
        return {m: (kernel[:m], head["bias"]) for m in wanted}
    made = dict(zip(dims, zip(head["kernel"], head["bias"], strict=True), strict=True))
    return {m: made[m] for m in wanted if m in made}
