"""Several sources: one encoder and one optimiser, a task for each source. Its results go to sources/<name> of the run.

A step trains on a batch of one source, by its own loss; which one, `data.mixture` says. The validation score is the
mean of those of the sources.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mrl_jax import config as configuration
from mrl_jax.config import Config
from mrl_jax.data import MixedDataset, StreamedTexts
from mrl_jax.data.mixture import shares
from mrl_jax.runs import MetricRow, sources
from mrl_jax.system.console import say
from mrl_jax.system.errors import UserError, within
from mrl_jax.tasks.base import Preprocess, Splits, Task
from mrl_jax.training.batches import Examples
from mrl_jax.training.mixture import MixedExamples, MixedObjective, of_source
from mrl_jax.training.models import FitResult
from mrl_jax.training.step import Weights
from mrl_jax.training.trainer import Trainer


@dataclass(frozen=True)
class _Named:
    """A `Preprocess` that puts the name of a source before those of its splits."""

    inner: Preprocess
    source: str

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.inner.tokenizer

    def __call__(self, raw: Any, labels: np.ndarray, name: str) -> Examples:
        return self.inner(raw, labels, f"{self.source} {name}")

    def on_disk(
        self, texts: StreamedTexts, labels: np.ndarray, name: str, columns: np.ndarray | None = None
    ) -> Examples:
        return self.inner.on_disk(texts, labels, f"{self.source} {name}", columns)


@dataclass(frozen=True)
class Mixture:
    """The task of `data=mixture`."""

    task_of: Callable[[Config], Task]  # of the configuration of one source

    def check(self, config: Config, dataset: MixedDataset) -> None:
        for name, part in configuration.parts(config).items():
            with within(f"data.sources.{name}"):
                self.task_of(part).check(part, dataset.parts[name])

    def splits(self, config: Config, dataset: MixedDataset, preprocess: Preprocess) -> Splits:
        each = {
            name: self.task_of(part).splits(part, dataset.parts[name], _Named(preprocess, name))
            for name, part in configuration.parts(config).items()
        }
        sizes = {name: len(splits["train"]) for name, splits in each.items()}
        train = MixedExamples(
            {name: splits["train"] for name, splits in each.items()}, shares(config.data, list(sizes.values()))
        )
        total = config.trainer.total_steps(len(train))
        for (name, size), steps in zip(sizes.items(), train.steps_of(total), strict=True):
            if not steps:
                raise UserError(
                    f"data.sources.{name} has none of the {total:,} steps: its share is too small; raise its weight, "
                    "or train longer"
                )
            passes = steps * config.trainer.batch_size / size
            say(f"{name}: {steps:,} of {total:,} steps, {passes:.3g} passes over {size:,} training examples")
        others = dict.fromkeys(split for of in each.values() for split in of if split != "train")  # probes, of some
        mixed = {split: MixedExamples({n: of[split] for n, of in each.items() if split in of}) for split in others}
        return {"train": train, **mixed}

    def describe(self, dataset: MixedDataset, splits: Splits) -> dict[str, Any]:
        return {"classes": []}

    def objective(self, config: Config, description: Mapping[str, Any]) -> MixedObjective:
        found = {
            name: self.task_of(part).objective(part, description["sources"][name])
            for name, part in configuration.parts(config).items()
        }
        return MixedObjective(found)

    def score(
        self, config: Config, trainer: Trainer, result: FitResult, splits: Splits, directory: Path
    ) -> list[MetricRow]:
        rows = []
        for name, part in configuration.parts(config).items():
            own = Weights(
                {"encoder": result.model.params["encoder"], **of_source(result.model.params, name)},
                result.model.statistics,
            )
            place, of = sources.folder(directory, name), splits_of(splits, name)
            rows += self.task_of(part).score(part, trainer, result._replace(model=own), of, place)
        return rows

    def score_untuned(
        self, config: Config, trainer: Trainer, splits: Splits, seed: int, directory: Path
    ) -> list[MetricRow]:
        rows = []
        for name, part in configuration.parts(config).items():
            place, of = sources.folder(directory, name), splits_of(splits, name)
            rows += self.task_of(part).score_untuned(part, trainer, of, seed, place)
        return rows


def splits_of(splits: Splits, name: str) -> dict[str, Any]:
    """The splits that one source has."""
    return {split: of.parts[name] for split, of in splits.items() if name in of.parts}
