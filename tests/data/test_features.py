"""A user's own vectors: `.npz` and `.npy` give the same data; every mistake is one sentence."""

from pathlib import Path

import numpy as np
import pytest

from mrl_jax.data import DataConfig, Dataset, load
from mrl_jax.system.errors import UserError

X = np.arange(24).reshape(6, 4)
Y = np.array([0, 10, 2, 0, 10, 2])


def npz(path: Path, features: np.ndarray = X, labels: np.ndarray = Y) -> str:
    np.savez(path, features=features, labels=labels)
    return str(path)


def npy(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def read(train: str, test: str | None = None) -> Dataset:
    return load(DataConfig("features", train=train, test=test or train, validation_fraction=0.0))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_vectors_become_float32_and_labels_indices(tmp_path: Path, dtype: type) -> None:
    dataset = read(npz(tmp_path / "a.npz", X.astype(dtype)))
    assert (dataset.kind, dataset.classes) == ("features", ("0", "2", "10"))
    assert dataset.train.inputs.dtype == np.float32
    assert np.array_equal(dataset.train.inputs, X)
    assert dataset.train.labels.tolist() == [0, 2, 1, 0, 2, 1]
    assert dataset.train.labels.dtype == np.int32


def test_npy_pairs_give_the_same_as_npz(tmp_path: Path) -> None:
    one = read(npz(tmp_path / "a.npz"))
    x, y = npy(tmp_path / "x.npy", X), npy(tmp_path / "y.npy", Y)
    other = load(DataConfig("features", train=x, test=x, train_labels=y, test_labels=y, validation_fraction=0.0))
    assert one.classes == other.classes
    assert np.array_equal(one.test.inputs, other.test.inputs)
    assert np.array_equal(one.test.labels, other.test.labels)


def test_string_labels_and_a_validation_file(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "cat", "dog", "cat", "ant"])
    paths = {key: npz(tmp_path / f"{key}.npz", X, names) for key in ("train", "test", "validation")}
    dataset = load(DataConfig("features", **paths))
    assert dataset.classes == ("ant", "cat", "dog")
    assert len(dataset.train) == len(dataset.validation) == 6


def with_bad(rows: list[int], value: float) -> np.ndarray:
    features = X.astype(np.float64)
    features[rows, 1] = value
    return features


BAD_ARRAYS = {
    "nan": (with_bad([2, 4], np.nan), Y, r"2 rows with NaN or infinite float32 values, the first is row 2"),
    "inf": (with_bad([5], np.inf), Y, r"1 row with NaN or infinite float32 values, the first is row 5"),
    "beyond_float32": (with_bad([1], 1e300), Y, r"1 row with NaN or infinite float32 values, the first is row 1"),
    "one_axis": (X[:, 0], Y, r"features have the shape \(6,\), expected two axes"),
    "three_axes": (X[:, :, None], Y, r"expected two axes"),
    "no_rows": (X[:0], Y[:0], r"nothing to read"),
    "complex": (X.astype(complex), Y, r"features have the type complex128, expected numbers"),
    "lengths": (X, Y[:5], r"labels have the shape \(5,\), expected \(6,\)"),
    "one_hot": (X, np.eye(6, dtype=int), r"labels have the shape \(6, 6\)"),
    "float_labels": (X, Y / 3, r"labels have the type float64"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
@pytest.mark.parametrize("pair", [False, True])
def test_wrong_arrays_are_one_sentence(tmp_path: Path, name: str, pair: bool) -> None:
    features, labels, message = BAD_ARRAYS[name]
    good = npz(tmp_path / "good.npz")
    config = DataConfig("features", train=npz(tmp_path / "bad.npz", features, labels), test=good)
    if pair:
        x, y = npy(tmp_path / "bad.npy", features), npy(tmp_path / "bad_labels.npy", labels)
        config = DataConfig("features", train=x, train_labels=y, test=good)
    with pytest.raises(UserError, match=message) as error:
        load(config)
    assert "bad" in str(error.value)
    assert "\n" not in str(error.value)


def test_widths_of_train_and_test_must_agree(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"b\.npz has vectors of width 3, .*a\.npz of 4"):
        read(npz(tmp_path / "a.npz"), npz(tmp_path / "b.npz", X[:, :3]))


def test_a_label_that_train_lacks_is_named_with_its_row(tmp_path: Path) -> None:
    other = Y.copy()
    other[3] = 7
    with pytest.raises(UserError, match=r"b\.npz, row 3: the label 7 does not occur in .*a\.npz"):
        read(npz(tmp_path / "a.npz"), npz(tmp_path / "b.npz", X, other))


def test_python_objects_are_refused_unread(tmp_path: Path) -> None:
    class Witness:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    objects = np.array([Witness()] * 6, dtype=object)
    with pytest.raises(UserError, match="holds Python objects"):
        read(npz(tmp_path / "a.npz", X, objects))
    x = npy(tmp_path / "x.npy", objects)
    with pytest.raises(UserError, match="holds Python objects"):
        load(DataConfig("features", train=x, test=x, train_labels=x, test_labels=x))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken", b"\x93NUMPY\x01"])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_a_file_that_is_not_numpy(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    labels = npy(tmp_path / "y.npy", Y) if suffix == "npy" else None
    with pytest.raises(UserError, match=rf"a\.{suffix} is not a readable"):
        load(DataConfig("features", train=str(path), test=str(path), train_labels=labels, test_labels=labels))


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", embeddings=X, labels=Y)
    with pytest.raises(UserError, match=r"has no array features; its arrays are embeddings, labels"):
        read(str(tmp_path / "a.npz"))


def test_suffix_and_content_must_agree(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(UserError, match="holds a single array"):
        read(str(tmp_path / "a.npz"))
    labels = npy(tmp_path / "y.npy", Y)
    Path(npz(tmp_path / "b.npz")).rename(tmp_path / "b.npy")
    b = str(tmp_path / "b.npy")
    with pytest.raises(UserError, match=r"is a \.npz archive"):
        load(DataConfig("features", train=b, test=b, train_labels=labels, test_labels=labels))


def test_keys_that_are_missing_or_do_not_belong(tmp_path: Path) -> None:
    good, x = npz(tmp_path / "a.npz"), npy(tmp_path / "x.npy", X)
    with pytest.raises(UserError, match=r"data\.train=.* needs data\.train_labels"):
        read(x)
    with pytest.raises(UserError, match=r"data\.train_labels=.* goes with a \.npy file"):
        load(DataConfig("features", train=good, test=good, train_labels=x))
    with pytest.raises(UserError, match=r"data=features needs data\.test"):
        load(DataConfig("features", train=good))
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(UserError, match=r"unknown file type \.csv; allowed: \.npz, \.npy"):
        read(str(tmp_path / "a.csv"))
    with pytest.raises(UserError, match="there is no such file"):
        read(str(tmp_path / "absent.npz"))


# ---- packed bits -----------------------------------------------------------------------------------------------------

BITS = np.random.default_rng(0).random((200, 64)) < np.random.default_rng(1).uniform(0.3, 0.7, 64)
PACKED = {"ubinary": np.packbits(BITS, axis=1), "binary": (np.packbits(BITS, axis=1).astype(int) - 128).astype(np.int8)}
SPREAD = np.random.default_rng(2).normal(0, 35, (200, 64)).clip(-127, 127)
CODES = {"int8": SPREAD.astype(np.int8), "uint8": (SPREAD + 128).astype(np.uint8), "float32": SPREAD.astype(np.float32)}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_bits_are_unpacked_where_it_is_said_that_they_are(tmp_path: Path, kind: str) -> None:
    path = npz(tmp_path / "a.npz", PACKED[kind], np.arange(200) % 2)
    options = {"train": path, "test": path, "validation_fraction": 0.0, "packed_bits": True}
    dataset = load(DataConfig("features", **options))
    assert np.array_equal(dataset.train.inputs, BITS)
    pairs = {"anchors": PACKED[kind], "positives": PACKED[kind][::-1], "negatives": PACKED[kind][:, None]}
    np.savez(tmp_path / "pairs.npz", **pairs)
    np.savez(tmp_path / "others.npz", **{name: array[:5] ^ 1 for name, array in pairs.items()})
    options |= {"train": str(tmp_path / "pairs.npz"), "test": str(tmp_path / "others.npz"), "task": "pairs"}
    train = load(DataConfig("features", **options)).train
    assert np.array_equal(np.asarray(train.table)[train.columns[:, 1]], BITS[::-1])
    assert np.array_equal(np.asarray(train.table)[train.columns[:, 2]], BITS)


@pytest.mark.parametrize("kind", [*PACKED, *CODES])
def test_vectors_that_look_like_packed_bits_are_named(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = npz(tmp_path / "a.npz", (PACKED | CODES)[kind], np.arange(200) % 2)
    read(path)
    assert ("data.packed_bits=true" in capsys.readouterr().err) == (kind in PACKED)
    load(DataConfig("features", train=path, test=path, packed_bits=False))  # it is said that they are not
    assert capsys.readouterr().err == ""


def test_packed_bits_are_bytes(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", CODES["float32"], np.arange(200) % 2)
    with pytest.raises(UserError, match=r"features have the type float32; data\.packed_bits=true takes bytes"):
        load(DataConfig("features", train=path, test=path, packed_bits=True))
