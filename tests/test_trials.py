"""Arms that try settings before they are trained: the choice, what is stored, resuming, divergence, the report."""

import csv
import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from mrl_jax import report, train
from mrl_jax.report.gather import gather
from mrl_jax.runs import Log, read_rows
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import trials

SPACE = "tune.space={optimizer.learning_rate: log 1e-3 1e-1, encoder.dropout: uniform 0 0.5}"
TRIALS = 3


@pytest.fixture(scope="module")
def command(tiny: list[str]) -> list[str]:
    return [*tiny, "evaluation.refit=null", "evaluation.neighbours=false", "arms=[mrl,ff]", "seeds=2",
            f"tune.trials={TRIALS}", SPACE]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    assert train.main([*command, f"results_dir={results}", "run=a"]) == 0
    return results / "tiny" / "a"


def lines(directory: Path) -> list[dict[str, str]]:
    with (directory / "trials" / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_arm_tries_the_same_settings_and_keeps_its_best(tuned: Path) -> None:
    chosen = json.loads((tuned / "tuned.json").read_text())
    assert [*chosen] == ["mrl", "ff4", "ff8", "ff16"]
    keys = ("optimizer.learning_rate", "encoder.dropout")
    by_arm = {arm: [line for line in lines(tuned) if line["member"].startswith(f"{arm}-trial")] for arm in chosen}
    settings = [[[line[key] for key in keys] for line in of_arm] for of_arm in by_arm.values()]
    assert all(one == settings[0] for one in settings)
    assert len(settings[0]) == 1 + TRIALS
    assert [float(value) for value in settings[0][0]] == [0.02, 0.0]  # as configured
    for arm, entry in chosen.items():
        accuracy = [float(line["accuracy"]) for line in by_arm[arm]]
        best = accuracy.index(max(accuracy))
        assert entry["trial"] == best
        assert entry["validation"] == pytest.approx(max(accuracy))
        assert entry["configured"] == pytest.approx(accuracy[0])
        assert entry["settings"] == {key: float(by_arm[arm][best][key]) for key in keys}
        assert len(entry["expected_best"]) == TRIALS
        assert entry["expected_best"][-1] <= max(accuracy[1:]) + 1e-9
        assert entry["expected_best"][0] == pytest.approx(np.mean(accuracy[1:]))
    log = list(Log(tuned / "trials" / "metrics.jsonl").read())
    assert {line["member"] for line in log} == {line["member"] for line in lines(tuned)}
    assert not any("trial" in line["member"] for line in Log(tuned / "metrics.jsonl").read())
    assert not any("trial" in path.name for path in (tuned / "checkpoints").iterdir())


def test_the_members_are_those_of_a_run_with_the_chosen_settings(
    tuned: Path, command: list[str], tmp_path: Path
) -> None:
    """The settings are arguments there and constants here."""
    chosen = json.loads((tuned / "tuned.json").read_text())["mrl"]["settings"]
    words = [f"{key}={value!r}" for key, value in chosen.items()]
    plain = [word for word in command if not word.startswith("tune.")]
    assert train.main([*plain, *words, "arms=[mrl]", f"results_dir={tmp_path}", "run=b"]) == 0
    apart = {row[:-1]: row.value for row in read_rows(tmp_path / "tiny" / "b" / "evaluation.csv")}
    together = {row[:-1]: row.value for row in read_rows(tuned / "evaluation.csv") if row.arm == "mrl"}
    assert together == pytest.approx(apart, abs=2e-3)  # an answer of 80 is 1.3e-2; probabilities differ by rounding


def test_the_choice_is_that_of_trials_trained_together(command: list[str], tuned: Path, tmp_path: Path) -> None:
    assert train.main([*command, "trainer.population=vmap", f"results_dir={tmp_path}", "run=c"]) == 0
    apart, together = lines(tuned), lines(tmp_path / "tiny" / "c")
    assert [line["member"] for line in apart] == [line["member"] for line in together]
    for one, other in zip(apart, together, strict=True):
        assert float(one["accuracy"]) == pytest.approx(float(other["accuracy"]), abs=0.03)


def test_interrupted_in_a_trial_a_run_goes_on_to_the_same_choice(
    command: list[str], tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words, append, count = [*command, f"results_dir={tmp_path}", "run=a"], Log.append, itertools.count()

    def interrupt_once(log: Log, lines: Iterable[dict]) -> None:
        append(log, lines)
        if next(count) == 12:  # in the second trial
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "append", interrupt_once)
        assert train.main(words) == 130
    assert "mrl-trial1" in capsys.readouterr().err
    directory = tmp_path / "tiny" / "a"
    assert len(lines(directory)) == 1
    assert train.main([*words, "resume=true"]) == 0
    for name in ("trials/trials.csv", "tuned.json", "evaluation.csv"):
        assert (directory / name).read_text() == (tuned / name).read_text()
    before = (directory / "trials" / "trials.csv").stat().st_mtime_ns
    assert train.main([*words, "resume=true"]) == 0  # nothing is left to do
    assert (directory / "trials" / "trials.csv").stat().st_mtime_ns == before


def test_what_another_process_reads_of_trials_is_the_same(
    command: list[str], tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between processes what process 0 reads goes through JSON."""
    monkeypatch.setattr(trials.processes, "on_process0", lambda read: json.loads(json.dumps(read())))
    before = (tuned / "trials" / "trials.csv").stat().st_mtime_ns
    assert train.main([*command, f"results_dir={tuned.parents[1]}", "run=a", "resume=true"]) == 0
    assert (tuned / "trials" / "trials.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize("word", ["tune.seed=1", "tune.trials=5", "tune.space={encoder.dropout: uniform 0 .5}"])
def test_another_space_does_not_resume(
    word: str, command: list[str], tuned: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*(w for w in command if w.partition("=")[0] != word.partition("=")[0]), word]
    assert train.main([*words, f"results_dir={tuned.parents[1]}", "run=a", "resume=true"]) == 2
    error = capsys.readouterr().err
    assert word.partition("=")[0] in error
    assert "Traceback" not in error


@pytest.mark.parametrize("population", ["loop", "vmap"])
def test_a_trial_that_diverges_is_not_chosen(population: str, tiny: list[str], tmp_path: Path) -> None:
    space = "tune.space={optimizer.learning_rate: [1e-1,1e38]}"
    words = [*tiny, "evaluation.refit=null", "evaluation.neighbours=false", "arms=[mrl]", "optimizer=sgd",
             "optimizer.learning_rate=0.02", "tune.trials=2", space, f"trainer.population={population}"]  # fmt: skip
    assert train.main([*words, f"results_dir={tmp_path}", "run=a"]) == 0
    directory = tmp_path / "tiny" / "a"
    rates = {line["optimizer.learning_rate"]: line["accuracy"] for line in lines(directory)}
    assert rates["1e+38"] == "nan"
    entry = json.loads((directory / "tuned.json").read_text())["mrl"]
    assert entry["diverged"] == 1
    assert entry["expected_best"] == pytest.approx([entry["validation"] / 2, entry["validation"] * 3 / 4])
    assert entry["settings"]["optimizer.learning_rate"] < 1


def test_an_arm_that_diverges_with_all_settings_says_so(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*tiny, "arms=[mrl]", "optimizer=sgd", "optimizer.learning_rate=1e37", "tune.trials=1",
             "tune.space={optimizer.learning_rate: [1e37,1e38]}"]  # fmt: skip
    assert train.main([*words, f"results_dir={tmp_path}", "run=a"]) == 2
    assert "all 2 settings of arm mrl diverge; lower optimizer.learning_rate" in capsys.readouterr().err


def test_models_that_were_trained_with_other_settings_are_not_mixed(
    command: list[str], tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(tuned.parent, tmp_path / "tiny")
    path = tmp_path / "tiny" / "a" / "trials" / "trials.csv"
    chosen = json.loads((tuned / "tuned.json").read_text())["mrl"]["trial"]
    other = next(line for line in lines(tuned) if line["arm"] == "mrl" and int(line["trial"]) != chosen)
    start = f"{other['member']},mrl,,{other['trial']},"
    path.write_text(path.read_text().replace(start + other["accuracy"], start + "2.0"))
    assert train.main([*command, f"results_dir={tmp_path}", "run=a", "resume=true"]) == 2
    error = capsys.readouterr().err
    assert "chooses other settings for mrl" in error
    assert json.loads((tmp_path / "tiny" / "a" / "tuned.json").read_text()) == json.loads(
        (tuned / "tuned.json").read_text()
    )


def test_pairs_are_tuned_too(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for i in range(120):
        topic = f"topic{i % 30}"
        rows.append({"query": f"{topic} word{rng.integers(9)}", "document": f"{topic} text{rng.integers(9)}"})
    for name, part in (("train", rows[:90]), ("test", rows[90:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    words = ["data=pairs", f"data.train={tmp_path}/train.jsonl", f"data.test={tmp_path}/test.jsonl", "name=tiny",
             "recipe=none", "loss.name=info_nce", "width=8", "nesting_dims=[4,8]", "trainer.steps=12",
             "trainer.batch_size=16", "trainer.evaluations=2", "arms=[mrl,ff]", "tune.trials=2",
             "tune.space={loss.temperature: log .02 .5, loss.distillation: [0,1]}"]  # fmt: skip
    assert train.main([*words, f"results_dir={tmp_path}/results", "run=a"]) == 0
    chosen = json.loads((tmp_path / "results" / "tiny" / "a" / "tuned.json").read_text())
    assert [*chosen] == ["mrl", "ff4", "ff8"]


def test_the_report_says_which_setting_each_arm_has(tuned: Path, tmp_path: Path) -> None:
    written, _ = report.report([tuned], tmp_path)
    text = next(path for path in written if path.suffix == ".md").read_text()
    assert "Settings of each arm" in text
    assert "optimizer.learning\\_rate" in text
    chosen = json.loads((tuned / "tuned.json").read_text())
    for name, entry in chosen.items():
        label = {"mrl": "MRL"}.get(name, f"FF, {name[2:]} dims")
        row = next(line for line in text.splitlines() if line.startswith(f"| {label} |") and "optimizer" not in line
                   and f"{100 * entry['validation']:.2f}" in line)  # fmt: skip
        assert f"{entry['settings']['optimizer.learning_rate']:.3g}" in row
    found = gather([tuned]).tuned
    assert {(series.arm, width) for series, width in found} == {("mrl", None), ("ff", 4), ("ff", 8), ("ff", 16)}


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.pop("trial"),
        lambda entry: entry.update(arm="none"),
        lambda entry: entry.update(expected_best=["x"]),
        lambda entry: entry.update(settings=[1]),
        lambda entry: entry.update(validation=float("nan")),
    ],
)
def test_a_damaged_record_is_named(change: object, tuned: Path) -> None:
    path = tuned / "tuned.json"
    whole = path.read_text()
    content = json.loads(whole)
    change(content["mrl"])
    try:
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"tuned\.json is damaged"):
            gather([tuned])
    finally:
        path.write_text(whole)


def test_damaged_trials_are_named(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    path.write_text("member,arm\nmrl-trial0,mrl\n")
    with pytest.raises(UserError, match="delete it to run them again"):
        trials.read(path)


def test_the_expected_best_is_that_of_all_draws_with_replacement() -> None:
    scores = [*np.random.default_rng(0).normal(size=4).round(1).tolist(), 0.1, 0.1]
    expected = trials.expected_best(scores)
    for budget in (1, 2, 3, 4):
        every = [max(draw) for draw in itertools.product(scores, repeat=budget)]
        assert expected[budget - 1] == pytest.approx(np.mean(every))
    assert trials.expected_best([]) == []
    assert trials.expected_best([0.5]) == [0.5]
