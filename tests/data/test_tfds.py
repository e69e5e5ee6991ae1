"""Data sets of the TFDS catalogue, on small synthetic builders that are registered like the catalogue's own.

`features.Image` needs TensorFlow for arrays but takes encoded bytes as they are, which is how imagenet2012 uses it.
"""

import dataclasses
import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mrl_jax.data import DataConfig, LazyInputs, StreamedTexts, load
from mrl_jax.data.sources import tfds as catalogue
from mrl_jax.system.errors import UserError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIZES = [(40, 30), (30, 40), (32, 32), (300, 200)]  # width, height


def picture(number: int) -> np.ndarray:
    """A grey picture with one coloured square in the centre of a quarter of the short side: uint8 [h, w, 3]."""
    width, height = SIZES[number % len(SIZES)]
    pixels = np.full((height, width, 3), 128, np.uint8)
    half = min(width, height) // 4
    y, x = height // 2, width // 2
    pixels[y - half : y + half, x - half : x + half] = list(COLOURS.values())[number % 3]
    return pixels


def encoded(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **({"quality": 95} if form == "JPEG" else {}))
    return buffer.getvalue()


class Synthetic(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base: splits and features as class attributes."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: ClassVar[dict[str, Any]] = {}
    SPLITS: ClassVar[dict[str, int]] = {"train": 30, "test": 12}
    HIDDEN: ClassVar[tuple[str, ...]] = ()  # splits without labels

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split, size) for split, size in self.SPLITS.items()}

    def _generate_examples(self, split: str, size: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(size):
            yield number, {**self.inputs(split, number), "label": -1 if split in self.HIDDEN else number % 3}

    def inputs(self, split: str, number: int) -> dict[str, Any]:
        return {}


CLASS = tfds.features.ClassLabel(names=list(COLOURS))


class MrlPhotos(Synthetic):
    FEATURES: ClassVar = {"image": tfds.features.Image(), "label": CLASS}

    def inputs(self, split: str, number: int) -> dict[str, Any]:
        return {"image": encoded(picture(number), "JPEG" if number % 2 else "PNG")}


class MrlIcons(Synthetic):
    FEATURES: ClassVar = {"image": tfds.features.Image(shape=(8, 6, 1)), "label": CLASS}

    def inputs(self, split: str, number: int) -> dict[str, Any]:
        return {"image": encoded(np.full((8, 6), number, np.uint8), "PNG")}


class MrlNews(Synthetic):
    FEATURES: ClassVar = {"description": tfds.features.Text(), "label": CLASS}
    SPLITS: ClassVar = {"train": 30, "validation": 6, "test": 12}

    def inputs(self, split: str, number: int) -> dict[str, Any]:
        return {"description": f"{split} größer {number}"}


class MrlHidden(MrlNews):
    HIDDEN: ClassVar = ("test",)


class MrlTrainOnly(MrlNews):
    SPLITS: ClassVar = {"train": 3}


class MrlNoLabel(MrlNews):
    FEATURES: ClassVar = {"description": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}


class MrlNoInput(Synthetic):
    FEATURES: ClassVar = {"x": tfds.features.Scalar(np.int64), "label": CLASS}

    def inputs(self, split: str, number: int) -> dict[str, Any]:
        return {"x": number}


class MrlOffline(MrlNews):
    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        raise ConnectionError("server does not answer\nwith more lines")


class MrlNeedsTensorflow(MrlNews):
    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        raise ModuleNotFoundError("No module named 'tensorflow'")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def config(name: str, cache: str, **options: Any) -> DataConfig:
    return DataConfig("tfds", name=name, cache_dir=cache, **{"validation_fraction": 0.1, **options})


def test_texts_with_their_own_validation_split(cache: str) -> None:
    dataset = load(config("mrl_news", cache))
    assert (dataset.name, dataset.kind, dataset.classes) == ("mrl_news", "text", tuple(COLOURS))
    for part, size in MrlNews.SPLITS.items():
        split = getattr(dataset, part)
        assert list(split.inputs) == [f"{part} größer {number}" for number in range(size)]
        assert split.labels.tolist() == [number % 3 for number in range(size)]


def test_streamed_texts_are_the_same(cache: str) -> None:
    for name in ("mrl_news", "mrl_hidden"):
        memory, disk = (load(config(name, cache, streaming=flag, limit=5)) for flag in (False, True))
        for part in ("train", "validation", "test"):
            one, other = getattr(memory, part), getattr(disk, part)
            assert isinstance(other.inputs, StreamedTexts)
            assert list(one.inputs) == list(other.inputs)
            assert one.labels.tolist() == other.labels.tolist()


def test_pictures_stay_on_disk_when_asked_to(cache: str) -> None:
    assert isinstance(load(config("mrl_icons", cache, streaming=True)).train.inputs, LazyInputs)


def test_validation_is_the_test_split_where_test_has_no_labels(cache: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = load(config("mrl_hidden", cache))
    assert dataset.test.inputs[0] == "validation größer 0"
    assert len(dataset.test) == 6
    assert all(text.startswith("train") for text in dataset.validation.inputs)
    assert len(dataset.validation) == 3
    assert "mrl_hidden has no labelled test split" in caplog.text


def test_pictures_of_one_size_keep_it(cache: str) -> None:
    dataset = load(config("mrl_icons", cache))
    assert isinstance(dataset.test.inputs, np.ndarray)
    assert dataset.test.inputs.shape == (12, 8, 6, 1)
    assert dataset.test.inputs.dtype == np.uint8
    assert dataset.test.inputs[:, 0, 0, 0].tolist() == list(range(12))


def test_photos_are_scaled_and_cropped_to_their_centre(cache: str) -> None:
    """The square spans half the short side, so after the crop it fills the middle half of every picture."""
    dataset = load(config("mrl_photos", cache, image_size=16))
    images = dataset.test.inputs
    assert isinstance(images, np.ndarray)
    assert images.shape == (12, 16, 16, 3)
    colours = np.array(list(COLOURS.values()))[dataset.test.labels]
    assert np.abs(images[:, 6:10, 6:10].astype(int) - colours[:, None, None]).max() < 30
    assert np.abs(images[:, :2].astype(int) - 128).max() < 30


def test_a_set_too_large_for_memory_is_lazy_and_gives_the_same(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = load(config("mrl_photos", cache, image_size=16))
    monkeypatch.setattr(catalogue, "MAX_DECODED_BYTES", 0)
    for attempt in ("labels read from the records", "labels read from their file"):
        lazy = load(config("mrl_photos", cache, image_size=16))
        for part in ("train", "validation", "test"):
            one, other = getattr(eager, part), getattr(lazy, part)
            assert isinstance(other.inputs, LazyInputs)
            assert not isinstance(other.inputs, np.ndarray)
            assert len(other.inputs) == len(one.inputs)
            assert np.array_equal(one.labels, other.labels), attempt
            rows = np.array([2, 0, 2])
            assert np.array_equal(other.inputs[rows], one.inputs[rows])
    assert len(list((Path(cache) / "labels").glob("mrl_photos*.npz"))) == 2


def test_worker_processes_decode_the_same(cache: str) -> None:
    one, other = (load(config("mrl_photos", cache, image_size=16, streaming=True, workers=n)).train for n in (None, 2))
    rows = np.array([2, 0, 2, 17])
    assert np.array_equal(one.inputs[rows], other.inputs[rows])


def test_a_lazy_view_reads_the_rows_it_names(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MAX_DECODED_BYTES", 0)
    monkeypatch.setattr("mrl_jax.data.readers.images.READ_IMAGES", 4)  # several reads per batch
    monkeypatch.setattr("mrl_jax.data.readers.tfds.READ_RECORDS", 5)
    inputs = load(config("mrl_photos", cache, image_size=8)).test.inputs
    assert isinstance(inputs, LazyInputs)
    whole = inputs[np.arange(12)]
    assert whole.shape == (12, 8, 8, 3)
    assert np.array_equal(inputs.subset(np.array([7, 3, 1]))[np.array([2, 0])], whole[[1, 7]])
    twice = inputs.subset(np.array([7, 3, 1])).subset(np.array([2, 1]))
    assert np.array_equal(twice[np.array([1, 0])], whole[[3, 1]])
    assert inputs[np.arange(0)].shape == (0, 8, 8, 3)


def test_photos_of_many_sizes_need_a_size(cache: str) -> None:
    with pytest.raises(UserError, match=r"mrl_photos has images of different sizes; give data\.image_size"):
        load(config("mrl_photos", cache))
    with pytest.raises(UserError, match=r"data\.image_size=0 must be at least 1"):
        load(config("mrl_photos", cache, image_size=0))
    with pytest.raises(UserError, match="no meaning"):
        load(config("mrl_news", cache, image_size=8))


WRONG = {
    "ag_news_subse": r"is not in the TFDS catalogue \(did you mean ag_news_subset\?\)",
    "mrl_train_only": r"needs the split train and a labelled test or validation; its splits are train",
    "mrl_no_label": r"has no class feature label; its features are description, label",
    "mrl_no_input": r"has none of the text features .* its features are label, x|features are x, label",
    "mrl_offline": r"cannot be prepared: ConnectionError: .*server does not answer",
    "mrl_needs_tensorflow": r"cannot be prepared: .*prepare it once where that is installed",
    "mrl_news/absent": r"data\.name=mrl_news/absent cannot be opened",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_names_and_sets_are_one_sentence(cache: str, name: str) -> None:
    with pytest.raises(UserError, match=WRONG[name]) as error:
        load(config(name, cache))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_is_needed() -> None:
    with pytest.raises(UserError, match=r"data=tfds needs data\.name"):
        load("tfds")


def test_a_prepared_set_is_read_again_without_preparing(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load(config("mrl_icons", cache))

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("prepared twice")

    monkeypatch.setattr(MrlIcons, "download_and_prepare", fail)
    assert len(load(config("mrl_icons", cache)).test) == 12


def test_limit_keeps_every_class(cache: str) -> None:
    dataset = load(dataclasses.replace(config("mrl_news", cache), limit=3))
    assert sorted(dataset.train.labels.tolist()) == [0, 1, 2]


def test_pictures_need_no_tensorflow(cache: str) -> None:
    load(config("mrl_photos", cache, image_size=8))
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_tfds as t
assert t.load(t.config("mrl_photos", {cache!r}, image_size=8)).test.inputs.shape == (12, 8, 8, 3)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
