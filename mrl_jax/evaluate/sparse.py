"""Sparse codes of embeddings: a few active of many features, instead of a few coordinates.

    codes(z) = ReLU(TopK_k(W (z − b) + a)),   W [4 D, D];   z ≈ Wᵀ codes(z) + b

A vector is stored as k numbers and their places. `csr` learns W, a and b for each k from frozen embeddings, by
contrastive sparse representation (Wen, Wang et al. 2025, "Beyond Matryoshka: revisiting sparse coding for adaptive
representation", ICML, arXiv:2503.01776):

    ‖z − ẑ_k‖² + ‖z − ẑ_4k‖² / 8 + β ‖(z − ẑ_k) − ẑ_dead‖² / ‖z − ẑ_k‖² + γ contrast

ẑ_dead is made of features that no vector has had active for a while, which so come to life. `contrast` is InfoNCE of
the codes of a batch, each its own positive, so that different vectors have different codes. β, γ, the temperature and
the number of features are the authors'; embeddings are first scaled to a mean square of 1 per coordinate, so that one
learning rate suits all.

**Compared at equal bytes**: at m dims, which take 4 m bytes, stands the code of k = 2 m / 3 active features, a float32
and a 16-bit place each. What reads codes reads 4 D columns, most of which are zero; search by them needs inverted lists
or sparse products instead of the matmuls that prefixes have.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mrl_jax.losses import nested_info_nce
from mrl_jax.system.errors import UserError

FEATURES = 4  # per coordinate of the embedding
BYTES_PER_DIM, BYTES_PER_ACTIVE = 4, 6
MAX_FEATURES = 1 << 16  # that a 16-bit place tells apart
DENSER, DENSER_WEIGHT = 4, 1 / 8
DEAD_WEIGHT, CONTRAST_WEIGHT, TEMPERATURE = 1 / 32, 0.1, 0.2
DEAD_STEPS = 30  # without an active vector
DEAD_PER_DIM = 4  # a reconstruction from dead features has one for so many coordinates
BATCH_SIZE, LEARNING_RATE, STEPS = 256, 1e-3, 2000
MAX_BYTES = 2 << 30  # of all codes that are held at once


class Codes(NamedTuple):
    """A learnt map from embeddings [n, D] to codes [n, 4 D] with at most k active features."""

    scale: float  # that embeddings are divided by
    kernel: np.ndarray  # float32 [D, F], W transposed
    shift: np.ndarray  # float32 [D], b
    bias: np.ndarray  # float32 [F], a
    k: int

    def apply(self, z: np.ndarray) -> np.ndarray:
        """The codes float32 [n, F] of embeddings [n, D]."""
        parameters = {"kernel": self.kernel, "shift": self.shift, "bias": self.bias}
        parts = [np.zeros((0, len(self.bias)), np.float32)]
        with jax.default_matmul_precision("highest"):  # as embeddings are evaluated
            for start in range(0, len(z), 8 * BATCH_SIZE):
                x = jnp.asarray(z[start : start + 8 * BATCH_SIZE] / self.scale, jnp.float32)
                parts.append(np.asarray(_active(_features(parameters, x), self.k)))
        return np.concatenate(parts)


def active_at(dim: int) -> int:
    """The number of active features whose numbers and places take the bytes of `dim` float32 coordinates."""
    return max(1, BYTES_PER_DIM * dim // BYTES_PER_ACTIVE)


def check(width: int, examples: int) -> None:
    """Raise `UserError` where codes would have more features than places tell apart, or take too much memory."""
    features = FEATURES * width
    if features > MAX_FEATURES:
        raise UserError(f"arms=[csr] is for a width of at most {MAX_FEATURES // FEATURES:,}; width={width:,}")
    if 4 * features * examples > MAX_BYTES:
        raise UserError(
            f"arms=[csr]: codes of {features:,} features of {examples:,} examples take {4 * features * examples:,} "
            f"bytes, more than {MAX_BYTES:,}; use a smaller data.limit or width, or leave csr out"
        )


def at_dims(z: Mapping[str, np.ndarray], dims: tuple[int, ...], seed: int) -> Iterator[dict[str, np.ndarray]]:
    """By split the codes [n, F] that take the bytes of each of `dims`, learnt from the embeddings `z["train"]`."""
    for dim in dims:
        codes = fit(z["train"], active_at(dim), seed)
        yield {split: codes.apply(x) for split, x in z.items()}


def fit(z: np.ndarray, k: int, seed: int) -> Codes:
    """Learn codes with k active features, by `STEPS` of Adam on `BATCH_SIZE` embeddings each.

    Args:
        z: embeddings [n, D], n ≥ 1.
        k: at most 4 D.
        seed: of the initial features and the batches.
    """
    width = z.shape[1]
    k = min(k, FEATURES * width)
    scale = float(np.sqrt(np.mean(np.square(z, dtype=np.float64)))) or 1.0
    x = jnp.asarray(z / scale, jnp.float32)
    rng = np.random.default_rng((seed, k))
    kernel = rng.normal(size=(width, FEATURES * width))
    parameters = {
        "kernel": jnp.asarray(kernel / np.linalg.norm(kernel, axis=0), jnp.float32),
        "shift": jnp.mean(x, axis=0),
        "bias": jnp.zeros(FEATURES * width),
    }
    rows = rng.integers(0, len(z), (STEPS, min(BATCH_SIZE, len(z))))
    with jax.default_matmul_precision("highest"):
        learnt = jax.device_get(_learn(parameters, x, jnp.asarray(rows), k))
    return Codes(scale, learnt["kernel"], learnt["shift"], learnt["bias"], k)


@partial(jax.jit, static_argnames="k")
def _learn(parameters: Any, x: jax.Array, rows: jax.Array, k: int) -> Any:
    """The parameters after a step of Adam on each of `rows` [steps, B]."""
    optimizer = optax.adam(LEARNING_RATE)

    def step(state: Any, some: jax.Array) -> tuple[Any, None]:
        parameters, moments, idle = state
        slope, used = jax.grad(_objective, has_aux=True)(parameters, x[some], idle >= DEAD_STEPS, k)
        update, moments = optimizer.update(slope, moments)
        return (optax.apply_updates(parameters, update), moments, jnp.where(used, 0, idle + 1)), None

    idle = jnp.zeros(len(parameters["bias"]), jnp.int32)
    (parameters, _, _), _ = jax.lax.scan(step, (parameters, optimizer.init(parameters), idle), rows)
    return parameters


def _objective(parameters: Any, x_BxD: jax.Array, dead_F: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The loss of a batch, and which features were active in it."""
    features_BxF = _features(parameters, x_BxD)
    codes_BxF = _active(features_BxF, k)
    lost_BxD = x_BxD - _decode(parameters, codes_BxF)
    denser_BxD = x_BxD - _decode(parameters, _active(features_BxF, min(DENSER * k, features_BxF.shape[1])))
    loss = jnp.mean(lost_BxD**2) + DENSER_WEIGHT * jnp.mean(denser_BxD**2)
    left_BxD = jax.lax.stop_gradient(lost_BxD)
    revived = max(1, x_BxD.shape[1] // DEAD_PER_DIM)
    revived_BxD = _active(jnp.where(dead_F, features_BxF, 0.0), revived) @ parameters["kernel"].T
    share = jnp.sum((left_BxD - revived_BxD) ** 2) / jnp.maximum(jnp.sum(left_BxD**2), 1e-12)
    loss += DEAD_WEIGHT * jnp.where(jnp.any(dead_F), share, 0.0)
    all_features = codes_BxF.shape[1:]
    contrast, _ = nested_info_nce(codes_BxF, codes_BxF, all_features, [1.0], TEMPERATURE, symmetric=False)
    return loss + CONTRAST_WEIGHT * contrast, jnp.any(codes_BxF > 0, axis=0)


def _features(parameters: Any, x_BxD: jax.Array) -> jax.Array:
    features_BxF: jax.Array = (x_BxD - parameters["shift"]) @ parameters["kernel"] + parameters["bias"]
    return features_BxF


def _decode(parameters: Any, codes_BxF: jax.Array) -> jax.Array:
    decoded_BxD: jax.Array = codes_BxF @ parameters["kernel"].T + parameters["shift"]
    return decoded_BxD


@partial(jax.jit, static_argnames="k")
def _active(features_BxF: jax.Array, k: int) -> jax.Array:
    """The k largest features of each row where they are positive, zeros elsewhere; ties at the k-th are all kept."""
    # The smallest of the largest: of a slice behind a top-k, XLA on a CPU sorts everything.
    least_B = jnp.min(jax.lax.top_k(features_BxF, k)[0], axis=1, keepdims=True)
    return jnp.where(features_BxF >= jnp.maximum(least_B, 0.0), jnp.maximum(features_BxF, 0.0), 0.0)
