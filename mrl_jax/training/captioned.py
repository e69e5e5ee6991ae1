"""Texts and images as one table of examples, see `data.captioned`: rows of both may share a batch, which then has the
inputs of both towers, or be embedded side by side (`parts`)."""

from collections.abc import Sequence

import numpy as np

from mrl_jax.data.captioned import split_rows
from mrl_jax.data.inputs import take
from mrl_jax.training.batches import Examples


class CaptionedExamples(Examples):
    """Rows 0 … t − 1 are the texts, those behind them the images. Rows that are taken name their texts first."""

    def __init__(self, texts: Examples, images: Examples) -> None:
        self.texts, self.images, self.cut = texts, images, texts.cut
        self.inputs = {**texts.inputs, **images.inputs}
        self.labels = np.zeros(len(texts) + len(images), np.int32)
        of_images = np.zeros(len(images), np.int64)  # they have no tokens
        self.lengths = None if texts.lengths is None else np.concatenate([texts.lengths, of_images])

    @property
    def parts(self) -> Sequence[tuple[int, Examples]]:
        """What is embedded apart: each side, and the row of its first example."""
        return (0, self.texts), (len(self.texts), self.images)

    def subset(self, rows: np.ndarray) -> "CaptionedExamples":
        """The examples at `rows`, int [m]; images that are read on demand still are."""
        texts, images = split_rows(rows, len(self.texts))
        pictures = {name: take(array, images) for name, array in self.images.inputs.items()}
        return CaptionedExamples(self.texts.subset(texts), Examples(pictures, self.images.labels[images]))

    def take(self, rows: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
        """The batch of the examples at `rows`, with `label`: the inputs of the sides that it has examples of."""
        texts, images = split_rows(rows, len(self.texts))
        batch = self.texts.take(texts, length) if len(texts) else {}
        batch |= self.images.take(images) if len(images) else {}
        return batch | {"label": self.labels[rows]}

    def pack(self, rows: np.ndarray, length: int, multiple: int) -> dict[str, np.ndarray]:
        """As `Examples.pack` of the texts, and the images as they are."""
        texts, images = split_rows(rows, len(self.texts))
        batch = self.texts.pack(texts, length, multiple) if len(texts) else {}
        if len(images):
            batch |= {name: np.asarray(array[images]) for name, array in self.images.inputs.items()}
        return batch
