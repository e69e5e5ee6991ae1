"""Numbers that stay right: huge and tiny logits and embeddings, one class, one example, and very many classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import heads, many_classes
from mrl_jax.losses import nested_cross_entropy

DIMS, CLASSES, BATCH = (3, 8), 37, 5
LABELS = np.array([0, 36, 31, 7, 32], np.int32)


def made(kind: str, seed: int = 0, scale: float = 1.0) -> tuple[heads.Head, jax.Array]:
    """A head with biases, and embeddings."""
    rng = np.random.default_rng(seed)
    head = heads.init(jax.random.key(seed), kind, DIMS, CLASSES)
    head["bias"] = jax.tree.map(lambda b: jnp.float32(rng.normal(size=b.shape)), head["bias"])
    return head, jnp.float32(scale * rng.normal(size=(BATCH, DIMS[-1])))


def tiled(kind: str, tile: int, smoothing: float = 0.0):
    """The nested loss over tiles of `tile` classes, as a function of head, embeddings and weights."""

    def loss(head, z, weights):
        logits = lambda head, z: heads.logits(head, kind, z, DIMS)  # noqa: E731
        losses_KxB = many_classes.cross_entropies(logits, tile, smoothing, head, z, LABELS)
        return jnp.dot(weights, jnp.mean(losses_KxB, axis=1))

    return loss


def direct(kind: str, smoothing: float = 0.0):
    def loss(head, z, weights):
        return nested_cross_entropy(heads.logits(head, kind, z, DIMS), LABELS, weights, smoothing)[0]

    return loss


# --- many classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", heads.KINDS)
@pytest.mark.parametrize(("tile", "smoothing", "scale"), [(37, 0.0, 1.0), (16, 0.1, 1.0), (5, 0.1, 3e3), (64, 0.5, 0.0)])
def test_tiles_of_classes_give_the_loss_and_gradients_of_all_classes_at_once(kind, tile, smoothing, scale):
    head, z = made(kind, scale=scale)
    weights = jnp.array([1.0, 2.5])
    wanted, slopes = jax.value_and_grad(direct(kind, smoothing), argnums=(0, 1, 2))(head, z, weights)
    got, found = jax.jit(jax.value_and_grad(tiled(kind, tile, smoothing), argnums=(0, 1, 2)))(head, z, weights)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("kind", heads.KINDS)
def test_tiles_under_vmap_are_the_members_one_by_one(kind):
    members = [made(kind, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
    weights = jnp.eye(2)
    gradient = jax.grad(tiled(kind, 16, 0.1), argnums=(0, 1))
    together = jax.jit(jax.vmap(gradient))(*stacked, weights)
    for i, (head, z) in enumerate(members):
        alone = jax.grad(direct(kind, 0.1), argnums=(0, 1))(head, z, weights[i])
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", heads.KINDS)
def test_tiled_answers_are_the_largest_logits_the_lower_class_where_two_are_equal(kind):
    head, z = made(kind)
    head = jax.tree.map(lambda x: x.at[..., 33].set(x[..., 4]), head)  # classes 4 and 33 tie everywhere
    z = jnp.concatenate([z, jnp.zeros((1, DIMS[-1]))])
    wanted = [np.argmax(x, axis=1) for x in heads.logits(head, kind, z, DIMS)]
    got = many_classes.answers(lambda head, z: heads.logits(head, kind, z, DIMS), 16, head, z)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", heads.KINDS)
def test_heads_choose_tiles_by_size_and_give_the_same_either_way(kind, monkeypatch):
    head, z = made(kind)
    weights = [1.0, 2.0]
    one = heads.nested_loss(head, kind, z, LABELS, weights, DIMS, 0.1)
    hits, losses = heads.score(head, kind, z, LABELS, DIMS)
    monkeypatch.setattr(heads, "DIRECT_ELEMENTS", len(DIMS) * BATCH * CLASSES - 1)
    monkeypatch.setattr(heads.losses, "cross_entropy", None)
    other = heads.nested_loss(head, kind, z, LABELS, weights, DIMS, 0.1)
    np.testing.assert_allclose(other[0], one[0], rtol=1e-5)
    np.testing.assert_allclose(other[1], one[1], rtol=1e-5)
    streamed = heads.score(head, kind, z, LABELS, DIMS)
    np.testing.assert_array_equal(streamed[0], hits)
    np.testing.assert_allclose(streamed[1], losses, rtol=1e-5)


@pytest.mark.parametrize("kind", heads.KINDS)
def test_the_extra_memory_of_a_hundred_thousand_classes_is_that_of_a_tile(kind):
    batch, classes, dims = 256, 100_000, (8, 16, 32, 64, 128, 256)
    head = jax.eval_shape(lambda: heads.init(jax.random.key(0), kind, dims, classes))
    z = jax.ShapeDtypeStruct((batch, dims[-1]), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def loss(head, z, labels):
        return heads.nested_loss(head, kind, z, labels, jnp.ones(len(dims)), dims)

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).lower(head, z, labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.2 * 4 * batch * classes
