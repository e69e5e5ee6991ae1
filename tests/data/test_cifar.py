"""CIFAR in its binary version: made files of the format, read byte by byte by an oracle."""

from pathlib import Path

import numpy as np
import pytest

from mrl_jax.data import DataConfig, load
from mrl_jax.data.sources.cifar import TRAIN_10
from mrl_jax.evaluate import parts
from mrl_jax.system.errors import UserError

RANDOM = np.random.default_rng(0)


def write_100(folder: Path, count: int = 200) -> bytes:
    """The files of CIFAR-100 with the super-class 3 · label mod 20; returns train.bin."""
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("".join(f"fine{i}\n" for i in range(100)))
    (folder / "coarse_label_names.txt").write_text("".join(f"coarse{i}\n" for i in range(20)))
    contents = []
    for name in ("train.bin", "test.bin"):
        records = (bytes([3 * (i % 100) % 20, i % 100]) + RANDOM.bytes(3072) for i in range(count))
        contents.append(b"".join(records))
        (folder / name).write_bytes(contents[-1])
    return contents[0]


def write_10(folder: Path) -> None:
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n\n")
    for number, name in enumerate((*TRAIN_10, "test_batch.bin")):
        (folder / name).write_bytes(b"".join(bytes([i]) + bytes([number]) * 3072 for i in range(10)))


def test_cifar_100_has_its_pixels_and_super_classes(tmp_path: Path) -> None:
    content = write_100(tmp_path / "c")
    dataset = load(DataConfig("cifar", path=str(tmp_path / "c"), validation_fraction=0.5))
    assert (dataset.name, dataset.kind, len(dataset.classes)) == ("cifar100", "image", 100)
    assert dataset.classes[7] == "coarse1/fine7"
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (100, 100, 200)
    whole = load(DataConfig("cifar", path=str(tmp_path / "c"), validation_fraction=0)).train
    for row, (y, x), channel in ((0, (0, 0), 0), (150, (31, 4), 2), (199, (17, 30), 1)):
        at = row * 3074 + 2 + 1024 * channel + 32 * y + x
        assert whole.inputs[row][y, x, channel] == content[at]
        assert whole.labels[row] == content[row * 3074 + 1]
    above = parts.superclasses("/", dataset.classes)
    assert len(set(above.tolist())) == 20
    assert above[0] == above[20]  # both of coarse0
    assert above[0] != above[1]


def test_cifar_10_joins_its_five_files(tmp_path: Path) -> None:
    write_10(tmp_path / "c")
    dataset = load(DataConfig("cifar", path=str(tmp_path / "c"), validation_fraction=0))
    assert dataset.classes == tuple(f"class{i}" for i in range(10))
    assert dataset.train.inputs.shape == (50, 32, 32, 3)
    assert dataset.train.inputs[:, 0, 0, 0].tolist() == [number for number in range(5) for _ in range(10)]
    assert set(dataset.test.inputs.ravel().tolist()) == {5}


def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    def message(path: str | None) -> str:
        with pytest.raises(UserError) as error:
            load(DataConfig("cifar", path=path))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "needs data.path" in message(None)
    assert "there is no such folder" in message(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    assert "neither train.bin (CIFAR-100) nor data_batch_1.bin" in message(str(tmp_path / "empty"))
    folder = tmp_path / "c"
    content = write_100(folder)
    for damage, said in (
        (content[:-1], "a multiple of 3,074 is needed"),
        (b"", "has 0 bytes"),
        (content[:1] + b"\xc8" + content[2:], "has the label 200"),
        (b"\x05" + content[1:], "has the class fine0 in two super-classes, coarse5 and coarse0|coarse0 and coarse5"),
    ):
        (folder / "train.bin").write_bytes(damage)
        assert any(each in message(str(folder)) for each in said.split("|"))
    (folder / "fine_label_names.txt").write_text("one\ntwo\n")
    assert "has 2 different names; 100 are needed" in message(str(folder))
    (folder / "fine_label_names.txt").unlink()
    assert "fine_label_names.txt cannot be read" in message(str(folder))
