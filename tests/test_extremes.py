"""Numbers that stay right: huge and tiny logits and embeddings, one class, one example, and very many classes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp, softmax

from mrl_jax import losses, nesting, train
from mrl_jax.evaluate import adaptive, classification, neighbours, quantised, refit
from mrl_jax.losses import heads, nested_cross_entropy, tiled, uncertainty_weighted
from mrl_jax.report import statistics
from mrl_jax.search import funnel
from mrl_jax.system.errors import UserError

DIMS, CLASSES, BATCH = (3, 8), 37, 5
WIDTHS = (2, 24)  # nesting dims of embeddings of pairs
LABELS = np.array([0, 36, 31, 7, 32], np.int32)


def made(kind: str, seed: int = 0, scale: float = 1.0) -> tuple[heads.Head, jax.Array]:
    """A head with biases, and embeddings."""
    rng = np.random.default_rng(seed)
    head = heads.init(jax.random.key(seed), kind, DIMS, CLASSES)
    head["bias"] = jax.tree.map(lambda b: jnp.float32(rng.normal(size=b.shape)), head["bias"])
    return head, jnp.float32(scale * rng.normal(size=(BATCH, DIMS[-1])))


def tiled_loss(kind: str, tile: int, smoothing: float = 0.0):
    """The nested loss over tiles of `tile` classes, as a function of head, embeddings and weights."""

    def loss(head, z, weights):
        logits = lambda head, z: heads.logits(head, kind, z, DIMS)  # noqa: E731
        losses_KxB = tiled.cross_entropies(logits, tile, smoothing, head, z, LABELS)
        return jnp.dot(weights, jnp.mean(losses_KxB, axis=1))

    return loss


def direct(kind: str, smoothing: float = 0.0):
    def loss(head, z, weights):
        return nested_cross_entropy(heads.logits(head, kind, z, DIMS), LABELS, weights, smoothing)[0]

    return loss


# --- many classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", heads.KINDS)
@pytest.mark.parametrize(("tile", "smoothing", "scale"), [(37, 0.0, 1.0), (16, 0.1, 3e3), (64, 0.5, 0.0)])
@pytest.mark.slow
def test_tiles_of_classes_give_the_loss_and_gradients_of_all_classes_at_once(kind, tile, smoothing, scale):
    head, z = made(kind, scale=scale)
    weights = jnp.array([1.0, 2.5])
    wanted, slopes = jax.value_and_grad(direct(kind, smoothing), argnums=(0, 1, 2))(head, z, weights)
    got, found = jax.jit(jax.value_and_grad(tiled_loss(kind, tile, smoothing), argnums=(0, 1, 2)))(head, z, weights)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("kind", heads.KINDS)
def test_tiles_under_vmap_are_the_members_one_by_one(kind):
    members = [made(kind, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
    weights = jnp.eye(2)
    gradient = jax.grad(tiled_loss(kind, 16, 0.1), argnums=(0, 1))
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
    got = tiled.answers(lambda head, z: heads.logits(head, kind, z, DIMS), 16, head, z)
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


# --- lengths of embeddings ----------------------------------------------------------------------------------------


def pair_losses():
    """Each loss of pairs as a function of two sets of embeddings."""
    weights, scores = jnp.ones(len(WIDTHS)), jnp.arange(BATCH) / BATCH
    found = {
        "cosent": lambda a, b: losses.nested_cosent(a, b[:BATCH], scores, WIDTHS, weights, 0.01),
        "regression": lambda a, b: losses.nested_cosine_regression(a, b[:BATCH], scores, WIDTHS, weights),
        "distillation": lambda a, b: losses.nested_distillation(a, b, WIDTHS, weights, 0.01),
        "pair distillation": lambda a, b: losses.nested_pair_distillation(a, b[:BATCH], WIDTHS, weights),
    }
    for streamed, symmetric, temperature in ((False, True, 0.01), (True, False, 0.01), (True, True, 1.0)):
        found[f"InfoNCE, {streamed=}, {symmetric=}, {temperature=}"] = partial(
            losses.nested_info_nce,
            dims=WIDTHS,
            weights=weights,
            temperature=temperature,
            symmetric=symmetric,
            streamed=streamed,
            valid=jnp.arange(BATCH) != 2,
        )
    return found


@pytest.fixture(scope="module")
def pair_gradients():
    """For each loss of pairs its losses [K] and gradients, compiled once for all lengths."""
    return {
        name: jax.jit(jax.value_and_grad(lambda a, b, loss=loss: loss(a, b), argnums=(0, 1), has_aux=True))
        for name, loss in pair_losses().items()
    }


@pytest.mark.slow
def test_losses_of_pairs_do_not_depend_on_the_lengths_of_embeddings(pair_gradients):
    rng = np.random.default_rng(0)
    a, b = (jnp.float32(rng.normal(size=(n, WIDTHS[-1]))) for n in (BATCH, BATCH + 2))
    for name, gradient in pair_gradients.items():
        (_, wanted), slopes = gradient(a, b)
        for longer in (60, -60, 100, -90):  # powers of two, exact: 1e18, 1e-18, 1e30 and 1e-27
            factor = jnp.float32(2.0**longer)
            (_, got), found = gradient(a * factor, b / factor if longer > 0 else b)
            np.testing.assert_array_equal(got, wanted, err_msg=name)
            np.testing.assert_allclose(found[0] * factor, slopes[0], rtol=1e-6, atol=1e-7, err_msg=name)
            other = found[1] / factor if longer > 0 else found[1]
            np.testing.assert_allclose(other, slopes[1], rtol=1e-6, atol=1e-7, err_msg=name)


def test_zero_vectors_have_finite_losses_and_no_gradient(pair_gradients):
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(n, WIDTHS[-1])).astype(np.float32) for n in (BATCH, BATCH + 2))
    a[0] = b[1] = b[-1] = 0.0
    a[3, : WIDTHS[0]] = 0.0
    a[4, : WIDTHS[0]] = 1e-20  # zero beside the rest of the row
    for name, gradient in pair_gradients.items():
        (total, each), (to_a, to_b) = gradient(a, b)
        assert np.isfinite(total), name
        assert np.isfinite(each).all(), name
        assert np.isfinite(to_a).all(), name
        assert np.isfinite(to_b).all(), name
        assert not to_a[0].any(), name
        assert not to_b[1].any(), name
        assert not to_b[-1].any(), name


@settings(max_examples=50)
@given(arrays(np.float32, (4, 6), elements=st.floats(-1, 1, width=32)), st.integers(-98, 126), st.sampled_from([1, 6]))
def test_truncated_rows_have_unit_length_and_the_direction_that_they_had(z, exponent, dim):
    got = np.asarray(nesting.truncate(jnp.asarray(np.ldexp(z, exponent)), dim), np.float64)
    prefix = np.ldexp(z, exponent).astype(np.float64)[:, :dim]
    lengths = np.linalg.norm(prefix, axis=1, keepdims=True)
    there = np.abs(prefix).max(axis=1, keepdims=True) >= nesting.MIN_MAGNITUDE
    wanted = np.where(there, prefix / np.where(there, lengths, 1.0), 0.0)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("exponent", [60, -90])
def test_neighbours_do_not_depend_on_the_lengths_of_embeddings(exponent):
    rng = np.random.default_rng(2)
    database, queries = (rng.normal(size=(n, 12)).astype(np.float32) for n in (60, 7))
    database[3] = queries[2] = 0.0
    for search in (neighbours.neighbours, quantised.int8, quantised.one_bit):
        wanted = search(queries, database, (2, 12), 5)
        got = search(np.ldexp(queries, -exponent), np.ldexp(database, exponent), (2, 12), 5)
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=search.__name__)


@pytest.mark.parametrize("length", [1e18, 1e-18])
def test_a_scan_refuses_lengths_whose_products_are_not_what_they_should_be(length):
    rng = np.random.default_rng(3)
    z = rng.normal(size=(40, 8)).astype(np.float32)
    with pytest.raises(ValueError, match="the longest embedding has length"):
        funnel.lay_out(z * np.float32(length), (4, 8))
    documents = funnel.lay_out(z, (4, 8))
    with pytest.raises(ValueError, match="a query has length"):
        funnel.exact(documents, z[:2] * np.float32(length), 3)
    hits, _ = funnel.exact(documents, np.zeros((1, 8), np.float32), 3)  # all alike: the lowest rows
    np.testing.assert_array_equal(hits.rows, [[0, 1, 2]])


# --- bfloat16 -----------------------------------------------------------------------------------------------------


def float64_loss(z: np.ndarray, kernels: list[np.ndarray], labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The sum over granularities of the mean cross-entropy of separate heads, and its gradient by z."""
    total, slope = 0.0, np.zeros(z.shape)
    for kernel in kernels:
        m = len(kernel)
        logits = z[:, :m] @ kernel
        total += float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(z)), labels]))
        slope[:, :m] += (softmax(logits, axis=1) - np.eye(kernel.shape[1])[labels]) @ kernel.T / len(z)
    return total, slope


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", heads.KINDS)
def test_losses_of_bfloat16_embeddings_are_summed_in_float32(kind, streamed):
    rng, dims, batch = np.random.default_rng(4), (16, 64, 128), 1024
    head = heads.init(jax.random.key(0), kind, dims, CLASSES)
    labels = rng.integers(0, CLASSES, batch)
    z = jnp.asarray(rng.normal(size=(batch, dims[-1])), jnp.bfloat16)
    kernels = head["kernel"] if kind == "separate" else [np.concatenate(head["kernel"])[:m] for m in dims]
    wanted, slope = float64_loss(np.asarray(z, np.float64), [np.asarray(k, np.float64) for k in kernels], labels)

    def loss(head, z):
        return heads.nested_loss(head, kind, z, labels, jnp.ones(len(dims)), dims, streamed=streamed)[0]

    # A mean over so many in bfloat16 would be off by 1e-2.
    got, (_, to_z) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(head, z)
    assert got == pytest.approx(wanted, rel=1e-5)
    # What comes out has eight bits; sums of terms in them would be off by more.
    error = np.abs(np.asarray(to_z, np.float64) - slope)
    assert to_z.dtype == jnp.bfloat16
    assert np.linalg.norm(error) / np.linalg.norm(slope) < 2.0**-8


def test_pair_losses_of_bfloat16_embeddings_are_those_of_the_same_numbers_in_float32(pair_gradients):
    rng = np.random.default_rng(5)
    a, b = (jnp.asarray(rng.normal(size=(n, WIDTHS[-1])), jnp.bfloat16) for n in (BATCH, BATCH + 2))
    for name in ("regression", "distillation"):
        gradient = pair_gradients[name]
        (_, wanted), slopes = gradient(a.astype(jnp.float32), b.astype(jnp.float32))
        (_, got), found = gradient(a, b)
        np.testing.assert_array_equal(got, wanted, err_msg=name)
        for narrow, wide in zip(found, slopes, strict=True):
            np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16), err_msg=name)


# --- few examples, few classes, few replicates --------------------------------------------------------------------


def test_too_few_replicates_to_tell_a_difference_are_refused():
    outcomes = np.random.default_rng(6).normal(size=(3, 8))
    with pytest.raises(ValueError, match="replicates=19 is not allowed; at least 20"):
        statistics.mean_interval(outcomes, replicates=19)
    assert statistics.mean_interval(outcomes, replicates=20).low < outcomes.mean()


@pytest.mark.parametrize("fit", [refit.ridge, refit.logistic])
def test_refitted_classifiers_of_one_class_or_one_example_say_the_only_class_there_is(fit):
    z = np.random.default_rng(7).normal(size=(9, 5)).astype(np.float32)
    for rows, classes in ((9, 1), (9, 3), (1, 1), (1, 4)):
        labels = np.full(rows, classes - 1)
        for m, (kernel, bias) in fit(z[:rows], labels, z[:rows], labels, (1, 5), classes).items():
            assert (np.argmax(z[:, :m] @ kernel + bias, axis=1) == classes - 1).all()


def test_a_search_in_parts_of_the_examples_finds_the_same_classifiers(monkeypatch):
    rng = np.random.default_rng(8)
    labels = np.arange(90) % 3
    z = (rng.normal(size=(90, 4)) + labels[:, None] * [1, 0, -1, 0]).astype(np.float32)
    whole = refit.logistic(z, labels, z, labels, (2, 4), 3)
    monkeypatch.setattr(refit, "MAX_LOGIT_ELEMENTS", 3 * 35)
    monkeypatch.setattr(refit, "TILE_ELEMENTS", 3 * 35)  # three parts, the last one short
    monkeypatch.setattr(classification, "MAX_LOGIT_ELEMENTS", 3 * 7)
    for m, (kernel, bias) in refit.logistic(z, labels, z, labels, (2, 4), 3).items():
        np.testing.assert_allclose(kernel, whole[m][0], rtol=2e-2, atol=2e-3)
        np.testing.assert_allclose(bias, whole[m][1], rtol=2e-2, atol=2e-3)
    said = classification.at_each_dim(z, labels, whole)
    for m, (kernel, bias) in whole.items():
        np.testing.assert_array_equal(said[m].prediction, np.argmax(z[:, :m] @ kernel + bias, axis=1))


def test_what_many_classes_would_take_too_much_memory_for_is_refused():
    refit.check("logistic", 1000, 2048)
    refit.check("ridge", 100_000, 256)
    refit.check(None, 100_000, 256)
    with pytest.raises(UserError, match=r"evaluation.refit=logistic is not allowed for 100,000 classes .* 11 GiB; use"):
        refit.check("logistic", 100_000, 256)
    adaptive.check_memory(20_000, 1000, 9)
    with pytest.raises(UserError, match=r"evaluation.cascade=true: the logits of 20,000 .* 100,000 classes"):
        adaptive.check_memory(20_000, 100_000, 6)


def test_ridge_of_many_classes_takes_memory_for_the_classes_once_a_coordinate():
    """One-hot rows, or a square of the classes, would be 3.2 GB and 80 GB."""
    rng, classes = np.random.default_rng(9), 100_000
    labels = rng.integers(0, classes, 4000)
    z = rng.normal(size=(len(labels), 2)).astype(np.float32)
    _, gram, cross = refit._moments(z, labels, classes)
    centred = z.astype(np.float64) - z.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(gram, centred.T @ centred, rtol=1e-9)
    for column in range(2):
        wanted = np.bincount(labels, centred[:, column], classes)
        np.testing.assert_allclose(cross[column], wanted, rtol=1e-9, atol=1e-12)


def test_a_learned_importance_stays_finite_when_its_loss_reaches_zero():
    losses_K, weights_K = jnp.array([0.0, 1e4]), jnp.ones(2)
    for s in (-1e3, 0.0, 1e3):
        value, slope = jax.value_and_grad(uncertainty_weighted, argnums=1)(losses_K, jnp.full(2, s), weights_K)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()
    # At the bound a smaller s no longer pays.
    assert not np.any(jax.grad(uncertainty_weighted, argnums=1)(losses_K, jnp.full(2, -1e3), weights_K))


def test_too_many_classes_for_a_logistic_refit_end_before_training(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(10)
    np.savez(tmp_path / "some.npz", features=rng.normal(size=(30, 4)).astype(np.float32), labels=np.arange(30) % 3)
    monkeypatch.setattr(refit, "MAX_HISTORY_BYTES", 1 << 10)
    path = tmp_path / "some.npz"
    words = [
        "data=features",
        f"data.train={path}",
        f"data.test={path}",
        "encoder=mlp",
        f"results_dir={tmp_path / 'out'}",
    ]
    assert train.main(words) == 2
    assert "error: evaluation.refit=logistic is not allowed for 3 classes at 256 dims" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
