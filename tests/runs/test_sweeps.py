"""Sweeps from the command line: names, values checked up front, restarts, failing jobs, and the three launchers."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax import train
from mrl_jax.runs import read_rows, sweeps
from mrl_jax.system.errors import UserError

# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        ("optimizer.learning_rate=0.003", "optimizer.learning_rate=0.003"),
        ("arms=[mrl],loss.weighting=uncertainty", "arms=mrl,loss.weighting=uncertainty"),
        ("+experiment=reuters_r8", "experiment=reuters_r8"),
        ("", None),
    ],
)
def test_a_run_is_named_after_what_is_swept(swept: str, name: str | None) -> None:
    found = sweeps.run_name(swept)
    assert (found or "").rpartition("-")[0] == name or found == name


values = st.text(st.characters(exclude_characters="[]{}'\"+"), max_size=300)


@given(values, values)
def test_a_name_is_one_folder_and_tells_jobs_apart(a: str, b: str) -> None:
    names = [sweeps.run_name(f"data.train={text}") for text in (a, b)]
    assert (names[0] == names[1]) == (a == b)
    for name in names:
        assert name is not None
        assert len(name) < 130
        assert name.startswith("data.train=")
        assert not set(name) & set("/\\ '\"[]{}\0\n")


# ---- what is checked before the first job ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.learning_rate=0.1,fast", "optimizer.learning_rate"),
        ("trainer.steps=30,-1", "trainer.steps"),
        ("encoder=bag,bga", "bga"),
        ("arms=[mrl],[mlr]", "mlr"),
        ("traner.steps=30,40", "traner"),
        ("trainer.steps=30,40,", "trainer.steps"),
        ("trainer.steps=range(1,3", "trainer.steps"),
        ("hydra/launcher=slurm", "submitit_slurm"),
    ],
)
def test_a_mistake_in_any_value_stops_the_sweep_at_once(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    assert train.main(["--multirun", *tiny, f"results_dir={tmp_path}", word]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_job_on_slurm_may_run_out_of_time(tiny: list[str]) -> None:
    """The launcher queues a preempted job again by itself, but one that ran out of time only if it is told to."""
    words = [*tiny, "hydra/launcher=submitit_slurm"]
    assert f"hydra.launcher.max_num_timeout={sweeps.MAX_TIMEOUTS}" in sweeps.prepare(words).overrides
    for plus in ("", "+", "++"):
        given = sweeps.prepare([*words, f"{plus}hydra.launcher.max_num_timeout=3"]).overrides
        assert not any(word.startswith("hydra.launcher.max_num_timeout") for word in given)
    assert not any("max_num_timeout" in word for word in sweeps.prepare(tiny).overrides)


@pytest.mark.slow
def test_where_nothing_is_swept_the_run_is_named_after_the_sweep(tiny: list[str], tmp_path: Path) -> None:
    """So that a job that is queued again, the same call once more, finds what it has begun."""
    words = [*tiny, f"results_dir={tmp_path}", "evaluation.refit=null", f"hydra.sweep.dir={tmp_path / 'mine'}"]
    assert sweep(words).returncode == 0
    (table,) = (tmp_path / "tiny").glob("mine/evaluation.csv")
    written = table.stat().st_mtime_ns
    assert sweep(words).returncode == 0
    assert table.stat().st_mtime_ns == written
    assert len([path for path in (tmp_path / "tiny").iterdir() if not path.is_symlink()]) == 1


def test_a_launcher_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sweeps.LAUNCHERS, "joblib", "no_such_package.at_all")
    with pytest.raises(UserError, match=r"hydra/launcher=joblib is not installed: pip install 'mrl_jax\[sweeps\]'"):
        sweeps.prepare(["hydra/launcher=joblib", "seeds=1,2"])


# ---- in processes of their own, as users start them ------------------------------------------------------------------


def sweep(words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mrl_jax.train", "--multirun", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def changed(results: Path) -> dict[Path, int]:
    """When each file of the runs was last written."""
    return {path: path.stat().st_mtime_ns for path in results.glob("tiny/*=*/evaluation.csv")}


@pytest.mark.slow
def test_sweep_again_does_only_what_is_missing(tiny: list[str], tmp_path: Path) -> None:
    words = [
        *tiny,
        f"results_dir={tmp_path}",
        "evaluation.refit=null",
        "optimizer.weight_decay=0.01,0.02",
        "arms=[mrl],[mrl_e]",
    ]
    first = sweep(words)
    assert first.returncode == 0, first.stderr
    runs = {path.name for path in (tmp_path / "tiny").iterdir() if not path.is_symlink()}
    assert runs == {f"arms={arm},optimizer.weight_decay={rate}" for arm in ("mrl", "mrl_e") for rate in (0.01, 0.02)}
    assert "INFO" not in first.stderr

    written = changed(tmp_path)
    cut = tmp_path / "tiny" / "arms=mrl_e,optimizer.weight_decay=0.01" / "evaluation.csv"
    rows = read_rows(cut)
    cut.write_text("\n".join(line for line in cut.read_text().splitlines() if ",mrl_e,0," not in line) + "\n")
    again = sweep(words)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("is done") >= 3
    assert {path for path, at in changed(tmp_path).items() if at != written[path]} == {cut}
    assert sorted(read_rows(cut)) == sorted(rows)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, f"results_dir={tmp_path}", "evaluation.refit=null", "trainer.batch_size=8,16,32"]
    command = [sys.executable, "-m", "mrl_jax.train", "--multirun", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        done = tmp_path / "tiny" / "trainer.batch_size=8" / "plots" / "training.svg"
        for _ in range(1200):
            if done.exists():
                break
            time.sleep(0.1)
        process.kill()
    assert done.exists()
    written = changed(tmp_path)
    again = sweep(words)
    assert again.returncode == 0, again.stderr
    first = tmp_path / "tiny" / "trainer.batch_size=8" / "evaluation.csv"
    assert changed(tmp_path)[first] == written[first]
    assert len(changed(tmp_path)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_a_failing_job_is_reported_and_stops_no_other(tiny: list[str], tmp_path: Path, launcher: str) -> None:
    """The second of three data files lacks a label: only its job fails."""
    good = Path(next(word for word in tiny if word.startswith("data.train=")).partition("=")[2])
    files = [tmp_path / f"{name}.jsonl" for name in ("a", "b", "c")]
    for file in files:
        file.write_text(good.read_text())
    files[1].write_text(good.read_text() + '{"text": "no label"}\n')
    extra = [f"hydra/launcher={launcher}"]
    if launcher == "joblib":
        extra.append("hydra.launcher.n_jobs=2")
    out = sweep(
        [
            *tiny,
            f"results_dir={tmp_path / 'out'}",
            "evaluation.refit=null",
            f"data.train={','.join(map(str, files))}",
            *extra,
        ]
    )
    assert out.returncode == 2
    failed = [line for line in out.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert "b.jsonl" in failed[0]
    assert "label" in failed[0]
    assert out.stderr.splitlines()[-1].startswith("error: 1 of the jobs failed")
    assert len(list((tmp_path / "out").glob("tiny/*=*/evaluation.csv"))) == 2
    (note,) = (tmp_path / "out" / ".sweeps").glob("*/failed/*.json")
    assert json.loads(note.read_text())["job"] == 1
