"""What a task is, and what all tasks share: the check of the data, the files that scores are written to."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from mrl_jax.config import Config, LossConfig
from mrl_jax.data import Dataset, PairDataset, StreamedTexts
from mrl_jax.evaluate import Score
from mrl_jax.losses import LOSSES, nested_distillation
from mrl_jax.runs import MetricRow
from mrl_jax.system import files, processes
from mrl_jax.system.errors import UserError
from mrl_jax.training.batches import Examples
from mrl_jax.training.models import FitResult
from mrl_jax.training.objective import Objective
from mrl_jax.training.trainer import Trainer

Splits = Mapping[str, Any]  # train, validation, test: `Examples`, `PairExamples` or `RankingExamples`

MAX_EMBEDDINGS_BYTES = 2 << 30  # that the evaluation of streamed data may hold at once


class Preprocess(Protocol):
    """Turns raw inputs into arrays, and examples that stay on disk into readers of them."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """As that of `Preprocessor`."""
        ...

    def __call__(self, raw: Any, labels: np.ndarray, name: str) -> Examples:
        """The raw inputs in memory, those of the split `name`, as examples."""
        ...

    def on_disk(
        self, texts: StreamedTexts, labels: np.ndarray, name: str, columns: np.ndarray | None = None
    ) -> Examples:
        """The streamed texts of the split `name` as examples that are read when a step needs them."""
        ...


class Task(Protocol):
    """What is learnt, from the raw data to the rows of evaluation.csv. `TASKS` is the table of them."""

    def check(self, config: Config, dataset: Any) -> None:
        """Raise `UserError` where the data does not suit the configuration, or evaluation would not fit in memory."""
        ...

    def splits(self, config: Config, dataset: Any, preprocess: Preprocess) -> Splits:
        """The three splits of a data set as arrays."""
        ...

    def describe(self, dataset: Any, splits: Splits) -> dict[str, Any]:
        """What dataset.json keeps besides what it keeps for every task: enough to build `objective` again."""
        ...

    def objective(self, config: Config, description: Mapping[str, Any]) -> Objective:
        """What the training step learns, from the configuration and the content of dataset.json."""
        ...

    def score(
        self, config: Config, trainer: Trainer, result: FitResult, splits: Splits, directory: Path
    ) -> list[MetricRow]:
        """The rows of a trained member and of the arms that compress it; per-example outcomes go to predictions/."""
        ...

    def score_untuned(
        self, config: Config, trainer: Trainer, splits: Splits, seed: int, directory: Path
    ) -> list[MetricRow]:
        """The rows of the arms that stand for the encoder before training, with the initial parameters of `seed`."""
        ...


def check_data(config: Config, dataset: Dataset | PairDataset) -> None:
    """Raise `UserError` where a split is empty, or the data is not what the loss learns from."""
    for name in ("train", "validation", "test"):
        if not len(getattr(dataset, name)):
            hint = "; raise data.validation_fraction or add examples" if name == "validation" else ""
            raise UserError(f"data={dataset.name}: the {name} split is empty{hint}")
    contents = dataset.train.contents
    if (other := dataset.validation.contents) != contents:
        raise UserError(f"data={dataset.name}: train has {contents}, validation {other}; both have to be of one kind")
    loss = config.loss.name
    learns_from = LOSSES[loss].learns_from
    unlabelled = learns_from == "texts" and contents == "classes" and getattr(dataset, "kind", None) == "text"
    if learns_from != contents and not unlabelled:
        fitting = " or ".join(name for name, entry in LOSSES.items() if entry.learns_from == contents)
        raise UserError(f"loss.name={loss} does not fit data={dataset.name}, {contents}; use {fitting}")


def shortlist(
    options: LossConfig,
    queries_BxD: jax.Array,
    documents_NxD: jax.Array | None,
    dims: Sequence[int],
    taught_K: jax.Array,
) -> jax.Array:
    """The loss of `loss.shortlist`, before its weight: prefixes learn which neighbours the full width has."""
    temperature = options.shortlist_temperature
    return nested_distillation(queries_BxD, documents_NxD, dims, taught_K, temperature, neighbours=options.shortlist_k)[
        0
    ]


def where_taught(weights_K: jax.Array, of_arm_K: jax.Array | None = None) -> jax.Array:
    """The weights of losses in which the full width teaches, [K]: none where it has no weight in the arm, as in a
    fixed-size model of fewer dims, whose other coordinates are never trained. In steps that only do not draw it, it
    teaches."""
    full = (weights_K if of_arm_K is None else of_arm_K)[-1]
    return jnp.where(full > 0, weights_K, 0.0)


def write_scores(
    config: Config,
    directory: Path,
    arm: str,
    label: str,
    seed: int,
    labels: Mapping[str, np.ndarray],
    scores: Iterable[tuple[str, Score]],
) -> list[MetricRow]:
    """Write the outcomes of an arm to predictions/`label`.npz and return its rows of evaluation.csv.

    Args:
        labels: int [n] of the validation and the test split.
        scores: (split, score), consumed once.
    """
    rows: list[MetricRow] = []
    outcomes = {f"{split}/label": labels[split] for split in ("validation", "test")}
    for split, s in scores:
        rows.append(MetricRow(config.name, arm, seed, s.dim, split, s.metric, s.value))
        if s.outcomes is not None:
            outcomes[f"{split}/{s.metric}/{s.dim}"] = s.outcomes
        if s.prediction is not None:
            outcomes[f"{split}/prediction/{s.dim}"] = s.prediction
    if processes.is_process0():
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **outcomes)
        files.write(directory / "predictions" / f"{label}.npz", buffer.getvalue())
    return rows
