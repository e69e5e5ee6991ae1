"""The ImageNet recipes on a few synthetic images that are read lazily: the whole path, except for the data."""

from pathlib import Path

import numpy as np
import pytest

import mrl_jax
from mrl_jax import data, train
from mrl_jax.data import Dataset, Split
from mrl_jax.runs import Log, read_rows
from tests.data import test_tfds  # whose synthetic data sets TFDS then knows
from tests.helpers import interrupt_after_two_checkpoints


class Drawn:
    """Images that exist only when asked for, as those of a set larger than memory."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.largest = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.largest = max(self.largest, len(rows))
        return np.stack(
            [np.random.default_rng(r).integers(0, 255, (40, 40, 3)).astype(np.uint8) for r in self.rows[rows]]
        )

    def subset(self, rows: np.ndarray) -> "Drawn":
        return Drawn(self.rows[rows])


SMALL = {
    "imagenet_rn50": ["encoder.crop=32", "encoder.channels=8", "width=256", "nesting_dims=[8,64,256]"],
    "imagenet_vit_s16": [
        "encoder.image_size=32", "encoder.layers=1", "encoder.hidden=16", "encoder.heads=2", "encoder.intermediate=16",
        "width=16", "nesting_dims=[8,16]",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param("imagenet_rn50", marks=pytest.mark.slow), "imagenet_vit_s16"])
def test_the_recipe_runs_on_images_that_are_read_lazily(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = [
        Split(Drawn(np.arange(n) + 100 * i), (np.arange(n) % 3).astype(np.int32)) for i, n in enumerate((12, 6, 6))
    ]
    dataset = Dataset("synthetic", "image", ("a", "b", "c"), *splits)
    monkeypatch.setattr(data, "load", lambda config: dataset)
    words = ["trainer.steps=2", "trainer.batch_size=4", "trainer.evaluations=1", "trainer.log_every=1", *SMALL[name]]
    words += ["evaluation.batch_size=6", "run=a", f"results_dir={tmp_path}"]
    assert train.main([f"+experiment={name}", *words]) == 0
    directory = tmp_path / name / "a"
    dims = (8, 64, 256) if name == "imagenet_rn50" else (8, 16)
    rows = read_rows(directory / "evaluation.csv")
    assert {(r.dim, r.metric) for r in rows} == {(m, x) for m in dims for x in ("linear_top1", "linear_top5", "ece")}
    losses = [line["loss"] for line in Log(directory / "metrics.jsonl").read()]
    assert all(np.isfinite(list(loss.values())).all() and len(loss) == len(dims) for loss in losses)
    assert max(split.inputs.largest for split in splits) <= 6  # never a whole split at once


@pytest.mark.slow
def test_encoded_images_decoded_by_any_processes_and_an_average_resume_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe of the ViT on JPEGs and PNGs of many sizes, which stay on disk."""
    assert issubclass(test_tfds.MrlPhotos, test_tfds.Synthetic)
    words = ["+experiment=imagenet_vit_s16", "data.name=mrl_photos", "data.image_size=40", "data.streaming=true"]
    words += ["data.validation_fraction=0.2", f"data.cache_dir={tmp_path / 'cache'}", "optimizer.ema=0.9"]
    words += ["trainer.steps=4", "trainer.batch_size=8", "trainer.evaluations=2", "trainer.log_every=1"]
    words += [*SMALL["imagenet_vit_s16"], "trainer.checkpoint_seconds=0", "evaluation.batch_size=6"]
    words += [f"results_dir={tmp_path}"]
    assert train.main([*words, "run=whole", "data.workers=null"]) == 0
    interrupt_after_two_checkpoints([*words, "run=stopped", "data.workers=2"], monkeypatch)
    assert train.main([*words, "run=stopped", "data.workers=1", "resume=true"]) == 0
    one, other = (tmp_path / "imagenet_vit_s16" / name for name in ("whole", "stopped"))
    assert mrl_jax.load(one).fingerprint == mrl_jax.load(other).fingerprint
    assert (one / "evaluation.csv").read_bytes() == (other / "evaluation.csv").read_bytes()
    assert (one / "dataset.json").read_bytes() == (other / "dataset.json").read_bytes()
