"""A run with few examples, rare, unknown and damaged texts: its rows, its report, and what is refused."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mrl_jax import config, data, report, train
from mrl_jax.data import DataConfig, Dataset, PairDataset, Pairs, Split, StreamedTexts
from mrl_jax.data.hold_out import hold_out
from mrl_jax.runs import read_rows
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import probes

WORDS = [
    *("evaluation.few_shot=[2,9999]", "evaluation.by_frequency=true", "evaluation.corruption=[typos,dropped_words]"),
    *("evaluation.refit=null", "evaluation.quantised=false", "evaluation.interpolated=false"),
    *("arms=[mrl,ff,pca]", "evaluation.baseline=none"),
]


@pytest.fixture(scope="module")
def held_out(texts: dict[str, Path]) -> str:
    return data.load(DataConfig("files", train=str(texts["train"]), test=str(texts["test"]))).classes[0]


@pytest.fixture(scope="module")
def finished(tiny: list[str], held_out: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    assert train.main([*tiny, *WORDS, f"data.hold_out=[{held_out}]", "seeds=2", f"results_dir={results}", "run=a"]) == 0
    return results / "tiny" / "a"


def test_every_arm_has_every_metric_at_every_dim(finished: Path) -> None:
    rows = [row for row in read_rows(finished / "evaluation.csv") if row.split == "test" and row.seed == 0]
    metrics = {
        *("few2_top1", "few2_logistic_top1", "few9999_top1", "few9999_logistic_top1", "head_top1", "tail_top1"),
        *("unknown_softmax_auroc", "unknown_knn_auroc", "typos_top1", "dropped_words_top1"),
        *(f"{name}{strength}_top1" for name in ("typos", "dropped_words") for strength in range(1, 6)),
    }
    for arm in ("mrl", "ff", "pca"):
        for dim in (4, 8, 16):
            assert metrics <= {row.metric for row in rows if (row.arm, row.dim) == (arm, dim)}
    assert all(0 <= row.value <= 1 for row in rows)


def test_outcomes_mean_the_value_and_those_of_another_part_are_nan(finished: Path) -> None:
    values = {(r.split, r.metric, r.dim): r.value for r in read_rows(finished / "evaluation.csv") if r.arm == "mrl"}
    with np.load(finished / "predictions" / "mrl-seed1.npz") as stored:
        for key in stored.files:
            split, metric, *dim = key.split("/")
            if dim and metric != "prediction":
                assert np.nanmean(stored[key].astype(np.float64)) == pytest.approx(
                    values[split, metric, int(dim[0])], abs=1e-5
                )
        parts = [
            ~np.isnan(stored[f"test/{part}_top1/8"])
            for part in ("head", "middle", "tail")
            if f"test/{part}_top1/8" in stored
        ]
        assert (np.sum(parts, axis=0) == 1).all()


@pytest.mark.slow
def test_the_report_compares_and_draws_them(finished: Path, tmp_path: Path) -> None:
    assert report.main([str(finished), "--out", str(tmp_path)]) == 0
    with (tmp_path / "differences.csv").open() as file:
        compared = {row["metric"] for row in csv.DictReader(file) if row["b"] == "FF"}
    assert {"few2_top1", "head_top1", "tail_top1", "unknown_knn_auroc", "typos_top1"} <= compared
    assert "typos1_top1" not in compared
    assert (tmp_path / "plots" / "generalisation.png").exists()
    assert "few2_top1" in report.table(finished)


def test_damaged_outcomes_of_a_part_are_refused_by_the_report(finished: Path, tmp_path: Path) -> None:
    path = finished / "predictions" / "mrl-seed0.npz"
    original = path.read_bytes()
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    arrays["test/head_top1/8"] = np.roll(arrays["test/head_top1/8"], 1)
    np.savez(path, **arrays)
    try:
        with pytest.raises(UserError, match="has test/head_top1/ of other test examples than the rest"):
            report.report([finished], tmp_path)
    finally:
        path.write_bytes(original)


def test_a_held_out_class_is_in_no_split_and_its_test_examples_are_unknown(
    texts: dict[str, Path], held_out: str
) -> None:
    config = DataConfig("files", train=str(texts["train"]), test=str(texts["test"]))
    whole, rest = data.load(config), data.load(DataConfig(**{**vars(config), "hold_out": (held_out,)}))
    assert rest.classes == whole.classes[1:]
    assert sorted(rest.probes["unknown"].inputs) == sorted(
        text for text, label in zip(whole.test.inputs, whole.test.labels, strict=True) if label == 0
    )
    names = {text: whole.classes[label] for text, label in zip(whole.test.inputs, whole.test.labels, strict=True)}
    assert all(names[t] == rest.classes[i] for t, i in zip(rest.test.inputs, rest.test.labels, strict=True))
    assert len(rest.test) + len(rest.probes["unknown"]) == len(whole.test)
    assert len(rest.train) + len(rest.validation) < len(whole.train) + len(whole.validation)


def test_texts_of_a_file_are_the_unknown_ones(tiny: list[str], texts: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "unknown.txt"
    path.write_text("nothing of the kind\nnor this\n")
    of = tmp_path / "of.json"
    classes = data.load(DataConfig("files", train=str(texts["train"]), test=str(texts["test"]))).classes
    of.write_text(json.dumps({name: str(i // 2) for i, name in enumerate(classes)}))
    words = [*tiny, "evaluation.refit=null", f"evaluation.unknown={path}", f"evaluation.superclass={of}"]
    assert train.main([*words, f"results_dir={tmp_path}", "run=a"]) == 0
    values = {(r.split, r.metric, r.dim): r.value for r in read_rows(tmp_path / "tiny" / "a" / "evaluation.csv")}
    assert 0 <= values["test", "unknown_softmax_auroc", 8] <= 1
    for split in ("validation", "test"):
        assert values[split, "superclass_top1", 8] >= values[split, "linear_top1", 8]
    assert json.loads((tmp_path / "tiny" / "a" / "dataset.json").read_text())["examples"]["unknown"] == 2


def made(kind: str, inputs: object) -> Dataset:
    """A data set whose splits are all the same four inputs."""
    split = Split(inputs, np.array([0, 1, 1, 2], np.int32))  # type: ignore[arg-type]
    return Dataset("made", kind, ("7", "8", "9"), split, split, split)  # type: ignore[arg-type]


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 1)).astype(np.uint8)
VECTORS = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
STREAMED = StreamedTexts(lambda: iter("abcd"), 4, "digest")


def with_evaluation(**changes: object) -> config.Config:
    plain = config.from_command_line(["name=x", "data=files", "data.train=a", "data.test=b"])
    return dataclasses.replace(plain, evaluation=dataclasses.replace(plain.evaluation, **changes))  # type: ignore[arg-type]


def test_images_are_damaged_five_times_and_keep_their_labels() -> None:
    found = probes.add(with_evaluation(corruption=("noise", "blur")), made("image", IMAGES)).probes  # type: ignore[union-attr]
    assert list(found) == [f"{name}{strength}" for name in ("noise", "blur") for strength in range(1, 6)]
    assert all(part.inputs.shape == IMAGES.shape and part.labels.tolist() == [0, 1, 1, 2] for part in found.values())


def test_classes_named_by_numbers_are_held_out_and_limited() -> None:
    rest = hold_out(made("features", VECTORS), DataConfig("features", hold_out=(8,)))
    assert isinstance(rest, Dataset)
    assert (rest.classes, rest.test.labels.tolist()) == (("7", "9"), [0, 1])
    np.testing.assert_array_equal(rest.probes["unknown"].inputs, VECTORS[1:3])
    assert len(rest.assemble(DataConfig("features", limit=1)).probes["unknown"]) == 1


@pytest.mark.parametrize(
    ("kind", "inputs", "changes", "sentence"),
    [
        ("features", VECTORS, {"corruption": ("typos",)}, "whose kind is features; leave it out"),
        ("image", IMAGES, {"corruption": ("typos",)}, "whose kind is image; use noise, blur, contrast"),
        ("text", STREAMED, {"corruption": ("typos",)}, "reads the test split into memory, and data=made streams it"),
        ("image", IMAGES, {"unknown": "a.npy"}, "is not for images; leave classes out instead"),
        ("features", VECTORS, {"unknown": "FILE"}, "has vectors of 5 numbers, the data of 6"),
    ],
)  # fmt: skip
def test_probes_that_do_not_suit_the_data_are_refused(
    kind: str, inputs: object, changes: dict, sentence: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "file.npy", VECTORS[:, :5])
    changes = {key: str(tmp_path / "file.npy") if value == "FILE" else value for key, value in changes.items()}
    with pytest.raises(UserError, match=sentence):
        probes.add(with_evaluation(**changes), made(kind, inputs))


def test_pairs_have_no_class_to_hold_out() -> None:
    pairs = Pairs(["a", "b"], np.array([[0, 1]], np.int32))
    with pytest.raises(UserError, match="names classes, and data=made has pairs"):
        hold_out(PairDataset("made", "text", pairs, pairs, pairs), DataConfig("pairs", hold_out=("a",)))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["evaluation.few_shot=[5,0]"], "evaluation.few_shot=(5, 0) is not allowed; a list of whole numbers"),
        (["evaluation.few_shot=-1"], "evaluation.few_shot=-1 is not allowed; a list such as"),
        (["evaluation.corruption=[typo]"], "evaluation.corruption=typo is unknown (did you mean typos?)"),
        (["evaluation.corruption=[blur]"], "evaluation.corruption=blur is not for data=train, whose kind is text; use"),
        (["data.hold_out=[nowhere]"], "data.hold_out=nowhere is unknown"),
        (["evaluation.superclass=/"], "evaluation.superclass=/ makes"),
        (["evaluation.unknown=EMPTY.txt"], "is empty"),
        (["evaluation.unknown=nowhere.txt"], "nowhere.txt"),
        (["evaluation.unknown=EMPTY.txt", "data.hold_out=[FIRST]"], "both say what is unknown"),
        (["data.hold_out=ALL"], "data.hold_out leaves 0 of"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_sentence_before_training(
    tiny: list[str], texts: dict[str, Path], held_out: str, tmp_path: Path, capsys: pytest.CaptureFixture,
    words: list[str], sentence: str,
) -> None:  # fmt: skip
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    every = data.load(DataConfig("files", train=str(texts["train"]), test=str(texts["test"]))).classes
    known = {"EMPTY.txt": str(empty), "ALL": f"[{','.join(every)}]", "FIRST": held_out}
    for name, value in known.items():
        words = [word.replace(name, value) for word in words]
    assert train.main([*tiny, *words, f"results_dir={tmp_path / 'results'}"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("error:") == 1
    assert "Traceback" not in error
    assert not (tmp_path / "results").exists()
