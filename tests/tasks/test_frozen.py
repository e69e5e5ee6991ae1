"""Frozen encoders: their output is made once, and what is learnt on it is what is learnt on the texts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import model_folders
import numpy as np
import pytest
import vision_folders
from helpers import write_table
from PIL import Image

import mrl_jax
from mrl_jax import data, encoders, runs, train
from mrl_jax.config import LossConfig, OptimizerConfig, from_command_line
from mrl_jax.tasks import frozen
from mrl_jax.tasks.pair_objectives import ContrastiveObjective
from mrl_jax.training.batches import Examples
from mrl_jax.training.step import TrainStep

WORDS = ("fox", "dog", "cafe", "lazy", "quick", "stocks")
ROWS = [{"text": f"{a} {b} the", "label": a} for a in WORDS[:3] for b in WORDS] * 2
PAIRS = [{"anchor": f"{a} {b} the", "positive": f"the {b} {a}"} for a in WORDS for b in WORDS if a != b]
SETTINGS = [
    "encoder=transformer", "encoder.frozen=true", "encoder.projection=true", "encoder.dropout=0",
    "encoder.attention_dropout=0", "width=8", "nesting_dims=[4,8]", "trainer.steps=6", "trainer.batch_size=8",
    "recipe=none", "data.validation_fraction=0.2", "evaluation.refit=null", "evaluation.neighbours=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 16 dims, texts with labels, and pairs."""
    folder = tmp_path_factory.mktemp("frozen")
    model_folders.make(folder / "model")
    write_table(folder / "rows.jsonl", ROWS)
    write_table(folder / "pairs.jsonl", PAIRS[5:])
    write_table(folder / "test.jsonl", PAIRS[:5])
    return folder


def run(place: Path, name: str, source: str, *words: str) -> Path:
    train_file, test_file = ("rows.jsonl",) * 2 if source == "files" else ("pairs.jsonl", "test.jsonl")
    files = [f"data={source}", f"data.train={place / train_file}", f"data.test={place / test_file}"]
    files += [f"data.cache_dir={place / 'cache'}"]
    loss = ["loss.name=info_nce"] if source == "pairs" else ["evaluation.baseline=none"]
    where = [f"encoder.weights={place / 'model'}", f"results_dir={place / 'out'}", f"name={source}", f"run={name}"]
    assert train.main([*files, *loss, *SETTINGS, *where, *words]) == 0
    return place / "out" / source / name


@pytest.mark.parametrize("source", ["files", pytest.param("pairs", marks=pytest.mark.slow)])
def test_a_frozen_encoder_reads_every_text_once_and_nothing_else_changes(
    place: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = run(place, "once", source)
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "embed_once", lambda config, reader, examples, name: examples)
        always = run(place, "always", source)
    texts = [next(iter(row.values())) for row in (ROWS if source == "files" else PAIRS)]
    ours, theirs = (mrl_jax.load(str(directory)).encode(texts) for directory in (once, always))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for name in ("dataset.json", "tokenizer.json"):
        assert (once / name).read_bytes() == (always / name).read_bytes()
    lines = [(d / "evaluation.csv").read_text().splitlines() for d in (once, always)]
    assert [line.rsplit(",", 1)[0] for line in lines[0]] == [line.rsplit(",", 1)[0] for line in lines[1]]
    values = [[float(line.rsplit(",", 1)[1]) for line in table[1:]] for table in lines]
    np.testing.assert_allclose(*values, atol=0.03)  # of some 30 examples, rounding may tip one

    def made(*_: Any) -> None:
        raise AssertionError("the texts are embedded again")

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "_pooled", made)
        again = run(place, "again", source, "optimizer.learning_rate=0.01", "encoder.dropout=0.5")
    assert json.loads((again / "dataset.json").read_text())["inputs"].keys() == {"ids", "mask"}


def test_other_settings_of_the_encoder_and_of_its_folder_are_embedded_anew(place: Path, tmp_path: Path) -> None:
    def stored() -> int:
        return len(list((place / "cache").rglob("frozen-*")))

    run(place, "first", "files")
    before = stored()
    run(place, "pooled", "files", "encoder.pooling=cls")
    assert stored() > before
    other = tmp_path / "model"
    model_folders.make(other)
    settings = json.loads((other / "1_Pooling" / "config.json").read_text()) | {"pooling_mode": "max"}
    (other / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    before = stored()
    run(place, "other", "files", f"encoder.weights={other}")
    assert stored() > before


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a vision transformer, and images of two classes."""
    folder = tmp_path_factory.mktemp("frozen images")
    vision_folders.write(folder / "model", vision_folders.CONFIGS["dinov2"], vision_folders.make("dinov2"))
    random = np.random.default_rng(0)
    for name, least in (("dark", 0), ("light", 60)):
        for part, count in (("train", 16), ("test", 5)):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(least, least + 190, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def command(place: Path, *words: str) -> list[str]:
    changed = [word.replace("transformer", "vit") for word in SETTINGS]
    files = [f"data.{part}={place / part}" for part in ("train", "test")] + [f"data.cache_dir={place / 'cache'}"]
    where = [f"encoder.weights={place / 'model'}", f"results_dir={place / 'out'}", "name=images"]
    return ["data=images", *files, *changed, *where, *words]


def test_images_are_read_once_from_memory_or_disk_unless_training_augments_them(pictures: Path) -> None:
    config = from_command_line(command(pictures))
    reader = encoders.fit(config.encoder, "made", "image", data.load(config.data).train.inputs)
    splits = {}
    for streaming in (False, True):
        read = data.load(dataclasses.replace(config.data, streaming=streaming)).train
        splits[streaming] = Examples(reader(read.inputs), read.labels)
    assert isinstance(splits[False].inputs["image"], np.ndarray)
    assert not isinstance(splits[True].inputs["image"], np.ndarray)
    once = [frozen.embed_once(config, reader, split, "train") for split in splits.values()]
    np.testing.assert_array_equal(once[0].inputs["pooled"], once[1].inputs["pooled"])
    program = TrainStep(
        encoder=config.encoder, inputs={"image": (8, 8, 3)}, vocabulary=0, width=8,
        objective=ContrastiveObjective((8,), 2, LossConfig(name="info_nce")), optimizer_config=OptimizerConfig(),
        steps=1,
    )  # fmt: skip
    weights = program.init(0).model
    by_pixels = program.embed(weights, {"image": splits[False].inputs["image"]})
    np.testing.assert_allclose(program.embed(weights, {"pooled": once[0].inputs["pooled"]}), by_pixels, atol=1e-5)
    for key, value in (("augment", "flip"), ("randaugment", 3), ("mixup", 0.2), ("frozen", False)):
        changed = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **{key: value}))
        assert frozen.embed_once(changed, reader, splits[False], "train") is splits[False]


@pytest.mark.slow
def test_what_is_learnt_on_images_read_once_is_what_is_learnt_on_them(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, always = (pictures / "out" / "images" / name for name in ("once", "always"))
    assert train.main(command(pictures, "run=once")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "embed_once", lambda config, reader, examples, name: examples)
        assert train.main(command(pictures, "run=always")) == 0
    assert (once / "dataset.json").read_bytes() == (always / "dataset.json").read_bytes()
    paths = sorted((pictures / "test").rglob("*.png"))
    ours, theirs = (mrl_jax.load(directory).encode(paths) for directory in (once, always))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    rows = [[*map(str, runs.read_rows(directory / "evaluation.csv"))] for directory in (once, always)]
    assert len(rows[0]) == len(rows[1])
