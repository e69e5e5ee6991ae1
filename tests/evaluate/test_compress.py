"""Post-hoc compressions against scikit-learn, explicit reconstruction in float64, and what is known of projections."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from mrl_jax.evaluate import compress
from mrl_jax.evaluate.compress import fit, own_head

NAMES = tuple(compress.COMPRESSIONS)
D = 12


def embeddings(count: int, width: int = D, seed: int = 0) -> np.ndarray:
    """Correlated coordinates of different variances, not centred."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) * np.linspace(0.2, 2, width)
    return (mixed + 3 * rng.normal(size=width)).astype(np.float32)


# --- the maps -----------------------------------------------------------------------------------------------------


def test_truncated_is_the_embedding_and_a_random_subset_its_coordinates_in_another_order():
    z = embeddings(30)
    np.testing.assert_array_equal(fit("truncated", z, 0).apply(z), z)
    subset = fit("random_subset", z, 0).apply(z)
    order = [int(np.flatnonzero((z == column[:, None]).all(0))[0]) for column in subset.T]
    assert sorted(order) == list(range(D))
    assert order != list(range(D))


def test_pca_is_that_of_scikit_learn_up_to_sign(monkeypatch):
    monkeypatch.setattr(compress, "CHUNK_ROWS", 70)  # several chunks, the last one short
    z, new = embeddings(300), embeddings(40, seed=1)
    oracle = PCA().fit(z.astype(np.float64))
    wanted = oracle.transform(new.astype(np.float64))
    got = fit("pca", z, 0)
    signs = np.sign((got.apply(new) * wanted).sum(0))
    np.testing.assert_allclose(got.apply(new) * signs, wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got.apply(z).var(0, ddof=1), oracle.explained_variance_, rtol=1e-4)
    white = PCA(whiten=True).fit(z.astype(np.float64)).transform(new.astype(np.float64))
    # scikit-learn divides the variance by n − 1.
    np.testing.assert_allclose(
        fit("pca_whitened", z, 0).apply(new) * signs, white * np.sqrt(300 / 299), rtol=1e-3, atol=1e-3
    )


def test_a_rotation_keeps_inner_products_and_its_prefixes_keep_most_of_them():
    z, new = embeddings(300), embeddings(40, seed=1)
    turned = fit("rotated", z, 0)
    np.testing.assert_allclose(turned.apply(new) @ turned.apply(new).T, new @ new.T, rtol=1e-5, atol=1e-3)
    # The truncated singular value decomposition of the embeddings at unit length, by NumPy.
    unit = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True)
    left, values, _ = np.linalg.svd(unit, full_matrices=False)
    for m in (1, 4, D):
        kept = turned.apply(unit)[:, :m]
        np.testing.assert_allclose(kept @ kept.T, (left[:, :m] * values[:m] ** 2) @ left[:, :m].T, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 30))
def test_principal_directions_are_orthonormal_and_point_to_their_largest_entry(seed, width, count):
    z = embeddings(count, width, seed)
    directions = fit("pca", z, 0).matrix
    np.testing.assert_allclose(directions.T @ directions, np.eye(width), atol=1e-5)
    assert (directions[np.abs(directions).argmax(0), np.arange(width)] > 0).all()
    variances = ((z - z.mean(0, dtype=np.float64)) @ directions.astype(np.float64)).var(0)
    assert (np.diff(variances) <= 1e-5 * (1 + variances[0])).all()


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_whitened_coordinates_are_uncorrelated_with_unit_variance_whatever_the_unit_of_the_embedding(seed, unit):
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]  # a random matrix may be singular to float32, a rotation is not
    z = ((rng.normal(size=(200, 6)) * np.linspace(0.2, 2, 6) @ rotation + rng.normal(size=6)) * unit).astype(np.float32)
    np.testing.assert_allclose(
        np.cov(fit("pca_whitened", z, 0).apply(z), rowvar=False, bias=True), np.eye(6), atol=0.02
    )


def test_random_projections_keep_lengths_and_angles_on_average():
    """E |Rᵀz|² = (m / D) |z|² for a prefix of m, and the same for inner products (Johnson and Lindenstrauss)."""
    z, m, draws = embeddings(2, 40), 10, 4000
    projected = np.stack([fit("random_projection", z, seed).apply(z)[:, :m] for seed in range(draws)]).astype(float)
    products = np.einsum("sim,sjm->sij", projected, projected) * 40 / m
    error = products.std(0) / np.sqrt(draws)
    assert (np.abs(products.mean(0) - z.astype(float) @ z.T.astype(float)) < 4 * error).all()
    # Var |Rᵀz|² · D / m = 2 |z|⁴ / m: the m directions are independent.
    spread = products[:, [0, 1], [0, 1]].var(0) / (z.astype(float) ** 2).sum(1) ** 2
    np.testing.assert_allclose(spread, 2 / m, rtol=0.2)


@pytest.mark.parametrize("name", ["random_subset", "random_projection"])
def test_what_is_random_comes_from_the_seed(name):
    z = embeddings(20)
    np.testing.assert_array_equal(fit(name, z, 3).matrix, fit(name, embeddings(5, seed=9), 3).matrix)
    assert (fit(name, z, 3).matrix != fit(name, z, 4).matrix).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_of_the_compression_needs_only_the_first_columns(name):
    z = embeddings(40)
    compression = fit(name, z, 0)
    whole = compression.apply(z)
    assert compression.matrix.dtype == compression.mean.dtype == whole.dtype == np.float32
    for m in (1, 5, D):
        alone = (z - compression.mean).astype(float) @ compression.matrix[:, :m].astype(float)
        np.testing.assert_allclose(whole[:, :m], alone, rtol=1e-3, atol=1e-3)


def test_only_known_names_are_fitted():
    with pytest.raises(ValueError, match="umap"):
        fit("umap", embeddings(5), 0)


# --- the classifier of the model ----------------------------------------------------------------------------------


def reconstructed(name: str, compression: compress.Compression, y: np.ndarray) -> np.ndarray:
    """z [D] from its m numbers y, by the meaning of each name, in float64."""
    m, matrix, mean = len(y), compression.matrix.astype(float), compression.mean.astype(float)
    z = np.zeros(D)
    match name:
        case "truncated":
            z[:m] = y
        case "random_subset":
            for value, column in zip(y, matrix.T, strict=False):
                z[int(column.argmax())] = value
        case "rotated":
            z = sum(value * direction for value, direction in zip(y, matrix.T, strict=False))
        case "random_projection":
            z = np.linalg.lstsq(matrix[:, :m].T, y)[0]
        case "pca":
            z = mean + sum(value * direction for value, direction in zip(y, matrix.T, strict=False))
        case "pca_whitened":
            for value, column in zip(y, matrix.T, strict=False):
                z = z + value * column / (column @ column)  # a column is a direction over its standard deviation
            z = z + mean
    return z


@pytest.mark.parametrize("name", NAMES)
def test_the_models_own_head_reads_the_reconstruction(name):
    rng = np.random.default_rng(1)
    train, z = embeddings(200), embeddings(15, seed=2)
    kernel, bias = rng.normal(size=(D, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    compression = fit(name, train, 0)
    y = (z.astype(float) - compression.mean) @ compression.matrix.astype(float)
    heads = own_head(compression, kernel, bias, (1, 3, 7, D))
    assert list(heads) == [1, 3, 7, D]
    for m, (rows, offset) in heads.items():
        assert rows.shape == (m, 4)
        wanted = [reconstructed(name, compression, values[:m]) @ kernel.astype(float) + bias for values in y]
        np.testing.assert_allclose(y[:, :m] @ rows + offset, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_at_full_width_the_own_head_says_what_the_model_says(name):
    rng = np.random.default_rng(1)
    z, kernel, bias = embeddings(100), rng.normal(size=(D, 4)), rng.normal(size=4)
    compression = fit(name, z, 0)
    rows, offset = own_head(compression, kernel, bias, (D,))[D]
    np.testing.assert_allclose(compression.apply(z) @ rows + offset, z @ kernel + bias, rtol=1e-3, atol=1e-2)


# --- degenerate embeddings ----------------------------------------------------------------------------------------


def degenerate() -> dict[str, np.ndarray]:
    constant = embeddings(50)
    constant[:, 3] = 0.1
    return {
        "a constant coordinate": constant,
        "fewer examples than coordinates": embeddings(5),
        "one example": embeddings(1),
        "equal examples": np.tile(embeddings(1), (20, 1)) * np.float32(0.1),
        "all zero": np.zeros((10, D), np.float32),
    }


@pytest.mark.parametrize("what", degenerate())
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_embeddings_give_finite_numbers(name, what):
    z = degenerate()[what]
    compression = fit(name, z, 0)
    new = embeddings(8, seed=5)
    assert np.isfinite(compression.apply(new)).all()
    for m, (rows, offset) in own_head(compression, np.ones((D, 3)), np.zeros(3), (2, D)).items():
        logits = compression.apply(z)[:, :m] @ rows + offset
        assert rows.shape == (m, 3)
        assert np.isfinite(logits).all()
        if m == D:  # nothing is lost on what it was fitted on
            np.testing.assert_allclose(logits, np.tile(z.sum(1, keepdims=True), 3), atol=1e-2)


@pytest.mark.parametrize(
    ("what", "rank"),
    [
        ("a constant coordinate", D - 1),
        ("fewer examples than coordinates", 4),
        ("one example", 0),
        ("equal examples", 0),
        ("all zero", 0),
    ],
)
def test_whitening_leaves_out_directions_without_variance(what, rank):
    columns = fit("pca_whitened", degenerate()[what], 0).matrix.any(0)
    assert columns.tolist() == [True] * rank + [False] * (D - rank)


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_said_to_learns_from_embeddings(name: str) -> None:
    one, other = (np.random.default_rng(seed).normal(size=(50, 6)).astype(np.float32) for seed in (0, 1))
    same = np.array_equal(compress.fit(name, one, 3).matrix, compress.fit(name, other, 3).matrix)
    assert same == (name not in compress.LEARNT)
