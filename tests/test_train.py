"""The main job from the command line: contracts of the run directory, resuming, and every mistake a user can make."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mrl_jax
from mrl_jax import arms, config, report, train
from mrl_jax.data.cuts import cut
from mrl_jax.evaluate.metrics import METRICS
from mrl_jax.runs import Log, checkpoint, read_rows
from mrl_jax.system.errors import UserError
from mrl_jax.tasks.classification import Classification
from mrl_jax.training import trainer
from mrl_jax.training.step import TrainStep

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all arms and two seeds."""
    results = tmp_path_factory.mktemp("results")
    assert train.main([*tiny, "arms=all", "seeds=2", f"results_dir={results}", "run=first"]) == 0
    return results / "tiny" / "first"


@pytest.fixture(scope="module")
def quick(tiny: list[str]) -> list[str]:
    """A shorter command: one arm, evaluated without refitting."""
    return [*tiny, "evaluation.refit=null"]


@pytest.fixture(scope="module")
def undisturbed(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the shorter command, which disturbed ones must equal."""
    results = tmp_path_factory.mktemp("results")
    assert train.main([*quick, f"results_dir={results}", "run=whole"]) == 0
    return results / "tiny" / "whole"


def comparable(directory: Path) -> tuple[str, list[dict]]:
    """What two runs of the same command must agree on to the bit."""
    log = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for line in log:
        line.pop("examples_per_second", None)
    return (directory / "evaluation.csv").read_text(), sorted(log, key=lambda x: (x["member"], x["step"], x["split"]))


# -- contracts ---------------------------------------------------------------------------------------------------------


def test_run_directory_holds_what_was_promised(finished: Path) -> None:
    expected = {"config.yaml", "environment.json", "dataset.json", "tokenizer.json", "metrics.jsonl", "evaluation.csv"}
    assert expected <= {path.name for path in finished.iterdir()}
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["versions"]["jax"]
    assert environment["cores"] >= 1
    assert (finished.parent / "latest").resolve() == finished.resolve()


def test_evaluation_is_tidy_and_complete(finished: Path) -> None:
    with (finished / "evaluation.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["experiment", "arm", "seed", "dim", "split", "metric", "value"]
    rows = read_rows(finished / "evaluation.csv")
    assert len({row[:-1] for row in rows}) == len(rows)
    have = {(r.arm, r.dim, r.metric) for r in rows if r.split == "test"}
    own = {"linear_top1", "linear_top5", "ece"}
    near = {"knn_top1", "map@10", "precision@10"}
    bytewise = {f"{kind}_{metric}" for kind in ("int8", "bit") for metric in near}
    nesting, between = {4, 8, 16}, {6, 12}
    trained = [a for a in arms.TRAINED if arms.ARMS[a].in_all]
    compressed = arms.posthoc(["all"])
    assert have == (
        {(a, m, metric) for a in trained for m in nesting for metric in own | near | bytewise | {"refit_top1"}}
        | {(a, m, metric) for a in compressed for m in nesting for metric in own - {"ece"} | near | bytewise}
        | {(a, m, metric) for a in (*trained[:3], *compressed) for m in between for metric in near}
        | {("mrl_e", m, metric) for m in between for metric in own}  # a tied head reads any prefix
        | {(a, m, "own_head_top1") for a in compressed for m in nesting | between}
    )
    assert {r.seed for r in rows} == {0, 1}
    assert all(0 <= r.value <= 1 for r in rows)


def test_predictions_are_the_outcomes_behind_the_table(finished: Path) -> None:
    rows = {(r.arm, r.seed, r.dim, r.split, r.metric): r.value for r in read_rows(finished / "evaluation.csv")}
    checked = 0
    for label, arm, dims in (("mrl-seed1", "mrl", (4, 6)), ("ff8-seed0", "ff", (8,))):
        with np.load(finished / "predictions" / f"{label}.npz") as outcomes:
            for key in outcomes.files:
                split, metric, *dim = key.split("/")
                if metric == "prediction":
                    right = outcomes[key] == outcomes[f"{split}/label"]
                    np.testing.assert_array_equal(right, outcomes[f"{split}/linear_top1/{dim[0]}"])
                elif dim and int(dim[0]) in dims:
                    value = rows[arm, int(label[-1]), int(dim[0]), split, metric]
                    assert outcomes[key].mean() == pytest.approx(value, abs=1e-6)
                    checked += 1
            assert len(outcomes["test/label"]) == 80
    assert checked > 10


def test_post_hoc_arms_compress_the_full_width_model_of_their_seed(finished: Path) -> None:
    """At full width an invertible map loses nothing: its own head says what the model says, FF(16) or MRL, and
    where the map keeps lengths and angles, so do the neighbours. Cut to less, the arms differ."""
    value = {
        (r.arm, r.seed, r.dim, r.metric): r.value for r in read_rows(finished / "evaluation.csv") if r.split == "test"
    }
    for seed in (0, 1):
        for arm in arms.posthoc(["all"]):
            assert value[arm, seed, 16, "own_head_top1"] == pytest.approx(
                value[arms.ARMS[arm].compresses, seed, 16, "linear_top1"], abs=0.013
            )
        for arm in ("truncated", "random_subset"):
            assert value[arm, seed, 16, "knn_top1"] == pytest.approx(value["ff", seed, 16, "knn_top1"], abs=0.013)
        # The classifier is refitted to equal embeddings.
        assert value["truncated", seed, 16, "linear_top1"] == value["ff", seed, 16, "refit_top1"]
    assert len({value[arm, 0, 4, "map@10"] for arm in arms.posthoc(["all"])}) > 2


@pytest.mark.slow
def test_members_trained_together_get_the_same_metrics_as_in_turn(
    finished: Path, tiny: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny, "arms=all", "seeds=2", f"results_dir={tmp_path}", "run=together"]
    assert train.main([*arguments, "trainer.population=vmap", "trainer.arms_at_once=6"]) == 0
    in_turn, together = (
        {row[:-1]: row.value for row in read_rows(directory / "evaluation.csv")}
        for directory in (finished, tmp_path / "tiny" / "together")
    )
    assert in_turn.keys() == together.keys()
    for row, value in in_turn.items():
        refitted = row[5] == "refit_top1" or row[1] in arms.POSTHOC  # L-BFGS may stop a step earlier: an example or two
        assert together[row] == pytest.approx(value, abs=0.03 if refitted else 1e-5), row


def test_a_post_hoc_arm_without_results_is_finished_on_resuming(
    finished: Path, tiny: list[str], tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "tiny" / "first")
    table = tmp_path / "tiny" / "first" / "evaluation.csv"
    whole = sorted(table.read_text().splitlines())
    table.write_text("".join(line for line in table.read_text().splitlines(True) if ",pca,1," not in line))
    assert train.main([*tiny, "arms=all", "seeds=2", f"results_dir={tmp_path}", "run=first", "resume=true"]) == 0
    assert sorted(table.read_text().splitlines()) == whole


def test_log_has_a_loss_for_each_granularity_that_an_arm_trains(finished: Path) -> None:
    log = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    by_member = {line["member"]: set(line["loss"]) for line in log if line["split"] == "train"}
    assert by_member["mrl-seed0"] == by_member["mrl_e-seed1"] == {"4", "8", "16"}
    assert by_member["ff8-seed0"] == {"8"}
    assert {line["step"] for line in log if line["split"] == "train"} == {5, 10, 15, 20, 25, 30}


def test_it_learns(finished: Path) -> None:
    top1 = {(r.arm, r.dim): r.value for r in read_rows(finished / "evaluation.csv") if r.metric == "linear_top1"}
    assert min(top1["mrl", 16], top1["mrl_e", 16], top1["ff", 16]) > 0.9  # chance is 0.25


def test_loaded_model_embeds_as_the_evaluation_did(finished: Path, texts: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in texts["test"].read_text().splitlines()]
    model = mrl_jax.load(finished, arm="mrl", seed=1)
    z = model.encode([line["text"] for line in lines], dim=8)
    assert z.shape == (80, 8)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    database = [json.loads(line) for line in texts["train"].read_text().splitlines()]
    kept = cut(np.array([sorted({x["label"] for x in database}).index(x["label"]) for x in database]), 0.1)[0]
    train_z = model.encode([database[i]["text"] for i in kept], dim=8)
    nearest = (z @ train_z.T).argmax(axis=1)
    hits = np.mean([database[kept[n]]["label"] == line["label"] for n, line in zip(nearest, lines, strict=True)])
    value = {(r.arm, r.seed, r.dim, r.split, r.metric): r.value for r in read_rows(finished / "evaluation.csv")}
    assert hits == pytest.approx(value["mrl", 1, 8, "test", "knn_top1"], abs=1e-6)


@pytest.mark.parametrize(("arm", "label"), [("mrl", "mrl"), ("mrl_e", "mrl_e"), ("ff8", "ff8")])
def test_a_loaded_model_classifies_as_the_evaluation_did(
    arm: str, label: str, finished: Path, texts: dict[str, Path]
) -> None:
    lines = [json.loads(line) for line in texts["test"].read_text().splitlines()]
    model = mrl_jax.load(finished, arm=arm, seed=1)
    z, classifiers = model.embed([line["text"] for line in lines]), model.classifiers()
    assert list(classifiers) == ([8] if arm == "ff8" else [4, 8, 16])
    with np.load(finished / "predictions" / f"{label}-seed1.npz") as kept:
        for m, (kernel, bias) in classifiers.items():
            np.testing.assert_array_equal((z[:, :m] @ kernel + bias).argmax(axis=1), kept[f"test/prediction/{m}"])


def test_same_text_same_vector_in_any_batch(finished: Path) -> None:
    model = mrl_jax.load(finished)
    words = ["orbit1 common2", "garden3 " * 40 + " ".join(f"common{i}" for i in range(40)), "", "unknownword"]
    together = model.encode(words, batch_size=3)
    alone = np.concatenate([model.encode([text]) for text in words])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_loading_says_what_is_wrong(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(mrl_jax.system.errors.UserError, match="is not a run"):
        mrl_jax.load(tmp_path)
    with pytest.raises(mrl_jax.system.errors.UserError, match=r"arm=mlr .*did you mean mrl\?"):
        mrl_jax.load(finished, arm="mlr")
    with pytest.raises(mrl_jax.system.errors.UserError, match="seed=2"):
        mrl_jax.load(finished, seed=2)
    model = mrl_jax.load(finished)
    with pytest.raises(ValueError, match="dim=17 is outside 1…16"):
        model.encode(["a"], dim=17)
    with pytest.raises(ValueError, match="list of texts"):
        model.encode("a")


# -- never overwritten, always resumable -------------------------------------------------------------------------------


def test_an_existing_run_is_never_overwritten(finished: Path, tiny: list[str], capsys: pytest.CaptureFixture) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    arguments = [*tiny, "arms=all", "seeds=2", f"results_dir={finished.parent.parent}", "run=first"]
    assert train.main(arguments) == 2
    assert "run=first exists" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_resume_with_another_configuration_is_refused(
    finished: Path, tiny: list[str], capsys: pytest.CaptureFixture
) -> None:
    arguments = [*tiny, "arms=all", "seeds=2", f"results_dir={finished.parent.parent}", "run=first", "resume=true"]
    assert train.main([*arguments, "optimizer.learning_rate=0.5"]) == 2
    assert "optimizer.learning_rate=0.02 (now 0.5)" in capsys.readouterr().err
    assert train.main([*arguments[:-2], "resume=true", "run=frist"]) == 2
    assert "did you mean first?" in capsys.readouterr().err


def test_a_finished_run_is_resumed_to_more_seeds(quick: list[str], undisturbed: Path, tmp_path: Path) -> None:
    """The first seed stays as it is, and the second is that of a run which was begun with two."""
    shutil.copytree(undisturbed, directory := tmp_path / "tiny" / "whole")
    words = [*quick, f"results_dir={tmp_path}"]
    assert train.main([*words, "run=whole", "seeds=2", "resume=true"]) == 0
    assert train.main([*words, "run=begun", "seeds=2"]) == 0
    assert comparable(directory) == comparable(tmp_path / "tiny" / "begun")
    assert {row.seed for row in read_rows(directory / "evaluation.csv")} == {0, 1}
    assert config.from_yaml(directory / "config.yaml").seeds == 2
    assert mrl_jax.load(directory, seed=1).encode(["orbit1"]).shape == (1, 16)  # sealed again


@pytest.mark.slow
def test_killed_at_any_moment_a_run_resumes_to_the_same_bits(tiny: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mrl_jax.train", *tiny, "arms=[mrl,ff]", "nesting_dims=[4,16]"]
    command += ["trainer.steps=200", "trainer.checkpoint_seconds=0", f"results_dir={tmp_path}"]
    assert subprocess.run([*command, "run=whole"], cwd=ROOT, capture_output=True, check=False).returncode == 0
    victim = tmp_path / "tiny" / "killed"
    deaths = 0
    for attempt in range(12):
        extra = ["run=killed", *(["resume=true"] if (victim / "config.yaml").exists() else [])]
        process = subprocess.Popen([*command, *extra], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        states = len(list(victim.glob("checkpoints/*/state/step-*"))), len(list(victim.glob("checkpoints/*/model")))
        while process.poll() is None and attempt < 4:  # kill once it has visibly come further than before
            now = len(list(victim.glob("checkpoints/*/state/step-*"))), len(list(victim.glob("checkpoints/*/model")))
            if now != states and now[0]:
                time.sleep(0.05 * attempt)
                process.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        if process.wait() == 0:
            break
        deaths += 1
    assert deaths >= 1
    assert comparable(victim) == comparable(tmp_path / "tiny" / "whole")


def test_sigterm_during_evaluation_costs_no_training(
    quick: list[str],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The trained model is kept before it is scored; the exit status is one that says: try again."""
    words = [*quick, f"results_dir={tmp_path}", "run=a"]
    with monkeypatch.context() as patched:
        patched.setattr(Classification, "score", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert train.main(words) == 75
    assert "stopped by SIGTERM; continue with the same command and resume=true" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "fit", lambda *_: pytest.fail("trained again"))
        assert train.main([*words, "resume=true"]) == 0
    assert comparable(tmp_path / "tiny" / "a") == comparable(undisturbed)


def test_resume_auto_begins_or_continues(quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*quick, f"results_dir={tmp_path}", "resume=auto"]
    assert train.main(words) == 2
    assert "resume=auto is not allowed; it needs run=…" in capsys.readouterr().err
    assert train.main([*words, "run=a"]) == 0
    assert train.main([*words, "run=a"]) == 0
    assert train.main([*words[:-1], "run=a"]) == 2
    assert train.main([*words[:-1], "resume=maybe", "run=a"]) == 2
    assert "resume=maybe is not allowed; true, false or auto" in capsys.readouterr().err


def test_ctrl_c_saves_and_resumes_to_the_same_bits(
    quick: list[str], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words, append, signals = [*quick, f"results_dir={tmp_path}", "run=a"], Log.append, []

    def interrupt_once(log: Log, lines: Iterable[dict]) -> None:
        append(log, lines)
        if not signals:
            signals.append(os.kill(os.getpid(), signal.SIGINT))

    with monkeypatch.context() as patched:
        patched.setattr(Log, "append", interrupt_once)
        assert train.main(words) == 130
    errors = capsys.readouterr().err
    assert re.search(r"stopped at step \d+ of 30", errors)
    assert "resume=true" in errors
    assert "Traceback" not in errors
    assert train.main([*words, "resume=true"]) == 0
    assert comparable(tmp_path / "tiny" / "a") == comparable(undisturbed)


def test_every_metric_of_a_run_is_in_the_table_of_metrics(finished: Path) -> None:
    assert {row.metric for row in read_rows(finished / "evaluation.csv")} <= METRICS.keys()


def test_a_finished_run_resumes_to_itself_and_is_drawn(
    finished: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = comparable(finished)
    monkeypatch.setattr(train, "report", report)
    arguments = [*tiny, "arms=all", "seeds=2", f"results_dir={finished.parent.parent}", "run=first", "resume=true"]
    assert train.main(arguments) == 0
    assert comparable(finished) == before
    assert {p.suffix for p in (finished / "plots").iterdir()} == {".png", ".svg"}


def test_a_corrupted_checkpoint_is_named_and_nothing_is_lost(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = [*quick, f"results_dir={tmp_path}", "run=a", "trainer.checkpoint_seconds=0"]
    real, calls = checkpoint.save, []

    def full_after_three(*args, **kwargs):
        calls.append(args)
        if len(calls) > 3:
            raise OSError(28, "No space left on device", "somewhere")
        return real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", full_after_three)
    assert train.main(arguments) == 2
    assert "No space left" in capsys.readouterr().err
    monkeypatch.setattr(checkpoint, "save", real)
    states = tmp_path / "tiny" / "a" / "checkpoints" / "mrl_e-seed0" / "state"
    assert checkpoint.saved_steps(states) == [10, 15]
    for step in (10, 15):
        files = (p for p in (states / f"step-{step:08d}" / "arrays").rglob("*") if p.is_file())
        victim = next(p for p in files if p.stat().st_size > 500)
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    assert train.main([*arguments, "resume=true"]) == 2
    error = capsys.readouterr().err
    assert "damaged" in error
    assert "SHA-256" in error
    assert checkpoint.saved_steps(states) == [10, 15]


def test_when_only_the_newest_checkpoint_is_damaged_the_one_before_is_used(
    quick: list[str], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = [*quick, f"results_dir={tmp_path}", "trainer.checkpoint_seconds=0"]
    monkeypatch.setattr(
        Classification, "score", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert train.main([*arguments, "run=a"]) == 2
    monkeypatch.undo()
    states = tmp_path / "tiny" / "a" / "checkpoints" / "mrl_e-seed0" / "state"
    newest = checkpoint.saved_steps(states)[-1]
    (states / f"step-{newest:08d}" / "manifest.json").write_text("{")
    model = states.with_name("model")
    (model / f"step-{checkpoint.saved_steps(model)[-1]:08d}" / "manifest.json").write_text("{")
    capsys.readouterr()
    assert train.main([*arguments, "run=a", "resume=true"]) == 0
    messages = capsys.readouterr().err
    assert "damaged" in messages
    assert "mrl_e-seed0 is trained again" in messages
    assert "continuing from the one before" in messages
    assert comparable(tmp_path / "tiny" / "a") == comparable(undisturbed)


def test_a_loss_that_is_not_finite_stops_the_run_by_name(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = [*tiny, "optimizer=sgd", "optimizer.learning_rate=1e30", f"results_dir={tmp_path}", "arms=[mrl]"]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert "arm mrl, seed 0, is not finite at step" in error
    assert "granularity" in error or "gradient" in error
    assert "Traceback" not in error


def test_the_best_model_survives_a_loss_that_is_not_finite(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = TrainStep.schedule.func
    monkeypatch.setattr(  # a rate that explodes after the first validation
        TrainStep, "schedule", property(lambda self: lambda step: jnp.where(step > 14, 1e30, real(self)(step)))
    )
    assert train.main([*tiny, f"results_dir={tmp_path}", "run=a", "arms=[mrl]"]) == 2
    assert "its best model, of step 10, is kept" in capsys.readouterr().err
    assert np.isfinite(mrl_jax.load(tmp_path / "tiny" / "a").encode(["orbit1 common3"])).all()
    # It is not what training would have ended with: a run that is resumed does not take it for that.
    assert train.main([*tiny, f"results_dir={tmp_path}", "run=a", "arms=[mrl]", "resume=true"]) == 2
    assert "is not finite at step" in capsys.readouterr().err


def test_two_processes_never_share_a_run(finished: Path, tiny: list[str], capsys: pytest.CaptureFixture) -> None:
    code = "import sys, time; from pathlib import Path; from mrl_jax import runs\n"
    code += "with runs.lock(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(finished)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    arguments = [*tiny, "arms=all", "seeds=2", f"results_dir={finished.parent.parent}", "run=first", "resume=true"]
    assert train.main(arguments) == 2
    assert "being trained by another process" in capsys.readouterr().err
    other.kill()
    other.wait()
    assert train.main(arguments) == 0


def test_a_run_whose_models_are_gone_is_trained_again(quick: list[str], undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "tiny" / "whole"
    shutil.copytree(undisturbed, directory)
    shutil.rmtree(directory / "checkpoints")
    (directory / "tokenizer.json").unlink()
    assert train.main([*quick, f"results_dir={tmp_path}", "run=whole", "resume=true"]) == 0
    assert comparable(directory) == comparable(undisturbed)
    assert mrl_jax.load(directory).encode(["orbit1"]).shape == (1, 16)


@pytest.mark.parametrize("name", ["evaluation.csv", "config.yaml", "dataset.json", "idf.json", "tokenizer.json"])
def test_a_damaged_file_of_a_run_is_named(name: str, finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(finished, directory)
    (directory / name).write_bytes(b"\x00{broken")

    def use() -> None:
        read_rows(directory / "evaluation.csv")
        mrl_jax.load(directory)

    if name == "evaluation.csv":
        (directory / name).write_text((finished / name).read_text()[:-12])
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        use()


# -- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = {
    "+experiment=newsgroup": "did you mean newsgroups?",
    "experiment=newsgroups": "+experiment=newsgroups",
    "trainer.step=5": "did you mean trainer.steps?",
    "+trainer.step=5": "did you mean steps?",
    "trainer.steps=abc": "trainer.steps=abc is not allowed; a whole number",
    "trainer.steps=1.5": "a whole number",
    "trainer.batch_size=0": "at least 1",
    "trainer.accumulate=3": "a divisor of trainer.batch_size=32",
    "trainer.precision=hihgest": "did you mean highest",
    "encoder=bagg": "did you mean bag?",
    "encoder=convnet": "encoder=convnet cannot read text",
    "data=newsgrups": "did you mean newsgroups?",
    "optimizer=adam": "did you mean adamw?",
    "optimizer.learning_rate=-1": "more than 0",
    "nesting_dims=[8,4,16]": "not ascending",
    "nesting_dims=[4,4,16]": "repeat 4",
    "nesting_dims=[4,32]": "beyond the embedding width 16",
    "nesting_dims=[4,8]": "end at the embedding width 16",
    "nesting_dims=[]": "empty",
    "nesting_dims=[0,16]": "at least 1",
    "nesting_dims=lgo": "did you mean log?",
    "nesting_dims=[a,16]": "a whole number",
    "width=wide": "width=wide",
    "arms=mlr": "did you mean mrl?",
    "seeds=0": "1 to 10000",
    "loss.weights=[1,2]": "needs 3",
    "loss.weights=[1,2,-1]": "none below 0",
    "loss.label_smoothing=1": "0 ≤ value < 1",
    "resume=maybe": "true, false or auto",
    "name=a/b": "one folder",
    "nesting_dims=[8,16": "cannot read nesting_dims=[8,16: ",
    "newsgroups": "cannot read newsgroups: ",
    "~seeds": "seeds is missing",
    "data=null": "data=None is unknown",
    "trainer.epochs=inf": "a finite number",
    "encoder.dropout=2": "0 ≤ value < 1",
    "encoder=transformer": "encoder.projection=true",
    "hydra.job.chdir=true": "not for a single run",
    "data.train=/nowhere/a.jsonl": "/nowhere/a.jsonl",
}


def test_compiled_programs_are_kept_off_the_cpu_only(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config.from_command_line([*tiny, f"data.cache_dir={tmp_path}"])
    before = jax.config.values["jax_compilation_cache_dir"]
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        train._cache_compiled_programs(asked)
        assert jax.config.values["jax_compilation_cache_dir"] is None
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        train._cache_compiled_programs(asked)
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "compiled")
        jax.config.update("jax_compilation_cache_dir", "elsewhere")
        train._cache_compiled_programs(asked)
        assert jax.config.values["jax_compilation_cache_dir"] == "elsewhere"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(
    word: str, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    key = word.lstrip("+").partition("=")[0]
    arguments = [w for w in tiny if w.partition("=")[0] != key]
    status = train.main([*arguments, f"results_dir={tmp_path / 'results'}", word])
    error = capsys.readouterr().err
    assert status == 2
    assert MISTAKES[word] in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("path", sorted((config.CONF / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_composes_and_says_how_to_run_it(path: Path) -> None:
    settings = config.from_command_line([f"+experiment={path.stem}"])
    assert settings.name == path.stem
    assert f"python -m mrl_jax.train +experiment={path.stem}" in path.read_text()


def test_configuration_survives_its_yaml(tmp_path: Path, tiny: list[str]) -> None:
    settings = config.from_command_line(tiny)
    (tmp_path / "config.yaml").write_text(config.to_yaml(settings))
    assert config.from_yaml(tmp_path / "config.yaml") == settings
    more = config.from_command_line([*tiny, "seeds=2"])
    assert config.differences(more, settings) == ["seeds=2 (now 1)"]
    assert config.differences(settings, more) == []  # seeds can be added
    files = ["data=files", "data.train=a.jsonl", "data.test=b.jsonl"]
    for encoder, differs in (
        ([], []),
        (["encoder=transformer", "encoder.weights=minilm", "encoder.frozen=true"], ["data.streaming=None (now True)"]),
    ):
        one, other = (config.from_command_line([*files, *encoder, *more]) for more in ([], ["data.streaming=true"]))
        assert config.differences(one, other) == differs  # batches are the same, unless the encoder is frozen


def test_a_mistake_in_a_sweep_is_one_sentence(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train.main(["--multirun", *tiny, f"results_dir={tmp_path / 'a'}", "trainer.step=3,4"]) == 2
    error = capsys.readouterr().err
    assert "did you mean trainer.steps?" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a").exists()
