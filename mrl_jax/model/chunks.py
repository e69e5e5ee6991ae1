"""Examples to embed, some thousands at a time: arrays, what is read from disk on demand, or what is iterated over."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mrl_jax.data.inputs import LazyInputs


def chunks(raw: Iterable[Any] | np.ndarray, size: int) -> Iterator[Any]:
    """Split the examples into chunks of `size`, in order."""
    if isinstance(raw, np.ndarray):
        yield from (raw[start : start + size] for start in range(0, len(raw), size))
        return
    if isinstance(raw, LazyInputs):
        for start in range(0, len(raw), size):
            yield raw.subset(np.arange(start, min(start + size, len(raw))))
        return
    examples = iter(raw)
    while chunk := list(itertools.islice(examples, size)):
        yield chunk
