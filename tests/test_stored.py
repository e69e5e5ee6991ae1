"""Runs and indexes of an earlier version stay of use: they load, resume, are reported and searched.

`data/stored_runs.tar.gz` was made by `data/make_stored_runs.py` with the code of the commit that each environment.json
names: of classes and of pairs a finished run and one that Ctrl-C stopped in its second member, and two indexes.
"""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

import mrl_jax
from mrl_jax import config, embed, predict, report, search, train
from mrl_jax.model import vectors
from mrl_jax.runs import read_rows
from mrl_jax.system.errors import UserError

ARCHIVE = Path(__file__).parent / "data" / "stored_runs.tar.gz"


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the archive's content, as the current folder: data files are named relative to it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


STUDIES = [path.parent for path in (ARCHIVE.parents[2] / "results" / "reference").glob("*_study/config.yaml")]


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_all_stands_in_a_stored_run_for_the_arms_that_there_were(study: Path) -> None:
    assert "- all\n" in (study / "config.yaml").read_text()
    evaluated = {row.arm for row in read_rows(study / "evaluation.csv")}
    assert {*config.from_yaml(study / "config.yaml").arms} == evaluated


def test_what_was_allowed_once_is_read(stored: Path) -> None:
    """A full width without weight of its own may not teach any more."""
    path = stored / "runs" / "classes" / "whole" / "config.yaml"
    text = path.read_text()
    text = text.replace("  distillation: 0.0\n  weights: null", "  distillation: 1.0\n  weights: [1.0, 1.0, 0.0]")
    path.write_text(text)
    read = config.from_yaml(path).loss
    assert (read.weights, read.distillation) == ((1.0, 1.0, 0.0), 1.0)
    with pytest.raises(UserError, match="the full width teaches, and has no weight"):
        config.from_command_line(["width=8", "nesting_dims=[2,4,8]", "loss.weights=[1,1,0]", "loss.distillation=1"])


def test_embeddings_of_other_idf_are_cached_apart(stored: Path) -> None:
    model = mrl_jax.load(stored / "runs" / "pairs" / "whole")
    before = vectors.identity(model, None)
    assert vectors.identity(mrl_jax.load(stored / "runs" / "pairs" / "whole"), None) == before
    model.reader.idf = 2 * model.reader.idf
    assert vectors.identity(model, None) != before


def test_models_encode_as_they_did(stored: Path) -> None:
    texts = [json.loads(line)["text"] for line in (stored / "test.jsonl").read_text().splitlines()][:8]
    with np.load(stored / "vectors.npz") as expected:
        for name in expected.files:
            run, _, arm = name.partition("/")
            z = mrl_jax.load(stored / "runs" / run / "whole", arm).encode(texts)
            np.testing.assert_allclose(z, expected[name], atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("classes", marks=pytest.mark.slow), "pairs"])
def test_a_stopped_run_resumes_to_what_an_undisturbed_one_gave(stored: Path, name: str) -> None:
    directory, whole = stored / "runs" / name / "stopped", stored / "runs" / name / "whole"
    stopped = config.from_yaml(directory / "config.yaml")
    command = [
        f"data={name.replace('classes', 'files')}", f"data.train={stopped.data.train}",
        f"data.test={stopped.data.test}", f"name={name}", f"arms=[{','.join(stopped.arms)}]", f"seeds={stopped.seeds}",
        f"loss.name={stopped.loss.name}", "width=8", "nesting_dims=[2,4,8]", "trainer.steps=40",
        "trainer.batch_size=16", "trainer.log_every=5", "trainer.evaluations=4", "optimizer.learning_rate=0.02",
        "encoder.word_dropout=0.2", "results_dir=runs", "run=stopped", "resume=true",
    ]  # fmt: skip
    assert train.main(command) == 0
    rows, expected = ({row[:-1]: row.value for row in read_rows(at / "evaluation.csv")} for at in (directory, whole))
    assert expected.keys() <= rows.keys()
    # Another processor may round otherwise, and one of a few test texts may then change sides.
    gaps = np.array([rows[key] - expected[key] for key in expected])
    assert np.abs(gaps).mean() < 0.01
    if os.environ.get("MRL_JAX_SAME_MACHINE"):  # where the archive was made
        np.testing.assert_array_equal(gaps, 0)
    logs = [(at / "metrics.jsonl").read_text().splitlines() for at in (directory, whole)]
    for line, other in zip(*logs, strict=True):
        assert_close(json.loads(line), json.loads(other))


def assert_close(line: dict, other: dict) -> None:
    """Two lines of metrics.jsonl are of one step, with the same losses."""
    assert {key: line[key] for key in ("member", "step", "split")} == {
        key: other[key] for key in ("member", "step", "split")
    }
    for dim, loss in other["loss"].items():
        assert line["loss"][dim] == pytest.approx(loss, rel=1e-3)


def test_a_stored_run_of_pairs_means_what_it_did(stored: Path) -> None:
    """Without the keys that came later: every other document is a negative, and a candidate in the test."""
    pairs, classes = (config.from_yaml(stored / "runs" / name / "stopped/config.yaml") for name in ("pairs", "classes"))
    assert not pairs.loss.mask_known
    assert not pairs.evaluation.ignore_identical_ids
    assert classes.loss.mask_known  # has no bearing on classes, whose runs go with those of today
    again = stored / "config.yaml"
    again.write_text(config.to_yaml(pairs))
    assert config.from_yaml(again) == pairs
    assert not config.missing_keys(again).get("loss")


@pytest.mark.parametrize("name", [pytest.param("pairs", marks=pytest.mark.slow), "classes"])
def test_a_run_is_reported(stored: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = stored / "runs" / name / "whole"
    assert report.main([str(run), "--out", str(stored / "report")]) == 0
    assert (stored / "report" / "report.html").exists()
    assert "MRL" in capsys.readouterr().out


@pytest.mark.parametrize(("index", "run"), [("exact", "pairs"), ("hnsw", "classes")])
def test_an_index_answers_as_it_did(stored: Path, index: str, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = stored / f"{index}.index"
    words = ["query", str(place), "orbit1 orbit4 common3", "--k", "5", "--run", str(stored / "runs" / run / "whole")]
    assert search.main(words) == 0
    answers, expected = capsys.readouterr().out.split("\n"), (stored / f"{index}.index.txt").read_text().split("\n")
    assert [line.split()[2:3] for line in answers] == [line.split()[2:3] for line in expected]


def test_a_run_of_pairs_embeds_and_has_no_classes(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(stored / "runs" / "pairs" / "whole")
    assert embed.main([run, "test.jsonl", "--out", "z.npy"]) == 0
    texts = [json.loads(line)["text"] for line in (stored / "test.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(np.load("z.npy"), mrl_jax.load(run).encode(texts), atol=1e-5)
    for words in ([], ["--cascade"], ["--dim", "4"]):
        assert predict.main([run, "test.jsonl", "--out", "labels.jsonl", *words]) == 2
        assert "this model was trained without classes: it has no classifier" in capsys.readouterr().err


def test_a_run_of_classes_predicts_and_says_that_it_is_not_calibrated(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(stored / "runs" / "classes" / "whole"), "test.jsonl", "--out", "labels.jsonl"]
    assert predict.main(command) == 0
    assert "are not calibrated: this run is of a version that did not calibrate" in capsys.readouterr().err
    rows, lines = ((stored / name).read_text().splitlines() for name in ("test.jsonl", "labels.jsonl"))
    right = [json.loads(row)["label"] == json.loads(line)["label"] for row, line in zip(rows, lines, strict=True)]
    assert np.mean(right) > 0.6
