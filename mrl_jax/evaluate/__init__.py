"""Score one trained member at every dim: embeddings in, per-example outcomes and their means out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mrl_jax import nesting
from mrl_jax.arms import Arm
from mrl_jax.errors import at_least, limit
from mrl_jax.evaluate import adaptive, calibration, cascade, classification, neighbours, quantised, ranking
from mrl_jax.evaluate.classification import Classifiers

NEIGHBOURS = 10  # k of map@k and precision@k


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured of a trained model."""

    interpolated: bool = True  # also score the dims halfway between neighbouring nesting dims
    dims: tuple[int, ...] | None = None  # further dims to score at
    neighbours: bool = True  # knn_top1, map@10 and precision@10 with the training embeddings as the database
    quantised: bool = True  # the neighbours of int8 and 1-bit embeddings as well
    refit: Literal["ridge", "logistic"] | None = "logistic"  # classifier fitted anew; null: for post-hoc arms only
    batch_size: int = at_least(512, 1)  # examples embedded at a time
    print: tuple[str, ...] | None = None  # metrics of the table after training, or [all]; null: the main ones
    cascade: bool = False  # adaptive classification by each nested arm, calibrated on validation
    epsilon: float = limit(
        0.01, "between 0 and 1", lambda share: 0 < share < 1
    )  # accuracy that a certified cascade may lose against full width, as a share
    delta: float = limit(0.1, "between 0 and 1", lambda share: 0 < share < 1)  # probability with which it may lose more
    confidence: Literal["max_softmax", "margin", "entropy"] = "margin"  # what a cascade's thresholds are set on


class Score(NamedTuple):
    """One metric at one dim: its value, and the outcome of each example where the value is their mean."""

    dim: int
    metric: str
    value: float
    outcomes: np.ndarray | None = None  # float32 [n]
    prediction: np.ndarray | None = None  # int32 [n], the class that the arm's own classifier said


def dims_of(arm: Arm | None, dims: Sequence[int], config: EvaluationConfig) -> tuple[int, ...]:
    """Where an arm is scored: a fixed-size arm at its own width; others (also post-hoc ones, None) at the nesting dims
    and, where wanted, halfway between them and at further dims."""
    if arm is not None and arm.width is not None:
        return (arm.width,)
    return tuple(sorted({*dims, *(nesting.interpolated(dims) if config.interpolated else ()), *(config.dims or ())}))


def score(
    z: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    own: Classifiers,
    others: Mapping[str, Classifiers],
    dims: Sequence[int],
    nesting_dims: Sequence[int],
    config: EvaluationConfig,
) -> Iterator[tuple[str, Score]]:
    """Every metric of one arm on the validation and test splits, as (split, score).

    `z` and `labels` hold the embeddings [n, D] and classes [n] of each split; `own` are the arm's classifiers, `others`
    further ones by the name of their accuracy; neighbours are looked for in train at `dims`, in quantised embeddings at
    those of them that are nesting dims.
    """
    nested = [m for m in dims if m in nesting_dims]
    for split in ("validation", "test"):
        yield from ((split, s) for s in linear(z[split], labels[split], own))
        for metric, classifiers in others.items():
            yield from ((split, s) for s in accuracy(metric, z[split], labels[split], classifiers))
        if config.neighbours:
            yield from ((split, s) for s in nearest(z[split], labels[split], z["train"], labels["train"], dims))
        if config.neighbours and config.quantised:
            yield from (
                (split, s) for s in nearest_quantised(z[split], labels[split], z["train"], labels["train"], nested)
            )


def linear(z: np.ndarray, labels: np.ndarray, classifiers: Classifiers) -> Iterator[Score]:
    """`linear_top1`, `linear_top5` and `ece` of an arm's own classifiers on the embeddings `z` [n, D]."""
    for dim, said in classification.at_each_dim(z, labels, classifiers).items():
        yield Score(dim, "linear_top1", float(said.top1.mean()), said.top1.astype(np.float32), said.prediction)
        yield Score(dim, "linear_top5", float(said.top5.mean()), said.top5.astype(np.float32))
        error = calibration.expected_calibration_error(said.confidence, said.top1)
        yield Score(dim, "ece", error)


def accuracy(metric: str, z: np.ndarray, labels: np.ndarray, classifiers: Classifiers) -> Iterator[Score]:
    """Top-1 accuracy of other classifiers than the arm's own, under the name `metric`."""
    for dim, said in classification.at_each_dim(z, labels, classifiers).items():
        yield Score(dim, metric, float(said.top1.mean()), said.top1.astype(np.float32))


def nearest(
    z: np.ndarray, labels: np.ndarray, database: np.ndarray, database_labels: np.ndarray, wanted: Sequence[int]
) -> Iterator[Score]:
    """`knn_top1`, `map@10` and `precision@10` with `database` [N, D] searched by cosine on each prefix."""
    k = min(NEIGHBOURS, len(database))
    for dim, indices in zip(wanted, neighbours.neighbours(z, database, wanted, k), strict=True):
        for metric, values in neighbours.outcomes(indices, labels, database_labels, NEIGHBOURS).items():
            yield Score(dim, metric, float(values.mean()), values)


def nearest_quantised(
    z: np.ndarray, labels: np.ndarray, database: np.ndarray, database_labels: np.ndarray, wanted: Sequence[int]
) -> Iterator[Score]:
    """`int8_…` and `bit_…`: the metrics of `nearest` when the database is kept in 8 bits or 1 bit a coordinate."""
    k = min(NEIGHBOURS, len(database))
    for kind, search in (("int8", quantised.int8), ("bit", quantised.one_bit)):
        for dim, indices in zip(wanted, search(z, database, wanted, k), strict=True):
            for metric, values in neighbours.outcomes(indices, labels, database_labels, NEIGHBOURS).items():
                yield Score(dim, f"{kind}_{metric}", float(values.mean()), values)


def search(queries: np.ndarray, documents: np.ndarray, judgments: np.ndarray, dims: Sequence[int]) -> Iterator[Score]:
    """The metrics of `ranking` at each of `dims`, from embeddings [Q, D] and [N, D] and judgments [j, 3]."""
    for dim, metrics in zip(dims, ranking.ranked(queries, documents, judgments, dims), strict=True):
        for metric, values in metrics.items():
            yield Score(dim, metric, float(values.mean()), values)


def similarity(anchors: np.ndarray, others: np.ndarray, scores: np.ndarray, dims: Sequence[int]) -> Iterator[Score]:
    """`spearman` at each of `dims`, from the embeddings [n, D] of scored pairs."""
    for dim, (rho, shares) in zip(dims, ranking.spearman(anchors, others, scores, dims), strict=True):
        yield Score(dim, "spearman", rho, shares)


def adaptively(
    z: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    own: Classifiers,
    tied: bool,
    dims: Sequence[int],
    config: EvaluationConfig,
    seed: int,
) -> Iterator[tuple[str, Score]]:
    """What a cascade over an arm's own classifiers at `dims` does to the test split, as (split, score).

    At the largest of the dims for each rule: `cascade_<rule>_top1`, `…_dims` and `…_cumulative_dims` (means an input),
    `…_kflop` of the heads, `…_captured` (share of the dims that an oracle saves); at each dim `…_share`, that of the
    inputs leaving there; and `cascade_certified`, 1 where the certificate was given and 0 where not.
    """
    classifiers = {m: tuple(np.asarray(x) for x in own[m]) for m in dims}
    logits = {part: [z[part][:, :m] @ w + b for m, (w, b) in classifiers.items()] for part in ("validation", "test")}
    made = adaptive.rules(
        logits["validation"], labels["validation"], config.epsilon, config.delta, config.confidence, seed
    )
    width, sizes = dims[-1], np.asarray(dims)
    right = np.stack([one.argmax(axis=1) == labels["test"] for one in logits["test"]])
    for name, rule in made.items():
        sure = [
            cascade.confidence(x, t, config.confidence) for x, t in zip(logits["test"], rule.temperatures, strict=True)
        ]
        left = cascade.leaving(np.stack(sure), rule.thresholds)
        found = cascade.served(left, right, dims, logits["test"][0].shape[1], tied)
        answers = right[left, np.arange(len(left))].astype(np.float32)
        spent = sizes[left].astype(np.float32)
        for metric, value, outcomes in (
            ("top1", found.accuracy, answers),
            ("dims", found.dims, spent),
            ("cumulative_dims", found.cumulative_dims, None),
            ("kflop", found.flops / 1e3, None),
            ("captured", found.captured, None),
        ):
            yield "test", Score(width, f"cascade_{name}_{metric}", value, outcomes)
        for m, share in zip(dims, found.shares, strict=True):
            yield "test", Score(m, f"cascade_{name}_share", float(share))
    yield "test", Score(width, "cascade_certified", float(made["certified"].certified))
