"""Sparse codes: the arithmetic against NumPy in float64, and what they are for on data that is sparse."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import mrl_jax
from mrl_jax import data, report, train
from mrl_jax.config import from_command_line
from mrl_jax.data import DataConfig
from mrl_jax.evaluate import compress, refit, sparse
from mrl_jax.runs import read_rows
from mrl_jax.system.errors import UserError
from mrl_jax.tasks.classification import Classification

WIDTH = 6


def dictionary_data(n: int, width: int, features: int, active: int, seed: int) -> np.ndarray:
    """Vectors that are sums of a few of many directions."""
    directions = np.random.default_rng(0).normal(size=(features, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    chosen = rng.random((n, features)).argsort(axis=1)[:, :active]
    return np.asarray(np.einsum("na,nad->nd", rng.uniform(1, 2, (n, active)), directions[chosen]), np.float32)


def largest(features: np.ndarray, k: int) -> np.ndarray:
    """ReLU of the k largest of each row, one row after the other."""
    kept = np.zeros_like(features)
    for row, out in zip(features, kept, strict=True):
        for place in np.argsort(-row)[:k]:
            out[place] = max(row[place], 0.0)
    return kept


def parameters(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.normal(size=(WIDTH, 4 * WIDTH)),
        "shift": rng.normal(size=WIDTH),
        "bias": rng.normal(size=4 * WIDTH) - 1,
    }


def test_codes_are_the_largest_features_where_they_are_positive() -> None:
    given, z = parameters(0), np.random.default_rng(1).normal(size=(5000, WIDTH))
    codes = sparse.Codes(2.0, *(given[name].astype(np.float32) for name in ("kernel", "shift", "bias")), k=5)
    wanted = largest((z / 2 - given["shift"]) @ given["kernel"] + given["bias"], 5)
    found = codes.apply(z.astype(np.float32))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert (np.count_nonzero(found, axis=1) <= 5).all()
    assert (np.count_nonzero(found, axis=1) < 5).any()  # rows with fewer positive features


def test_products_are_exact_as_those_of_embeddings_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerators round the operands of others."""
    used: list[str | None] = []

    def features(given: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        used.append(jax.config.jax_default_matmul_precision)
        return (x - given["shift"]) @ given["kernel"]

    monkeypatch.setattr(sparse, "_features", features)
    monkeypatch.setattr(sparse, "STEPS", 1)
    z = np.random.default_rng(5).normal(size=(9, 7)).astype(np.float32)
    sparse.fit(z, 2, seed=0).apply(z)
    assert len(used) >= 2
    assert set(used) == {"highest"}


@pytest.mark.parametrize("dead", [0, 3])
def test_the_objective_is_the_published_formula(dead: int) -> None:
    given, x, k = parameters(2), np.random.default_rng(3).normal(size=(7, WIDTH)), 2
    is_dead = np.arange(4 * WIDTH) < dead
    features = (x - given["shift"]) @ given["kernel"] + given["bias"]
    codes = largest(features, k)
    lost = x - codes @ given["kernel"].T - given["shift"]
    denser = x - largest(features, 4 * k) @ given["kernel"].T - given["shift"]
    revived = largest(np.where(is_dead, features, 0.0), 1) @ given["kernel"].T
    wanted = (lost**2).mean() + (denser**2).mean() / 8
    if dead:
        wanted += ((lost - revived) ** 2).sum() / (lost**2).sum() / 32
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    chances = np.exp(unit @ unit.T / 0.2)
    wanted += 0.1 * -np.log(np.diagonal(chances) / chances.sum(axis=1)).mean()
    loss, used = sparse._objective(jax.tree.map(jnp.asarray, given), jnp.asarray(x), jnp.asarray(is_dead), k)
    assert float(loss) == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_array_equal(used, codes.any(axis=0))


def test_codes_of_sparse_data_hold_more_of_it_than_as_many_bytes_of_principal_directions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sparse, "STEPS", 300)
    z, other = (dictionary_data(n, 32, 96, 4, seed) for n, seed in ((3000, 1), (500, 2)))
    dim = 9  # 36 bytes: 6 active features
    (codes,) = sparse.at_dims({"train": z, "test": other}, (dim,), seed=0)
    assert codes["test"].shape == (500, 128)
    assert np.count_nonzero(codes["test"], axis=1).max() == sparse.active_at(dim) == 6
    learnt = sparse.fit(z, 6, seed=0)
    np.testing.assert_array_equal(learnt.apply(other), codes["test"])  # the same seed learns the same codes
    decoded = learnt.scale * (codes["test"] @ learnt.kernel.T + learnt.shift)
    pca = compress.fit("pca", z, 0)
    projected = pca.apply(other)[:, :dim] @ pca.matrix[:, :dim].T + pca.mean
    assert ((other - decoded) ** 2).sum() < 0.75 * ((other - projected) ** 2).sum()
    assert (codes["train"] > 0).any(axis=0).mean() > 0.5  # features are alive


def test_what_codes_take_is_bounded_before_anything_is_trained() -> None:
    assert [sparse.active_at(m) for m in (1, 2, 3, 4, 8, 64)] == [1, 1, 2, 2, 5, 42]
    with pytest.raises(UserError, match="width of at most 16,384; width=16,385"):
        sparse.check(16_385, 1)
    with pytest.raises(UserError, match="take 32,768,000,000 bytes, more than 2,147,483,648"):
        sparse.check(2048, 1_000_000)


def test_all_columns_and_all_damaged_texts_count_for_what_codes_take(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def check(*words: str) -> None:
        config = from_command_line([*tiny, f"results_dir={tmp_path}", "evaluation.refit=logistic", *words])
        Classification().check(config, data.load(config.data))

    monkeypatch.setattr(sparse, "MAX_BYTES", 4 * 64 * (240 + 80))  # train, validation and test
    check("arms=[ff,csr]")
    with pytest.raises(UserError, match=r"arms=.csr.: codes of 64 features of"):
        check("arms=[ff,csr]", "evaluation.corruption=[typos]")
    monkeypatch.setattr(refit, "MAX_HISTORY_BYTES", 2 * 30 * 8 * 4 * 17)  # four classes at 16 dims
    check("arms=[ff,pca]")
    with pytest.raises(UserError, match=r"evaluation.refit=logistic is not allowed for 4 classes at 64 dims"):
        check("arms=[ff,csr]")


def test_a_run_compares_codes_with_prefixes_of_the_same_bytes(
    tiny: list[str],
    texts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sparse, "STEPS", 100)
    words = [*tiny, "arms=[ff,csr]", "evaluation.refit=null", "evaluation.baseline=none", f"results_dir={tmp_path}"]
    assert train.main([*words, "run=a", "evaluation.few_shot=[2]"]) == 0
    run = tmp_path / "tiny" / "a"
    rows = {
        (r.dim, r.metric): r.value for r in read_rows(run / "evaluation.csv") if r.arm == "csr" and r.split == "test"
    }
    near = ("knn_top1", "map@10", "precision@10")
    few = ("few2_top1", "few2_logistic_top1")
    assert set(rows) == {(m, metric) for m in (4, 8, 16) for metric in ("linear_top1", "linear_top5", *near, *few)}
    # The same by hand, from the trained model: codes of the bytes of 8 dims, and scikit-learn's classifier of them.
    dataset, model = (
        data.load(DataConfig("files", **{key: str(path) for key, path in texts.items()})),
        mrl_jax.load(run),
    )
    z = {name: model.encode(getattr(dataset, name).inputs) for name in ("train", "test")}
    (codes,) = sparse.at_dims(z, (8,), seed=0)
    assert np.count_nonzero(codes["test"], axis=1).max() == 5
    accuracies = [
        LogisticRegression(C=c, max_iter=2000)
        .fit(codes["train"], dataset.train.labels)
        .score(codes["test"], dataset.test.labels)
        for c in (0.1, 1, 10)
    ]
    assert min(accuracies) - 0.05 <= rows[8, "linear_top1"] <= max(accuracies) + 0.05
    assert report.main([str(run), "--out", str(tmp_path / "report")]) == 0
    assert "CSR" in (tmp_path / "report" / "report.md").read_text()
    capsys.readouterr()
    assert train.main([*words, "run=b", "arms=[mrl,csr]"]) == 2
    assert "lacks ff: the full-width fixed-size model is what csr compresses; add it" in capsys.readouterr().err
