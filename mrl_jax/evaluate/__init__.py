"""Score one trained member at every dim: takes embeddings, returns per-example outcomes and their means."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mrl_jax import nesting
from mrl_jax.arms import Arm
from mrl_jax.evaluate import (
    adaptive,
    calibration,
    cascade,
    classification,
    corrupt,
    few_shot,
    neighbours,
    parts,
    quantised,
    ranking,
    unknown,
)
from mrl_jax.evaluate.classification import Answers, Classifiers
from mrl_jax.system.errors import at_least, limited

K_NEIGHBOURS = 10  # k of map@k and precision@k


@dataclass(frozen=True)
class EvaluationConfig:
    """Which metrics of a trained model are computed, and how."""

    interpolated: bool = True  # also score the dims halfway between neighbouring nesting dims
    dims: tuple[int, ...] | None = None  # additional dims to score at
    neighbours: bool = True  # knn_top1, map@10 and precision@10 with the training embeddings as the database
    quantised: bool = True  # also search for neighbours in int8 and 1-bit embeddings
    quantised_search: bool = (
        False  # info_nce: also rank documents that are stored in 8 bits and in 1 bit per coordinate
    )
    refit: Literal["ridge", "logistic"] | None = "logistic"  # classifier fitted anew; null: only for post-hoc arms
    ignore_identical_ids: bool = True  # as BEIR: no query ranks the document of its own id (without ids: of its text)
    batch_size: int = at_least(512, 1)  # examples per embedding batch
    baseline: str | tuple[str, ...] | None = None  # tfidf, knn, logistic, bm25, all, none; null: tfidf if data=files
    print: tuple[str, ...] | None = None  # metrics in the table printed after training, or [all]; null: the main ones
    cascade: bool = False  # adaptive classification by each nested arm, calibrated on validation
    epsilon: float = limited(
        0.01, "between 0 and 1", lambda share: 0 < share < 1
    )  # accuracy that a certified cascade may lose relative to full width, as a share
    delta: float = limited(0.1, "between 0 and 1", lambda share: 0 < share < 1)  # probability that it loses more
    confidence: Literal["max_softmax", "margin", "entropy"] = "margin"  # what a cascade's thresholds apply to
    few_shot: tuple[int, ...] | None = limited(
        None, "a list of whole numbers, each at least 1, or null", lambda counts: all(n >= 1 for n in counts)
    )  # examples per class of classifiers on the frozen embedding, such as [1,5,20]
    by_frequency: bool = (
        False  # accuracy for the third of the classes with most training examples, the middle, the last
    )
    superclass: str | None = None  # a separator behind the super-class in a class's name, or a .json file class → super
    unknown: str | None = (
        None  # a file of texts (or vectors) of no known class, to be told from those of the test split
    )
    corruption: tuple[str, ...] | None = None  # typos, dropped_words; noise, blur, contrast: accuracy on damaged inputs


class Score(NamedTuple):
    """One metric at one dim: its value, and the outcome of each example if the value is their mean (but for nan)."""

    dim: int
    metric: str
    value: float
    outcomes: np.ndarray | None = None  # float32 [n]
    prediction: np.ndarray | None = None  # int32 [n], class predicted by the arm's own classifier


def dims_of(arm: Arm | None, dims: Sequence[int], config: EvaluationConfig) -> tuple[int, ...]:
    """The dims at which an arm is scored.

    A fixed-size arm is scored at its own width; all others (None: a post-hoc arm) at the nesting dims and, if
    configured, halfway between them and at additional dims.
    """
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
    """Compute every metric of one arm on the validation and test splits.

    Args:
        z: embeddings float32 [n, D] by split: train, validation, test.
        labels: classes int [n] by split.
        own: the arm's own classifiers by dim, see `linear`.
        others: other classifiers by dim, by the name of their accuracy metric.
        dims: prefix lengths at which the nearest training embeddings are searched for.
        nesting_dims: those of `dims` among these are also searched in quantised embeddings.
        config: which metrics to compute.

    Yields:
        (split, score) pairs.
    """
    nested = [m for m in dims if m in nesting_dims]
    for split in ("validation", "test"):
        yield from ((split, s) for s in linear(z[split], labels[split], own))
        for metric, classifiers in others.items():
            yield from ((split, s) for s in accuracy(metric, z[split], labels[split], classifiers))
        if config.neighbours:
            yield from ((split, s) for s in nearest(z[split], labels[split], z["train"], labels["train"], dims))
        if config.neighbours and config.quantised and nested:
            yield from (
                (split, s) for s in nearest_quantised(z[split], labels[split], z["train"], labels["train"], nested)
            )


def generalise(
    z: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    own: Classifiers,
    dims: Sequence[int],
    fixed: Sequence[int],
    superclasses: Sequence[int] | None,
    config: EvaluationConfig,
    seed: int,
) -> Iterator[tuple[str, Score]]:
    """Compute what a test split like the training split does not show, where the configuration asks for it.

    Args:
        z, labels, own, config: as for `score`, and those of probes: `unknown`, and `typos1` … of each corruption.
        dims: prefix lengths at which unknown inputs are told by their neighbours.
        fixed: prefix lengths at which classifiers are fitted to few examples.
        superclasses: the super-class of each class; None where they are not asked for.
        seed: of the draws of few examples.

    Yields:
        (split, score) pairs.
    """
    classes = int(next(iter(own.values()))[0].shape[1])
    for examples in dict.fromkeys(config.few_shot or ()):
        for split, dim, method, share in few_shot.outcomes(z, labels, fixed, classes, examples, seed):
            yield split, Score(dim, f"few{examples}_{method}top1", float(share.mean(dtype=np.float64)), share)
    part_of = parts.by_frequency(labels["train"], classes) if config.by_frequency else None
    for split in ("validation", "test") if part_of is not None or superclasses is not None else ():
        for dim, answers in classification.at_each_dim(z[split], labels[split], own).items():
            if part_of is not None:
                yield from ((split, s) for s in _by_part(dim, answers.top1, part_of[labels[split]]))
            if superclasses is not None:
                of = np.asarray(superclasses)
                right = (of[answers.prediction] == of[labels[split]]).astype(np.float32)
                yield split, Score(dim, "superclass_top1", float(right.mean(dtype=np.float64)), right)
    if "unknown" in z:
        compared = {name: z[name] for name in ("test", "unknown")}
        for dim, (kernel, bias) in own.items():
            surest = {name: unknown.max_softmax(x, kernel, bias) for name, x in compared.items()}
            yield "test", Score(dim, "unknown_softmax_auroc", *unknown.auroc(surest["test"], surest["unknown"]))
        for dim, cosines in unknown.nearest_cosines(compared, z["train"], dims).items():
            yield "test", Score(dim, "unknown_knn_auroc", *unknown.auroc(cosines["test"], cosines["unknown"]))
    for name in dict.fromkeys(config.corruption or ()):
        right_by_dim: dict[int, list[np.ndarray]] = {dim: [] for dim in own}
        for strength in range(1, len(corrupt.CORRUPTIONS[name].strengths) + 1):
            for one in accuracy(f"{name}{strength}_top1", z[f"{name}{strength}"], labels["test"], own):
                yield "test", one
                right_by_dim[one.dim].append(one.outcomes)  # type: ignore[arg-type]
        for dim, each in right_by_dim.items():
            mean = np.mean(each, axis=0)
            yield "test", Score(dim, f"{name}_top1", float(mean.mean(dtype=np.float64)), mean)


def _by_part(dim: int, top1: np.ndarray, part: np.ndarray) -> Iterator[Score]:
    """Accuracy of the examples of each part of the classes that has any."""
    for number, name in enumerate(parts.FREQUENCIES):
        if (inside := part == number).any():
            outcomes = np.where(inside, top1, np.nan).astype(np.float32)
            yield Score(dim, f"{name}_top1", float(top1[inside].mean()), outcomes)


def linear(z: np.ndarray, labels: np.ndarray, classifiers: Classifiers) -> Iterator[Score]:
    """`linear_top1`, `linear_top5` and `ece` of an arm's own classifiers on embeddings `z` [n, D], classes int [n]."""
    for dim, answers in classification.at_each_dim(z, labels, classifiers).items():
        yield from of_answers(dim, answers)


def of_answers(dim: int, answers: Answers) -> Iterator[Score]:
    """The metrics of `linear`, from the answers of a classifier."""
    top1, top5 = answers.top1.astype(np.float32), answers.top5.astype(np.float32)
    yield Score(dim, "linear_top1", float(answers.top1.mean()), top1, answers.prediction)
    yield Score(dim, "linear_top5", float(answers.top5.mean()), top5)
    error = calibration.expected_calibration_error(answers.confidence, answers.top1)
    yield Score(dim, "ece", error)


def accuracy(metric: str, z: np.ndarray, labels: np.ndarray, classifiers: Classifiers) -> Iterator[Score]:
    """Top-1 accuracy of classifiers other than the arm's own, under the name `metric`."""
    for dim, answers in classification.at_each_dim(z, labels, classifiers).items():
        yield Score(dim, metric, float(answers.top1.mean()), answers.top1.astype(np.float32))


def nearest(
    z: np.ndarray, labels: np.ndarray, database: np.ndarray, database_labels: np.ndarray, dims: Sequence[int]
) -> Iterator[Score]:
    """`knn_top1`, `map@10` and `precision@10` of queries `z` [n, D], `database` [N, D] searched by cosine at `dims`."""
    k = min(K_NEIGHBOURS, len(database))
    for dim, indices in zip(dims, neighbours.neighbours(z, database, dims, k), strict=True):
        yield from of_outcomes(dim, neighbours.outcomes(indices, labels, database_labels, K_NEIGHBOURS))


def of_outcomes(dim: int, outcomes: Mapping[str, np.ndarray]) -> Iterator[Score]:
    """The metrics that are means of these outcomes, [n] by metric."""
    for metric, values in outcomes.items():
        values = values.astype(np.float32)
        yield Score(dim, metric, float(values.mean()), values)


def nearest_quantised(
    z: np.ndarray, labels: np.ndarray, database: np.ndarray, database_labels: np.ndarray, dims: Sequence[int]
) -> Iterator[Score]:
    """`int8_…` and `bit_…`: the metrics of `nearest` with the database stored in 8 bits or 1 bit per coordinate."""
    k = min(K_NEIGHBOURS, len(database))
    for kind, find in quantised.KINDS.items():
        for dim, indices in zip(dims, find(z, database, dims, k), strict=True):
            found = neighbours.outcomes(indices, labels, database_labels, K_NEIGHBOURS)
            yield from of_outcomes(dim, {f"{kind}_{metric}": values for metric, values in found.items()})


def search(
    queries: np.ndarray,
    documents: np.ndarray,
    judgments: np.ndarray,
    dims: Sequence[int],
    own: np.ndarray | None = None,
    is_quantised: bool = False,
) -> Iterator[Score]:
    """The metrics of `ranking` at each of `dims`, of embeddings [Q, D] and [N, D]; arguments as for `ranking.rank`.
    With `is_quantised` also `int8_…` and `bit_…`, those where the documents are in 8 bits or 1 bit per coordinate."""
    for kind, find in quantised.ways(is_quantised).items():
        for dim, metrics in zip(dims, ranking.rank(queries, documents, judgments, dims, own, find), strict=True):
            yield from of_outcomes(dim, {kind + metric: values for metric, values in metrics.items()})


def similarity(anchors: np.ndarray, others: np.ndarray, scores: np.ndarray, dims: Sequence[int]) -> Iterator[Score]:
    """`spearman` at each of `dims`, of the embeddings [n, D] of pairs and their gold scores [n]."""
    for dim, (rho, shares) in zip(dims, ranking.spearman(anchors, others, scores, dims), strict=True):
        yield Score(dim, "spearman", rho, shares)


def score_cascade(
    z: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    own: Classifiers,
    tied: bool,
    dims: Sequence[int],
    config: EvaluationConfig,
    seed: int,
) -> Iterator[tuple[str, Score]]:
    """Score a cascade over an arm's own classifiers on the test split, its thresholds set on the validation split.

    Args:
        z: embeddings float32 [n, D] by split: validation, test.
        labels: classes int [n] by split.
        own: the arm's own classifiers by dim.
        tied: whether they are prefixes of one head (MRL-E).
        dims: the granularities of the cascade, ascending.
        config: epsilon, delta and the measure of confidence.
        seed: of the split into examples to fit on and examples to certify with.

    Yields:
        (split, score) pairs. Per rule, at the largest dim: `cascade_<rule>_top1`, `…_dims` and `…_cumulative_dims`
        (means per input), `…_kflop` of the heads, `…_captured` (share of the dims saved by an oracle that are saved);
        at each dim `…_share`, the share of the inputs that leave there. Then `cascade_certified`, 1 or 0.
    """
    classifiers = {m: tuple(np.asarray(x) for x in own[m]) for m in dims}
    logits = {part: [z[part][:, :m] @ w + b for m, (w, b) in classifiers.items()] for part in ("validation", "test")}
    rules = adaptive.rules(
        logits["validation"], labels["validation"], config.epsilon, config.delta, config.confidence, seed
    )
    width, sizes = dims[-1], np.asarray(dims)
    right = np.stack([logits_nxC.argmax(axis=1) == labels["test"] for logits_nxC in logits["test"]])
    for name, rule in rules.items():
        confidences = [
            cascade.confidence(x, t, config.confidence) for x, t in zip(logits["test"], rule.temperatures, strict=True)
        ]
        left = cascade.leaving(np.stack(confidences), rule.thresholds)
        outcome = cascade.outcome_of_exits(left, right, dims, logits["test"][0].shape[1], tied)
        answers = right[left, np.arange(len(left))].astype(np.float32)
        spent = sizes[left].astype(np.float32)
        for metric, value, outcomes in (
            ("top1", outcome.accuracy, answers),
            ("dims", outcome.dims, spent),
            ("cumulative_dims", outcome.cumulative_dims, None),
            ("kflop", outcome.flops / 1e3, None),
            ("captured", outcome.captured, None),
        ):
            yield "test", Score(width, f"cascade_{name}_{metric}", value, outcomes)
        for m, share in zip(dims, outcome.shares, strict=True):
            yield "test", Score(m, f"cascade_{name}_share", float(share))
    yield "test", Score(width, "cascade_certified", float(rules["certified"].certified))
