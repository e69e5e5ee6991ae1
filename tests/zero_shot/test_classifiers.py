"""The classifiers of a run on other test sets of its classes: ImageNet-V2, -R, -A and -Sketch in small."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mrl_jax
from mrl_jax import runs, train
from mrl_jax.zero_shot import main
from tests.data import test_tfds  # whose synthetic data sets have the classes red, green and blue

RANDOM = np.random.default_rng(0)
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "amber": (200, 200, 30)}
COMMON = ["name=colours", "run=a", "trainer.steps=60", "trainer.batch_size=8", "trainer.evaluations=1"]
SMALL = [f"encoder.{key}" for key in ("image_size=8", "patch=4", "layers=1", "hidden=8", "heads=2")]
SMALL += ["encoder.intermediate=16", "optimizer.learning_rate=1e-2"]


def write(folder: Path, names: dict[str, str], count: int = 6) -> Path:
    """A folder of pictures for each class: {name of the folder: colour}."""
    for name, colour in names.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = RANDOM.integers(-60, 60, (*RANDOM.integers(9, 20, 2), 3))
            pixels = (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on four colours."""
    place = tmp_path_factory.mktemp("run")
    same = {name: name for name in COLOURS}
    folders = [f"data.{split}={write(place / split, same)}" for split in ("train", "test")]
    words = ["data=images", "encoder=vit", "data.image_size=8", "width=8", *SMALL, *folders, *COMMON]
    words += ["nesting_dims=[4,8]", "arms=[mrl,mrl_e]", "evaluation.neighbours=false", "evaluation.refit=null"]
    words += [f"data.cache_dir={place / 'cache'}", f"results_dir={place / 'results'}"]
    assert train.main(words) == 0
    return place / "results" / "colours" / "a"


def evaluate(run: Path, *words: str) -> int:
    out = ["--out", str(run.parents[2] / "out"), "--cache-dir", str(run.parents[2] / "cache")]
    return main([str(run), "--classifier", *out, "--on", *words])


def values(run: Path, name: str, folder: str = "colours_a") -> dict[tuple[int, str], float]:
    rows = runs.read_rows(run.parents[2] / "out" / name / folder / "evaluation.csv")
    assert {row.split for row in rows} == {"test"}
    return {(row.dim, row.metric): row.value for row in rows}


def test_absent_classes_are_no_answer(run: Path, tmp_path: Path) -> None:
    """Against the probabilities that `predict` gives, of which those of the absent classes are left out."""
    folder = write(tmp_path / "renditions", {"red": "amber", "blue": "blue"}, 12)  # red ones that look like amber
    assert evaluate(run, str(folder)) == 0
    measured, model = values(run, "renditions"), mrl_jax.load(run)
    paths = sorted(folder.rglob("*.png"))
    names = np.array([path.parent.name for path in paths])
    for dim in (4, 8):
        answers, probabilities = model.predict(paths, dim=dim)
        present = [model.classes.index(name) for name in ("blue", "red")]
        among = np.array(["blue", "red"])[probabilities[:, present].argmax(axis=1)]
        assert measured[dim, "linear_top1"] == pytest.approx(np.mean(among == names))
        assert np.mean(np.array(answers) == names) < 1  # with all classes, some are amber
    assert set(measured) == {(dim, metric) for dim in (4, 8) for metric in ("linear_top1", "linear_top5", "ece")}


def test_numbers_count_the_classes_by_their_names(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = write(tmp_path / "named", {name: name for name in COLOURS})
    numbered = tmp_path / "numbered"
    numbered.mkdir()
    for number, name in enumerate(sorted(COLOURS)):
        (numbered / str(number)).symlink_to(named / name)
    assert evaluate(run, str(named), str(numbered), "--arm", "mrl_e") == 0
    assert "numbers, which count those of the run" in capsys.readouterr().err
    one, other = (values(run, name, "colours_a-mrl_e") for name in ("named", "numbered"))
    assert one == other
    assert one[8, "linear_top1"] > 0.5


def test_a_set_of_the_catalogue_is_read_as_the_run_reads_images(run: Path) -> None:
    assert issubclass(test_tfds.MrlPhotos, test_tfds.Synthetic)
    assert evaluate(run, "tfds:mrl_photos", "--dims", "8", "--workers", "1") == 0
    measured = values(run, "mrl_photos")
    assert set(measured) == {(8, metric) for metric in ("linear_top1", "linear_top5", "ece")}
    assert measured[8, "linear_top5"] == 1  # of three classes


def test_what_is_wrong_is_one_sentence(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = write(tmp_path / "some", {"red": "red", "geen": "green"}, 1)
    none = write(tmp_path / "none", {"n01440764": "red"}, 1)
    good = write(tmp_path / "good", {"red": "red"}, 1)
    (tmp_path / "empty").mkdir()
    for words, said in (
        ([str(some)], "has the class 'geen', which is none of the run's 4 (did you mean green?)"),
        ([str(none)], "have no class in common; 'n01440764' is none of the run's"),
        ([str(tmp_path / "empty")], "has no folders in it"),
        ([str(tmp_path / "absent")], "there is no such folder"),
        ([str(good), "--dims", "5"], "--dims=5 has no classifier; allowed: 4, 8"),
        ([str(good), "--unjudged"], "--unjudged has no meaning with --classifier"),
        (["tfds:"], "has no name behind the colon"),
        (["tfds:mrl_news"], "has no images"),
        (["tfds:mrl_photo"], "--on=tfds:mrl_photo is not in the TFDS catalogue (did you mean mrl_photos?)"),
    ):
        assert evaluate(run, *words) == 2
        error = capsys.readouterr().err.strip()
        assert said in error.splitlines()[-1]
        assert error.splitlines()[-1].startswith("error: ")
    assert main(["minilm", "--classifier", "--on", str(good)]) == 2
    assert "--classifier is for trained runs, and minilm is none" in capsys.readouterr().err
