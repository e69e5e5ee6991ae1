"""The validation cut and `limit`: deterministic, disjoint, complete and class by class."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mrl_jax.data import DataConfig, Split, load
from mrl_jax.data.base import class_names
from mrl_jax.data.cuts import cut, first_per_class

LABELS = hnp.arrays(np.int32, st.integers(1, 200), elements=st.integers(0, 7))
FRACTIONS = st.floats(0, 0.95)


@given(LABELS, FRACTIONS)
def test_the_cut_is_disjoint_and_complete(labels: np.ndarray, fraction: float) -> None:
    kept, held_out = cut(labels, fraction)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))


@given(LABELS, FRACTIONS)
def test_the_cut_takes_its_share_of_every_class_and_leaves_one(labels: np.ndarray, fraction: float) -> None:
    kept, held_out = cut(labels, fraction)
    for label in np.unique(labels):
        size, taken = np.sum(labels == label), np.sum(labels[held_out] == label)
        assert np.sum(labels[kept] == label) >= 1
        assert abs(taken - fraction * size) <= 0.5 or taken == size - 1


@given(LABELS, FRACTIONS)
def test_the_cut_is_the_same_every_time_whatever_the_global_seed(labels: np.ndarray, fraction: float) -> None:
    np.random.seed(1)  # noqa: NPY002  global state has no influence
    one = cut(labels, fraction)
    np.random.seed(2)  # noqa: NPY002
    other = cut(labels, fraction)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_cut_does_not_follow_the_file_order() -> None:
    """A sorted file (by date, say) must not put its first or last rows into validation."""
    _, held_out = cut(np.zeros(1000, np.int32), 0.1)
    assert len(held_out) == 100
    assert held_out.min() < 50
    assert held_out.max() > 950
    assert np.diff(held_out).max() > 2


@given(LABELS, st.integers(1, 250))
def test_limit_keeps_the_order_and_every_class_that_fits(labels: np.ndarray, limit: int) -> None:
    rows = first_per_class(labels, limit)
    classes = len(np.unique(labels))
    assert len(rows) == min(limit, len(labels))
    assert np.all(np.diff(rows) > 0)
    assert len(np.unique(labels[rows])) == min(limit, classes)


@given(LABELS, st.integers(10, 100))
def test_limit_takes_the_first_rows_of_each_class_in_proportion(labels: np.ndarray, limit: int) -> None:
    rows = first_per_class(labels, limit)
    for label in np.unique(labels):
        whole, taken = np.flatnonzero(labels == label), rows[labels[rows] == label]
        assert np.array_equal(taken, whole[: len(taken)])
        assert abs(len(taken) - min(limit, len(labels)) * len(whole) / len(labels)) <= len(np.unique(labels))


def test_limit_applies_to_each_part_after_the_cut() -> None:
    whole, part = load("reuters_r8"), load(DataConfig("reuters_r8", limit=40))
    for name in ("train", "validation", "test"):
        texts = set(getattr(whole, name).inputs)
        assert len(getattr(part, name)) == 40
        assert set(getattr(part, name).inputs) <= texts
    assert part.classes == whole.classes


def test_a_class_with_one_example_stays_in_train(tmp_path: Path) -> None:
    for name, size in (("train", 40), ("test", 4)):
        rows = [f"{name} text {i},{'rare' if i == 0 else 'common'}" for i in range(size)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    paths = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    dataset = load(DataConfig("files", **paths, validation_fraction=0.9))
    assert dataset.train.inputs.count("train text 0") == 1
    assert set(dataset.train.inputs).isdisjoint(dataset.validation.inputs)
    assert len(dataset.train) + len(dataset.validation) == 40
    assert list(dataset.test.inputs) == [f"test text {i}" for i in range(4)]


def test_no_validation_when_the_fraction_is_zero(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", features=np.eye(4), labels=np.arange(4) % 2)
    path = str(tmp_path / "d.npz")
    dataset = load(DataConfig("features", train=path, test=path, validation_fraction=0.0))
    assert len(dataset.validation) == 0
    assert dataset.validation.inputs.shape == (0, 4)
    assert len(dataset.train) == 4


@pytest.mark.parametrize("inputs", [["a", "b", "c"], np.arange(12, dtype=np.float32).reshape(3, 4)])
def test_take_keeps_inputs_and_labels_together(inputs: list[str] | np.ndarray) -> None:
    taken = Split(inputs, np.array([5, 6, 7], np.int32)).take(np.array([2, 0]))
    assert taken.labels.tolist() == [7, 5]
    assert all(np.array_equal(taken.inputs[i], inputs[j]) for i, j in enumerate((2, 0)))


def test_numbers_sort_as_numbers_and_names_as_names() -> None:
    assert class_names(["10", "2", "2", "1"]) == ("1", "2", "10")
    assert class_names(["b", "10", "2"]) == ("10", "2", "b")
    assert class_names(["01", "1", "001"]) == class_names(["1", "001", "01"])
