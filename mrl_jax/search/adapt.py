"""Make the prefixes of another model's vectors shortlists, without labels and without changing that model.

    z = x (R + A),   R the principal directions of the vectors about the origin, A = 0 at first

A learns so that the neighbours by a prefix of z are those by all coordinates of x (`losses.nested_distillation`, each
vector against the others of a batch). The full width is x itself and stays as it is: a prefix of z makes the shortlist,
x ranks it. Queries and documents go through the same map.

A fifth of the vectors is held out, as queries for the others; a fifth of those chooses the moment of learning. What was
learnt is taken where it is better on the held-out ones than the principal directions, and those where they are better
than the vectors' own coordinates, each by a paired test of the recall of a shortlist (95 %, mean over the dims) and at
no dim below the own coordinates; else these are kept. The file holds `matrix` [d, m], m the largest of --dims, the
first columns of the identity in that case, and `dims`: `x @ matrix`, cut and scaled to unit length, is what to search
first.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mrl_jax.data.readers.arrays import check_features, load_npy, load_npz
from mrl_jax.data.readers.records import require_file
from mrl_jax.evaluate import compress
from mrl_jax.losses import nested_distillation
from mrl_jax.nesting import truncate
from mrl_jax.system import console, files
from mrl_jax.system.errors import UserError

K, SHORTLIST = 10, 20  # nearest neighbours that a shortlist of so many vectors is to hold
HELD_OUT, MAX_HELD_OUT = 0.2, 2000  # share of the vectors that are queries of the test, and their largest number
MIN_VECTORS = 200
Z_95 = 1.96  # of the normal distribution
BATCH_SIZE, LEARNING_RATE, TEMPERATURE, STEPS = 256, 1e-3, 0.05, 200
MOMENTS = 10  # of learning that are compared
CHUNK_QUERIES = 256

IDENTITY, ROTATED, LEARNT = "the vectors' own coordinates", "their principal directions", "a learnt map"


class Adaptor(NamedTuple):
    """A map of vectors, and what it was tested on."""

    matrix: np.ndarray  # float32 [d, m], m the last of `dims`
    dims: tuple[int, ...]  # of the prefixes that it is for
    kept: str  # which of the three it is
    recall: dict[str, np.ndarray]  # of each of the three, per held-out vector and dim, float64 [queries, dims]

    def apply(self, x: np.ndarray, dim: int) -> np.ndarray:
        """A prefix of `dim` coordinates, at most m, of the map of vectors [n, d]: float32, scaled to unit length."""
        return np.asarray(truncate(jnp.asarray(np.asarray(x, np.float32) @ self.matrix), dim))

    def summary(self) -> str:
        """Which was kept, and the recall of all three."""
        lines = [
            f"kept: {self.kept}; recall@{K} of shortlists of {SHORTLIST}, {len(next(iter(self.recall.values()))):,} "
            "held-out vectors:"
        ]
        for name, recall in self.recall.items():
            means = ", ".join(f"{value:.3f} at {m}" for m, value in zip(self.dims, recall.mean(axis=0), strict=True))
            lines.append(f"  {name}: {means}")
        return "\n".join(lines)


def fit(x: np.ndarray, dims: Sequence[int], steps: int = STEPS, seed: int = 0) -> Adaptor:
    """Fit a map to vectors float32 [n, d], for prefixes of `dims` coordinates; zero vectors are left out.

    Raises:
        UserError: too few vectors, or a dim that is no proper prefix.
    """
    width, lengths = x.shape[1], np.linalg.norm(x.astype(np.float64), axis=1)
    unit = (x[lengths > 0] / lengths[lengths > 0, None]).astype(np.float32)
    dims = tuple(sorted(set(dims)))
    if not dims or dims[0] < 1 or dims[-1] >= width:
        raise UserError(f"--dims={','.join(map(str, dims))} is not allowed; from 1 to {width - 1}, less than all")
    if len(unit) < MIN_VECTORS:
        raise UserError(f"{len(unit):,} vectors that are not zero are too few to learn from; at least {MIN_VECTORS}")
    rng = np.random.default_rng(seed)
    rows, held = rng.permutation(len(unit)), min(round(HELD_OUT * len(unit)), MAX_HELD_OUT)
    queries, others = unit[rows[:held]], unit[rows[held:]]
    start = compress.fit("rotated", others, seed).matrix[:, : dims[-1]]
    matrices = {
        IDENTITY: np.eye(width, dims[-1], dtype=np.float32),
        ROTATED: start,
        LEARNT: learn(others, start, dims, steps, rng),
    }
    near = neighbours(queries, others)
    recall = {name: recalls(queries, others, near, matrix, dims) for name, matrix in matrices.items()}
    kept = IDENTITY
    for name in (ROTATED, LEARNT):
        if is_better(recall[name], recall[kept]) and (recall[name].mean(axis=0) >= recall[IDENTITY].mean(axis=0)).all():
            kept = name
    return Adaptor(matrices[kept], dims, kept, recall)


def learn(x: np.ndarray, start: np.ndarray, dims: tuple[int, ...], steps: int, rng: np.random.Generator) -> np.ndarray:
    """The map float32 [d, m] from `start` on whose prefixes have the neighbours that unit vectors `x` [n, d] have; the
    best of some moments, the first of which is `start`."""
    held = min(round(HELD_OUT * len(x)), MAX_HELD_OUT)
    queries, x = x[:held], x[held:]
    near = neighbours(queries, x)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    def loss(matrix: jax.Array, x_Bxd: jax.Array) -> jax.Array:
        targets_BxB = x_Bxd @ x_Bxd.T
        return nested_distillation(x_Bxd @ matrix, None, dims, [1.0] * len(dims), TEMPERATURE, targets_BxB)[0]

    @jax.jit
    def step(matrix: jax.Array, state: Any, x_Bxd: jax.Array) -> tuple[jax.Array, Any]:
        updates, state = optimizer.update(jax.grad(loss)(matrix, x_Bxd), state)
        return matrix + updates, state

    matrix, best, most = jnp.asarray(start), start, 0.0
    state = optimizer.init(matrix)
    moments = {round(moment) for moment in np.linspace(0, steps, MOMENTS + 1)}
    with jax.default_matmul_precision("highest"), console.progress(steps, "learn", "step") as bar:
        for moment in range(steps + 1):
            if moment in moments:
                now = np.asarray(matrix)
                recall = float(recalls(queries, x, near, now, dims).mean())
                best, most = (now, recall) if recall > most else (best, most)
            if moment < steps:
                rows = rng.choice(len(x), min(BATCH_SIZE, len(x)), replace=False)
                matrix, state = step(matrix, state, x[rows])
                bar.update()
    return best


def neighbours(queries: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The rows of the `K` vectors that are nearest to each query by all coordinates, in no order, int [queries, K]."""
    starts = range(0, len(queries), CHUNK_QUERIES)
    return np.concatenate([nearest(queries[start : start + CHUNK_QUERIES], others, K) for start in starts])


def recalls(
    queries: np.ndarray, others: np.ndarray, near: np.ndarray, matrix: np.ndarray, dims: Sequence[int]
) -> np.ndarray:
    """Per query and dim, the share of its neighbours `near` that are among the `SHORTLIST` nearest by the prefix."""
    found = np.zeros((len(queries), len(dims)))
    mapped = others @ matrix
    for start in range(0, len(queries), CHUNK_QUERIES):
        some = queries[start : start + CHUNK_QUERIES]
        wanted = near[start : start + len(some), :, None]
        for column, m in enumerate(dims):
            kept = nearest(some @ matrix[:, :m], mapped[:, :m], SHORTLIST)
            found[start : start + len(some), column] = (wanted == kept[:, None]).any(axis=2).mean(axis=1)
    return found


def nearest(queries: np.ndarray, others: np.ndarray, count: int) -> np.ndarray:
    """The rows of the `count` vectors with the greatest cosine, in no order, int [queries, count]."""
    lengths = np.maximum(np.linalg.norm(others, axis=1), np.float32(1e-12))
    return np.argpartition(-(queries @ others.T) / lengths, count, axis=1)[:, :count]


def is_better(new: np.ndarray, old: np.ndarray) -> bool:
    """Whether the mean of paired recalls [queries, dims] is greater: the 95 % interval of the difference is above 0."""
    differences = (new - old).mean(axis=1)
    return bool(differences.mean() > Z_95 * differences.std(ddof=1) / np.sqrt(len(differences)))


def read(name: str) -> np.ndarray:
    """The vectors float32 [n, d] of a file. Raises `UserError`."""
    path = require_file("vectors", name, (".npz", ".npy"))
    features = load_npz(path, ("features",))["features"] if path.suffix.lower() == ".npz" else load_npy(path)
    return check_features(path, features)


def adapt(options: argparse.Namespace) -> None:
    """Fit a map to the vectors of a file, and save it."""
    out = Path(options.out)
    if out.suffix.lower() != ".npz":
        raise UserError(f"--out={options.out} is not allowed; a file ending in .npz")
    if out.exists():
        raise UserError(f"--out={options.out} is there already; give a new file")
    if options.seed < 0:
        raise UserError(f"--seed={options.seed} is not allowed; 0 or more")
    try:
        dims = [int(word) for word in options.dims.split(",")]
    except ValueError:
        raise UserError(f"--dims={options.dims} is not allowed; whole numbers such as 64,128") from None
    adaptor = fit(read(options.vectors), dims, options.steps, options.seed)
    buffer = io.BytesIO()
    np.savez(buffer, matrix=adaptor.matrix, dims=np.array(adaptor.dims))
    files.write(out, buffer.getvalue())
    print(adaptor.summary())
