"""`python -m mrl_jax.predict`, `model.predict`: class names as the classifiers give them by hand, files that go on."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import write_table

import mrl_jax
from mrl_jax import cascade, predict
from mrl_jax.evaluate import adaptive
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError

TOPICS = ("orbit", "hockey", "kernel", "garden")
LOOSE = ["--cascade", "--epsilon", "0.3", "--delta", "0.2"]  # what the few validation texts can certify


@pytest.fixture(scope="module")
def model(trained: Path) -> EmbeddingModel:
    return mrl_jax.load(trained, "mrl")


@pytest.fixture(scope="module")
def held_out(texts: dict[str, Path]) -> list[dict]:
    return [json.loads(line) for line in texts["test"].read_text().splitlines()]


@pytest.fixture(scope="module")
def inputs(held_out: list[dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test texts with ids."""
    path = tmp_path_factory.mktemp("inputs") / "texts.jsonl"
    path.write_text("".join(json.dumps({"_id": f"d{i}", "text": row["text"]}) + "\n" for i, row in enumerate(held_out)))
    return path


def probabilities_by_hand(model: EmbeddingModel, raw: list[str], dim: int, temperature: float) -> np.ndarray:
    kernel, bias = (x.astype(np.float64) for x in model.classifiers()[dim])
    logits = (model.embed(raw)[:, :dim].astype(np.float64) @ kernel + bias) / temperature
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- in Python -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["mrl", "mrl_e", "ff8"])
def test_predictions_are_those_of_the_classifier_by_hand(trained: Path, held_out: list[dict], arm: str) -> None:
    model, raw = mrl_jax.load(trained, arm), [row["text"] for row in held_out]
    for k, dim in enumerate(model.dims):
        names, p = model.predict(raw, dim=dim)
        expected = probabilities_by_hand(model, raw, dim, model.calibration.temperatures[0, k])
        np.testing.assert_allclose(p, expected, atol=1e-5)
        assert names == [model.classes[i] for i in expected.argmax(axis=1)]
    assert model.predict(raw)[0] == names  # the largest dim is the default
    assert np.mean([name == row["label"] for name, row in zip(names, held_out, strict=True)]) > 0.8
    names, p = model.predict([])
    assert (names, p.shape) == ([], (0, 4))


def test_a_tied_head_answers_at_every_dim_calibrated_where_it_was_trained(trained: Path) -> None:
    model = mrl_jax.load(trained, "mrl_e")
    raw = ["orbit1 common3", "garden2"]
    np.testing.assert_allclose(model.predict(raw, dim=6)[1].sum(axis=1), 1)
    assert [model.classifier(dim).calibrated for dim in (4, 6)] == [True, False]


def test_the_calibration_is_that_of_the_validation_split(trained: Path, texts: dict[str, Path]) -> None:
    """Against temperatures from the outcomes of the run: fitted to validation, whose labels predictions/ has."""
    stored = mrl_jax.load(trained, "mrl").calibration
    with np.load(trained / "predictions" / "mrl-seed0.npz") as outcomes:
        for k, dim in enumerate((4, 8, 16)):
            np.testing.assert_array_equal(stored.right[k], outcomes[f"validation/linear_top1/{dim}"] == 1)
    assert stored.kind == "margin"


@pytest.mark.parametrize("arm", ["mrl", "mrl_e"])
def test_a_cascade_is_the_ten_lines_that_it_replaces(trained: Path, arm: str) -> None:
    model, rng = mrl_jax.load(trained, arm), np.random.default_rng(0)
    labels = rng.choice(TOPICS, 300)
    raw = [  # of two topics, so that some are hard
        " ".join(f"{word}{n}" for word in (label, label, rng.choice(TOPICS)) for n in rng.integers(0, 30, 2))
        for label in labels
    ]
    model.calibrate(raw, labels, kind="max_softmax", seed=3)
    made = model.cascade(epsilon=0.1, delta=0.2)
    heads, z = model.classifiers(), model.embed(raw)
    logits = [z[:, :m] @ kernel + bias for m, (kernel, bias) in heads.items()]
    numbers = np.array([model.classes.index(label) for label in labels])
    rule = adaptive.rules(logits, numbers, 0.1, 0.2, "max_softmax", seed=3)["certified"]
    assert made.rule.certified == rule.certified
    np.testing.assert_allclose(made.rule.thresholds, rule.thresholds, atol=1e-5)
    np.testing.assert_allclose(made.rule.temperatures, rule.temperatures, rtol=1e-3)
    rule = made.rule._replace(thresholds=np.array([0.8, 0.9]))
    classes, stage = cascade.serve(
        z, list(heads.values()), rule.temperatures, rule.thresholds, rule.kind, tied=arm == "mrl_e"
    )
    names, p, dims = dataclasses.replace(made, rule=rule).predict(raw)
    assert names == [model.classes[i] for i in classes]
    np.testing.assert_array_equal(dims, np.array(model.dims)[stage])
    assert set(dims) == {4, 8, 16}
    for k, dim in enumerate(model.dims):
        here = [text for text, m in zip(raw, dims, strict=True) if m == dim]
        expected = probabilities_by_hand(model, here, dim, rule.temperatures[k])
        np.testing.assert_allclose(p[dims == dim], expected, atol=1e-5)


def test_calibration_lowers_the_loss_of_probabilities(model: EmbeddingModel, held_out: list[dict]) -> None:
    raw, labels = [row["text"] for row in held_out], [model.classes.index(row["label"]) for row in held_out]

    def loss() -> float:
        return float(-np.mean(np.log(model.predict(raw, dim=4)[1][np.arange(len(labels)), labels])))

    kept = model.calibration
    model.calibration = None
    before = loss()
    model.calibrate(raw, [row["label"] for row in held_out])
    assert loss() <= before + 1e-6
    model.calibration = kept


@pytest.mark.parametrize(
    ("act", "error", "said"),
    [
        (lambda m: m.predict(["x"], dim=6), ValueError, "dim=6 has no classifier; allowed: 4, 8, 16"),
        (lambda m: m.predict("x"), ValueError, "a list of texts is needed; got one text"),
        (lambda m: m.cascade(epsilon=2), ValueError, "epsilon=2 is not allowed; between 0 and 1"),
        (lambda m: m.cascade(), ValueError, "calibration examples cannot certify epsilon=0.01"),
        (lambda m: m.calibrate(["x"], ["orbits"]), UserError, "label=orbits is unknown (did you mean orbit?)"),
        (lambda m: m.calibrate(["x"], []), ValueError, "1 inputs and 0 labels"),
        (lambda m: m.calibrate([], []), ValueError, "0 inputs and 0 labels"),
    ],
)
def test_mistakes_are_said(model: EmbeddingModel, act: object, error: type, said: str) -> None:
    with pytest.raises(error) as raised:
        act(model)
    assert said in str(raised.value)


# ---- from the command line -------------------------------------------------------------------------------------------


def test_a_line_per_text_has_id_label_probability_and_dims(
    trained: Path, model: EmbeddingModel, held_out: list[dict], inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "labels.jsonl"
    assert predict.main([str(trained), str(inputs), "--dim", "8", "--top-k", "9", "--out", str(out)]) == 0
    names, p = model.predict([row["text"] for row in held_out], dim=8)
    lines = read(out)
    assert [line["id"] for line in lines] == [f"d{i}" for i in range(80)]
    assert [line["label"] for line in lines] == names
    assert {line["dims"] for line in lines} == {8}
    np.testing.assert_allclose([line["probability"] for line in lines], p.max(axis=1), atol=1e-6)
    np.testing.assert_allclose([line["probabilities"] for line in lines], -np.sort(-p, axis=1), atol=1e-6)
    assert all(line["labels"][0] == line["label"] and len(set(line["labels"])) == 4 for line in lines)
    assert [path.name for path in out.parent.iterdir()] == ["labels.jsonl"]


def test_a_cascade_says_the_dims_that_it_read(
    trained: Path, model: EmbeddingModel, held_out: list[dict], inputs: Path, tmp_path: Path
) -> None:
    assert predict.main([str(trained), str(inputs), *LOOSE, "--out", str(tmp_path / "labels.jsonl")]) == 0
    names, _, dims = model.cascade(0.3, 0.2).predict([row["text"] for row in held_out])
    lines = read(tmp_path / "labels.jsonl")
    assert [(line["label"], line["dims"]) for line in lines] == list(zip(names, dims, strict=True))


def test_texts_are_read_from_every_format(trained: Path, held_out: list[dict], tmp_path: Path) -> None:
    raw = [row["text"] for row in held_out[:7]]
    expected = None
    for suffix in (".jsonl", ".csv", ".tsv", ".parquet", ".txt"):
        path, out = tmp_path / f"texts{suffix}", tmp_path / f"{suffix[1:]}-labels.jsonl"
        if suffix == ".txt":
            path.write_text("\r\n".join(raw))
        else:
            write_table(path, [{"id": i, "text": text, "more": "x"} for i, text in enumerate(raw)])
        assert predict.main([str(trained), str(path), "--out", str(out)]) == 0
        lines = read(out)
        ids = [line.pop("id", None) for line in lines]
        assert [None if id_ is None else int(id_) for id_ in ids] == (
            [None] * 7 if suffix == ".txt" else list(range(7))
        )
        expected = expected or lines
        assert lines == expected


def test_standard_input_goes_to_standard_output(
    trained: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert predict.main([str(trained), str(inputs), "--out", str(tmp_path / "labels.jsonl")]) == 0
    capfd.readouterr()
    with inputs.open() as file:
        saved = os.dup(0)
        os.dup2(file.fileno(), 0)
        try:
            assert predict.main([str(trained), "-", "--out", "-"]) == 0
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    assert capfd.readouterr().out == (tmp_path / "labels.jsonl").read_text()


@pytest.mark.slow
def test_a_reader_that_closes_the_pipe_is_no_traceback(trained: Path, inputs: Path) -> None:
    many = inputs.with_name("many.jsonl")
    many.write_text(inputs.read_text() * 60)
    command = f"{sys.executable} -m mrl_jax.predict {trained} {many} --out - | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


# ---- what a killed command leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--dim", "4", "--top-k", "2"], LOOSE])
def test_a_stopped_file_is_continued_to_the_same_bytes(
    trained: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(predict, "BLOCK_ROWS", 16)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "labels.jsonl"
    command = [str(trained), str(inputs), *options, "--out"]
    assert predict.main([*command, str(whole)]) == 0
    partial = tmp_path / "labels.jsonl.partial"
    with monkeypatch.context() as patched:
        stopped_after(2, patched)
        assert predict.main([*command, str(out)]) == 130
    assert not out.exists()
    assert partial.read_bytes() == b"".join(whole.read_bytes().splitlines(keepends=True)[:32])
    content = whole.read_bytes()
    for size in (1, len(content) // 3, len(content) // 2, len(content) - 1, len(content)):
        shutil.copy(tmp_path / "labels.jsonl.partial.json", tmp_path / "kept.json")
        partial.write_bytes(content[:size])  # as a kill may leave it: the last line cut
        assert predict.main([*command, str(out)]) == 0
        assert out.read_bytes() == content
        assert {path.name for path in tmp_path.iterdir()} == {"whole.jsonl", "labels.jsonl", "kept.json"}
        out.unlink()
        shutil.copy(tmp_path / "kept.json", tmp_path / "labels.jsonl.partial.json")


def stopped_after(blocks: int, patched: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come when so many blocks are written."""
    real = predict.to_lines

    def count(*args: object) -> object:
        nonlocal blocks
        if not blocks:
            raise KeyboardInterrupt
        blocks -= 1
        return real(*args)

    patched.setattr(predict, "to_lines", count)


def test_only_its_own_beginning_is_continued(
    trained: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "BLOCK_ROWS", 16)
    out, other = tmp_path / "labels.jsonl", tmp_path / "other.jsonl"
    other.write_text(inputs.read_text() + '{"text": "one more"}\n')
    with monkeypatch.context() as patched:
        stopped_after(1, patched)
        assert predict.main([str(trained), str(inputs), "--out", str(out)]) == 130
    assert "the same command continues" in capsys.readouterr().err
    begun = (tmp_path / "labels.jsonl.partial").read_bytes()
    for words, what in (
        ([str(trained), str(other)], "another input"),
        ([str(trained), str(inputs), "--arm", "mrl_e"], "another model and another classifier"),
        ([str(trained), str(inputs), "--dim", "4"], "another classifier"),
        ([str(trained), str(inputs), "--top-k", "3"], "another --top-k"),
    ):
        assert predict.main([*words, "--out", str(out)]) == 2
        assert f"labels.jsonl.partial was begun with {what}; delete it to begin anew" in capsys.readouterr().err
        assert (tmp_path / "labels.jsonl.partial").read_bytes() == begun
    (tmp_path / "labels.jsonl.partial.json").write_text("{")
    assert predict.main([str(trained), str(inputs), "--out", str(out)]) == 2
    assert "was begun with another input" in capsys.readouterr().err
    out.write_text("mine\n")
    assert predict.main([str(trained), str(inputs), "--out", str(out)]) == 2
    assert "labels.jsonl exists; delete it" in capsys.readouterr().err
    assert out.read_text() == "mine\n"


@pytest.mark.slow
def test_a_killed_process_is_continued(trained: Path, inputs: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    many.write_text(inputs.read_text() * 2000)
    command = [sys.executable, "-m", "mrl_jax.predict", str(trained), str(many), "--out"]
    assert subprocess.run([*command, str(tmp_path / "whole.jsonl")], check=False).returncode == 0
    partial = tmp_path / "labels.jsonl.partial"
    with subprocess.Popen([*command, str(tmp_path / "labels.jsonl")]) as process:
        while not (partial.exists() and partial.stat().st_size):
            time.sleep(0.01)
        other = subprocess.run([*command, str(tmp_path / "labels.jsonl")], capture_output=True, text=True, check=False)
        assert other.returncode == 2
        assert "is being written by another process" in other.stderr or "exists" in other.stderr
        process.send_signal(signal.SIGKILL)
    subprocess.run([*command, str(tmp_path / "labels.jsonl")], check=False)
    assert (tmp_path / "labels.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arm", "mrl_f"], "arm=mrl_f is unknown (did you mean mrl"),
        (["--seed", "4"], "seed=4 is not in"),
        (["--dim", "6"], "dim=6 has no classifier; allowed: 4, 8, 16"),
        (["--arm", "mrl_e", "--dim", "17"], "dim=17 is outside 1…16"),
        (["--arm", "mrl_e", "--dim", "0"], "dim=0 is outside 1…16"),
        (["--arm", "ff8", "--cascade"], "this model has one classifier, at dim=8: a cascade needs two or more"),
        (["--dim", "4", "--cascade"], "not allowed with argument"),
        (["--dim", "4", "--epsilon", "0.1"], "--epsilon and --delta go with --cascade"),
        (["--cascade"], "calibration examples cannot certify epsilon=0.01"),
        (["--cascade", "--epsilon", "3"], "argument --epsilon: 3 is not allowed; it must be between 0 and 1"),
        (["--top-k", "0"], "at least 1"),
        (["--calibrate", "no.jsonl"], "--calibrate=no.jsonl: there is no such file"),
        (["--out", "labels.csv"], "--out=labels.csv is not allowed; a file ending in .jsonl"),
    ],
)
def test_a_mistake_in_the_options_is_said(
    trained: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert predict.main([str(trained), str(inputs), "--out", str(tmp_path / "labels.jsonl"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", "", "is empty"),
        ("x.txt", "", "is empty"),
        ("x.jsonl", '{"text": "a"}\n{"txt": "a"}\n', "line 2: the row has no text"),
        ("x.jsonl", '{"text": "a"}\n{"text": 3}\n', "line 2: text must be a string, got 3"),
        ("x.jsonl", '{"text": "a", "_id": 1.5}\n', "line 1: an id must be a string or a whole number, got 1.5"),
        ("x.jsonl", '{"text": "a", "_id": "\\ud800"}\n', "line 1: id holds half of a surrogate pair"),
        ("x.jsonl", '{"text": "\\ud800"}\n', "line 1: text holds half of a surrogate pair"),
        ("x.jsonl", "{", "line 1: not valid JSON"),
        ("x.csv", "a,b\n1,2\n", "x.csv has no column text; its columns are a, b"),
        ("x.npy", "", "unknown file type .npy; allowed: .jsonl, .ndjson, .csv, .tsv, .parquet, .txt"),
    ],
)
def test_a_mistake_in_the_input_is_said_before_anything_is_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content)
    assert predict.main([str(trained), str(tmp_path / name), "--out", str(tmp_path / "labels.jsonl")]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_empty_texts_and_unknown_ones_are_counted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text('text,_id\n"",1\n" ",2\nzzz,\norbit1 orbit2,4\n')
    assert predict.main([str(trained), str(tmp_path / "x.csv"), "--out", str(tmp_path / "labels.jsonl")]) == 0
    said = capsys.readouterr().err
    assert "empty texts: 2; their labels say nothing" in said
    assert "texts without a token that the model knows: 3; their labels" in said
    assert [line.get("id") for line in read(tmp_path / "labels.jsonl")] == ["1", "2", "", "4"]


def test_a_run_that_did_not_calibrate_says_so_and_takes_texts_to_calibrate_on(
    trained: Path, texts: dict[str, Path], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "labels.jsonl"
    shutil.copytree(trained, run)
    (run / "checkpoints" / "mrl-seed0" / "calibration.npz").unlink()
    command = [str(run), str(inputs), "--out", str(out)]
    assert predict.main([*command, *LOOSE]) == 2
    assert "this run is of a version that did not calibrate; give held-out texts" in capsys.readouterr().err
    assert predict.main(command) == 0
    assert "the probabilities at dim=16 are not calibrated: this run is of a version" in capsys.readouterr().err
    model = mrl_jax.load(run)
    raw = [row["text"] for row in read(inputs)]
    expected = probabilities_by_hand(model, raw, 16, 1.0).max(axis=1)
    np.testing.assert_allclose([line["probability"] for line in read(out)], expected, atol=1e-5)
    out.unlink()
    assert predict.main([*command, *LOOSE, "--calibrate", str(texts["test"])]) == 0
    assert "calibrat" not in capsys.readouterr().err


def test_a_damaged_calibration_is_named(
    trained: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    path = run / "checkpoints" / "mrl-seed0" / "calibration.npz"
    content = path.read_bytes()
    with np.load(path) as arrays:
        stored = dict(arrays)
    damaged = [content[:100], b"", b"x" * 100]
    for name, value in {
        "dims": [1, 2, 3], "kind": "best", "seed": -1, "temperatures": stored["temperatures"] * 0,
        "right": stored["right"][:2], "confidences": stored["confidences"] * np.nan,
    }.items():  # fmt: skip
        buffer = io.BytesIO()
        np.savez(buffer, **{**stored, name: np.asarray(value)})
        damaged.append(buffer.getvalue())
    for one in damaged:
        path.write_bytes(one)
        assert predict.main([str(run), str(inputs), "--out", str(tmp_path / "labels.jsonl")]) == 2
        said = capsys.readouterr().err
        assert "calibration.npz" in said
        assert said.count("\n") == 1
    shutil.rmtree(run)
