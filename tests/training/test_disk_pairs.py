"""Streamed pairs: the table, the parts and the runs of pairs in memory, to the bit; what is wrong is said alike."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import TRANSFORMER, WORDS, interrupt_after_two_checkpoints, random_pair, run_digests, write_table
from hypothesis import given
from hypothesis import strategies as st
from pair_files import BROKEN, HARD, SCORED, TEST, UNSCORED

from mrl_jax import train
from mrl_jax.data import DataConfig, PairDataset, Pairs, StreamedTexts, disk_cache, load
from mrl_jax.data.pair_ops import build_pairs
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import pairs as pair_tasks

BAG = ["encoder=bag", "encoder.min_documents=1", "width=32", "nesting_dims=[8,32]", "trainer.steps=30"]


@given(st.integers(2, 4).flatmap(lambda c: st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=c, max_size=c))))
def test_distinct_texts_are_numbered_as_in_memory(rows: list[list[str]]) -> None:
    hashes = np.array([hash((text, k)) for text in "abcdefgh" for k in range(2)]).view(np.uint64).reshape(-1, 2)
    letters = [row[column] for column in range(len(rows[0]) if rows else 0) for row in rows]
    first, numbers = disk_cache.number_keys(hashes[["abcdefgh".index(letter) for letter in letters]])
    if rows:
        expected = build_pairs(list(zip(*rows, strict=True)))
        assert [letters[at] for at in first] == expected.table
        np.testing.assert_array_equal(numbers.reshape(-1, len(rows)).T, expected.columns)
    assert first.dtype == numbers.dtype == np.int32


def both(folder: Path, suffix: str, rows: list[dict], **options: object) -> tuple[PairDataset, PairDataset]:
    """The same files in memory and streamed."""
    paths = {name: write_table(folder / f"{name}.{suffix}", part) for name, part in (("train", rows), ("test", TEST))}
    asked = DataConfig("pairs", cache_dir=str(folder / "cache"), **paths, **options)
    memory, disk = (load(dataclasses.replace(asked, streaming=flag)) for flag in (False, True))
    assert isinstance(memory, PairDataset)
    assert isinstance(disk, PairDataset)
    return memory, disk


def same(one: Pairs, other: Pairs) -> None:
    assert list(one.table) == list(other.table)
    np.testing.assert_array_equal(one.columns, other.columns)
    assert one.columns.dtype == other.columns.dtype
    assert (one.scores is None) == (other.scores is None)
    if one.scores is not None:
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("rows", [UNSCORED, HARD, SCORED], ids=["unscored", "hard", "scored"])
def test_every_kind_of_pairs(tmp_path: Path, suffix: str, rows: list[dict]) -> None:
    memory, disk = both(tmp_path, suffix, rows, validation_fraction=0.0)
    assert isinstance(disk.train.table, StreamedTexts)
    same(memory.train, disk.train)


@pytest.mark.parametrize("limit", [None, 7])
def test_parts_are_cut_limited_and_kept_apart_as_in_memory(tmp_path: Path, limit: int | None) -> None:
    rng = np.random.default_rng(0)
    rows = [{"anchor": f"a{i}", "positive": f"p{j}", "negative": f"a{j}"} for i, j in rng.integers(0, 20, (60, 2))]
    rows += [{"anchor": "q", "positive": "in the test too", "negative": "n"}]
    memory, disk = both(tmp_path, "jsonl", rows, validation_fraction=0.3, limit=limit)
    assert "q" not in list(disk.train.table)
    assert isinstance(disk.validation.table, StreamedTexts)
    assert len(disk.validation) > 0
    for part in ("train", "validation"):
        same(getattr(memory, part), getattr(disk, part))
    assert list(memory.test.documents) == list(disk.test.documents)


def test_the_size_of_the_training_file_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {
        name: write_table(tmp_path / f"{name}.jsonl", rows) for name, rows in (("train", UNSCORED), ("test", TEST))
    }
    asked = DataConfig("pairs", cache_dir=str(tmp_path / "cache"), **paths)
    assert isinstance(load(asked).train.table, list)
    monkeypatch.setattr("mrl_jax.data.readers.records.STREAMING_MIN_BYTES", Path(paths["train"]).stat().st_size)
    assert isinstance(load(asked).train.table, StreamedTexts)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_text(content)
    test, cache = write_table(tmp_path / "test.jsonl", TEST), str(tmp_path / "cache")
    for _ in range(2):  # what was wrong is not kept
        with pytest.raises(UserError, match=message) as error:
            load(DataConfig("pairs", train=str(tmp_path / name), test=test, streaming=True, cache_dir=cache))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["columns.npy", "first.npy", "scores.npy", "sums.json"])
def test_damaged_numbers_are_named(tmp_path: Path, file: str) -> None:
    both(tmp_path, "jsonl", SCORED, validation_fraction=0.0)
    (place,) = (tmp_path / "cache" / "streamed").glob("pairs-*")
    content = bytearray((place / file).read_bytes())
    content[-2] ^= 4
    (place / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{place} is damaged .*; delete it, and it is prepared again"):
        both(tmp_path, "jsonl", SCORED, validation_fraction=0.0)


# -- runs --------------------------------------------------------------------------------------------------------------


def command(kind: str, folder: Path) -> list[str]:
    """A short run on pairs with an anchor in several of them, a hard negative or a score."""
    rng = np.random.default_rng(0)
    pairs = [random_pair(rng) for _ in range(150)]
    match kind:
        case "bag":
            words = [*BAG, "loss.name=info_nce"]
        case "hard negatives, packed, accumulated, with prompts":
            pairs = [one | {"negative": two["positive"]} for one, two in zip(pairs, pairs[::-1], strict=True)]
            words = [*TRANSFORMER, "trainer.steps=12", "trainer.accumulate=2", "loss.name=info_nce"]
            words += ["arms=[mrl,ff,pca,untuned]", "data.prompts={query: 'ado ', document: 'upo '}"]
        case _:
            pairs = [
                {"sentence1": one["anchor"], "sentence2": one["positive"], "score": int(rng.integers(5))}
                for one in pairs
            ]
            words = [*TRANSFORMER, "trainer.steps=12", "loss.name=cosent"]
    names = {"train": pairs, "test": [one | {k: f"{one[k]} {WORDS[-1]}" for k in list(one)[:1]} for one in pairs[:30]]}
    files = [f"data.{name}={write_table(folder / f'{name}.jsonl', rows)}" for name, rows in names.items()]
    run = [f"data.cache_dir={folder / 'cache'}", f"results_dir={folder}", "name=pairs", "trainer.log_every=4"]
    return ["data=pairs", *files, *words, *run, "trainer.batch_size=32", "trainer.evaluations=3"]


@pytest.mark.parametrize(
    "kind",
    [
        "bag",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("hard negatives, packed, accumulated, with prompts", "scores")
        ),
    ],
)
def test_a_streamed_run_is_that_in_memory_bit_for_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was killed after its second checkpoint and resumed."""
    words = command(kind, tmp_path)
    assert train.main([*words, "run=memory", "data.streaming=false"]) == 0
    assert train.main([*words, "run=streamed", "data.streaming=true"]) == 0
    expected = run_digests(tmp_path / "pairs" / "memory")
    assert run_digests(tmp_path / "pairs" / "streamed") == expected
    killed = [*words, "run=killed", "data.streaming=true", "trainer.checkpoint_seconds=0"]
    interrupt_after_two_checkpoints(killed, monkeypatch)
    assert train.main([*killed, "resume=true"]) == 0
    assert run_digests(tmp_path / "pairs" / "killed") == expected


def test_too_many_validation_texts_are_refused_before_any_work(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(pair_tasks, "MAX_EMBEDDINGS_BYTES", 4 * 32 * 10)
    assert train.main([*command("bag", tmp_path), "run=large", "data.streaming=true"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"\nerror: the 15 validation pairs have .. different texts, whose embeddings take .* bytes", said)
    monkeypatch.undo()
    monkeypatch.setattr(pair_tasks, "MAX_COMPARISONS", 10)
    assert train.main([*command("bag", tmp_path), "run=large", "data.streaming=true"]) == 2
    assert (
        "ranking all documents for 15 queries is more than 1e+01 comparisons; use a smaller" in capsys.readouterr().err
    )
    assert not (tmp_path / "pairs").exists()
