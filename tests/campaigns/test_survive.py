"""Kills, failing disks, damaged files and wrong clocks lose nothing: single cases, and short campaigns of `survive`."""

import errno
import itertools
import json
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

import mrl_jax
from mrl_jax import config, report, runs, train
from mrl_jax.data.readers import tfds as builders
from mrl_jax.runs import checkpoint, sweeps
from mrl_jax.search.index import Description, Document, exact, faiss, rerank
from mrl_jax.search.index import store as folders
from mrl_jax.system import files
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import description
from mrl_jax.training import loop


def flip(path: Path, at: int) -> bytes:
    """Change bit `at` of a file, counted round and round; returns what it held before."""
    original = path.read_bytes()
    at %= 8 * len(original)
    changed = bytearray(original)
    changed[at // 8] ^= 1 << at % 8
    path.write_bytes(changed)
    return original


# ---- short campaigns -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_short_campaigns_lose_nothing(tmp_path: Path) -> None:
    """Builds of an index killed, on failing disks and twice at once; runs are killed in test_train.py."""
    words = ["kills", "disk", "twice", "--only", "index, exact", "--number", "14", "--each", "1", "--arms", "[mrl]"]
    command = [sys.executable, str(Path(__file__).parent / "survive"), *words, "--documents", "2000"]
    done = subprocess.run([*command, "--json", str(tmp_path / "x.json")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["kills"]["kills"] == 2
    assert figures["disk"]["jobs"]["index, exact"]["tried"] == 4
    assert figures["twice"]["pairs"]["index, exact"]["tried"] == 1
    assert all(one["lost"] == [] for one in figures.values())


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A finished run, as its command."""
    results = tmp_path_factory.mktemp("survive")
    words = [*tiny, "arms=[mrl]", "evaluation.refit=null", f"results_dir={results}", "run=one"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train, "report", report)  # with its plots
        assert train.main(words) == 0
    return [*words, "resume=true"]


@pytest.fixture(scope="module")
def run(words: list[str]) -> Path:
    results = next(word.partition("=")[2] for word in words if word.startswith("results_dir="))
    return Path(results) / "tiny" / "one"


@pytest.mark.parametrize("name", ["config.yaml", "dataset.json", "tokenizer.json", "idf.json", "SHA256SUMS"])
@settings(max_examples=25)
@given(at=st.integers(0, 10**6))
def test_any_flipped_bit_of_what_a_model_is_built_from_is_named(name: str, at: int, run: Path) -> None:
    original = flip(run / name, at)
    try:
        with pytest.raises(UserError, match=r"SHA256SUMS|config\.yaml"):
            mrl_jax.load(run)
    finally:
        (run / name).write_bytes(original)


def test_sums_are_those_of_sha256sum(run: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=run, check=True)


def test_a_damaged_tokenizer_is_written_again_once_deleted(words: list[str], run: Path, capsys) -> None:
    original = flip(run / "tokenizer.json", 3000)
    assert train.main(words) == 2
    assert "delete it and use resume=true to write it again" in capsys.readouterr().err
    (run / "tokenizer.json").unlink()
    assert train.main(words) == 0
    assert (run / "tokenizer.json").read_bytes() == original


def test_states_that_a_killed_process_had_half_removed_are_gone_after_resuming(words: list[str], run: Path) -> None:
    half = run / "checkpoints" / "mrl-seed0" / "state" / "step-00000005" / "arrays"
    half.mkdir(parents=True)
    assert train.main(words) == 0
    assert {path.name for path in (run / "checkpoints" / "mrl-seed0").iterdir()} == {"model", "calibration.npz"}


def test_a_sweep_draws_the_plots_that_a_killed_job_did_not(
    words: list[str], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "report", report)
    settings = config.from_command_line(words)
    assert train._is_complete(run, settings)
    (run / "plots" / "training.svg").unlink()
    assert not train._is_complete(run, settings)
    assert train.main(words) == 0
    assert train._is_complete(run, settings)


def test_the_latest_run_is_resumed_without_its_link(words: list[str], run: Path) -> None:
    (run.parent / "latest").unlink(missing_ok=True)
    settings = config.from_command_line([word for word in words if word != "run=one"])
    assert runs.reopen(settings) == run.resolve()


def test_other_pretrained_weights_are_not_those_of_a_run() -> None:
    then = {"name": "a", "weights": "0"}
    assert description.changed_keys(then, {"name": "a", "weights": "1"}) == ["weights"]
    assert description.changed_keys(then, {"name": "a", "weights": "0"}) == []
    assert description.changed_keys({"name": "a"}, then) == []  # a run of before they were recorded


def test_checkpoints_are_made_by_a_clock_that_is_set_back(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Back:
        """Two seconds earlier each time it is looked at."""

        ticks = itertools.count(10**6, -2)

        @staticmethod
        def monotonic() -> float:
            return next(Back.ticks)

    saved: list[int] = []
    save = checkpoint.save
    monkeypatch.setattr(loop, "time", Back)
    monkeypatch.setattr(
        checkpoint, "save", lambda folder, step, *rest, **o: (saved.append(step), save(folder, step, *rest, **o))[1]
    )
    short = ["arms=[mrl]", "evaluation.refit=null", "trainer.checkpoint_seconds=1000"]
    assert train.main([*tiny, *short, f"results_dir={tmp_path}"]) == 0
    assert 5 in saved[:-1]  # the last is the model


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def test_sweeps_of_the_same_second_keep_their_notes_apart(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "2030-01-01_00-00-00")
    assert sweeps.prepare([*tiny, "seeds=1,2"]).directory != sweeps.prepare([*tiny, "seeds=1,2"]).directory


def test_a_sweep_that_cannot_write_says_so(tiny: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    def full() -> None:  # Hydra makes folders of its own
        raise OSError(errno.ENOSPC, "No space left on device", "multirun.yaml")

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr("sys.argv", ["train"])
    monkeypatch.setattr(train, "_hydra_main", full)
    assert train.main(["--multirun", *tiny, "seeds=1,2", f"results_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err == "error: multirun.yaml: No space left on device\n"


# ---- files -----------------------------------------------------------------------------------------------------------


def test_processes_that_write_the_same_file_at_once_leave_one_of_their_contents(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    contents = [letter * 200_000 for letter in "abcd"]
    failed: list[BaseException] = []

    def work(content: str) -> None:
        try:
            for _ in range(25):
                files.write(path, content)
                assert path.read_text() in contents
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert list(tmp_path.iterdir()) == [path]


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    return checkpoint.save(folder, 3, {"w": jnp.arange(5.0)}, {"window": [[0.25, 1.5]], "member": "mrl-seed0"})


@settings(max_examples=60)
@given(at=st.integers(0, 10**6))
def test_any_flipped_bit_of_a_manifest_is_noticed_or_changes_nothing(at: int, saved: Path) -> None:
    original = flip(saved / "manifest.json", at)
    said = None
    try:
        tree, meta = checkpoint.load(saved.parent, 3, {"w": jnp.zeros(5)})
    except UserError as error:
        said = str(error)
    finally:
        (saved / "manifest.json").write_bytes(original)
    if said is None:  # a space
        assert meta == {"window": [[0.25, 1.5]], "member": "mrl-seed0"}
        np.testing.assert_array_equal(tree["w"], np.arange(5.0))
    else:
        assert "is damaged: manifest.json" in said


def test_a_checkpoint_of_before_manifests_had_a_sum_is_read(saved: Path) -> None:
    content = json.loads((saved / "manifest.json").read_text())
    del content["sha256"]
    (saved / "manifest.json").write_text(json.dumps(content))
    assert checkpoint.load(saved.parent, 3, {"w": jnp.zeros(5)})[1]["member"] == "mrl-seed0"


def test_a_checkpoint_whose_removal_was_cut_short_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"w": jnp.arange(5.0)}
    checkpoint.save(tmp_path, 1, tree, {}, keep=1)
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *args, **options: None)
        checkpoint.save(tmp_path, 2, tree, {}, keep=1)
    assert checkpoint.saved_steps(tmp_path) == [2]
    checkpoint.save(tmp_path, 3, tree, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_clock_that_is_set_forward_does_not_end_a_checkpoint(tmp_path: Path, monkeypatch) -> None:
    """Nor do the writes that were under way get into what is written instead."""
    real, late = ocp.StandardCheckpointer.save, iter([TimeoutError("timed out after -2564.79 seconds")])
    folders: list[Path] = []

    def save(self: Any, folder: Path, *args: Any, **options: Any) -> Any:
        folders.append(folder)
        if len(folders) > 1:
            folders[0].mkdir(parents=True, exist_ok=True)
            (folders[0] / "late").touch()
        real(self, folder, *args, **options)
        for error in late:
            self.wait_until_finished()
            raise error

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", save)
    checkpoint.save(tmp_path, 1, {"w": jnp.arange(5.0)}, {})
    np.testing.assert_array_equal(checkpoint.load(tmp_path, 1, {"w": jnp.zeros(5)})[0]["w"], np.arange(5.0))
    assert len(folders) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


# ---- an index --------------------------------------------------------------------------------------------------------


def described(kind: str = "exact") -> Description:
    return Description(8, (4, 8), 4, "model", "run", kind)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def filled(folder: Path, kind: str = "exact") -> Path:
    index = (exact if kind == "exact" else faiss).create(folder, described(kind))
    index.add([Document(f"id {i}", f"text number {i}") for i in range(40)], vectors(40))
    index.close()
    return folder


BEGUN = {".lock": b"", "vectors.f32": b"", "documents.sqlite.part": b"SQLite", "documents.sqlite.part-journal": b"x"}


@pytest.mark.parametrize("left", [dict(list(BEGUN.items())[:count]) for count in range(len(BEGUN) + 1)])
def test_an_index_is_made_where_a_killed_process_began_one(left: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    for name, content in left.items():
        (folder / name).write_bytes(content)
    assert folders.is_free(folder)
    filled(folder)
    with exact.open_(folder)._connection as connection:
        assert connection.execute("SELECT count(*) FROM documents").fetchone() == (40,)
    assert not folders.is_free(folder)
    assert not list(folder.glob("*.part*"))


@pytest.mark.parametrize("name", ["vectors.f32", "notes.txt"])
def test_a_folder_with_something_in_it_is_not_taken_for_a_half_made_index(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        exact.create(tmp_path, described())
    assert (tmp_path / name).read_bytes() == b"mine"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("index") / "index")


@settings(max_examples=120)
@given(at=st.integers(0, 10**6))
def test_any_flipped_bit_of_the_documents_is_noticed_or_changes_nothing(at: int, index: Path) -> None:
    path = index / "documents.sqlite"
    original = flip(path, at)
    said = None
    try:
        opened = exact.open_(index)
        try:
            hits = opened.search(vectors(40), 3, None)
            found = opened.documents(hits.rows[:, 0])
        finally:
            opened.close()
    except UserError as error:
        said = str(error)
    finally:
        path.write_bytes(original)
    if said is None:
        assert opened.description == described()
        assert found == [Document(f"id {i}", f"text number {i}") for i in range(40)]
    else:
        assert str(index) in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE documents SET text = 'another' WHERE id = 'id 7'", "document 'id 7' is not what was written"),
        ("UPDATE documents SET row = 99 WHERE id = 'id 7'", "document 'id 7' is not what was written"),
        ("UPDATE about SET value = replace(value, '\"prefix\": 4', '\"prefix\": 8')", "the stored description"),
        ("UPDATE batches SET start = 1", "rows 1 to 40 follow row 0"),
    ],
)
def test_contents_of_the_database_that_nobody_wrote_are_named(change: str, said: str, tmp_path: Path) -> None:
    folder = filled(tmp_path / "index")
    with sqlite3.connect(folder / "documents.sqlite") as connection:
        assert connection.execute(change).rowcount > 0
    with pytest.raises(UserError, match=said):
        exact.open_(folder).search(vectors(1), 3, None)


def test_vectors_are_checked_also_where_faiss_has_kept_its_index(tmp_path: Path) -> None:
    folder = filled(tmp_path / "index", "faiss-flat")
    rerank(faiss.open_(folder), vectors(2), 3, 10)
    flip(folder / "vectors.f32", 1001)
    with pytest.raises(UserError, match=r"vectors\.f32 is damaged in rows 0 to 40"):
        rerank(faiss.open_(folder), vectors(2), 3, 10)


def test_faiss_searches_where_it_cannot_keep_its_index(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = filled(tmp_path / "index", "faiss-flat")

    def full(path: Path, content: bytes) -> None:
        raise UserError(f"no space left for {path}")

    monkeypatch.setattr(files, "write", full)
    assert rerank(faiss.open_(folder), vectors(40), 1, 40).rows[:, 0].tolist() == list(range(40))
    assert "was not saved: no space left" in capsys.readouterr().err


# ---- prepared data ---------------------------------------------------------------------------------------------------


class Numbers(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Forty texts."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {}

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(names=["even", "odd"])
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples() for split in ("train", "test")}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(40):
            yield i, {"text": f"number {i}", "label": i % 2}


def test_damaged_prepared_data_is_made_anew(tmp_path: Path, capsys) -> None:
    def read() -> list[str]:
        return list(builders.text_dataset("numbers", builders.prepare(Numbers, str(tmp_path))).train.inputs)

    expected = read()
    assert expected == [f"number {i}" for i in range(40)]
    assert "preparing" in capsys.readouterr().err
    folder = next((tmp_path / "prepared").rglob("dataset_info.json")).parent
    assert read() == expected
    assert capsys.readouterr().err == ""  # intact, so not made anew
    rng = random.Random(0)
    for path in [path for path in sorted(folder.iterdir()) if path.stat().st_size]:
        flip(path, rng.randrange(10**6))
        assert read() == expected, path
        assert "is not what was prepared" in capsys.readouterr().err, path


def test_a_damaged_record_is_a_sentence(tmp_path: Path) -> None:
    """Of catalogue data sets, which are too large to be hashed: a chunk of ArrayRecord has a hash of its own."""
    builder = builders.prepare(Numbers, str(tmp_path))
    file = next(Path(builder.data_path).glob("*train.array_record*"))
    content = bytearray(file.read_bytes())
    at = content.find(b"number 17")
    if at < 0:  # compressed
        at = len(content) // 2 if any(content[len(content) // 2 :]) else 70
    content[at] ^= 4
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        builders.Records(builder, "train").all("text")
