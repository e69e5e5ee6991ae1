"""The ImageNet recipe on a few synthetic images that are read lazily: the whole path, except for the data."""

from pathlib import Path

import numpy as np
import pytest

from mrl_jax import data, train
from mrl_jax.data import Dataset, Split
from mrl_jax.runs import Log, read_rows


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


@pytest.mark.slow
def test_the_recipe_runs_on_images_that_are_read_lazily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = [
        Split(Drawn(np.arange(n) + 100 * i), (np.arange(n) % 3).astype(np.int32)) for i, n in enumerate((12, 6, 6))
    ]
    dataset = Dataset("synthetic", "image", ("a", "b", "c"), *splits)
    monkeypatch.setattr(data, "load", lambda config: dataset)
    words = [
        "trainer.steps=1",
        "trainer.batch_size=4",
        "trainer.evaluations=1",
        "encoder.crop=32",
        "encoder.channels=8",
    ]
    words += ["width=256", "nesting_dims=[8,64,256]", "evaluation.batch_size=6", "run=a", f"results_dir={tmp_path}"]
    assert train.main(["+experiment=imagenet_rn50", *words]) == 0
    directory = tmp_path / "imagenet_rn50" / "a"
    rows = read_rows(directory / "evaluation.csv")
    assert {(r.dim, r.metric) for r in rows} == {
        (m, x) for m in (8, 64, 256) for x in ("linear_top1", "linear_top5", "ece")
    }
    losses = [line["loss"] for line in Log(directory / "metrics.jsonl").read()]
    assert all(np.isfinite(list(loss.values())).all() and len(loss) == 3 for loss in losses)
    assert max(split.inputs.largest for split in splits) <= 6  # never a whole split at once
