"""Damaged inputs at five strengths, the same in every run: typing errors and dropped words; noise, blur, contrast.

`CORRUPTIONS` is the table of them (`evaluation.corruption`). Accuracy under damage is reported per strength and, as for
ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261), as the mean over the strengths.
"""

import string
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

LETTERS = string.ascii_lowercase


class Corruption(NamedTuple):
    """An entry of `CORRUPTIONS`."""

    kind: Literal["text", "image"]  # of the inputs
    title: str
    strengths: tuple[float, ...]  # ascending damage
    damage: Callable[[Any, float, np.random.Generator], Any]  # a text, or an image uint8 [h, w, c]


def typos(text: str, rate: float, rng: np.random.Generator) -> str:
    """Each character, with probability `rate`, dropped, replaced, put behind another or swapped with the next."""
    characters = list(text)
    for at in np.flatnonzero(rng.random(len(text)) < rate).tolist():
        edit, letter = int(rng.integers(4)), LETTERS[int(rng.integers(len(LETTERS)))]
        if edit == 0:
            characters[at] = ""
        elif edit == 1:
            characters[at] = letter
        elif edit == 2:
            characters[at] = letter + characters[at]
        elif at + 1 < len(characters):
            characters[at], characters[at + 1] = characters[at + 1], characters[at]
    return "".join(characters) or text


def dropped_words(text: str, rate: float, rng: np.random.Generator) -> str:
    """Each word (what stands between spaces) dropped with probability `rate`, but for one."""
    words = text.split()
    draws = rng.random(len(words))
    keep = draws >= min(rate, draws.max(initial=0.0))
    return " ".join(word for word, kept in zip(words, keep.tolist(), strict=True) if kept)


def noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Normal noise; `deviation` as a share of white."""
    return _to_bytes(image + rng.normal(scale=255 * deviation, size=image.shape))


def blur(image: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian blur of `radius` pixels."""
    return _to_bytes(gaussian_filter(image.astype(np.float64), (radius, radius, 0)))


def contrast(image: np.ndarray, loss: float, rng: np.random.Generator) -> np.ndarray:
    """Every pixel nearer to the mean of the image by the share `loss`."""
    mean = image.mean()
    return _to_bytes(mean + (1 - loss) * (image - mean))


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)


CORRUPTIONS: dict[str, Corruption] = {
    "typos": Corruption("text", "typing errors", (0.02, 0.04, 0.08, 0.12, 0.16), typos),
    "dropped_words": Corruption("text", "dropped words", (0.1, 0.2, 0.3, 0.5, 0.7), dropped_words),
    "noise": Corruption("image", "noise", (0.05, 0.1, 0.15, 0.2, 0.3), noise),
    "blur": Corruption("image", "blur", (0.5, 0.75, 1.0, 1.5, 2.0), blur),
    "contrast": Corruption("image", "lost contrast", (0.3, 0.5, 0.7, 0.8, 0.9), contrast),
}


def corrupt(name: str, inputs: Sequence[str] | np.ndarray, strength: int) -> list[str] | np.ndarray:
    """Each input damaged by `name` at strength 1 … 5. What happens to one depends on it alone, not on the others."""
    entry = CORRUPTIONS[name]
    amount, key = entry.strengths[strength - 1], (zlib.crc32(name.encode()), strength)

    def one(item: Any) -> Any:
        content = item.encode(errors="replace") if isinstance(item, str) else np.ascontiguousarray(item).tobytes()
        return entry.damage(item, amount, np.random.default_rng((*key, zlib.crc32(content))))

    damaged = [one(item) for item in inputs]
    return np.stack(damaged) if isinstance(inputs, np.ndarray) else damaged
