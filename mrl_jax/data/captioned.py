"""A table of texts and images, by one row number: what pairs of captions and pictures are pairs of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrl_jax.data.inputs import take


@dataclass(frozen=True)
class CaptionedImages:
    """Rows 0 … t − 1 are the texts, those behind them the images. It stands where `base.Pairs` has a table of texts."""

    texts: Sequence[str]
    images: Any  # uint8 [n, h, w, c], or read on demand: `base.LazyInputs`, `readers.images.StoredImages`

    def __len__(self) -> int:
        return len(self.texts) + len(self.images)

    def subset(self, rows: np.ndarray) -> "CaptionedImages":
        """A table of these rows, which must ascend; nothing is read."""
        texts, images = split_rows(rows, len(self.texts))
        return CaptionedImages(take(self.texts, texts), take(self.images, images))


def split_rows(rows: np.ndarray, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """The row numbers of texts, and those of images counted from 0, of rows that name all their texts first."""
    is_text = rows < texts
    count = int(np.count_nonzero(is_text))
    if not is_text[:count].all():
        raise ValueError("the rows of a table of texts and images have to name the texts first")
    return rows[:count], rows[count:] - texts
