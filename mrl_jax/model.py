"""Use a trained run: `mrl_jax.load(run).encode(texts, dim=64)`."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from mrl_jax import arms, batches, checkpoint, heads, inputs, nesting, runs
from mrl_jax import config as configuration
from mrl_jax.batches import Examples
from mrl_jax.errors import UserError, one_of
from mrl_jax.program import Model as Weights
from mrl_jax.program import Program


class Model:
    """A trained member of a run. `dims` are the prefix lengths that it was trained at, `head` the kind of its head."""

    def __init__(
        self, program: Program, weights: Weights, reader: inputs.Reader, dims: tuple[int, ...], head: str
    ) -> None:
        self.program, self.weights, self.reader, self.dims, self.head = program, weights, reader, dims, head
        self._embed = jax.jit(program.embed)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights: embeddings of models that differ in it must not be compared."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.weights):
            digest.update(np.ascontiguousarray(leaf))
        return digest.hexdigest()

    def encode(self, raw: Sequence[str] | np.ndarray, dim: int | None = None, batch_size: int = 256) -> np.ndarray:
        """Embeddings of texts (or images, or features), truncated to `dim` and then scaled to unit length.

        Args:
            raw: n texts, images uint8 [n, h, w, c] or features float32 [n, d], as the run was trained on.
            dim: prefix length, 1…D; the whole embedding by default.
            batch_size: examples at a time.

        Returns:
            float32 [n, dim]; rows have unit length (a zero embedding, as a plain bag of no known word, stays zero).

        Raises:
            ValueError: `dim` is outside 1…D, `batch_size` below 1, or `raw` is a single text instead of a list.
        """
        dim = self.program.width if dim is None else dim
        if not 1 <= dim <= self.program.width:
            raise ValueError(f"dim={dim} is outside 1…{self.program.width}, the width of these embeddings")
        return self._embedded(raw, batch_size, dim, normalised=True)

    def embed(self, raw: Sequence[str] | np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Embeddings float32 [n, D] as the classifiers read them: of their own length. Arguments as for `encode`."""
        return self._embedded(raw, batch_size, self.program.width, normalised=False)

    def _embedded(self, raw: Sequence[str] | np.ndarray, batch_size: int, dim: int, normalised: bool) -> np.ndarray:
        if isinstance(raw, str):
            raise ValueError("encode takes a list of texts; got one text")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is not allowed; at least 1")
        batch_size = min(batch_size, 1 << (len(raw) - 1).bit_length()) if len(raw) else 1  # few shapes to compile
        examples = Examples(self.reader(raw), np.zeros(len(raw), np.int32))
        z = np.empty((len(raw), dim), np.float32)
        if len(raw):
            for rows, batch, valid in batches.slices(examples, batch_size):
                del batch["label"]
                found = self._embed(self.weights, batch)
                z[rows] = np.asarray(nesting.truncate(found, dim) if normalised else found[:, :dim])[valid]
        return z

    def classifiers(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The classifier of each trained dim m: kernel [m, C] and bias [C], for embeddings from `embed`."""
        found = heads.classifiers(self.weights.params["heads"][self.head], self.head, self.program.dims, self.dims)
        return {m: (np.asarray(kernel), np.asarray(bias)) for m, (kernel, bias) in found.items()}


def load(run: str | Path, arm: str | None = None, seed: int = 0) -> Model:
    """The best model of one member of a run.

    Args:
        run: a run directory, or an experiment's folder, which stands for its latest run.
        arm: `mrl`, `mrl_e`, `ff64`, … as in the folder's checkpoints; the first arm of the run by default.
        seed: which seed of that arm.

    Raises:
        UserError: no such run, arm or seed, or a damaged file.
    """
    directory = runs.find(run)
    config = configuration.from_yaml(directory / "config.yaml")
    dataset = runs.read_dataset(directory)
    known = {a.label: a for a in arms.expand(config.arms, config.nesting_dims, config.loss.weights)}
    chosen = known[one_of("arm", arm or next(iter(known)), known)]
    if not 0 <= seed < config.seeds:
        raise UserError(f"seed={seed} is not in {directory}; allowed: 0…{config.seeds - 1}")
    label = arms.Member(chosen, seed).label
    folder = directory / "checkpoints" / label / "model"
    found = checkpoint.steps(folder)
    if not found:
        raise UserError(f"{label} has no finished model in {directory}; continue that run with resume=true")
    encoder = configuration.build(type(config.encoder), dataset["encoder"], "encoder")
    program = Program.of(dataclasses.replace(config, encoder=encoder), dataset)
    weights, _ = checkpoint.load(folder, found[-1], jax.eval_shape(program.init, 0).model)
    reader = inputs.load(encoder, directory, dataset["kind"])
    return Model(program, weights, reader, chosen.trained(config.nesting_dims), chosen.head)
