"""Maps of frozen vectors: prefixes get better or stay as they are, and what is kept is said."""

from pathlib import Path

import numpy as np
import pytest

from mrl_jax import search
from mrl_jax.search import adapt
from mrl_jax.system.errors import UserError

WIDTH, DIMS = 24, (4, 8)


def frozen(count: int, seed: int = 0, nested: bool = False) -> np.ndarray:
    """Vectors of falling variance along directions of their own; `nested`: along the coordinates, in order."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, WIDTH)) * np.geomspace(4, 0.1, WIDTH)
    turn = np.linalg.qr(np.random.default_rng(99).normal(size=(WIDTH, WIDTH)))[0]
    return (x if nested else x @ turn).astype(np.float32)


@pytest.fixture(scope="module")
def adaptor() -> adapt.Adaptor:
    return adapt.fit(frozen(600), DIMS, steps=20)


def test_prefixes_get_better(adaptor: adapt.Adaptor) -> None:
    assert adaptor.kept != adapt.IDENTITY
    own, kept = (adaptor.recall[name].mean(0) for name in (adapt.IDENTITY, adaptor.kept))
    assert (kept > own + 0.1).all()
    assert adaptor.matrix.shape == (WIDTH, DIMS[-1])
    z = adaptor.apply(frozen(5, seed=1), 4)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    wanted = np.float64(frozen(5, seed=1)) @ adaptor.matrix[:, :4]
    np.testing.assert_allclose(z, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


def test_vectors_that_are_nested_already_keep_their_coordinates() -> None:
    kept = adapt.fit(frozen(400, nested=True), DIMS, steps=1)
    assert kept.kept == adapt.IDENTITY
    np.testing.assert_array_equal(kept.matrix, np.eye(WIDTH, DIMS[-1]))
    assert "kept: the vectors' own coordinates" in kept.summary()


def test_recall_is_that_of_a_loop_in_float64() -> None:
    x = frozen(130)
    queries, others = (
        (x / np.linalg.norm(x, axis=1, keepdims=True))[:9],
        x[9:] / np.linalg.norm(x[9:], axis=1, keepdims=True),
    )
    matrix = np.linalg.qr(np.random.default_rng(5).normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
    got = adapt.recalls(queries, others, adapt.neighbours(queries, others), matrix, DIMS)
    for i, query in enumerate(np.float64(queries)):
        near = sorted(range(len(others)), key=lambda j: -float(query @ np.float64(others[j])))[: adapt.K]
        for column, m in enumerate(DIMS):
            short = np.float64(others) @ np.float64(matrix[:, :m])
            cosines = short @ (query @ np.float64(matrix[:, :m])) / np.linalg.norm(short, axis=1)
            kept = set(np.argsort(-cosines)[: adapt.SHORTLIST].tolist())
            assert got[i, column] == pytest.approx(len(kept & set(near)) / adapt.K)


def test_a_difference_that_may_be_chance_is_not_better() -> None:
    rng = np.random.default_rng(0)
    old = rng.random((300, 2))
    assert not adapt.is_better(old, old)
    assert not adapt.is_better(old + rng.normal(0, 0.3, old.shape), old)
    assert adapt.is_better(old + 0.05 + rng.normal(0, 0.1, old.shape), old)


def test_the_command_writes_the_matrix_that_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "vectors.npz", features=frozen(300))
    out = tmp_path / "adaptor.npz"
    assert (
        search.main(["adapt", str(tmp_path / "vectors.npz"), "--dims", "4,8", "--out", str(out), "--steps", "2"]) == 0
    )
    with np.load(out) as arrays:
        assert arrays["matrix"].shape == (WIDTH, 8)
        assert arrays["dims"].tolist() == [4, 8]
    assert "recall@10 of shortlists of 20, 60 held-out vectors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dims", "4,x"], "--dims=4,x is not allowed; whole numbers such as 64,128"),
        (["--dims", "24"], "--dims=24 is not allowed; from 1 to 23, less than all"),
        (["--dims", "0,4"], "--dims=0,4 is not allowed; from 1 to 23"),
        (["--dims", "4", "--seed", "-1"], "--seed=-1 is not allowed; 0 or more"),
        (["--dims", "4", "--out", "adaptor.npy"], "--out=adaptor.npy is not allowed; a file ending in .npz"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "vectors.npy", frozen(250))
    assert search.main(["adapt", str(tmp_path / "vectors.npy"), "--out", str(tmp_path / "a.npz"), *words]) == 2
    assert f"error: {said}" in capsys.readouterr().err


def test_a_file_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = tmp_path / "vectors.npz"
    np.savez(vectors, features=frozen(300))
    before = vectors.read_bytes()
    assert search.main(["adapt", str(vectors), "--dims", "4", "--out", str(vectors)]) == 2
    assert "is there already; give a new file" in capsys.readouterr().err
    assert vectors.read_bytes() == before


def test_too_few_vectors_are_refused() -> None:
    x = frozen(250)
    x[:100] = 0
    with pytest.raises(UserError, match="150 vectors that are not zero are too few to learn from; at least 200"):
        adapt.fit(x, DIMS)
