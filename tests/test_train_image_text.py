"""Training two towers from the command line: what is learnt, measured both ways, kept, and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mrl_jax
from mrl_jax import config, runs, train
from mrl_jax.data.base import Dataset, Split
from mrl_jax.evaluate import ranking
from tests.helpers import interrupt_after_two_checkpoints, run_digests, script
from tests.image_text_files import COLOURS, table

VIT = "encoder.image={name: vit, patch: 4, layers: 1, hidden: 16, heads: 2, intermediate: 16, projection: true}"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    return [
        *("data=image_text", f"data.train={table(folder, 'train', 5)}", f"data.test={table(folder, 'test', 2)}"),
        *("data.image_size=8", "data.validation_fraction=0.2", f"data.cache_dir={folder / 'cache'}", VIT),
        *("encoder.text.hidden=16", "width=16", "nesting_dims=[4,16]", "trainer.batch_size=16", "trainer.steps=4"),
        *("trainer.evaluations=2", "optimizer.learning_rate=0.02", "evaluation.interpolated=false", "arms=[mrl]"),
    ]


def run(words: list[str], results: Path, *more: str, name: str = "run") -> Path:
    assert train.main([*words, *more, "name=pictures", f"run={name}", f"results_dir={results}"]) == 0
    return results / "pictures" / name


@pytest.fixture(scope="module")
def trained(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = ("loss.name=info_nce", "trainer.steps=40", "arms=[mrl,ff,pca]", "loss.learned_temperature=true")
    return run(words, tmp_path_factory.mktemp("trained"), *more)


def values(directory: Path, arm: str) -> dict[tuple[str, int], float]:
    found = runs.read_rows(directory / "evaluation.csv")
    return {(row.metric, row.dim): row.value for row in found if (row.arm, row.split) == (arm, "test")}


def pictures(trained: Path) -> list[Path]:
    """Those of the test, in the order of the file."""
    file = Path(str(config.from_yaml(trained / "config.yaml").data.test))
    return [file.parent / json.loads(line)["image"] for line in file.read_text().splitlines()]


def test_pictures_are_found_by_words_and_words_by_pictures_at_every_dim(trained: Path) -> None:
    """The figures of a run are those of what `encode` gives, searched and judged here."""
    model, found = mrl_jax.load(trained), values(trained, "mrl")
    paths = pictures(trained)
    captions = [text for i in range(2) for name in COLOURS for text in (f"a {name} square {i}", f"{name} test")]
    texts = list(dict.fromkeys(captions))
    judgments = np.array([(texts.index(text), i // 2, 1) for i, text in enumerate(captions)])
    for dim in (4, 16):
        queries, documents = model.encode(texts, dim), model.encode(paths, dim)
        (way_there,) = ranking.rank(queries, documents, judgments, (dim,))
        (way_back,) = ranking.rank(documents, queries, judgments[:, [1, 0, 2]], (dim,))
        for metric in ("ndcg@10", "recall@1", "recall@10", "mrr@10"):
            assert found[metric, dim] == pytest.approx(way_there[metric].mean(), abs=1e-6)
            assert found[f"to_text_{metric}", dim] == pytest.approx(way_back[metric].mean(), abs=1e-6)
    assert found["ndcg@10", 16] > 0.7  # colours are learnt; 0.5 by chance


def test_classes_are_told_by_their_names(trained: Path) -> None:
    """Zero-shot classification: the caption of each class, and the nearest one to a picture."""
    model, names = mrl_jax.load(trained), list(COLOURS)
    classes = model.encode([f"a {name} square" for name in names], dim=16)
    answers = [names[i] for i in np.argmax(model.encode(pictures(trained), dim=16) @ classes.T, axis=1)]
    right = [name in path.name for name, path in zip(answers, pictures(trained), strict=True)]
    assert np.mean(right) >= 0.5
    pixels = [Image.open(path) for path in pictures(trained)]
    np.testing.assert_array_equal(model.encode(pixels, 4), model.encode(pictures(trained), 4))


def test_fixed_size_and_compressed_arms_are_measured_beside_it(trained: Path) -> None:
    for arm in ("ff", "pca"):
        assert {dim for metric, dim in values(trained, arm) if metric == "to_text_recall@10"} == {4, 16}


def test_the_nested_sigmoid_loss_trains_two_towers_and_texts_are_packed_for_a_transformer(
    words: list[str], tmp_path: Path
) -> None:
    text = "encoder.text={name: transformer, layers: 1, hidden: 16, heads: 2, intermediate: 16, vocabulary: 300}"
    kept = [word for word in words if not word.startswith("encoder.text")]
    directory = run(kept, tmp_path, text, "loss.name=sigmoid", "trainer.accumulate=2", "trainer.steps=2")
    assert np.isfinite(list(values(directory, "mrl").values())).all()
    assert mrl_jax.load(directory).encode(["a red square"], dim=4).shape == (1, 4)


def test_a_resumed_run_is_that_of_an_undisturbed_one(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*words, "loss.name=info_nce", "trainer.log_every=1", "trainer.checkpoint_seconds=0", "data.streaming=true"]
    whole = run(words, tmp_path / "whole")
    stopped = [*words, "name=pictures", "run=run", f"results_dir={tmp_path / 'stopped'}"]
    interrupt_after_two_checkpoints(stopped, monkeypatch)
    assert train.main([*stopped, "resume=true"]) == 0
    assert run_digests(tmp_path / "stopped" / "pictures" / "run") == run_digests(whole)


@pytest.mark.slow
def test_members_trained_together_and_in_turn_agree(words: list[str], tmp_path: Path) -> None:
    found = {}
    for population in ("loop", "vmap"):
        more = ("loss.name=info_nce", "seeds=2", f"trainer.population={population}")
        directory = run(
            [word for word in words if "arms=" not in word], tmp_path, *more, "arms=[mrl,ff]", name=population
        )
        rows = runs.read_rows(directory / "evaluation.csv")
        found[population] = [row.value for row in sorted(rows)]
    np.testing.assert_allclose(found["loop"], found["vmap"], atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("encoder=vit", "encoder=vit cannot read image-text, which train holds; use towers"),
        ("data.image_size=null", "the images have different sizes; give data.image_size, e.g. 224"),
        (
            "encoder.image.patch=5",
            "encoder.image.patch=5 does not divide images of 8 × 8 pixels; set encoder.image.patch",
        ),
        (
            "encoder.image.projection=false width=8 nesting_dims=[4,8]",
            "width=8 is not allowed; encoder.image.hidden=16",
        ),
        (
            "encoder.image.weights=. data.image_size=8",
            "data.image_size=8 is not allowed with pretrained weights, which say how images are prepared; leave it out",
        ),
        ("loss.name=sigmoid loss.symmetric=false", "loss.symmetric=false is not allowed with loss.name=sigmoid"),
        ("loss.name=cosent", "loss.name=cosent does not fit data=train, pairs; use info_nce"),
        ("loss.teacher=minilm", "loss.teacher=minilm needs texts that fit in memory"),
        ("evaluation.baseline=bm25", "evaluation.baseline=bm25 is not for data=train, which has images with captions"),
        ("data=mixture data.sources={}", "data."),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(
    words: list[str], tmp_path: Path, changed: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if changed == "encoder=vit":
        words = [word for word in words if not word.startswith("encoder.")]
    if changed.startswith("data=mixture"):
        words = ["width=8", "nesting_dims=[8]"]
    command = [*words, "loss.name=info_nce", *changed.split(), "name=no", f"results_dir={tmp_path}"]
    assert train.main(command) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_images_with_generated_captions_are_classified_by_prompts_at_every_dim(tmp_path: Path) -> None:
    """The script of Fashion-MNIST, on pictures whose class is where a bright bar stands."""
    fashion = script("image_text", "fashion_mnist.py")
    labels = np.arange(400) // 5 % 10  # every class with every template
    images = np.random.default_rng(0).integers(0, 90, (400, 20, 20, 1)).astype(np.uint8)
    images[np.arange(400), :, 2 * labels] = images[np.arange(400), :, 2 * labels + 1] = 255
    part = Split(images, labels)
    parts = {"train": ("train", 0, 300), "validation": ("train", 300, 350), "test": ("test", 350, 400)}
    fashion.make(tmp_path, parts, Dataset("bars", "image", fashion.NAMES, part, part, part))
    places = [f"data.{part}={tmp_path / part}.jsonl" for part in parts]
    words = [
        *("+experiment=image_text", *places, "data.image_size=20", f"data.cache_dir={tmp_path / 'cache'}"),
        *("encoder.image.augment=none", "encoder.image.patch=4", "width=32", "nesting_dims=[4,32]"),
        *("trainer.epochs=null", "trainer.steps=120", "trainer.batch_size=64", "optimizer.learning_rate=0.005"),
    ]
    accuracies = fashion.classify(str(run(words, tmp_path)), tmp_path, ())
    assert accuracies.keys() == {4, 32}
    assert min(accuracies.values()) > 0.5  # chance is 0.1
