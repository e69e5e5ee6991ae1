"""Baselines of runs: which a run has, their rows and outcomes, what reports say of them, and what is refused."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import random_pair, write_table

from mrl_jax import config, report, train
from mrl_jax.arms import CLASSICAL
from mrl_jax.data import Dataset, Split
from mrl_jax.evaluate import baselines as classifiers
from mrl_jax.report import compare, figures
from mrl_jax.report.gather import gather
from mrl_jax.report.study import Series
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import baselines

pytest.importorskip("sklearn")

FAST = ["evaluation.refit=null", "evaluation.quantised=false", "evaluation.interpolated=false"]


def rows(run: Path, arm: str) -> list[dict[str, str]]:
    with (run / "evaluation.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["arm"] == arm]


def others(run: Path, *arms: str) -> list[str]:
    """The lines of evaluation.csv of other arms."""
    return [line for line in (run / "evaluation.csv").read_text().splitlines() if line.split(",")[1] not in arms]


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds with every baseline, trained too little to beat them."""
    results = tmp_path_factory.mktemp("baselines")
    words = [*tiny, *FAST, "seeds=2", "trainer.steps=3", "evaluation.baseline=all", f"results_dir={results}", "run=one"]
    assert train.main(words) == 0
    return results / "tiny" / "one"


def test_every_seed_has_the_rows_and_outcomes_of_the_baselines(run: Path) -> None:
    for arm, metrics in (
        ("tfidf", {"linear_top1", "linear_top5", "ece"}),
        ("knn", {"knn_top1", "map@10", "precision@10"}),
    ):
        found = rows(run, arm)
        assert {row["metric"] for row in found} == metrics
        assert {(row["seed"], row["dim"], row["split"]) for row in found} == {
            (seed, "16", split) for seed in "01" for split in ("validation", "test")
        }
        files = [run / "predictions" / f"{arm}-seed{seed}.npz" for seed in range(2)]
        assert files[0].read_bytes() == files[1].read_bytes()
        outcomes, name = np.load(files[0]), next(iter(metrics & {"linear_top1", "knn_top1"}))
        mean = next(float(row["value"]) for row in found if (row["split"], row["metric"]) == ("test", name))
        assert outcomes[f"test/{name}/16"].mean() == pytest.approx(mean, abs=1e-6)


def test_a_report_has_a_baseline_along_all_dims(run: Path) -> None:
    study = gather([run])
    tfidf, model = Series("tfidf"), Series("mrl_e")
    values = study.values(tfidf, "linear_top1")
    assert list(values) == [4, 8, 16]
    assert len({array.tobytes() for array in values.values()}) == 1
    (line,) = [p for p in figures.accuracy(study).panels[0].points if p.label == "TF-IDF + LR"]
    assert len(set(line.y)) == 1
    compared = compare.compare(study)
    assert list(compared["linear_top1"]) == ["MRL-E − TF-IDF + LR"]
    assert list(compared["knn_top1"]) == ["MRL-E − TF-IDF + kNN"]
    for difference in compared["linear_top1"]["MRL-E − TF-IDF + LR"].differences:
        means = study.values(model, "linear_top1")[difference.dim].mean() - values[difference.dim].mean()
        assert difference.mean == pytest.approx(means, abs=1e-6)


def test_the_table_gives_a_baseline_no_dim_and_the_report_says_every_dim(run: Path, tmp_path: Path) -> None:
    assert "TF-IDF + kNN, test split" in report.table(run)
    assert "\n     –  " in report.table(run)
    report.report([run], tmp_path)
    assert "| metric | every dim |" in (tmp_path / "report.md").read_text()


def test_a_run_behind_its_baseline_says_so_in_its_last_line(
    run: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny, *FAST, "seeds=2", "trainer.steps=3", f"results_dir={run.parents[1]}", "run=one", "resume=true"]
    assert train.main(words) == 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == report.behind(run)
    values = {arm: [float(r["value"]) for r in rows(run, arm) if wanted(r)] for arm in ("mrl_e", "tfidf")}
    ours, theirs = (100 * np.mean(values[arm]) for arm in ("mrl_e", "tfidf"))
    assert ours < theirs
    assert f"TF-IDF + LR has {theirs:.2f} %, MRL-E with 16 dims {ours:.2f} % (classifier, top-1 accuracy)" in last


def wanted(row: dict[str, str]) -> bool:
    return (row["split"], row["metric"], row["dim"]) == ("test", "linear_top1", "16")


def test_a_run_that_is_ahead_says_nothing(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    for arm in ("tfidf", "knn"):
        lines = [
            line if f",{arm}," not in line else line.rpartition(",")[0] + ",0.01"
            for line in (copy / "evaluation.csv").read_text().splitlines()
        ]
        (copy / "evaluation.csv").write_text("\n".join(lines) + "\n")
    assert report.behind(copy) == ""


def test_resuming_adds_a_baseline_and_leaves_the_rest(tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, *FAST, "trainer.steps=3", f"results_dir={tmp_path}", "run=one"]
    assert train.main(words) == 0
    directory = tmp_path / "tiny" / "one"
    before = (directory / "evaluation.csv").read_text().splitlines()
    assert not rows(directory, "knn")
    again = config.from_command_line([*words, "evaluation.baseline=knn"])
    assert not baselines.are_made(again, [])
    assert train.main([*words, "evaluation.baseline=knn", "resume=true"]) == 0
    assert rows(directory, "knn")
    assert others(directory, "knn") == before
    (directory / "predictions" / "knn-seed0.npz").unlink()
    after = (directory / "evaluation.csv").read_text()
    assert train.main([*words, "evaluation.baseline=knn", "resume=true"]) == 0
    assert (directory / "predictions" / "knn-seed0.npz").is_file()
    assert sorted((directory / "evaluation.csv").read_text().splitlines()) == sorted(after.splitlines())


def test_a_baseline_changes_no_digit_of_the_arms(run: Path, tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, *FAST, "seeds=2", "trainer.steps=3", f"results_dir={tmp_path}", "run=one"]
    assert train.main(words) == 0
    assert others(tmp_path / "tiny" / "one", "tfidf", "knn") == others(run, "tfidf", "knn")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)

    def made(count: int) -> list[dict[str, str]]:
        """Half of the positives share a word with their anchor."""
        found = [random_pair(rng) for _ in range(count)]
        return [
            p | {"positive": f"{p['positive']} {p['anchor'].split()[-1]}"} if i % 2 else p for i, p in enumerate(found)
        ]

    train_file, test_file = write_table(folder / "a.jsonl", made(120)), write_table(folder / "b.jsonl", made(40))
    return [
        *("data=pairs", f"data.train={train_file}", f"data.test={test_file}", "loss.name=info_nce", "name=pairs"),
        *("width=8", "nesting_dims=[4,8]", "trainer.steps=2", "trainer.batch_size=16", "recipe=none", *FAST),
    ]


def test_search_is_compared_with_bm25(pairs: list[str], tmp_path: Path) -> None:
    assert train.main([*pairs, "evaluation.baseline=bm25", f"results_dir={tmp_path}", "run=one"]) == 0
    run = tmp_path / "pairs" / "one"
    found = {row["metric"]: float(row["value"]) for row in rows(run, "bm25") if row["split"] == "test"}
    ours = {row["metric"] for row in rows(run, "mrl") if row["split"] == "test"}
    assert found.keys() == ours
    assert 0.3 < found["ndcg@10"] < 0.9
    assert compare.pairs(gather([run])) == [(Series("mrl"), Series("bm25"))]
    assert "BM25 has" in report.behind(run)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "evaluation.baseline=tfidff",
            r"evaluation.baseline=tfidff is unknown \(did you mean tfidf\?\); allowed: tfidf",
        ),
        ("evaluation.baseline=[knn,tfid]", r"evaluation.baseline=tfid is unknown \(did you mean tfidf\?\)"),
        ("evaluation.baseline=[none,knn]", r"evaluation.baseline=\[none,knn\] is not allowed; none stands alone"),
        (
            "evaluation.baseline=bm25",
            "evaluation.baseline=bm25 is not for classes; allowed: tfidf, knn, logistic, none",
        ),
        ("evaluation.baseline=5", "evaluation.baseline=5 is not allowed; a list"),
        ("arms=[mrl,tfidf]", "arms=tfidf is unknown"),
    ],
)
def test_names_are_checked_before_any_data_is_read(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.from_command_line(["data=files", "data.train=no", "data.test=no", words])


def test_a_missing_package_is_one_sentence_before_any_data_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    assert train.main(["data=files", "data.train=no", "data.test=no", "evaluation.baseline=tfidf"]) == 2
    said = capsys.readouterr().err.strip()
    assert said == "error: evaluation.baseline=tfidf needs the package scikit-learn: pip install 'mrl_jax[baselines]'"


def dataset(kind: str, inputs: object, classes: int = 2) -> Dataset:
    part = Split(inputs, np.arange(4, dtype=np.int32) % classes)  # type: ignore[arg-type]
    return Dataset("made", kind, tuple(map(str, range(classes))), part, part, part)  # type: ignore[arg-type]


IMAGES, VECTORS = np.zeros((4, 2, 2, 1), np.uint8), np.zeros((4, 2), np.float32)
TEXTS = ["one two", "three", "four", "five"]


def asked(value: str, source: str = "files"):
    return config.from_command_line([f"data={source}", f"evaluation.baseline={value}"])


@pytest.mark.parametrize(
    ("value", "made", "message"),
    [
        ("all", dataset("image", IMAGES), "evaluation.baseline=tfidf is not for data=made, which has images; set"),
        ("[knn]", dataset("image", IMAGES), "evaluation.baseline=knn is not for data=made, which has images"),
        ("knn", dataset("features", VECTORS), "evaluation.baseline=knn is not for data=made, which has features"),
        ("[tfidf,logistic]", dataset("text", TEXTS), "baseline=logistic is not for data=made, which has texts"),
    ],
)
def test_data_that_a_baseline_does_not_read_is_one_sentence(value: str, made: Dataset, message: str) -> None:
    with pytest.raises(UserError, match=message):
        baselines.named(asked(value), made)


def test_all_stands_for_what_suits_the_data() -> None:
    assert baselines.named(asked("all"), dataset("text", TEXTS)) == ("tfidf", "knn")
    assert baselines.named(asked("all"), dataset("features", VECTORS)) == ("logistic",)
    assert baselines.named(asked("none"), dataset("text", TEXTS)) == ()
    assert baselines.named(asked("[]"), dataset("image", IMAGES)) == ()


def test_only_small_files_of_texts_have_a_baseline_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    small, images = dataset("text", TEXTS), dataset("image", IMAGES)
    monkeypatch.setattr(baselines, "MAX_DEFAULT_SIZE", 2 * sum(map(len, TEXTS)))
    assert baselines.named(asked("null"), small) == ("tfidf",)
    assert baselines.named(asked("null"), dataset("text", [*TEXTS[:3], "fives"])) == ()
    assert baselines.named(asked("null"), images) == ()
    assert baselines.named(asked("null", "newsgroups"), small) == ()
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    assert baselines.named(asked("null"), small) == ()


def test_every_baseline_is_a_classifier_or_finds_neighbours() -> None:
    assert {*classifiers.CLASSIFIERS, "knn", "bm25"} == set(CLASSICAL)


def test_features_have_logistic_regression(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, n in (("train", 80), ("test", 40)):
        labels = rng.integers(0, 3, n)
        np.savez(tmp_path / f"{name}.npz", features=np.eye(3, 6)[labels] + rng.normal(size=(n, 6)) / 3, labels=labels)
    words = [f"data.{name}={tmp_path / name}.npz" for name in ("train", "test")]
    words += ["encoder.hidden=[]", "width=4", "nesting_dims=[4]", "trainer.steps=2", *FAST]
    assert train.main(["data=features", *words, "evaluation.baseline=all", f"results_dir={tmp_path}", "run=one"]) == 0
    values = {row["metric"]: float(row["value"]) for row in rows(tmp_path / "features/one", "logistic")}
    assert values["linear_top1"] > 0.8
    (settings,) = json.loads((tmp_path / "features/one/baselines.json").read_text()).values()
    assert settings["C"] in settings["of"]
