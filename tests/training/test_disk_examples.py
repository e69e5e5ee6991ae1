"""Streamed data: the same bits as in memory, also after a resume; what is kept on disk is whole, shared and checked."""

import dataclasses
import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import interrupt_after_two_checkpoints, run_digests, write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax import train
from mrl_jax.data import DataConfig, Dataset, StreamedTexts, disk_cache, load
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import classification, description
from mrl_jax.text.tokenizers import TfidfWords
from mrl_jax.training import batches, disk_examples
from mrl_jax.training.batches import Examples

SMALL = {
    "bag": ["encoder=bag", "trainer.steps=30"],
    "transformer": [
        *("encoder=transformer", "encoder.layers=1", "encoder.hidden=16", "encoder.heads=2", "encoder.intermediate=32"),
        *("encoder.vocabulary=300", "encoder.max_length=24", "trainer.steps=12"),
    ],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name == "transformer" else ()) for name in SMALL],
)
def command(request: pytest.FixtureRequest, tiny: list[str], cache: Path, tmp_path_factory) -> list[str]:
    results = tmp_path_factory.mktemp("results")
    less = ["evaluation.refit=null", "evaluation.quantised=false", "evaluation.interpolated=false"]
    return [*tiny, *SMALL[request.param], *less, f"data.cache_dir={cache}", f"results_dir={results}"]


@pytest.fixture(scope="module")
def in_memory(command: list[str]) -> dict[str, str]:
    assert train.main([*command, "run=memory", "data.streaming=false"]) == 0
    return run_digests(Path(command[-1].partition("=")[2]) / "tiny" / "memory")


def test_a_streamed_run_is_that_in_memory_bit_for_bit(command: list[str], in_memory: dict[str, str]) -> None:
    assert train.main([*command, "run=streamed", "data.streaming=true"]) == 0
    assert run_digests(Path(command[-1].partition("=")[2]) / "tiny" / "streamed") == in_memory


def test_a_resumed_streamed_run_is_so_too(
    command: list[str], in_memory: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle, after a checkpoint; in the first try also with a position that is another step's."""
    run = Path(command[-1].partition("=")[2]) / "tiny" / "killed"
    arguments = [*command, "run=killed", "data.streaming=true", "trainer.checkpoint_seconds=0"]
    saved = interrupt_after_two_checkpoints(arguments, monkeypatch)
    assert [reading for _, reading in saved] == [{"next_index": step} for step, _ in saved]
    assert 0 < saved[-1][0] < 30
    states = next(run.glob("checkpoints/*/state"))
    wrong = {step: json.loads(path.read_text()) for step, path in _manifests(states).items()}
    for step, path in _manifests(states).items():
        meta = {**wrong[step]["meta"], "reading": {"next_index": step + 1}}
        path.write_text(json.dumps(wrong[step] | {"meta": meta}))
    assert train.main([*arguments, "resume=true"]) == 2
    for step, path in _manifests(states).items():
        path.write_text(json.dumps(wrong[step]))
    assert train.main([*arguments, "resume=true"]) == 0
    assert run_digests(run) == in_memory


def _manifests(states: Path) -> dict[int, Path]:
    return {int(path.parent.name.removeprefix("step-")): path for path in states.glob("*/manifest.json")}


# -- examples ----------------------------------------------------------------------------------------------------------

KNOWN = ("ape", "bee", "cat", "dog", "eel", "fox")
WORDS = st.lists(st.sampled_from([*KNOWN, "gnu"]), max_size=9).map(" ".join)


def both(texts: list[str], folder: Path) -> tuple[Examples, disk_examples.StreamedExamples]:
    """The same texts in memory and streamed, read as bags of words."""
    reader = TfidfWords.fit(["ape bee cat dog", "eel fox"], min_documents=1, max_words=5)
    labels = np.arange(len(texts), dtype=np.int32)
    source = StreamedTexts(lambda: iter(texts), len(texts), json.dumps(texts))
    return Examples(reader(texts), labels), disk_examples.examples(source, labels, reader, str(folder), "train")


@settings(max_examples=40)
@given(st.lists(WORDS, min_size=1, max_size=40), st.sampled_from([(1, 8), (64, 8), (8192, 4096)]), st.data())
def test_any_rows_are_the_same_batch_as_in_memory(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], sizes: tuple[int, int], data: st.DataObject
) -> None:
    """With one text a record or several, and written in one chunk or several."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(disk_examples, "RECORD_BYTES", sizes[0])
        patched.setattr(disk_examples, "CHUNK_TEXTS", sizes[1])
        memory, disk = both(texts, tmp_path_factory.mktemp("any"))
    rows = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=12)))
    length = data.draw(st.one_of(st.none(), st.integers(1, 12)))
    assert disk.padded_length(rows) == memory.padded_length(rows)
    wanted, found = memory.take(rows, length), disk.take(rows, length)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert disk.fingerprint == description.fingerprint(memory)
    stacked = disk.stack([rows, rows[::-1]], length)
    for name, array in memory.stack([rows, rows[::-1]], length).items():
        np.testing.assert_array_equal(stacked[name], array)
    # Processes that read rows of their own have read together what one would have read.
    halves = [disk.take(part, disk.padded_length(rows)) for part in np.array_split(rows, 2) if len(part)]
    together = {name: np.concatenate([half[name] for half in halves]) for name in found}
    for name, array in memory.take(rows, memory.padded_length(rows)).items():
        np.testing.assert_array_equal(together[name], array)


def test_evaluation_reads_every_example_in_the_same_batches(tmp_path: Path) -> None:
    texts = [" ".join(KNOWN[: i % 7]) for i in range(50)]
    memory, disk = both(texts, tmp_path)
    for (rows, batch, valid), (rows2, batch2, valid2) in zip(
        batches.slices(memory, 16), batches.slices(disk, 16), strict=True
    ):
        np.testing.assert_array_equal(rows, rows2)
        np.testing.assert_array_equal(valid, valid2)
        assert all(np.array_equal(batch[name], batch2[name]) for name in batch)


@pytest.mark.parametrize("start", [0, 3, 10])
def test_steps_come_in_order_from_wherever_reading_begins(tmp_path: Path, start: int) -> None:
    memory, disk = both(["ape bee", "cat", "dog eel fox"] * 9, tmp_path)
    rows = list(batches.stream(memory, 0, 4, start, 10))
    reading = disk.read_ahead(iter(rows), lambda rows: (rows, disk.take(rows)), start, 10)
    for step, (found, batch) in enumerate(reading, start):
        np.testing.assert_array_equal(found, rows[step - start])
        np.testing.assert_array_equal(batch["ids"], memory.take(found)["ids"])
        assert reading.state == {"next_index": step + 1}
    assert reading.state == {"next_index": 10}


def test_an_error_in_a_reading_thread_reaches_the_loop(tmp_path: Path) -> None:
    def fail(rows: np.ndarray) -> None:
        raise UserError("no such thing")

    _, disk = both(["ape bee", "cat"], tmp_path)
    with pytest.raises(UserError, match="no such thing"):
        list(disk.read_ahead(iter([np.array([0])]), fail, 0, 1))


# -- what is kept on disk ----------------------------------------------------------------------------------------------


def _prepare(folder: str, start: object, out: object) -> None:
    start.wait()
    _, disk = both(["ape bee", "cat", ""] * 2000, Path(folder))
    out.put((str(disk.path), disk.fingerprint))


@pytest.mark.slow
def test_two_processes_that_prepare_at_once_share_the_result(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, out = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_prepare, args=(str(tmp_path), start, out)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [out.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert found[0] == found[1]
    assert [path.name for path in (tmp_path / "streamed").iterdir() if not path.name.endswith(".lock")] == [
        Path(found[0][0]).parent.name
    ]


def test_what_a_killed_process_left_is_made_anew(tmp_path: Path) -> None:
    place = tmp_path / "a"
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "half").write_text("")
    disk_cache.build_once(place, lambda folder: (folder / "whole").write_text("") and None)
    assert [path.name for path in place.iterdir()] == ["whole"]


def test_nothing_is_kept_of_a_failure(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"a cannot be written .*No space left.*data\.cache_dir"):
        disk_cache.build_once(tmp_path / "a", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(b"\x01\x00\x00\x00")
    content[at] ^= 7
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("examples.array_record", _cut),
        ("examples.array_record", _flip),
        ("examples.array_record", Path.unlink),
        ("lengths.npy", _cut),
        ("lengths.npy", _flip),
        ("manifest.json", _cut),
    ],
)
def test_a_damaged_file_is_named_and_never_read(tmp_path: Path, name: str, harm) -> None:
    texts = ["ape bee", "cat", "dog eel fox"] * 20
    _, disk = both(texts, tmp_path)
    harm(disk.path.with_name(name))
    with pytest.raises(UserError, match=rf"{disk.path.parent.name} is damaged .*delete it"):
        both(texts, tmp_path)[1].take(np.arange(60))
    shutil.rmtree(disk.path.parent)
    memory, disk = both(texts, tmp_path)
    np.testing.assert_array_equal(disk.take(np.arange(60))["ids"], memory.take(np.arange(60))["ids"])


def test_damaged_labels_are_named(tmp_path: Path) -> None:
    place = tmp_path / "labels"
    rows = [("line 1", "x"), ("line 2", "y"), ("line 3", "x")]
    found = disk_cache.labels(place, lambda: rows)
    assert (found.names, found.places, found.rows.tolist()) == (["x", "y"], ["line 1", "line 2"], [0, 1, 0])
    np.save(place / "rows.npy", np.array([0, 1, 1], np.int32))
    with pytest.raises(UserError, match=r"labels is damaged \(rows\.npy is not as it was written\)"):
        disk_cache.labels(place, lambda: rows)


# -- files -------------------------------------------------------------------------------------------------------------


def lines(path: Path, labels: list[object]) -> str:
    """JSONL with these labels."""
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": label}) + "\n" for i, label in enumerate(labels)))
    return str(path)


def parts(dataset: object) -> dict[str, tuple[list[str], list[int]]]:
    assert isinstance(dataset, Dataset)
    named = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    return {name: (list(split.inputs), split.labels.tolist()) for name, split in named.items()}


@pytest.mark.parametrize("options", [{}, {"limit": 9}, {"validation_fraction": 0.0}, {"validation": True}])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_streamed_files_hold_the_same_examples(tmp_path: Path, options: dict, suffix: str, monkeypatch) -> None:
    """Classes, the validation cut and `limit` included; Parquet in several batches."""
    monkeypatch.setattr("mrl_jax.data.readers.records.PARQUET_BATCH_ROWS", 7)
    train_rows = [{"text": f"text, {i}", "label": i % 3 if i else 10} for i in range(40)]
    paths = {
        "train": write_table(tmp_path / f"train.{suffix}", train_rows),
        "test": write_table(tmp_path / f"test.{suffix}", train_rows[5:9]),
    }
    if "validation" in options:
        options = {"validation": write_table(tmp_path / f"validation.{suffix}", train_rows[1:5])}
    asked = DataConfig("files", cache_dir=str(tmp_path / "cache"), **paths, **options)
    memory, disk = (load(dataclasses.replace(asked, streaming=flag)) for flag in (False, True))
    assert memory.classes == disk.classes == ("0", "1", "2", "10")
    assert parts(memory) == parts(disk)
    if "validation_fraction" not in options:
        assert isinstance(disk.validation.inputs, StreamedTexts)


def test_the_size_of_the_training_file_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path / "a.jsonl", ["x", "y"] * 10)
    asked = DataConfig("files", train=path, test=path, cache_dir=str(tmp_path / "cache"))
    assert isinstance(load(asked).train.inputs, list)
    monkeypatch.setattr("mrl_jax.data.readers.records.STREAMING_MIN_BYTES", Path(path).stat().st_size)
    assert isinstance(load(asked).train.inputs, StreamedTexts)


@pytest.mark.parametrize(
    ("train_labels", "test_labels", "message"),
    [
        (["x"] * 6 + [1.5], ["x"], r"train\.jsonl, line 7: label must be a string or a whole number, got 1\.5"),
        (["x"] * 6 + [""], ["x"], r"train\.jsonl, line 7: the row has no label"),
        (["x", "y"], ["x"] * 6 + ["z", "a"], r"test\.jsonl, line 7: the label 'z' does not occur in .*train\.jsonl"),
        ([], ["x"], r"data\.train=.*train\.jsonl is empty"),
        (["x"], [], r"data\.test=.*test\.jsonl is empty"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_wrong_is_named_by_its_place(tmp_path, train_labels, test_labels, message, streaming) -> None:
    train_file, test_file = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    paths = {"train": lines(train_file, train_labels), "test": lines(test_file, test_labels)}
    for _ in range(2):  # what was wrong is not kept
        with pytest.raises(UserError, match=message):
            load(DataConfig("files", streaming=streaming, cache_dir=str(tmp_path / "cache"), **paths))


@pytest.mark.parametrize("count", [1, 3])
def test_texts_that_change_between_two_passes_are_noticed(tmp_path: Path, count: int) -> None:
    texts = StreamedTexts(lambda: iter(["ape", "bee"]), count, "changed")
    reader = TfidfWords.fit(["ape bee"], min_documents=1, max_words=9)
    with pytest.raises(UserError, match=f"the train texts changed while they were read: they are no longer {count};"):
        disk_examples.examples(texts, np.zeros(count, np.int32), reader, str(tmp_path), "train")
    assert not list((tmp_path / "streamed").glob("examples*"))


def test_other_sources_do_not_stream() -> None:
    with pytest.raises(UserError, match=r"data\.streaming is not used by data=beir; it belongs to files, .*tfds"):
        load(DataConfig("beir", streaming=True))


def test_too_many_embeddings_are_refused_before_any_work(tiny, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        classification, "MAX_EMBEDDINGS_BYTES", 4 * 16 * 200
    )  # validation and test alone: 24 and 80 texts
    arguments = [*tiny, "data.streaming=true", f"data.cache_dir={tmp_path / 'cache'}", f"results_dir={tmp_path}"]
    assert train.main([*arguments, "arms=[mrl,ff,pca]"]) == 2
    said = capsys.readouterr().err
    assert "evaluation.refit=null evaluation.few_shot=null and arms without pca" in said
    assert not (tmp_path / "tiny").exists()
    assert not list((tmp_path / "cache" / "streamed").glob("tokenizer*"))
    assert train.main([*arguments, "evaluation.neighbours=false", "evaluation.refit=null"]) == 0
    monkeypatch.setattr(classification, "MAX_EMBEDDINGS_BYTES", 4 * 16 * 100)
    assert train.main([*arguments, "evaluation.neighbours=false", "evaluation.refit=null"]) == 2
    assert "use a smaller data.validation_fraction, data.test or width" in capsys.readouterr().err
