"""Training on several sources: examples of which a batch holds one source, and the objective of each.

The label of a batch is `{source: label}`. Keys of a dict are part of what JAX compiles for, so every source has a
compiled step of its own, and a batch says by itself which objective it is of.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from mrl_jax.data.mixture import schedule
from mrl_jax.training.batches import BatchReader, Examples, PairExamples, RankingExamples, prefetch, stream
from mrl_jax.training.objective import Objective


class NamedExamples:
    """The examples of one source; their batches say whose they are."""

    def __init__(self, name: str, examples: Examples | PairExamples) -> None:
        self.name, self.examples = name, examples
        self.lengths, self.inputs, self.padded_length = examples.lengths, examples.inputs, examples.padded_length

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, rows: np.ndarray, length: int | None = None) -> dict[str, Any]:
        batch = self.examples.take(rows, length)
        return batch | {"label": {self.name: batch["label"]}}

    def stack(self, parts: Sequence[np.ndarray], length: int | None) -> dict[str, Any]:
        batch = self.examples.stack(parts, length)
        return batch | {"label": {self.name: batch["label"]}}


class MixedExamples:
    """A split of a mixture. Its rows are numbered through all sources, one after another; a batch has rows of one."""

    separable = False  # so every process builds the whole batch and keeps its part
    fingerprint = None

    def __init__(
        self, parts: Mapping[str, Examples | PairExamples | RankingExamples], shares_S: np.ndarray | None = None
    ) -> None:
        self.parts, self.shares = dict(parts), shares_S  # of the steps, of training examples
        learnt = {name: part for name, part in parts.items() if not isinstance(part, RankingExamples)}
        self.named = [NamedExamples(name, part) for name, part in learnt.items()]
        self.starts = np.cumsum([0, *map(len, self.parts.values())])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs of one source: where texts are padded, of that with the longest."""
        return max((part.inputs for part in self.parts.values()), key=lambda x: next(iter(x.values())).shape[1:])

    @property
    def raw_inputs(self) -> dict[str, Any]:
        """As `Examples.raw_inputs`."""
        return self.inputs

    def arrays(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The content of the split: how many examples each source has; their arrays by source and name."""
        found: dict[str, Any] = {}
        for name, part in self.parts.items():
            first, arrays = part.arrays()
            found |= {f"{name}/{key}": array for key, array in ({"": first} | arrays).items()}
        return self.starts, found

    def _of(self, rows: np.ndarray) -> tuple[NamedExamples, int]:
        """The source that all these rows are of, and the number of its first one."""
        source = int(np.searchsorted(self.starts, rows[0], "right")) - 1
        return self.named[source], int(self.starts[source])

    def padded_length(self, rows: np.ndarray) -> int | None:
        """As `Examples.padded_length`."""
        part, start = self._of(rows)
        return part.padded_length(rows - start)

    def take(self, rows: np.ndarray, length: int | None = None) -> dict[str, Any]:
        """The batch of the examples at `rows`, all of one source; its label is `{source: label}`."""
        part, start = self._of(rows)
        return part.take(rows - start, length)

    def stack(self, parts: Sequence[np.ndarray], length: int | None) -> dict[str, Any]:
        """The batches of several members, `parts` of rows [B] each, stacked to [members, B, …]."""
        part, start = self._of(parts[0])
        return part.stack([rows - start for rows in parts], length)

    def steps_of(self, steps: int) -> np.ndarray:
        """How many of the first steps each source has, int [S]."""
        assert self.shares is not None
        chosen = np.fromiter(schedule(self.shares, steps), np.int64, steps)
        return np.bincount(chosen, minlength=len(self.shares))

    def stream(self, seed: int, batch_size: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """The rows int32 [batch_size] of each of the steps start … stop − 1: the next ones of the step's source, which
        begins anew when it ends. Other seeds have other rows, and the same sources."""
        assert self.shares is not None
        streams = [
            stream(part.examples, seed, batch_size, int(done), stop)
            for part, done in zip(self.named, self.steps_of(start), strict=True)
        ]
        for source in itertools.islice(schedule(self.shares, stop), start, None):
            yield next(streams[source]) + np.int32(self.starts[source])

    def read_ahead(self, rows: Iterator[Any], make: Any, start: int, stop: int) -> BatchReader:
        """As `Examples.read_ahead`."""
        return BatchReader(prefetch(rows, make), start)


AnyExamples = Examples | PairExamples | MixedExamples


@dataclass(frozen=True)
class MixedObjective:
    """The objectives of all sources; a batch is of one of them, which `of` chooses. Parameters stand under the name of
    their source."""

    parts: Mapping[str, Objective]
    chosen: str | None = None

    def with_options(self, options: Mapping[str, Any]) -> "MixedObjective":
        return replace(self, parts={name: part.with_options(options) for name, part in self.parts.items()})

    def of(self, label: Any) -> tuple["MixedObjective", Any]:
        ((name, inner),) = label.items()
        return replace(self, chosen=name), inner

    @property
    def part(self) -> Objective:
        """The chosen objective. What all have in common, such as the dims, is that of any."""
        return self.parts[self.chosen or next(iter(self.parts))]

    @property
    def dims(self) -> tuple[int, ...]:
        return self.part.dims

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.part.kinds

    @property
    def columns(self) -> int:
        return self.part.columns

    @property
    def couples_examples(self) -> bool:
        return self.part.couples_examples

    @property
    def sampled(self) -> int:
        return self.part.sampled

    @property
    def breaks_ties(self) -> bool:
        return any(part.breaks_ties for part in self.parts.values())

    def loss(
        self, params: Any, z: jax.Array, label: Any, weights: jax.Array, of_arm: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        return self.part.loss(of_source(params, str(self.chosen)), z, label, weights, of_arm)

    def score(self, params: Any, z: jax.Array, label: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.part.score(of_source(params, str(self.chosen)), z, label, valid)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """The first source has the parameters that it would have alone."""
        keys = [key, *(jax.random.fold_in(key, i) for i in range(1, len(self.parts)))]
        return _by_source({n: part.init(k) for (n, part), k in zip(self.parts.items(), keys, strict=True)})

    def narrow(self, width: int) -> "MixedObjective":
        return replace(self, parts={name: part.narrow(width) for name, part in self.parts.items()})

    def cut(self, wide: Any, params: Any) -> dict[str, Any]:
        return _by_source({n: part.cut(wide.parts[n], of_source(params, n)) for n, part in self.parts.items()})

    def widen(self, wide: Any, full: dict[str, Any], params: Any) -> dict[str, Any]:
        parts = self.parts.items()
        widened = {n: part.widen(wide.parts[n], of_source(full, n), of_source(params, n)) for n, part in parts}
        return full | _by_source(widened)


def of_source(params: Any, name: str) -> dict[str, Any]:
    """The parameters of a source beside the encoder's; empty where it has none."""
    return dict(params.get("sources", {}).get(name, {}))


def _by_source(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    some = {name: params for name, params in parts.items() if params}
    return {"sources": some} if some else {}
