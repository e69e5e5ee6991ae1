"""The inputs of examples: texts, features `[n, d]` or images `[n, h, w, c]`, in memory or read on demand."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

STREAMING_MIN_BYTES = 1 << 30  # a data.train of at least this size (uncompressed, if Parquet) stays on disk


@runtime_checkable
class LazyInputs(Protocol):
    """Inputs that are read on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The inputs at these rows, `[len(rows), …]`."""
        ...

    def subset(self, rows: np.ndarray) -> "LazyInputs":
        """A view of these rows."""
        ...


@dataclass(frozen=True)
class StreamedTexts:
    """Texts that exceed memory: read from their source, in its order, each time they are iterated over."""

    read: Callable[[], Iterator[str]]  # yields every text of the source
    total: int  # number of texts of the source
    digest: str  # identifies the content of the source
    rows: np.ndarray | None = None  # int32, ascending: the selected texts of the source; None: all

    def __len__(self) -> int:
        return self.total if self.rows is None else len(self.rows)

    def __iter__(self) -> Iterator[str]:
        if self.rows is None:
            return self.read()
        if not len(self.rows):
            return iter(())
        wanted = np.zeros(self.rows[-1] + 1, np.uint8)  # nothing is read beyond the last one
        wanted[self.rows] = 1
        return itertools.compress(self.read(), wanted.tobytes())

    def subset(self, rows: np.ndarray) -> "StreamedTexts":
        """A view of these rows, which must ascend."""
        rows = rows.astype(np.int32) if self.rows is None else self.rows[rows]
        return replace(self, rows=rows)

    @property
    def key(self) -> str:
        """SHA-256 that identifies these texts."""
        rows = b"" if self.rows is None else np.ascontiguousarray(self.rows).tobytes()
        return hashlib.sha256(f"{self.digest} {len(self)} ".encode() + rows).hexdigest()


Table = Sequence[str] | np.ndarray | StreamedTexts  # t texts, or features float32 [t, d]
Inputs = Table | LazyInputs

AnyInputs = TypeVar("AnyInputs", bound=Inputs)
AnyTable = TypeVar("AnyTable", bound=Table)


def take(inputs: AnyInputs, rows: np.ndarray) -> AnyInputs:
    """The inputs at these row numbers, in their order; row numbers of streamed texts must ascend."""
    if isinstance(inputs, np.ndarray):
        return inputs[rows]  # type: ignore[no-any-return]
    subset: Any = getattr(inputs, "subset", None)
    if subset is not None:  # of what is read on demand, or holds texts and images
        return subset(rows)  # type: ignore[no-any-return]
    texts: Any = inputs
    return [texts[row] for row in rows]  # type: ignore[return-value]


def compact(table: AnyTable, rows: np.ndarray) -> tuple[AnyTable, np.ndarray]:
    """The part of a table that is used.

    Args:
        table: t texts, or features [t, d].
        rows: the row numbers that are used, int of any shape.

    Returns:
        The used rows of the table in its order, and `rows` renumbered for it, int32.
    """
    used = np.zeros(len(table), bool)
    used[rows] = True
    return take(table, np.flatnonzero(used)), (np.cumsum(used, dtype=np.int32) - 1)[rows]
