"""Images in folders and in Parquet: what becomes of formats, colours and damage."""

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrl_jax import data
from mrl_jax.data import DataConfig, Dataset
from mrl_jax.data.readers import image_files, images
from mrl_jax.data.readers.images import StoredImages, read_image
from mrl_jax.system.errors import UserError

RANDOM = np.random.default_rng(0)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def colour(rgb: tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> Image.Image:
    return Image.new("RGB", size, rgb)


def tree(root: Path, classes: dict[str, int], kind: str = "PNG", size: tuple[int, int] = (12, 8)) -> Path:
    """A folder for each class with so many images, each of a colour of its own."""
    for name, count in classes.items():
        for i in range(count):
            path = root / name / f"{i:03d}.{kind.lower()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(colour((10 * i, len(name), 50), size), kind))
    return root


def read(tmp_path: Path, **settings: Any) -> Dataset:
    given = {"train": str(tmp_path / "train"), "test": str(tmp_path / "test"), "image_size": 8} | settings
    dataset = data.load(DataConfig("images", cache_dir=str(tmp_path / "cache"), validation_fraction=0.0, **given))
    assert isinstance(dataset, Dataset)
    return dataset


@pytest.fixture
def made(tmp_path: Path) -> Path:
    tree(tmp_path / "train", {"cat": 3, "dog/small": 1, "dog": 1})
    tree(tmp_path / "test", {"dog": 2})
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".ipynb").mkdir()
    return tmp_path


def test_folders_are_classes_and_images_lie_at_any_depth(made: Path) -> None:
    dataset = read(made)
    assert (dataset.kind, dataset.classes) == ("image", ("cat", "dog"))
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.test.labels.tolist() == [1, 1]
    assert isinstance(dataset.train.inputs, np.ndarray)
    assert dataset.train.inputs.shape == (5, 8, 8, 3)
    assert dataset.train.inputs[:3, 4, 4].tolist() == [[0, 3, 50], [10, 3, 50], [20, 3, 50]]


def test_what_stays_on_disk_is_read_in_batches_and_is_the_same(made: Path) -> None:
    lazy, held = read(made, streaming=True), read(made, streaming=False)
    assert isinstance(lazy.train.inputs, StoredImages)
    assert isinstance(lazy.train.inputs, data.LazyInputs)
    rows = np.array([4, 0, 2])
    np.testing.assert_array_equal(lazy.train.inputs[rows], held.train.inputs[rows])
    np.testing.assert_array_equal(lazy.train.inputs.subset(rows)[np.array([1])], held.train.inputs[[0]])


def test_images_of_different_sizes_wait_for_an_encoder_that_says_how_they_are_read(made: Path) -> None:
    inputs = read(made, image_size=None).train.inputs
    assert isinstance(inputs, StoredImages)
    assert inputs.shape is None
    with pytest.raises(UserError, match=r"different sizes; give data.image_size, e.g. 224"):
        inputs[np.arange(1)]


GREY16 = np.full((8, 12), 0x80FF, np.uint16)
RGBA = Image.new("RGBA", (12, 8), (200, 0, 0, 0))
PALETTE = Image.new("P", (12, 8), 1)
PALETTE.putpalette([0, 0, 0, 7, 90, 200])
FRAMES = [colour((0, 255, 0)).quantize(), colour((255, 0, 0)).quantize()]


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (encode(Image.new("L", (12, 8), 77), "PNG"), (77, 77, 77)),
        (encode(Image.new("1", (12, 8), 1), "PNG"), (255, 255, 255)),
        (encode(Image.new("LA", (12, 8), (77, 0)), "PNG"), (255, 255, 255)),
        (encode(RGBA, "PNG"), (255, 255, 255)),
        (encode(Image.new("RGBA", (12, 8), (200, 0, 0, 255)), "WEBP", lossless=True), (200, 0, 0)),
        (encode(PALETTE, "PNG"), (7, 90, 200)),
        (encode(PALETTE, "PNG", transparency=1), (255, 255, 255)),
        (encode(Image.fromarray(GREY16), "PNG"), (0x80, 0x80, 0x80)),
        (encode(Image.fromarray(GREY16), "TIFF"), (0x80, 0x80, 0x80)),
        (encode(Image.new("CMYK", (12, 8), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), (0, 255, 0)),
        (encode(colour((1, 2, 3)), "BMP"), (1, 2, 3)),
    ],
)  # fmt: skip
def test_every_format_and_colour_becomes_rgb(encoded: bytes, expected: tuple[int, int, int]) -> None:
    picture = read_image(encoded)
    assert (picture.mode, picture.size) == ("RGB", (12, 8))
    assert picture.getpixel((5, 5)) == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright(orientation: int) -> None:
    """Against the eight cases of the EXIF standard."""
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8, 0] = 250  # red on the upper left
    turned = upright.swapaxes(0, 1)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: turned,
        6: np.rot90(upright),
        7: turned[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", quality=100, subsampling=0, exif=exif)
    found = np.asarray(read_image(encoded)).astype(int)
    assert np.abs(found - upright).max() < 12


def bomb(side: int) -> bytes:
    """A PNG whose header promises side² pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


NOISE = Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3)).astype(np.uint8))
DAMAGED = {
    "empty": b"",
    "text": b"this is no image",
    "html": b"<html>404</html>",
    "cut jpeg": encode(NOISE, "JPEG")[:-900],
    "cut png": encode(NOISE, "PNG")[:-900],
    "cut gif": encode(NOISE, "GIF")[:100],
    "bomb": bomb(50_000),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "float": encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_no_image_or_damaged_is_a_sentence(what: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as error:
            read_image(DAMAGED[what])
    assert 8 < len(str(error.value)) < 200


def test_any_damage_of_an_image_is_a_sentence_or_an_image() -> None:
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = np.frombuffer(encode(NOISE.resize((9, 9)), kind), np.uint8)
        for _ in range(60):
            hit = whole.copy()
            hit[RANDOM.integers(0, len(hit), 3)] = RANDOM.integers(0, 256, 3)
            with contextlib.suppress(UserError):
                assert read_image(hit[: RANDOM.integers(len(hit) // 2, len(hit) + 1)].tobytes()).mode == "RGB"


def test_a_damaged_image_is_left_out_named_and_remembered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path / "train", {"cat": 12, "dog": 12})
    tree(tmp_path / "test", {"dog": 2})
    (tmp_path / "train" / "cat" / "004.png").write_bytes(DAMAGED["cut png"])
    dataset = read(tmp_path)
    assert len(dataset.train) == 23
    assert dataset.train.inputs[3:5, 0, 0, 0].tolist() == [30, 50]
    said = capsys.readouterr().err
    assert "1 of 24 images cannot be decoded and is left out" in said
    assert "cat/004.png: " in said
    monkeypatch.setattr(image_files, "broken", None)  # not looked for again
    assert len(read(tmp_path).train) == 23
    monkeypatch.undo()
    (tmp_path / "train" / "cat" / "004.png").write_bytes(encode(colour((40, 3, 50)), "PNG"))
    assert len(read(tmp_path).train) == 24


def test_a_folder_of_damaged_images_is_refused(made: Path) -> None:
    for i in range(2):
        (made / "train" / "cat" / f"00{i}.png").write_bytes(DAMAGED["html"])
    with pytest.raises(UserError, match=r"2 of 5 images cannot be decoded, more than 10% \(.*000.png: it is no image"):
        read(made)
    (made / "train" / "cat" / "000.png").write_bytes(encode(colour((0, 0, 0)), "PNG"))
    assert len(read(made).train) == 4  # one alone is left out whatever its share
    tree(made / "train", {"lynx": 1})
    (made / "train" / "lynx" / "000.png").write_bytes(b"")
    (made / "train" / "cat" / "001.png").write_bytes(encode(colour((0, 0, 0)), "PNG"))
    with pytest.raises(UserError, match="no image of the class 'lynx' can be decoded"):
        read(made)


def test_a_file_that_vanishes_later_is_named(made: Path) -> None:
    inputs = read(made, streaming=True).train.inputs
    (made / "train" / "cat" / "001.png").unlink()
    with pytest.raises(UserError, match=r"cat/001.png: it cannot be read \(No such file"):
        inputs[np.arange(3)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": None}, "data=images needs data.train, a folder with a folder of images for each class"),
        ({"train": "nowhere"}, "data.train=nowhere: there is no such folder"),
        ({"image_size": 0}, "data.image_size=0 must be at least 1"),
    ],
)
def test_what_is_missing_is_named(made: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(made, **settings)


def test_folders_that_cannot_be_classes_are_named(made: Path) -> None:
    (made / "train" / "empty").mkdir()
    with pytest.raises(UserError, match=r"the folder empty has no images in it; their names end in .jpg, .jpeg"):
        read(made)
    (made / "train" / "empty").rmdir()
    tree(made / "test", {"lynx": 1})
    with pytest.raises(UserError, match=r"lynx/000.png: the class 'lynx' does not occur in .*train"):
        read(made)
    (made / "flat").mkdir()
    (made / "flat" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="has no folders in it; a folder of images for each class is needed"):
        read(made, train=str(made / "flat"))
    (made / "a.csv").write_text("image,label")
    with pytest.raises(UserError, match=r"a folder with a folder for each class, or a file .parquet, is needed"):
        read(made, train=str(made / "a.csv"))


def test_a_link_to_a_folder_above_is_followed_once(made: Path) -> None:
    (made / "train" / "cat" / "loop").symlink_to(made / "train" / "cat")
    assert read(made).train.labels.tolist() == [0, 0, 0, 1, 1]


def parquet(path: Path, labels: list[Any], names: list[str] | None = None, plain: bool = False) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    content = [encode(colour((10 * i, 0, 0)), "PNG") for i in range(len(labels))]
    rows = content if plain else [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(content)]
    table = pa.table({"image": rows, "label": labels})
    if names:
        notes = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(notes)})
    pq.write_table(table, path)
    return path


def test_parquet_files_as_the_hub_has_them(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    parquet(tmp_path / "train" / "0.parquet", [0, 1], ["cat", "dog"])
    parquet(tmp_path / "train" / "1.parquet", [1, 0, 1], ["cat", "dog"])
    test = parquet(tmp_path / "test.parquet", ["dog", "cat"], plain=True)
    dataset = read(tmp_path, test=str(test))
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 1, 1, 0, 1]
    assert dataset.test.labels.tolist() == [1, 0]
    assert dataset.train.inputs[:, 0, 0, 0].tolist() == [0, 10, 0, 10, 20]


def test_a_parquet_file_that_holds_something_else_is_named(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    good = parquet(tmp_path / "good.parquet", ["a", "b"])
    for table, message in (
        (pa.table({"picture": [b""], "label": [1]}), "has no column image; its columns are picture, label"),
        (pa.table({"image": ["a.png"], "label": [1]}), "row 1: image is not allowed; the bytes of an image"),
        (pa.table({"image": [b"x"], "label": [1.5]}), r"row 1: label must be a string or a whole number, got 1.5"),
    ):
        pq.write_table(table, tmp_path / "bad.parquet")
        with pytest.raises(UserError, match=message):
            read(tmp_path, train=str(tmp_path / "bad.parquet"), test=str(good))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(UserError, match="is not a readable Parquet file"):
        read(tmp_path, train=str(tmp_path / "bad.parquet"), test=str(good))


def test_images_that_are_too_many_for_memory_stay_on_disk(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 0)
    assert isinstance(read(made).train.inputs, StoredImages)
