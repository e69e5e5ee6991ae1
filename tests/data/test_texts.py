"""Unlabelled texts from files: what is read, held out and refused."""

from pathlib import Path

import pytest

from mrl_jax import data
from mrl_jax.data import DataConfig, StreamedTexts
from mrl_jax.system.errors import UserError


def lines(path: Path, count: int) -> str:
    path.write_text("".join(f"text {i}\n" for i in range(count)), encoding="utf-8")
    return str(path)


def test_lines_and_the_column_text_are_read_and_labels_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "label": "x"}\n{"text": "two"}\n{"text": " "}\n', "utf-8")
    (tmp_path / "b.csv").write_text("id,text\n1,three\n2,four\n", "utf-8")
    config = DataConfig("texts", train=str(tmp_path / "a.jsonl"), test=str(tmp_path / "b.csv"))
    read = data.load(config)
    assert [*read.train.inputs, *read.validation.inputs] == ["one", "two"]
    assert read.test.inputs == ["three", "four"]
    assert read.train.contents == read.validation.contents == "texts"


def test_without_test_file_two_disjoint_parts_are_held_out_the_same_every_time(tmp_path: Path) -> None:
    config = DataConfig("texts", train=lines(tmp_path / "a.txt", 200))
    read, again = data.load(config), data.load(config)
    parts = [part.inputs for part in (read.train, read.validation, read.test)]
    assert [len(part) for part in parts] == [162, 18, 20]
    assert sorted(text for part in parts for text in part) == sorted(f"text {i}" for i in range(200))
    assert parts == [part.inputs for part in (again.train, again.validation, again.test)]


@pytest.mark.parametrize("blank", [False, True])
def test_streamed_texts_are_the_same(blank: bool, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.txt", 50)
    if blank:
        rows = (tmp_path / "a.txt").read_text().splitlines()
        (tmp_path / "a.txt").write_text("\n".join(" \t" if i % 5 == 2 else row for i, row in enumerate(rows)))
    held, streamed = (data.load(DataConfig("texts", train=file, streaming=streams)) for streams in (False, True))
    assert isinstance(streamed.train.inputs, StreamedTexts)
    for name in ("train", "validation", "test"):
        assert list(getattr(streamed, name).inputs) == list(getattr(held, name).inputs)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "data.train=.*a.txt is empty"),
        (" \n\n", "data.train=.*a.txt has no text: all 2 rows are empty"),
        (None, "data.train=.*a.txt: there is no such file"),
    ],
)
def test_a_file_without_texts_is_refused(tmp_path: Path, content: str | None, problem: str) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(UserError, match=problem):
        data.load(DataConfig("texts", train=str(path)))


def test_a_missing_name_and_another_source_s_key_are_refused() -> None:
    with pytest.raises(UserError, match=r"data=texts needs data.train, a .jsonl, .csv, .tsv, .parquet or .txt file"):
        data.load(DataConfig("texts"))
    with pytest.raises(UserError, match=r"without data.test holds out data.validation_fraction of the texts"):
        data.load(DataConfig("texts", train="a.txt", validation_fraction=0.0))
    with pytest.raises(UserError, match=r"data.path is not used by data=texts; it belongs to cifar and beir"):
        data.load(DataConfig("texts", path="a"))
