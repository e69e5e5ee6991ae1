"""Run directories made in milliseconds, with outcomes of a chosen accuracy instead of trained models."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax import runs
from mrl_jax.arms import POSTHOC
from mrl_jax.config import Config, LossConfig, TrainerConfig
from mrl_jax.data import DataConfig
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.runs import Log, MetricRow
from mrl_jax.system import files

DIMS = (4, 8, 16)
ARMS = ("mrl", "mrl_e", "mrl_sampled", "ff", *(name for name in POSTHOC if name != "csr"))
CLASSES = ("cat", "dog", "emu", "fox")
RECALL = ("knn_top1", "map@10", "int8_knn_top1", "int8_map@10", "bit_knn_top1", "bit_map@10")


def accuracy(arm: str, dim: int) -> float:
    """Expected accuracy: MRL above FF in few dims and below it in many, post-hoc arms below both in few."""
    step = np.log2(dim)
    match arm:
        case "ff":
            return float(min(0.95, 0.50 + 0.10 * (step - 2)))
        case "mrl" | "mrl_e" | "mrl_sampled":
            return float(min(0.93, 0.60 + 0.045 * (step - 2) - 0.01 * (arm == "mrl_e") - 0.02 * (arm == "mrl_sampled")))
        case _:
            return float(min(0.95, 0.30 + 0.15 * (step - 2) + 0.03 * (arm == "pca")))


def config(results: Path, **changes: Any) -> Config:
    """The configuration of a made run; `changes` are fields of `Config`."""
    made = Config(
        data=DataConfig("features"),
        encoder=MLPConfig(),
        name="made",
        width=16,
        nesting_dims=DIMS,
        arms=("mrl", "ff"),
        seeds=2,
        loss=LossConfig(),
        trainer=TrainerConfig(epochs=None, steps=20, batch_size=32),
        results_dir=str(results),
        run="first",
    )
    return replace(made, **changes)


def make_run(
    results: Path,
    *,
    examples: int = 120,
    classes: Sequence[str] = CLASSES,
    started: str = "2030-01-01T10:00:00+0000",
    score: Callable[[str, int], float] = accuracy,
    keep: Callable[[str], bool] = lambda label: True,
    predictions: bool = True,
    fingerprint: str = "aa",
    **changes: Any,
) -> Path:
    """A run directory as `mrl_jax.train` leaves it: config, dataset, environment, metrics, evaluation, predictions.

    `score(arm, dim)` is the expected accuracy; members whose label `keep` turns down have no results, as in a run that
    was cut short. The same call makes the same numbers; arms and seeds differ.
    """
    settings = config(results, **changes)
    directory = runs.claim(settings)
    environment = json.loads((directory / "environment.json").read_text())
    files.write(directory / "environment.json", json.dumps(environment | {"started": started}))
    splits = {"train": 4 * examples, "validation": examples // 2, "test": examples}
    dataset = {
        "name": "made", "kind": "features", "classes": list(classes), "inputs": {}, "encoder": {}, "vocabulary": None,
        "examples": splits, "fingerprint": {split: f"{fingerprint}-{split}" for split in splits},
    }  # fmt: skip
    files.write(directory / "dataset.json", json.dumps(dataset))
    rows: list[MetricRow] = []
    wanted = [arm for arm in ARMS if arm in settings.arms or "all" in settings.arms]
    members = [
        (arm, seed, width)
        for seed in range(settings.seeds)
        for arm in wanted
        for width in (settings.nesting_dims if arm == "ff" else (None,))
    ]
    for arm, seed, width in members:
        label = f"{arm}{width or ''}-seed{seed}"
        if not keep(label):
            continue
        dims = settings.nesting_dims if width is None else (width,)
        if arm not in POSTHOC:
            _log(directory, label, arm, seed, dims, score)
        outcomes = _outcomes(arm, seed, dims, settings.nesting_dims, splits, len(classes), score)
        for key, values in outcomes.items():
            split, metric, *dim = key.split("/")
            if metric not in ("label", "prediction"):
                rows.append(MetricRow(settings.name, arm, seed, int(dim[0]), split, metric, float(values.mean())))
        if arm not in POSTHOC:
            rows += [
                MetricRow(settings.name, arm, seed, d, s, "ece", 0.05) for s in ("validation", "test") for d in dims
            ]
        if predictions:
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **outcomes)
            files.write(directory / "predictions" / f"{label}.npz", buffer.getvalue())
    if rows:
        runs.write_rows(directory / "evaluation.csv", rows)
    return directory


def _outcomes(
    arm: str,
    seed: int,
    dims: Sequence[int],
    nesting_dims: Sequence[int],
    splits: dict[str, int],
    classes: int,
    score: Callable[[str, int], float],
) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for split in ("validation", "test"):
        n = splits[split]
        label = (np.arange(n) % classes).astype(np.int32)
        made[f"{split}/label"] = label
        # How hard an example is is shared by arms and seeds, so that comparisons have something to pair.
        hard = np.random.default_rng(7).random(n)
        for dim in dims:
            at = nesting_dims.index(dim)
            rng = np.random.default_rng([ARMS.index(arm), seed, at, split == "test"])
            right = 0.7 * hard + 0.3 * rng.random(n) < _threshold(score(arm, dim))
            made[f"{split}/linear_top1/{dim}"] = right.astype(np.float32)
            wrong = (label + 1 + rng.integers(0, max(1, classes - 1), n)) % classes
            made[f"{split}/prediction/{dim}"] = np.where(right, label, wrong).astype(np.int32)
            made[f"{split}/linear_top5/{dim}"] = np.ones(n, np.float32)
            other = "own_head_top1" if arm in POSTHOC else "refit_top1"
            made[f"{split}/{other}/{dim}"] = (right & (rng.random(n) > 0.1)).astype(np.float32)
            made[f"{split}/precision@10/{dim}"] = (0.5 * right).astype(np.float32)
            for i, metric in enumerate(RECALL):  # a little less in fewer bits
                hit = right & (rng.random(n) > 0.02 * (1 + i // 2 * 2))
                made[f"{split}/{metric}/{dim}"] = (hit * (1.0 if "knn" in metric else 0.8)).astype(np.float32)
    return made


def _threshold(accuracy: float) -> float:
    """Where to cut 0.7 U + 0.3 V, of independent uniform U and V, to have this share below."""
    if accuracy <= 0.3 / 1.4:
        return float(np.sqrt(0.42 * accuracy))
    if accuracy >= 1 - 0.3 / 1.4:
        return float(1 - np.sqrt(0.42 * (1 - accuracy)))
    return 0.7 * accuracy + 0.15


def _log(
    directory: Path, label: str, arm: str, seed: int, dims: Sequence[int], score: Callable[[str, int], float]
) -> None:
    def line(step: int, split: str) -> dict[str, Any]:
        width = {"width": dims[0]} if arm == "ff" else {}
        common = {"step": step, "split": split, "member": label, "arm": arm, "seed": seed, **width}
        loss = {str(dim): 2.0 / step + 1 - score(arm, dim) for dim in dims}
        if split == "train":
            # The first line counts compilation in; members trained in turn are never equally fast.
            speed = 800.0 + ARMS.index(arm) + 0.1 * seed if arm != "ff" else 1600.0 - 4 * dims[0] + 0.1 * seed
            speed = 50.0 if step == 5 else speed
            return {**common, "loss": loss, "examples_per_second": speed}
        return {**common, "loss": loss, "accuracy": {str(dim): score(arm, dim) * step / 20 for dim in dims}}

    Log(directory / "metrics.jsonl").append(
        line(step, split) for step in (5, 10, 20) for split in ("train", "validation")
    )
