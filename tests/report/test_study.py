"""Which runs are pooled, kept apart or refused, and what a study reads from them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from made_runs import DIMS, make_run

from mrl_jax import report
from mrl_jax.config import LossConfig, OptimizerConfig, TrainerConfig
from mrl_jax.report.gather import gather
from mrl_jax.report.labels import short as shorten
from mrl_jax.report.study import Series, Study
from mrl_jax.system.errors import UserError


def csv_value(directory: Path, arm: str, seed: int, dim: int, metric: str, split: str = "test") -> float:
    with (directory / "evaluation.csv").open() as file:
        (value,) = [
            float(row["value"])
            for row in csv.DictReader(file)
            if (row["arm"], row["seed"], row["dim"], row["split"], row["metric"])
            == (arm, str(seed), str(dim), split, metric)
        ]
    return value


def arms(study: Study) -> list[str]:
    return [series.arm for series in study.series]


def test_values_are_those_of_evaluation_csv(tmp_path):
    directory = make_run(tmp_path, arms=("all",), seeds=3)
    study = gather([directory])
    assert len(study.series) == 10
    for series in study.series:
        for metric, split in (("linear_top1", "test"), ("knn_top1", "validation"), ("int8_map@10", "test")):
            values = study.values(series, metric, split)
            assert list(values) == list(DIMS)
            for dim, found in values.items():
                wanted = [csv_value(directory, series.arm, seed, dim, metric, split) for seed in range(3)]
                assert found.tolist() == wanted


def test_outcomes_average_to_the_values(tmp_path):
    study = gather([make_run(tmp_path, arms=("mrl", "ff", "pca"), seeds=2)])
    for series in study.series:
        outcomes, values = study.outcomes(series, "linear_top1"), study.values(series, "linear_top1")
        assert list(outcomes) == list(DIMS)
        for dim in DIMS:
            assert outcomes[dim].shape == (2, len(study.labels))
            np.testing.assert_allclose(outcomes[dim].mean(axis=1), values[dim], atol=1e-6)
            assert ((study.predictions(series)[dim] == study.labels) == outcomes[dim]).all()


def test_a_study_describes_its_data(tmp_path):
    study = gather([make_run(tmp_path)])
    assert (study.dims, study.width, study.seeds, study.classes) == (DIMS, 16, 2, ("cat", "dog", "emu", "fox"))
    assert study.labels.tolist() == [i % 4 for i in range(120)]
    assert {line["member"] for line in study.log} == {
        f"{name}-seed{s}" for name in ("mrl", "ff4", "ff8", "ff16") for s in (0, 1)
    }
    assert {line["variant"] for line in study.log} == {None}
    assert [one["run"] for one in study.environment] == ["first"]


def test_runs_that_differ_in_arms_seeds_and_schedule_are_pooled(tmp_path):
    make_run(tmp_path, arms=("mrl",), seeds=2)
    trainer = TrainerConfig(epochs=None, steps=20, batch_size=32, population="vmap", checkpoint_seconds=5.0)
    make_run(tmp_path, arms=("ff", "pca"), seeds=2, run="second", trainer=trainer)
    study = gather([tmp_path])
    assert study.series == (Series("mrl"), Series("ff"), Series("pca"))
    assert len(study.environment) == 2


def test_runs_that_differ_in_other_keys_are_variants_named_after_their_folders(tmp_path):
    make_run(tmp_path, arms=("mrl", "ff"))
    make_run(tmp_path, arms=("mrl",), run="heavy tail", loss=LossConfig(weights=(1.0, 1.0, 3.0)))
    make_run(tmp_path, arms=("mrl_e",), run="more", started="2031-01-01T10:00:00+0000")
    study = gather([tmp_path])
    assert study.series == (
        Series("mrl", "first"), Series("mrl_e", "first"), Series("ff", "first"), Series("mrl", "heavy tail")
    )  # fmt: skip
    assert [s.label for s in study.series][-1] == "MRL · heavy tail"
    assert [s.key for s in study.series][-1] == "mrl.heavy_20tail"
    assert {line["variant"] for line in study.log} == {"first", "heavy tail"}


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["dims=log", "dims=uniform"], ["log", "uniform"]),
        (["dims=log", "first"], ["dims=log", "first"]),
        (["dims=log", "rate=log"], ["dims=log", "rate=log"]),
        (["dims=8,16,24,32,40,48,56,64,80,96", "dims=8"], ["8,16,24,32,4…64,80,96", "8"]),
        (["a=" + 12 * "x" + "1" + 12 * "y", "a=" + 12 * "x" + "2" + 12 * "y"], None),
    ],
)
def test_names_of_variants_are_short_where_they_stay_apart(names, short):
    assert shorten(names) == (short or names)


def test_what_no_variant_has_is_said_once(tmp_path):
    make_run(tmp_path, arms=("mrl",), run="a")
    make_run(tmp_path, arms=("mrl",), run="b", optimizer=OptimizerConfig(learning_rate=0.5))
    assert [note for note in gather([tmp_path]).notes if note.startswith("No ff")] == [
        "No ff arm: MRL − FF is not shown."
    ]
    make_run(tmp_path, arms=("mrl", "ff"), run="c", optimizer=OptimizerConfig(learning_rate=0.25))
    found = [note for note in gather([tmp_path]).notes if note.startswith("No ff")]
    assert found == ["No ff arm in a: MRL − FF is not shown.", "No ff arm in b: MRL − FF is not shown."]


def test_variants_in_folders_of_one_name_are_told_apart(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", optimizer=OptimizerConfig(learning_rate=0.5))
    assert {s.variant for s in gather([tmp_path]).series} == {"a/made/first", "b/made/first"}


def test_links_are_not_followed_and_a_run_given_twice_counts_once(tmp_path):
    directory = make_run(tmp_path)
    assert (tmp_path / "made" / "latest").is_symlink()
    study = gather([tmp_path, directory, tmp_path / "made" / "latest"])
    assert len(study.environment) == 1
    assert study.notes == gather([directory]).notes


def test_of_the_same_member_twice_the_later_run_is_used_and_said(tmp_path):
    make_run(tmp_path, run="z", started="2030-01-01T10:00:00+0000", seeds=1)
    newer = make_run(
        tmp_path, run="a", started="2030-01-01T10:00:00-0500", seeds=1, score=lambda arm, dim: 0.9, arms=("mrl",)
    )
    study = gather([tmp_path])
    assert study.values(Series("mrl"), "linear_top1")[4].tolist() == [csv_value(newer, "mrl", 0, 4, "linear_top1")]
    assert study.outcomes(Series("mrl"), "linear_top1")[4].mean() == pytest.approx(0.9, abs=0.05)
    assert "mrl-seed0: in z and in a, which is newer and is used." in study.notes
    assert sum(line["member"] == "mrl-seed0" for line in study.log) == 6  # not those of both runs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": "bb"}, "their train and validation and test data differ"),
        ({"classes": ("cat", "dog")}, r"their classes differ \(4 and 2 of them"),
        ({"trainer": TrainerConfig(epochs=None, steps=30, batch_size=32)}, "steps is 20 in one and 30 in the other"),
        ({"trainer": TrainerConfig(epochs=1.0, batch_size=32)}, "steps is 20 in one and 15 in the other"),
        (
            {"trainer": TrainerConfig(epochs=None, steps=20, batch_size=64)},
            "trainer.batch_size is 32 in one and 64 in the other",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence_that_names_both(tmp_path, changes, said):
    make_run(tmp_path)
    make_run(tmp_path, run="second", **changes)
    with pytest.raises(UserError, match=rf"made/first and .*made/second cannot be compared: .*{said}"):
        gather([tmp_path])


def test_epochs_that_come_to_the_same_steps_are_the_same_training(tmp_path):
    make_run(tmp_path, arms=("mrl",))
    make_run(tmp_path, arms=("ff",), run="second", trainer=TrainerConfig(epochs=20 * 32 / 480, batch_size=32))
    assert arms(gather([tmp_path])) == ["mrl", "ff"]


def test_a_run_that_was_cut_short_is_used_as_far_as_it_got(tmp_path):
    make_run(tmp_path, seeds=3, keep=lambda label: label not in ("ff16-seed2",))
    study = gather([tmp_path])
    assert study.seeds == 2
    assert {v.shape for s in study.series for v in study.outcomes(s, "knn_top1").values()} == {(2, 120)}
    assert "first was cut short: no results of ff16-seed2; resume=true continues it." in study.notes
    assert any("only what all arms have is used, seeds 0, 1; seed 2 of some arms left out" in n for n in study.notes)
    assert not any(line["seed"] == 2 for line in study.log)


def test_an_arm_that_was_never_reached_is_absent(tmp_path):
    make_run(tmp_path, arms=("mrl", "ff", "pca"), seeds=1, keep=lambda label: label.startswith("mrl"))
    study = gather([tmp_path])
    assert arms(study) == ["mrl"]
    assert "no results of ff4-seed0, ff8-seed0, ff16-seed0, pca-seed0" in study.notes[0]
    assert "No ff arm: MRL − FF is not shown." in study.notes


def test_arms_that_share_no_seed_are_refused(tmp_path):
    make_run(tmp_path, seeds=2, keep=lambda label: label in ("mrl-seed0", "ff4-seed1"))
    with pytest.raises(UserError, match=r"the arms share no seed.*MRL: 0; FF: 1"):
        gather([tmp_path])


def test_lost_predictions_leave_the_values_and_a_note(tmp_path):
    directory = make_run(tmp_path, seeds=2)
    (directory / "predictions" / "ff8-seed1.npz").unlink()
    study = gather([tmp_path])
    assert list(study.values(Series("ff"), "linear_top1")) == [4, 8, 16]
    assert list(study.outcomes(Series("ff"), "linear_top1")) == [4, 16]
    assert any(note.startswith("predictions are missing (first/predictions/ff8-seed1.npz)") for note in study.notes)


def test_a_damaged_predictions_file_is_named(tmp_path):
    directory = make_run(tmp_path)
    (directory / "predictions" / "mrl-seed0.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match=r"mrl-seed0\.npz cannot be read"):
        gather([tmp_path]).outcomes(Series("mrl"), "linear_top1")


def test_one_seed_and_missing_arms_are_noted(tmp_path):
    make_run(tmp_path, arms=("mrl", "mrl_e", "ff", "truncated"), seeds=1)
    assert gather([tmp_path]).notes == (
        "No pca arm: MRL − PCA, MRL-E − PCA are not shown.",
        "Against arms compressed after training, nested arms are read by a refitted classifier too (refit_top1).",
        "One seed: differences have no interval.",
    )


def test_without_a_nested_arm_there_is_nothing_to_compare(tmp_path):
    make_run(tmp_path, arms=("ff",))
    assert gather([tmp_path]).notes == (
        "No nested arm (mrl, mrl_e, mrl_sampled, mrl_dims, mrl_distilled, mrl_shortlist, "
        "mrl_e_detached, mrl_binary): there is nothing to compare.",
    )  # fmt: skip


def test_a_folder_without_runs_is_one_sentence(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("a: 1\n")  # of a sweep, no run
    with pytest.raises(UserError, match=r"has no run: there is no config\.yaml in it or in a folder below it"):
        gather([tmp_path])


def test_runs_without_results_are_nothing_to_report_but_no_obstacle(tmp_path):
    make_run(tmp_path, run="empty", keep=lambda label: False, fingerprint="bb")
    with pytest.raises(UserError, match=r"nothing to report yet: evaluation\.csv is missing or empty"):
        gather([tmp_path])
    make_run(tmp_path)
    study = gather([tmp_path])
    assert study.notes[0].startswith("empty was cut short: no results of mrl-seed0, ff4-seed0")
    assert study.series == (Series("mrl"), Series("ff"))


def test_an_unknown_arm_and_a_dataset_without_fingerprint_are_named(tmp_path):
    directory = make_run(tmp_path)
    dataset = json.loads((directory / "dataset.json").read_text())
    (directory / "dataset.json").write_text(json.dumps({k: v for k, v in dataset.items() if k != "fingerprint"}))
    with pytest.raises(UserError, match=r"dataset\.json is damaged: it lacks fingerprint"):
        gather([directory])
    text = (directory / "evaluation.csv").read_text()
    (directory / "evaluation.csv").write_text(text.replace(",mrl,", ",mlr,"))
    for read in (lambda: gather([directory]), lambda: report.table(directory)):
        with pytest.raises(UserError, match=r"unknown arm 'mlr' \(did you mean mrl\?\)"):
            read()


def test_runs_evaluated_at_other_dims_and_by_other_metrics_are_pooled_by_seed(tmp_path):
    first = make_run(tmp_path, arms=("mrl", "ff"), seeds=3)
    text = (first / "evaluation.csv").read_text()
    (first / "evaluation.csv").write_text(text + "made,mrl,2,6,test,knn_top1,0.5\n")  # between the nesting dims
    make_run(tmp_path, arms=("mrl",), seeds=2, run="second", started="2031-01-01T10:00:00+0000")
    study = gather([tmp_path])
    assert study.seeds == 3
    assert list(study.values(Series("mrl"), "knn_top1")) == list(DIMS)
    assert "Not measured for every seed, and left out there: knn_top1 of MRL." in study.notes


def test_without_refitted_classifiers_of_the_nested_arms_the_reader_is_warned(tmp_path):
    directory = make_run(tmp_path, arms=("mrl", "ff", "pca"))
    text = (directory / "evaluation.csv").read_text()
    kept = [line for line in text.splitlines() if "refit_top1" not in line]
    assert any("refit_top1" in note for note in gather([directory]).notes)
    (directory / "evaluation.csv").write_text("\n".join(kept) + "\n")
    assert any("nested arms their own: there is no refit_top1" in note for note in gather([directory]).notes)
