"""The run directory: nothing is overwritten, half-written or silently continued with another configuration."""

import csv
import errno
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax import config, runs
from mrl_jax.config import Config, TrainerConfig
from mrl_jax.data import DataConfig
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.runs import Log, MetricRow
from mrl_jax.system import files
from mrl_jax.system.errors import UserError


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return Config(
        data=DataConfig("features"),
        encoder=MLPConfig(),
        name="study",
        width=8,
        nesting_dims=(2, 8),
        arms=("mrl", "ff"),
        seeds=2,
        results_dir=str(tmp_path / "results"),
        run="first",
    )


# --- claiming a folder --------------------------------------------------------------------------------------------


def test_a_new_run_holds_its_configuration_and_its_environment(settings, tmp_path):
    directory = runs.claim(settings)
    assert directory == tmp_path / "results" / "study" / "first"
    assert config.from_yaml(directory / "config.yaml") == settings
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    assert len(environment["devices"]) == jax.local_device_count()
    assert environment["cores"] >= 1


def test_a_run_of_the_same_name_is_never_overwritten(settings):
    directory = runs.claim(settings)
    (directory / "evaluation.csv").write_text("precious")
    with pytest.raises(UserError, match=r"run=first exists in .*study and is not overwritten; .*resume=true"):
        runs.claim(settings)
    assert (directory / "evaluation.csv").read_text() == "precious"


def test_a_process_that_ends_while_it_claims_leaves_no_run_behind(settings, monkeypatch, tmp_path):
    """Killed before its first files are written: the name is free, and nothing there looks like a run."""

    def killed():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mrl_jax.runs.directory.environment", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.claim(settings)
    assert runs.names_below(tmp_path / "results" / "study") == []
    with pytest.raises(UserError, match="there is no run there"):
        runs.reopen(settings)
    assert config.from_yaml(runs.claim(settings) / "config.yaml") == settings


def test_an_empty_folder_is_free_and_a_file_is_not(settings, tmp_path):
    study = tmp_path / "results" / "study"
    (study / "first").mkdir(parents=True)
    assert runs.claim(settings) == study / "first"
    (study / "second").write_text("precious")
    with pytest.raises(UserError, match=r"run=second exists .* is not overwritten"):
        runs.claim(replace(settings, run="second"))
    assert (study / "second").read_text() == "precious"


def test_unnamed_runs_of_the_same_second_get_folders_of_their_own(settings, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "2030-01-02_03-04-05")
    unnamed = replace(settings, run=None)
    claimed: list[Path] = []
    threads = [threading.Thread(target=lambda: claimed.append(runs.claim(unnamed))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stem = "2030-01-02_03-04-05"
    assert sorted(path.name for path in claimed) == [stem, f"{stem}-2", f"{stem}-3", f"{stem}-4"]


def test_latest_points_to_the_run_claimed_last(settings, tmp_path):
    study = tmp_path / "results" / "study"
    runs.claim(settings)
    assert (study / "latest").resolve() == study / "first"
    runs.claim(replace(settings, run="second"))
    assert (study / "latest").resolve() == study / "second"
    assert not (study / "latest").readlink().is_absolute()  # results may be moved
    assert sorted(os.listdir(study)) == ["first", "latest", "second"]


def test_a_folder_called_latest_is_left_alone(settings, tmp_path):
    study = tmp_path / "results" / "study"
    (study / "latest").mkdir(parents=True)
    runs.claim(settings)
    assert (study / "latest").is_dir()
    assert not (study / "latest").is_symlink()
    assert sorted(os.listdir(study)) == ["first", "latest"]


def test_results_that_cannot_be_written_are_one_sentence(settings, tmp_path):
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*results/study/first: Not a directory"):
        runs.claim(settings)


# --- finding and resuming -----------------------------------------------------------------------------------------


def test_the_same_configuration_reopens_its_run_by_name_or_as_the_latest(settings):
    directory = runs.claim(settings)
    assert runs.reopen(replace(settings, resume=True)) == directory
    assert runs.reopen(replace(settings, resume=True, run=None)) == directory


def test_results_may_have_moved_before_they_are_resumed(settings, tmp_path):
    runs.claim(settings)
    (tmp_path / "results").rename(tmp_path / "moved")
    moved = replace(settings, resume=True, results_dir=str(tmp_path / "moved"))
    assert runs.reopen(moved) == tmp_path / "moved" / "study" / "first"


def test_resuming_a_run_that_is_not_there_names_the_nearest(settings):
    runs.claim(settings)
    runs.claim(replace(settings, run="second"))
    with pytest.raises(UserError, match=r"no run .*frist \(did you mean first\?\); runs there: first, second$"):
        runs.reopen(replace(settings, run="frist"))


def test_resuming_where_nothing_ever_ran_says_so(settings):
    with pytest.raises(UserError, match=r"no run .*study/latest; there is no run there"):
        runs.reopen(replace(settings, run=None))


def test_resuming_with_another_configuration_names_the_keys_that_differ(settings):
    runs.claim(settings)
    other = replace(settings, seeds=1, trainer=TrainerConfig(batch_size=64))
    with pytest.raises(UserError) as raised:
        runs.reopen(other)
    assert "seeds=2 (now 1)" in str(raised.value)
    assert "trainer.batch_size=256 (now 64)" in str(raised.value)
    assert "optimizer" not in str(raised.value)


def test_a_run_is_found_by_its_folder_and_by_its_experiment(settings, tmp_path):
    first = runs.claim(settings)
    second = runs.claim(replace(settings, run="second"))
    assert runs.find(first) == first
    assert runs.find(tmp_path / "results" / "study") == second
    (tmp_path / "results" / "study" / "latest").unlink()
    assert runs.find(tmp_path / "results" / "study") == second
    with pytest.raises(UserError, match=r"is not a run: there is no config\.yaml"):
        runs.find(tmp_path)


# --- files --------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "file.txt"
    files.write(file, "old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"no space left for .*file\.txt"):
        files.write(file, "new and longer")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_reader_sees_the_old_file_or_the_new_one_and_nothing_between(tmp_path):
    file, versions = tmp_path / "file.txt", {letter * 2**20 for letter in "abc"}
    files.write(file, "a" * 2**20)
    done = threading.Event()

    def rewrite():
        for _ in range(5):
            for content in sorted(versions):
                files.write(file, content)
        done.set()

    thread = threading.Thread(target=rewrite)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add(file.read_text())
    thread.join()
    assert seen <= versions


def test_write_makes_the_folder_and_takes_bytes(tmp_path):
    files.write(tmp_path / "a" / "b" / "file", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"\x00\xff"


# --- metrics.jsonl ------------------------------------------------------------------------------------------------


def line(member: str, step: int) -> dict:
    return {"member": member, "step": step, "split": "train", "loss": {"8": 0.1 + step}}


def test_a_log_reads_back_what_was_appended(tmp_path):
    log = Log(tmp_path / "metrics.jsonl")
    assert list(log.read()) == []
    log.append([line("mrl-seed0", 5), line("mrl-seed1", 5)])
    log.append([line("mrl-seed0", 10)])
    assert list(log.read()) == [line("mrl-seed0", 5), line("mrl-seed1", 5), line("mrl-seed0", 10)]


def test_rewinding_drops_only_later_lines_of_the_members_that_resume(tmp_path):
    log = Log(tmp_path / "metrics.jsonl")
    log.append([line(member, step) for step in (5, 10, 15) for member in ("mrl-seed0", "ff8-seed0")])
    log.rewind(["mrl-seed0"], 10)
    assert [(x["member"], x["step"]) for x in log.read()] == [
        ("mrl-seed0", 5),
        ("ff8-seed0", 5),
        ("mrl-seed0", 10),
        ("ff8-seed0", 10),
        ("ff8-seed0", 15),
    ]


@given(cut=st.integers(1, len(json.dumps(line("mrl-seed0", 10)))))
def test_a_last_line_cut_off_anywhere_is_dropped_and_the_log_goes_on(tmp_path_factory, cut):
    log = Log(tmp_path_factory.mktemp("log") / "metrics.jsonl")
    log.append([line("mrl-seed0", 5), line("mrl-seed0", 10)])
    os.truncate(log.path, log.path.stat().st_size - 1 - cut)
    log.rewind(["mrl-seed0"], 10)
    log.append([line("mrl-seed0", 10)])
    assert [json.loads(text) for text in log.path.read_text().splitlines()] == [line("mrl-seed0", s) for s in (5, 10)]


# --- evaluation.csv -----------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)
rows = st.builds(
    MetricRow, names, names, st.integers(0, 99), st.integers(1, 4096), st.just("test"), names, st.floats(0, 1, width=32)
)


@given(content=st.lists(rows, max_size=8))
def test_rows_read_back_as_written_to_six_decimals(tmp_path_factory, content):
    """Also names with commas and quotes."""
    file = tmp_path_factory.mktemp("rows") / "evaluation.csv"
    runs.write_rows(file, content)
    back = runs.read_rows(file)
    assert [row[:-1] for row in back] == [row[:-1] for row in content]
    assert [row.value for row in back] == pytest.approx([row.value for row in content], abs=5.1e-7)


def test_evaluation_csv_is_a_plain_table_that_other_tools_read(tmp_path):
    runs.write_rows(tmp_path / "evaluation.csv", [MetricRow("study", "ff", 1, 8, "test", "knn_top1", 1 / 3)])
    with (tmp_path / "evaluation.csv").open() as file:
        header, row = csv.reader(file)
    assert header == ["experiment", "arm", "seed", "dim", "split", "metric", "value"]
    assert row == ["study", "ff", "1", "8", "test", "knn_top1", "0.333333"]


def test_no_evaluation_has_no_rows(tmp_path):
    assert runs.read_rows(tmp_path / "evaluation.csv") == []
