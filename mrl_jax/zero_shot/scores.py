"""Score a model on a collection at every dim, and leave behind what a run does: a folder that reports can read."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrl_jax import evaluate, runs
from mrl_jax.config import Config
from mrl_jax.data import DataConfig
from mrl_jax.evaluate import EvaluationConfig, Score, agreement, compress, neighbours, quantised, ranking
from mrl_jax.runs import MetricRow
from mrl_jax.system import console, files
from mrl_jax.system.console import stage
from mrl_jax.tasks.base import write_scores
from mrl_jax.tasks.pairs import MAX_FIT_ROWS
from mrl_jax.zero_shot.collections import Collection, Labelled
from mrl_jax.zero_shot.models import Candidate

Outcomes = dict[int, np.ndarray]  # dim → per-query scores [Q]


class Evaluation(NamedTuple):
    """What came out for a model on a collection, and where it is written."""

    directory: Path
    rows: list[MetricRow]
    outcomes: dict[tuple[str, str], Outcomes]  # by arm and metric


def evaluate_on(candidate: Candidate, collection: Collection, dims: Sequence[int], results_dir: str) -> Evaluation:
    """Score every arm of a model."""
    first, second = (candidate.embed(collection, side) for side in (collection.first, collection.second))
    for side, z in ((collection.first, first), (collection.second, second)):
        if zero := np.count_nonzero(~z.any(axis=1)):
            console.say(f"{zero:,} of {len(z):,} {side.name} have a zero embedding; their ranking is arbitrary")
    config = configuration(candidate, collection, dims, results_dir)
    description = {"kind": "text", "classes": [], "columns": 2, **candidate.description, **collection.describe()}
    description["zero_shot"] = True  # no run that resume=true continues, nor a model
    directory = runs.claim(config)
    files.write(directory / "dataset.json", json.dumps(description, indent=1, ensure_ascii=False) + "\n")
    labels = {"validation": np.zeros(0, np.int32), "test": np.zeros(len(first), np.int32)}
    rows: list[MetricRow] = []
    outcomes: dict[tuple[str, str], Outcomes] = {}

    def write(arm: str, scores: Iterable[Score]) -> None:
        scores = list(scores)
        label = f"{arm}-seed{candidate.seed}"
        new = write_scores(config, directory, arm, label, candidate.seed, labels, (("test", s) for s in scores))
        rows.extend(new)
        for score in scores:
            if score.outcomes is not None:
                outcomes.setdefault((arm, score.metric), {})[score.dim] = score.outcomes

    with stage(f"evaluating {candidate.given} on {collection.name}"):
        widths = sorted({*dims, candidate.width})
        exact = list(rank(first, second, collection, widths)) if collection.is_search else []
        sample = _sample(collection, first, second, candidate.seed)
        for compression, arm in candidate.arms.items():
            if compression == "truncated":
                write(arm, _scores(collection, first, second, dims, exact, own=True))
            else:
                fitted = compress.fit(compression, sample, candidate.seed)
                write(arm, _scores(collection, fitted.apply(first), fitted.apply(second), dims, exact))
        if collection.bm25 is not None:
            write("bm25", evaluate.of_outcomes(candidate.width, collection.bm25))
    runs.write_rows(directory / "evaluation.csv", rows)
    return Evaluation(directory, rows, outcomes)


def configuration(candidate: Candidate, collection: Collection, dims: Sequence[int], results_dir: str) -> Config:
    """The configuration that stands for an evaluation: of its keys `data.train` names the run or the file that a model
    comes from. An evaluation at other dims has a folder of its own."""
    parent = Path(results_dir) / collection.name
    names = (candidate.name if n == 1 else f"{candidate.name}-{n}" for n in range(1, 1000))
    path = str(collection.path)
    folder = DataConfig("files" if collection.classes else "beir", path=path, train=candidate.source)
    return Config(
        data=folder if collection.path.is_dir() else DataConfig("pairs", test=path, train=candidate.source),
        encoder=candidate.encoder,
        name=collection.name,
        width=candidate.width,
        nesting_dims=tuple(dims),
        arms=(candidate.arms["truncated"] if candidate.arms["truncated"] != "truncated" else "ff",),
        seeds=1,
        loss=candidate.loss,
        evaluation=EvaluationConfig(interpolated=False, ignore_identical_ids=collection.own is not None),
        results_dir=results_dir,
        run=next(name for name in names if not (parent / name).exists()),
    )


def _scores(
    collection: Collection,
    first: np.ndarray,
    second: np.ndarray,
    dims: Sequence[int],
    exact: Sequence[np.ndarray],
    own: bool = False,
) -> Iterator[Score]:
    """The metrics of embeddings, of a search also the agreement with the ranking by the model's full width: the last of
    `exact`, which begin with those by the model's prefixes. With `own` the embeddings are the model's, and the metrics
    where the documents are in 8 bits and 1 bit per coordinate follow."""
    if not collection.is_search:
        judged = collection.judged(first, second)
        yield from judged.scores(dims)
        if own and isinstance(judged, Labelled):
            yield from judged.stored(dims)
        return
    for prefix, find in quantised.ways(stored=own).items():
        ranked = exact[: len(dims)] if own and not prefix else rank(first, second, collection, dims, find)
        for dim, best in zip(dims, ranked, strict=True):
            values = collection.outcomes(best) | agreement.outcomes(best, exact[-1])
            yield from evaluate.of_outcomes(dim, {prefix + metric: each for metric, each in values.items()})


def rank(
    queries: np.ndarray,
    documents: np.ndarray,
    collection: Collection,
    dims: Sequence[int],
    find: Callable[..., Iterator[np.ndarray]] = neighbours.neighbours,
) -> Iterator[np.ndarray]:
    """The best documents of each query at each of `dims`, int [Q, k], without its own."""
    count = len(documents)
    for rows in find(queries, documents, dims, ranking.depth(collection.own, count)):
        yield ranking.without_own(rows, collection.own, count)


def _sample(collection: Collection, first: np.ndarray, second: np.ndarray, seed: int) -> np.ndarray:
    """The embeddings that a compression is fitted on: of the documents, which whoever searches has, or of the known
    texts; of scored pairs, all."""
    z = second if collection.is_search or collection.classes else np.concatenate([first, second])
    if len(z) <= MAX_FIT_ROWS:
        return z
    return z[np.sort(np.random.default_rng(seed).choice(len(z), MAX_FIT_ROWS, replace=False))]
