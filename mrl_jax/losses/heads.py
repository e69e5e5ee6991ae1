"""Linear classifiers on prefixes: one head per granularity (MRL), or one tied head for all of them (MRL-E).

A population of arms trains both kinds in one compiled step: an arm has K loss weights per kind, and a kind with zero
weights gets zero gradient (see `arms.py`).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mrl_jax import losses
from mrl_jax.losses import tiled
from mrl_jax.nesting import detached_prefixes, nested_logits

IS_TIED = {"separate": False, "tied": True}  # by kind of head
KINDS = tuple(IS_TIED)

DIRECT_ELEMENTS = 1 << 26  # of all logits of a batch (256 MiB per copy); above, they are computed in tiles of classes
TILE_ELEMENTS = 1 << 20  # of the logits of a tile, which should fit in the cache

# separate: K kernels [m_k, C] and K biases [C]; tied: the K blocks of rows of one kernel [D, C], and one bias [C]
Head = dict[str, Any]


def init(key: jax.Array, kind: str, dims: Sequence[int], classes: int) -> Head:
    """Initial head: zero biases and normal kernels of standard deviation 1/√m, m the width that the head reads.

    The separate head of granularity k starts from the first m_k rows of one shared [D, C] draw, rescaled to its own
    width, so that a model of width m_k can start from the same numbers.

    Args:
        key: of the random draw.
        kind: one of `KINDS`.
        dims: the K nesting dims, ascending, the last D.
        classes: C.
    """
    draw = jax.random.normal(key, (dims[-1], classes), jnp.float32)
    if IS_TIED[kind]:
        return {"kernel": jnp.split(draw / jnp.sqrt(dims[-1]), dims[:-1]), "bias": jnp.zeros(classes)}
    return {"kernel": [draw[:m] / jnp.sqrt(m) for m in dims], "bias": [jnp.zeros(classes) for _ in dims]}


def logits(head: Head, kind: str, z_BxD: jax.Array, dims: Sequence[int], share: Any = 1.0) -> tuple[jax.Array, ...]:
    """Logits at each of `dims`.

    Operands narrower than float32 are accumulated in float32, and so is the gradient of z over separate heads.

    Args:
        head: as from `init`.
        kind: one of `KINDS`.
        z_BxD: embeddings [B, D].
        dims: for a tied head any ascending dims; for separate heads those it was initialised with.
        share: of the gradient of a longer prefix that reaches a shorter one, γ of `nesting.detached_prefixes`.

    Returns:
        K arrays [B, C], float32.
    """
    if IS_TIED[kind]:
        head_dims = tuple(itertools.accumulate(len(rows) for rows in head["kernel"]))
        kernel = head["kernel"] if tuple(dims) == head_dims else jnp.concatenate(head["kernel"])
        return nested_logits(z_BxD, kernel, dims, head["bias"], share)
    # Widened once and narrowed again for each matmul, so that the K gradients are summed in float32.
    wide_BxD = z_BxD.astype(jnp.promote_types(z_BxD.dtype, jnp.float32))
    return tuple(
        jnp.matmul(prefix.astype(z_BxD.dtype), kernel, preferred_element_type=jnp.float32) + bias
        for prefix, kernel, bias in zip(
            detached_prefixes(wide_BxD, dims, share), head["kernel"], head["bias"], strict=True
        )
    )


def nested_loss(
    head: Head,
    kind: str,
    z_BxD: jax.Array,
    labels_B: jax.Array,
    weights: jax.Array | Sequence[float],
    dims: Sequence[int],
    label_smoothing: Any = 0.0,
    streamed: bool | None = None,
    share: Any = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """`losses.nested_cross_entropy` of a head's logits.

    The direct form holds the logits of all granularities at once, `K·B·C` floats and more. The streamed form computes
    them in tiles of classes, and once more for the gradient (see `tiled`): its extra memory grows with neither B·C nor
    K·B·C, and it is faster once the logits exceed the cache.

    Args:
        head: as from `init`.
        kind: one of `KINDS`.
        z_BxD: embeddings [B, D].
        labels_B: int [B], in 0 … C − 1.
        weights: [K], summed as given.
        dims: as for `logits`.
        label_smoothing: in [0, 1).
        streamed: True or False to choose the form, None to choose by size.
        share: as for `logits`; the streamed form takes 1 alone.

    Returns:
        The scalar loss, and the unweighted loss of each granularity, float32 [K].

    Raises:
        ValueError: the numbers of dims and weights differ, or a share is not for the streamed form.
    """
    if not _is_streamed(head, z_BxD, dims, streamed):
        return losses.nested_cross_entropy(logits(head, kind, z_BxD, dims, share), labels_B, weights, label_smoothing)
    if not (isinstance(share, int | float) and share == 1):
        raise ValueError("a share of the gradient is not for logits in tiles of classes")
    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != (len(dims),):
        raise ValueError(f"{len(dims)} granularities of logits need as many weights; got shape {weights.shape}")
    tile = _tile_classes(z_BxD, dims)
    losses_KxB = tiled.cross_entropies(_logits_function(kind, dims), tile, label_smoothing, head, z_BxD, labels_B)
    losses_K = jnp.mean(losses_KxB, axis=1)
    return jnp.dot(weights, losses_K), losses_K


def each_loss(
    head: Head, kind: str, z_BxD: jax.Array, labels_B: jax.Array, dims: Sequence[int], streamed: bool | None = None
) -> jax.Array:
    """The cross-entropy of each granularity and example, float32 [K, B]. Arguments as for `nested_loss`."""
    if _is_streamed(head, z_BxD, dims, streamed):
        function, tile = _logits_function(kind, dims), _tile_classes(z_BxD, dims)
        return tiled.cross_entropies(function, tile, 0.0, head, z_BxD, labels_B)
    return jnp.stack([losses.cross_entropy(x, labels_B) for x in logits(head, kind, z_BxD, dims)])


def score(
    head: Head, kind: str, z_BxD: jax.Array, labels_B: jax.Array, dims: Sequence[int], streamed: bool | None = None
) -> tuple[jax.Array, jax.Array]:
    """Score a head at each granularity. Arguments as for `nested_loss`.

    Returns:
        Whether the largest logit is that of the label, bool [K, B], and the cross-entropy, float32 [K, B].
    """
    if _is_streamed(head, z_BxD, dims, streamed):
        function, tile = _logits_function(kind, dims), _tile_classes(z_BxD, dims)
        predicted_KxB = tiled.answers(function, tile, head, z_BxD)
        return predicted_KxB == labels_B, tiled.cross_entropies(function, tile, 0.0, head, z_BxD, labels_B)
    logits_K = logits(head, kind, z_BxD, dims)
    predicted_KxB = jnp.stack([jnp.argmax(logits_BxC, axis=-1) for logits_BxC in logits_K])
    return predicted_KxB == labels_B, jnp.stack([losses.cross_entropy(logits_BxC, labels_B) for logits_BxC in logits_K])


def _is_streamed(head: Head, z_BxD: jax.Array, dims: Sequence[int], streamed: bool | None) -> bool:
    classes = jax.tree.leaves(head)[0].shape[-1]
    return len(dims) * len(z_BxD) * classes > DIRECT_ELEMENTS if streamed is None else streamed


def _tile_classes(z_BxD: jax.Array, dims: Sequence[int]) -> int:
    """Number of classes per tile, a multiple of 128."""
    return max(1, TILE_ELEMENTS // (128 * len(dims) * len(z_BxD))) * 128


def _logits_function(kind: str, dims: Sequence[int]) -> tiled.Logits:
    return lambda head, z_BxD: logits(head, kind, z_BxD, dims)


def classifiers(head: Head, kind: str, dims: Sequence[int], wanted: Sequence[int]) -> dict[int, tuple[Any, Any]]:
    """The classifier at each of the `wanted` dims that the head can read.

    Args:
        head: as from `init`.
        kind: one of `KINDS`.
        dims: nesting dims that the head was initialised with; separate heads read no others, a tied head reads any.
        wanted: prefix lengths.

    Returns:
        By dim m the kernel [m, C] and the bias [C].
    """
    if IS_TIED[kind]:
        kernel = jnp.concatenate(head["kernel"])
        return {m: (kernel[:m], head["bias"]) for m in wanted}
    separate = dict(zip(dims, zip(head["kernel"], head["bias"], strict=True), strict=True))
    return {m: separate[m] for m in wanted if m in separate}
