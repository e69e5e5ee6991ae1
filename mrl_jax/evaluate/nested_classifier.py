"""Answers in class names: from the classifier of one prefix, or from a cascade that reads on where it is unsure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax

from mrl_jax.evaluate import cascade
from mrl_jax.evaluate.adaptive import Rule
from mrl_jax.evaluate.classification import rows_at_once


class Predictions(NamedTuple):
    """The answers to n inputs."""

    names: list[str]  # [n], of the most probable class of each
    probabilities: np.ndarray  # float64 [n, C], columns in the order of `NestedClassifier.classes`
    dims: np.ndarray  # int [n], the length of the prefix that answered


@dataclass(frozen=True)
class NestedClassifier:
    """The classifiers of one or more prefixes. `EmbeddingModel.classifier` and `EmbeddingModel.cascade` make one."""

    classes: tuple[str, ...]  # names of the C classes
    dims: tuple[int, ...]  # K prefix lengths, ascending
    classifiers: tuple[cascade.Classifier, ...]  # K of them
    rule: Rule  # K temperatures, and K − 1 thresholds at which an answer is final; `rule.certified` of a cascade
    tied: bool  # whether the kernels are prefixes of one
    calibrated: bool  # whether the temperatures were fitted to held-out examples; otherwise they are 1
    embed: Callable[..., Iterator[np.ndarray]]  # inputs → blocks of embeddings [≤ chunk, max(dims)]

    def predict(self, raw: Any, **options: Any) -> Predictions:
        """The answers to all inputs; arguments as for `predict_stream`."""
        blocks = list(self.predict_stream(raw, **options))
        return Predictions(
            [name for block in blocks for name in block.names],
            np.concatenate([np.zeros((0, len(self.classes))), *(block.probabilities for block in blocks)]),
            np.concatenate([np.zeros(0, np.int64), *(block.dims for block in blocks)]),
        )

    def predict_stream(self, raw: Any, **options: Any) -> Iterator[Predictions]:
        """As `predict`, but yields the answers in blocks, in order, with constant memory.

        Args:
            raw: n texts, images or features, as for `EmbeddingModel.encode`.
            options: `batch_size`, `show_progress` and `chunk_size`, as for `EmbeddingModel.encode_stream`.
        """
        return (self.answer(z) for block in self.embed(raw, **options) for z in self._parts(block))

    def answer(self, z: np.ndarray) -> Predictions:
        """The answers to embeddings [n, max(dims)], as from `EmbeddingModel.embed`."""
        rule = self.rule
        logits, stage = cascade.exits(
            z, self.classifiers, rule.temperatures, rule.thresholds, rule.kind, self.tied and len(self.dims) > 1
        )
        # In float64, where distinct logits have distinct probabilities.
        p = softmax(logits.astype(np.float64) / np.asarray(rule.temperatures)[stage, None], axis=1)
        return Predictions([self.classes[i] for i in p.argmax(axis=1)], p, np.asarray(self.dims)[stage])

    def _parts(self, z: np.ndarray) -> Iterator[np.ndarray]:
        rows = rows_at_once(len(self.classes))
        return (z[start : start + rows] for start in range(0, len(z), rows))
