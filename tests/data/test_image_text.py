"""Captions and pictures as pairs: what belongs together, what is kept apart, and what is wrong with a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrl_jax import data
from mrl_jax.data import DataConfig, PairDataset, Pairs, Ranking
from mrl_jax.data.captioned import CaptionedImages
from mrl_jax.data.prompts import Prompts, put_before
from mrl_jax.data.readers.images import StoredImages
from mrl_jax.data.relevance import search_of
from mrl_jax.system.errors import UserError
from tests.helpers import write_table
from tests.image_text_files import encoded, jsonl, table


def read(root: Path, **settings: Any) -> PairDataset:
    given: dict[str, Any] = {
        "train": str(root / "train.jsonl"), "test": str(root / "test.jsonl"), "image_size": 4,
        "validation_fraction": 0.0, "cache_dir": str(root / "cache"),
    }  # fmt: skip
    dataset = data.load(DataConfig("image_text", **given | settings))
    assert isinstance(dataset, PairDataset)
    return dataset


def colour(root: Path, name: str, *rgb: int) -> dict[str, str]:
    """A row without a text, and its picture."""
    (root / name).write_bytes(encoded(rgb))
    return {"image": name}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Picture a has two captions, b and c share one, and d is a copy of a by another name."""
    rows = [
        {**colour(tmp_path, "a.png", 9, 0, 0), "text": ["one", "two"]},
        {**colour(tmp_path, "b.png", 0, 9, 0), "text": "three"},
        {**colour(tmp_path, "c.png", 0, 0, 9), "text": "three"},
        {**colour(tmp_path, "d.png", 9, 0, 0), "text": "four"},
    ]
    jsonl(tmp_path / "train.jsonl", rows)
    jsonl(tmp_path / "test.jsonl", [{**colour(tmp_path, "t.png", 7, 7, 7), "text": "three"}])
    return tmp_path


def shown(part: Pairs) -> set[tuple[str, tuple[int, ...]]]:
    """Each caption with the colour of its picture."""
    texts: Any = part.table
    count = len(texts.texts)
    pixels = np.asarray(texts.images[np.arange(len(texts.images))])[:, 0, 0]
    return {(texts.texts[a], tuple(pixels[b - count].tolist())) for a, b in part.columns}


def test_captions_are_anchors_and_pictures_positives_each_once(made: Path) -> None:
    train = read(made).train
    assert shown(train) == {
        ("one", (9, 0, 0)), ("two", (9, 0, 0)), ("four", (9, 0, 0)), ("three", (0, 9, 0)), ("three", (0, 0, 9)),
    }  # fmt: skip
    assert len(train.table) == 4 + 3  # a caption of two pictures once, and a copy of a picture once


def test_all_captions_of_a_picture_and_all_pictures_of_a_caption_answer_each_other(made: Path) -> None:
    train = read(made).train
    found, texts = search_of(train.columns), train.table.texts  # type: ignore[union-attr]
    judged = {(texts[found.queries[q]], int(d)) for q, d, _ in found.judgments}
    of = {text: {d for t, d in judged if t == text} for text in texts}
    assert of["one"] == of["two"] == of["four"]
    assert len(of["three"]) == 2
    assert not len(found.own)


def test_the_test_is_a_search_for_pictures(made: Path) -> None:
    test = read(made).test
    assert isinstance(test, Ranking)
    assert list(test.queries) == ["three"]
    assert np.asarray(test.documents).shape == (1, 4, 4, 3)
    assert test.judgments.tolist() == [[0, 0, 1]]


def test_validation_is_cut_by_picture_and_a_limit_keeps_texts_with_their_pictures(tmp_path: Path) -> None:
    table(tmp_path, "train", 6)
    table(tmp_path, "test", 2)
    dataset = read(tmp_path, validation_fraction=0.25)
    pictures = [{rgb for _, rgb in shown(part)} for part in (dataset.train, dataset.validation)]
    assert (len(pictures[0]), len(pictures[1])) == (18, 6)
    assert pictures[0].isdisjoint(pictures[1])
    assert {text for text, _ in shown(dataset.train)} & {text for text, _ in shown(dataset.validation)}
    few = read(tmp_path, limit=5)
    assert len(few.train) == 5
    assert shown(few.train) <= shown(read(tmp_path).train)
    assert isinstance(few.test, Ranking)
    assert len(few.test.queries) == 5


def test_pictures_of_the_test_are_dropped_from_training_whatever_their_names(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jsonl(made / "test.jsonl", [{**colour(made, "copy.png", 0, 9, 0), "text": "another caption"}])
    assert ("three", (0, 9, 0)) not in shown(read(made).train)
    assert "training: dropped 1 of 3 pictures, which validation or the test has too" in capsys.readouterr().err


def test_what_stays_on_disk_is_the_same(made: Path) -> None:
    lazy, held = read(made, streaming=True).train, read(made).train
    assert isinstance(lazy.table.images, StoredImages)  # type: ignore[union-attr]
    assert shown(lazy) == shown(held)
    np.testing.assert_array_equal(lazy.columns, held.columns)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables_of_every_format_and_other_names_are_read_alike(made: Path, suffix: str) -> None:
    rows = [("a.png", "one"), ("a.png", "two"), ("b.png", "three"), ("c.png", "three"), ("d.png", "four")]
    named = [{"file_name": image, "caption": text, "else": "x"} for image, text in rows]
    name = write_table(made / f"other.{suffix}", named)
    assert shown(read(made, train=name).train) == shown(read(made).train)


def test_parquet_files_may_hold_the_pictures(made: Path) -> None:
    rows = [
        {"image": {"bytes": (made / f"{name}.png").read_bytes(), "path": None}, "text": texts}
        for name, texts in (("a", ["one", "two"]), ("b", ["three"]), ("c", ["three"]), ("d", ["four"]))
    ]
    pq.write_table(pa.Table.from_pylist(rows), made / "hub.parquet")
    assert shown(read(made, train=str(made / "hub.parquet")).train) == shown(read(made).train)


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0b.png", "a.png/b.png"])
def test_a_name_that_no_file_can_have_is_a_missing_picture(
    made: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f'{{"image": "a{i}.png", "text": "more"}}\n' for i in range(20))
    for i in range(20):
        colour(made, f"a{i}.png", 100, i, 0)
    jsonl(made / "train.jsonl", [{"image": name, "text": "nothing"}])
    (made / "train.jsonl").write_text((made / "train.jsonl").read_text() + rows)
    assert "nothing" not in {text for text, _ in shown(read(made).train)}
    assert "1 of 21 images cannot be decoded and is left out" in capsys.readouterr().err


def test_a_picture_that_is_missing_or_damaged_is_left_out_and_named(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, rows = shown(read(made).train), (made / "train.jsonl").read_text()
    (made / "e.png").write_bytes(b"no image")
    rows += "".join(f'{{"image": "a{i}.png", "text": "more"}}\n' for i in range(20))
    for i in range(20):
        colour(made, f"a{i}.png", 100, i, 0)
    jsonl(made / "train.jsonl", [{"image": "e.png", "text": "broken"}, {"image": "gone.png", "text": "missing"}])
    (made / "train.jsonl").write_text((made / "train.jsonl").read_text() + rows)
    found = shown(read(made).train)
    assert expected < found
    assert not {"broken", "missing"} & {text for text, _ in found}
    said = capsys.readouterr().err
    assert "2 of 26 images cannot be decoded and are left out" in said
    assert "gone.png: it cannot be read (No such file or directory)" in said
    for i in range(20):
        (made / f"a{i}.png").unlink()
    with pytest.raises(UserError, match=r"22 of 26 images cannot be decoded, more than 10% \(.*e.png"):
        read(made)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png"}, r"line 1 has no text \(or caption, captions\); it has image"),
        ({"image": "a.png", "text": ""}, "line 1: the row has no text"),
        ({"image": "a.png", "text": " \n"}, "line 1: text is empty"),
        ({"image": "a.png", "text": []}, "line 1: text is empty"),
        ({"image": "a.png", "text": ["one", None]}, r"line 1: the row has no text\[1\]"),
        ({"image": "a.png", "text": 3}, "line 1: text must be a string, got 3"),
        ({"image": 3, "text": "one"}, "line 1: image must be a string, got 3"),
        ({"text": "one"}, r"line 1 has no image \(or file_name\); it has text"),
        ({"image": "a.png", "file_name": "a.png", "text": "one"}, "has the columns image and file_name"),
        (None, "is empty"),
    ],
)
def test_a_row_that_is_no_pair_is_named(made: Path, row: dict[str, Any] | None, message: str) -> None:
    jsonl(made / "train.jsonl", [] if row is None else [row])
    with pytest.raises(UserError, match=message):
        read(made)


def test_keys_out_of_range_and_files_that_are_missing_are_refused(made: Path) -> None:
    for settings, message in (
        ({"image_size": 0}, "data.image_size=0 must be at least 1"),
        ({"train": None}, "data=image_text needs data.train"),
        ({"train": str(made / "no.jsonl")}, "no.jsonl"),
        ({"test": str(made / "train.jsonl")}, "has no picture that is not in validation or the test too"),
        ({"hold_out": ("a",)}, "names classes, and data=train has pairs"),
    ):
        with pytest.raises(UserError, match=message):
            read(made, **settings)


def test_a_prompt_stands_before_captions_and_not_before_pictures(made: Path) -> None:
    dataset = read(made)
    prompted = put_before(dataset, Prompts({"query": "a picture of: "}))
    assert prompted.train.table.texts[0] == "a picture of: one"  # type: ignore[union-attr]
    assert prompted.train.table.images is dataset.train.table.images  # type: ignore[union-attr]
    assert isinstance(prompted.test, Ranking)
    assert list(prompted.test.queries) == ["a picture of: three"]
    assert prompted.train.held_out_by == 1


def test_a_mixture_has_no_captions(made: Path) -> None:
    source = {"train": str(made / "train.jsonl"), "test": str(made / "test.jsonl"), "image_size": 4}
    part = data.SourceConfig("image_text", cache_dir=str(made / "cache"), **source)
    with pytest.raises(UserError, match=r"data.sources.a holds image-text, which is not allowed in a mixture"):
        data.load(DataConfig("mixture", sources={"a": part, "b": part}))


def test_rows_of_a_table_name_its_texts_first() -> None:
    joint = CaptionedImages(["a", "b"], np.arange(3))
    part = joint.subset(np.array([1, 2, 4]))
    assert (part.texts, part.images.tolist()) == (["b"], [0, 2])
    with pytest.raises(ValueError, match="texts first"):
        joint.subset(np.array([2, 1]))
