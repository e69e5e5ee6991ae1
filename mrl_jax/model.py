"""Use a trained run: `mrl_jax.load(run).encode(texts, dim=64)`."""

import dataclasses
import functools
import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mrl_jax import arms, console, encoders, nesting, runs, tasks
from mrl_jax import config as configuration
from mrl_jax.errors import UserError, one_of
from mrl_jax.losses import heads
from mrl_jax.runs import checkpoint
from mrl_jax.text.tokenizers import Preprocessor
from mrl_jax.training import batches
from mrl_jax.training.batches import Examples
from mrl_jax.training.step import TrainStep, Weights
from mrl_jax.training.trainer import tokens_at_once

CHUNK_EXAMPLES = 16_384  # examples that are read, sorted by length and embedded together


class EmbeddingModel:
    """A trained member of a run: `mrl_jax.load` returns one.

    Attributes:
        dims: the prefix lengths that it was trained at.
        head: the kind of its classifier, see `losses.heads.KINDS`.
    """

    def __init__(
        self, program: TrainStep, weights: Weights, reader: Preprocessor, dims: tuple[int, ...], head: str
    ) -> None:
        self.program, self.weights, self.reader, self.dims, self.head = program, weights, reader, dims, head
        self._embed = jax.jit(program.embed)
        self._warned_untrained = self._warned_cut = False

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights. Embeddings are comparable only between models with the same fingerprint."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.weights):
            digest.update(np.ascontiguousarray(leaf))
        return digest.hexdigest()

    def encode(
        self,
        raw: Iterable[str] | np.ndarray,
        dim: int | None = None,
        batch_size: int = 256,
        show_progress: bool | None = None,
    ) -> np.ndarray:
        """Embeddings of texts (or images, or features), truncated to `dim` and then scaled to unit length.

        Texts are read and embedded `CHUNK_EXAMPLES` at a time, sorted by length within a chunk to reduce padding, so a
        generator is never held in memory as a whole. Texts beyond the model's maximum length are cut; the first call
        that cuts any prints how many.

        Args:
            raw: n texts, images uint8 [n, h, w, c] or features float32 [n, d], as the run was trained on.
            dim: prefix length, 1…D; by default D. It need not be one of the trained dims.
            batch_size: maximum number of examples per batch.
            show_progress: whether to show a progress bar on standard error; by default for more than one chunk.

        Returns:
            float32 [n, dim] with rows of unit length; a zero embedding (a text without any known word) stays zero.

        Raises:
            ValueError: `dim` is outside 1…D, `batch_size` below 1, or `raw` is a single text instead of a list.
        """
        blocks = list(self.encode_stream(raw, dim, batch_size, show_progress))
        dim = self.program.width if dim is None else dim
        z, start = np.empty((sum(map(len, blocks)), dim), np.float32), 0
        blocks.reverse()
        while blocks:  # freed one by one, so that memory does not hold two copies of all
            block = blocks.pop()
            z[start : start + len(block)] = block
            start += len(block)
        return z

    def encode_stream(
        self,
        raw: Iterable[str] | np.ndarray,
        dim: int | None = None,
        batch_size: int = 256,
        show_progress: bool | None = None,
    ) -> Iterator[np.ndarray]:
        """As `encode`, but yields blocks float32 [≤ CHUNK_EXAMPLES, dim] in order, with constant memory.

        Arguments and errors as for `encode`; they are checked at the call, before the first block is asked for.
        """
        dim = self.program.width if dim is None else dim
        if not 1 <= dim <= self.program.width:
            raise ValueError(f"dim={dim} is outside 1…{self.program.width}, the width of these embeddings")
        self._check(raw, batch_size)
        if dim not in self.dims and not self._warned_untrained:
            self._warned_untrained = True
            below, above = [m for m in self.dims if m < dim][-1:], [m for m in self.dims if m > dim][:1]
            near = " and ".join(map(str, below + above))
            print(f"dim={dim} was not trained; the nearest trained dims are {near}", file=sys.stderr)
        return self._stream(raw, dim, batch_size, show_progress)

    def _stream(
        self, raw: Iterable[str] | np.ndarray, dim: int, batch_size: int, show_progress: bool | None
    ) -> Iterator[np.ndarray]:
        total = len(raw) if isinstance(raw, Sized) else None
        shown = show_progress if show_progress is not None else total is None or total > CHUNK_EXAMPLES
        cut = 0
        with console.progress(total, "encode", "example", leave=False, shown=shown) as bar:
            for chunk in _chunks(raw):
                z = self._embed_chunk(chunk, batch_size, dim, normalised=True)
                cut += getattr(self.reader, "cut", 0)
                bar.update(len(z))
                yield z
        if cut and not self._warned_cut:
            self._warned_cut = True
            longest = getattr(self.program.encoder, "max_length", None)
            print(f"{cut:,} texts were longer than {longest} tokens and were cut", file=sys.stderr)

    def embed(self, raw: Sequence[str] | np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Embeddings as the classifiers read them: full width, not normalised.

        Args:
            raw: as for `encode`.
            batch_size: maximum number of examples per batch.

        Returns:
            float32 [n, D].

        Raises:
            ValueError: `batch_size` is below 1, or `raw` is a single text instead of a list.
        """
        self._check(raw, batch_size)
        return self._embed_chunk(raw, batch_size, self.program.width, normalised=False)

    @staticmethod
    def _check(raw: Any, batch_size: int) -> None:
        if isinstance(raw, str):
            raise ValueError("encode takes a list of texts; got one text")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is not allowed; at least 1")

    def _embed_chunk(self, raw: Sequence[str] | np.ndarray, batch_size: int, dim: int, normalised: bool) -> np.ndarray:
        batch_size = (
            min(batch_size, 1 << (len(raw) - 1).bit_length()) if len(raw) else 1
        )  # a power of two: few shapes to compile
        examples = Examples(self.reader(raw), np.zeros(len(raw), np.int32))
        z = np.empty((len(raw), dim), np.float32)
        if len(raw):
            for rows, batch, valid in batches.slices(examples, batch_size, tokens_at_once()):
                del batch["label"]
                z_BxD = self._embed(self.weights, batch)
                z[rows] = np.asarray(nesting.truncate(z_BxD, dim) if normalised else z_BxD[:, :dim])[valid]
        return z

    def classifiers(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The classifier of each trained dim, for embeddings from `embed`.

        Returns:
            By dim m the kernel [m, C] and the bias [C], float32.

        Raises:
            UserError: the model was trained on pairs, so it has no classifiers.
        """
        if "heads" not in self.weights.params:
            raise UserError("this model was trained on pairs: it has no classifier")
        by_dim = heads.classifiers(self.weights.params["heads"][self.head], self.head, self.program.dims, self.dims)
        return {m: (np.asarray(kernel), np.asarray(bias)) for m, (kernel, bias) in by_dim.items()}


def _chunks(raw: Iterable[str] | np.ndarray) -> Iterator[Any]:
    """Split the examples into chunks of `CHUNK_EXAMPLES`, in order."""
    if isinstance(raw, np.ndarray):
        yield from (raw[start : start + CHUNK_EXAMPLES] for start in range(0, len(raw), CHUNK_EXAMPLES))
        return
    texts = iter(raw)
    while chunk := list(itertools.islice(texts, CHUNK_EXAMPLES)):
        yield chunk


def load(run: str | Path, arm: str | None = None, seed: int = 0) -> EmbeddingModel:
    """The best model of one member of a run.

    Args:
        run: a run directory, or the folder of an experiment, whose latest run is loaded.
        arm: `mrl`, `mrl_e`, `ff64`, … as in the folder's checkpoints; by default the first arm of the run.
        seed: which seed of that arm.

    Returns:
        The model with the best validation accuracy of that member.

    Raises:
        UserError: the run, arm or seed does not exist, or a file is damaged.
    """
    directory = runs.find(run)
    config = configuration.from_yaml(directory / "config.yaml")
    dataset = runs.read_dataset(directory)
    by_label = {a.label: a for a in arms.expand(config.arms, config.nesting_dims, config.loss.weights)}
    chosen = by_label[one_of("arm", arm or next(iter(by_label)), by_label)]
    if not 0 <= seed < config.seeds:
        raise UserError(f"seed={seed} is not in {directory}; allowed: 0…{config.seeds - 1}")
    label = arms.Member(chosen, seed).label
    folder = directory / "checkpoints" / label / "model"
    steps = checkpoint.saved_steps(folder)
    if not steps:
        raise UserError(f"{label} has no finished model in {directory}; continue that run with resume=true")
    encoder = configuration.build(type(config.encoder), dataset["encoder"], "encoder")
    program = tasks.train_step(dataclasses.replace(config, encoder=encoder), dataset)
    weights, _ = checkpoint.load(folder, steps[-1], jax.eval_shape(program.init, 0).model)
    reader = encoders.load(encoder, directory, dataset["kind"])
    return EmbeddingModel(program, weights, reader, chosen.trained(config.nesting_dims), chosen.head)
