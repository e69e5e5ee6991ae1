"""Features of any scale: against scikit-learn's scaler and logistic regression, stored and applied with the model."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mrl_jax
from mrl_jax import train
from mrl_jax.encoders.mlp import fit_preprocessor
from mrl_jax.encoders.scaler import Scaler
from mrl_jax.runs import read_dataset, read_rows
from mrl_jax.system.errors import UserError

CLASSES, WIDTH = 4, 32
CENTRES = np.random.default_rng(5).normal(size=(CLASSES, WIDTH))


def examples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of unit length about the centres of their classes, as embeddings are."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    x = CENTRES[labels] + 0.8 * rng.normal(size=(count, WIDTH))
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def packed(x: np.ndarray) -> np.ndarray:
    return np.packbits(x > 0, axis=1)


SCALES = {
    "as they are": lambda x: x.astype(np.float32),
    "float64": lambda x: x,
    "offset": lambda x: (x + 1000).astype(np.float32),
    "tiny": lambda x: (1e-6 * x).astype(np.float32),
    "huge": lambda x: (1e9 * x).astype(np.float32),
    "mixed": lambda x: (x * np.logspace(-4, 4, WIDTH) + np.arange(WIDTH)).astype(np.float32),
    "constant columns": lambda x: np.where(np.arange(WIDTH) % 3 == 0, 0.1, 100 * x).astype(np.float32),
    "int8 codes": lambda x: (127 * x / 0.7).clip(-127, 127).round().astype(np.int8),
    "uint8 codes": lambda x: (128 + 127 * x / 0.7).clip(0, 255).round().astype(np.uint8),
    "packed bits, uint8": packed,
    "packed bits, int8": lambda x: (packed(x).astype(int) - 128).astype(np.int8),
}
FAST = ["evaluation.refit=null", "evaluation.neighbours=false", "evaluation.interpolated=false", "trainer.steps=150",
        "encoder=mlp", "encoder.hidden=[64]", "width=16", "nesting_dims=[4,16]", "arms=[mrl]", "seeds=1"]  # fmt: skip


def run(folder: Path, name: str, *more: str) -> Path:
    """A run on features of the scale `name`."""
    parts = {}
    for part, count, seed in (("train", 1200, 0), ("test", 400, 1)):
        x, labels = examples(count, seed)
        parts[part] = folder / f"{part}.npz"
        np.savez(parts[part], features=SCALES[name](x), labels=labels)
    data = ["data=features", *(f"data.{part}={path}" for part, path in parts.items())]
    data += ["data.packed_bits=true"] if "packed" in name else []
    assert train.main([*data, *FAST, "name=scaled", "run=one", f"results_dir={folder}", *more]) == 0
    return folder / "scaled" / "one"


def accuracy(directory: Path, dim: int = 16) -> float:
    rows = read_rows(directory / "evaluation.csv")
    (value,) = [r.value for r in rows if (r.dim, r.split, r.metric) == (dim, "test", "linear_top1")]
    return value


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALES)
def test_features_of_any_scale_are_learnt_as_well_as_by_a_scaler_and_logistic_regression(
    name: str, tmp_path: Path
) -> None:
    directory = run(tmp_path, name)
    (x, labels), (queries, truth) = examples(1200, 0), examples(400, 1)
    bits = (lambda z: np.unpackbits(packed(z), axis=1)) if "packed" in name else SCALES[name]
    oracle = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(bits(x), labels)
    assert accuracy(directory) > oracle.score(bits(queries), truth) - 0.02


@pytest.fixture(scope="module")
def offset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("offset"), "offset", "encoder.hidden=[]")


def test_a_model_is_given_raw_features_and_its_run_keeps_their_scale(offset: Path) -> None:
    stored = json.loads((offset / "scaler.json").read_text())
    x = np.load(offset.parent.parent / "train.npz")["features"]
    assert np.allclose(stored["mean"], x.mean(axis=0, dtype=np.float64), rtol=1e-4)
    model = mrl_jax.load(offset)
    z = model.embed(x)
    kernel, bias = model.classifiers()[16]
    labels = np.load(offset.parent.parent / "train.npz")["labels"]
    assert np.mean((z @ kernel + bias).argmax(axis=1) == labels) > 0.9
    np.testing.assert_allclose(model.encode(x.astype(np.float64)), model.encode(x), atol=1e-5)
    with pytest.raises(UserError, match=r"features have the shape \(3, 4\), this model reads \[n, 32\]; packed bits"):
        model.encode(np.zeros((3, 4), np.uint8))


def test_a_scale_that_is_missing_or_damaged_is_one_sentence(offset: Path, tmp_path: Path) -> None:
    for content in (None, "{", "[]", '{"mean": [1], "inverse": [1, 2]}', '{"mean": [1], "inverse": ["a"]}',
                    '{"mean": [NaN], "inverse": [1]}', '{"mean": 1, "inverse": 1}'):  # fmt: skip
        if content is not None:
            (tmp_path / "scaler.json").write_text(content)
        with pytest.raises(UserError, match=r"scaler\.json"):
            Scaler.load(tmp_path)


def test_a_run_from_before_there_was_a_scale_has_none(tmp_path: Path) -> None:
    directory = run(tmp_path, "as they are", "encoder.standardise=false", "trainer.steps=2")
    assert not (directory / "scaler.json").exists()
    x, _ = examples(5, 2)
    wanted = mrl_jax.load(directory).embed(x.astype(np.float32))
    (directory / "SHA256SUMS").unlink()
    config = (directory / "config.yaml").read_text().replace("  standardise: false\n", "")
    (directory / "config.yaml").write_text(config)
    dataset = json.loads((directory / "dataset.json").read_text())
    assert dataset["encoder"].pop("standardise") is False
    (directory / "dataset.json").write_text(json.dumps(dataset))
    assert "standardise" not in config
    assert "standardise" not in read_dataset(directory)["encoder"]
    assert np.array_equal(mrl_jax.load(directory).embed(x.astype(np.float32)), wanted)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(-6, 6), st.floats(-6, 6))
def test_the_scale_is_that_of_scikit_learn(count: int, seed: int, offset: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x = (10**offset + 10**scale * rng.normal(size=(count, 3))).astype(np.float32)
    x[:, 1] = x[0, 1]  # constant
    scaler, oracle = Scaler.fit(x), StandardScaler().fit(x.astype(np.float64))
    found = scaler(x)["features"]
    assert found.dtype == np.float32
    assert not found[:, 1].any()
    varies = x.min(axis=0) < x.max(axis=0)
    np.testing.assert_allclose(
        found[:, varies], oracle.transform(x.astype(np.float64))[:, varies], rtol=1e-3, atol=1e-4
    )
    size = np.abs(x) + np.where(varies, x.std(axis=0), 1)
    assert (np.abs(scaler.undo(found) - x) <= 1e-5 * size)[:, varies].all()


def test_in_blocks_the_scale_is_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x = (1000 + np.random.default_rng(0).normal(size=(500, 6))).astype(np.float32)
    whole = Scaler.fit(x)
    monkeypatch.setattr("mrl_jax.encoders.scaler.CHUNK_ROWS", 64)
    parts = Scaler.fit(x)
    np.testing.assert_allclose(parts.inverse, whole.inverse, rtol=1e-12)
    np.testing.assert_array_equal(
        whole(x)["features"], Scaler(whole.mean, whole.inverse)(x.astype(np.float64))["features"]
    )
    parts.save(tmp_path)
    again = Scaler.load(tmp_path)
    assert np.array_equal(again.mean, parts.mean)
    assert np.array_equal(again.inverse, parts.inverse)


def test_features_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(UserError, match="the features of all training rows are the same"):
        fit_preprocessor("features", np.full((9, 4), 0.1, np.float32), standardise=True)
