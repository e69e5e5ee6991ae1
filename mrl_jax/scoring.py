"""What is measured of a trained member, and of the arms that are not trained: rows of evaluation.csv, and predictions/.

Embeddings are made once, scored at every dim, and dropped; per-example outcomes are kept for paired statistics.
"""

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrl_jax import arms, evaluate, files, processes
from mrl_jax.config import Config
from mrl_jax.evaluate import Score, compress, refit
from mrl_jax.evaluate.classification import Classifiers
from mrl_jax.losses import heads
from mrl_jax.runs import MetricRow
from mrl_jax.training.batches import Examples, PairExamples, RankingExamples
from mrl_jax.training.loop import FitResult, Trainer
from mrl_jax.training.step import Weights

FIT_ROWS = 20_000  # training texts whose embeddings a compression of pairs is fitted on

Splits = Mapping[str, Examples | PairExamples | RankingExamples]


def of_member(config: Config, trainer: Trainer, fitted: FitResult, splits: Splits, directory: Path) -> list[MetricRow]:
    """The rows of a trained member, and of the arms that compress it."""
    score = _of_pairs if config.contrastive else _of_classes
    return score(config, trainer, fitted, splits, directory)


def _of_classes(
    config: Config, trainer: Trainer, fitted: FitResult, splits: Splits, directory: Path
) -> list[MetricRow]:
    member, arm, dims, settings = fitted.member, fitted.member.arm, config.nesting_dims, config.evaluation
    compressions = arms.posthoc(config.arms)
    classifier = refitted_by(config)
    needed = {name: split for name, split in splits.items() if name != "train" or settings.neighbours or classifier}
    z = {name: trainer.embed(fitted.model, _plain(split), settings.batch_size) for name, split in needed.items()}
    labels = {name: _plain(split).labels for name, split in splits.items()}

    def refitted(z: dict[str, np.ndarray], at: Sequence[int]) -> Classifiers:
        fit = {"logistic": refit.logistic, "ridge": refit.ridge}[classifier or "logistic"]
        fixed = [m for m in at if m in dims or m in (settings.dims or ())]  # between the nesting dims it takes long
        return fit(z["train"], labels["train"], z["validation"], labels["validation"], fixed, trainer.program.classes)

    def keep(name: str, scores: Iterable[tuple[str, Score]]) -> list[MetricRow]:
        label = member.label if name == arm.name else f"{name}-seed{member.seed}"
        return _keep(config, directory, name, label, member.seed, labels, scores)

    wanted = evaluate.dims_of(arm, dims, settings)
    head = fitted.model.params["heads"][arm.head]
    own = heads.classifiers(head, arm.head, dims, wanted if arm.head == "tied" else arm.trained(dims))
    others = {"refit_top1": refitted(z, wanted)} if classifier else {}
    scores = evaluate.score(z, labels, own, others, wanted, dims, settings)
    if settings.cascade and len(stages := arm.trained(dims)) > 1:
        tied = arm.head == "tied"
        scores = itertools.chain(scores, evaluate.adaptively(z, labels, own, tied, stages, settings, member.seed))
    rows = keep(arm.name, scores)
    at = evaluate.dims_of(None, dims, settings)
    for name in compressions if arm.width == config.width else ():
        compression = compress.fit(arms.ARMS[name].compression or name, z["train"], member.seed)
        compressed = {split: compression.apply(x) for split, x in z.items()}
        others = {"own_head_top1": compress.own_head(compression, *own[config.width], at)}
        scores = evaluate.score(compressed, labels, refitted(compressed, at), others, at, dims, settings)
        # What a refitted classifier says is no probability, so it is not asked for its calibration.
        rows += keep(name, ((split, s) for split, s in scores if s.metric != "ece"))
    return rows


def refitted_by(config: Config) -> str | None:
    """The kind of the classifiers that are fitted anew, if any are: post-hoc arms need one."""
    return config.evaluation.refit or ("logistic" if arms.posthoc(config.arms) else None)


def _plain(split: Examples | PairExamples | RankingExamples) -> Examples:
    assert isinstance(split, Examples)
    return split


class Judged(NamedTuple):
    """The embeddings of a split of pairs and the truth about them: a ranking's judgments, or scores of pairs."""

    first: np.ndarray  # of queries [Q, D], or of the pairs' first texts [n, D]
    second: np.ndarray  # of documents [N, D], or of the second texts [n, D]
    truth: np.ndarray  # int [j, 3], or float32 [n]

    def compressed(self, compression: compress.Compression) -> "Judged":
        return Judged(compression.apply(self.first), compression.apply(self.second), self.truth)

    def scores(self, dims: Sequence[int]) -> Iterator[Score]:
        return (evaluate.search if self.truth.ndim == 2 else evaluate.similarity)(*self, dims)

    def __len__(self) -> int:
        return len(self.first)


def _of_pairs(config: Config, trainer: Trainer, fitted: FitResult, splits: Splits, directory: Path) -> list[MetricRow]:
    member, arm = fitted.member, fitted.member.arm
    judged = _judged(config, trainer, fitted.model, splits)
    wanted = evaluate.dims_of(arm, config.nesting_dims, config.evaluation)
    rows = _keep_pairs(config, directory, arm.name, member.label, member.seed, judged, wanted)
    compressions = arms.posthoc(config.arms) if arm.width == config.width else ()
    if compressions:
        z = _sample(config, trainer, fitted.model, splits, member.seed)
        rows += _compressed(config, directory, compressions, z, judged, member.seed)
    return rows


def of_untuned(config: Config, trainer: Trainer, splits: Splits, seed: int, directory: Path) -> list[MetricRow]:
    """The rows of the arms that stand for the encoder before training, with the initial parameters of `seed`."""
    model = trainer.program.init(seed).model
    wanted = arms.untuned(config.arms)
    judged = _judged(config, trainer, model, splits)
    z = _sample(config, trainer, model, splits, seed)
    return _compressed(config, directory, wanted, z, judged, seed)


def _compressed(
    config: Config, directory: Path, names: Sequence[str], z: np.ndarray, judged: Mapping[str, Judged], seed: int
) -> list[MetricRow]:
    """The rows of the arms `names`, whose compressions are fitted on `z`."""
    rows, dims = [], evaluate.dims_of(None, config.nesting_dims, config.evaluation)
    for name in names:
        compression = compress.fit(arms.ARMS[name].compression or name, z, seed)
        smaller = {split: one.compressed(compression) for split, one in judged.items()}
        rows += _keep_pairs(config, directory, name, f"{name}-seed{seed}", seed, smaller, dims)
    return rows


def _judged(config: Config, trainer: Trainer, model: Weights, splits: Splits) -> dict[str, Judged]:
    """The embeddings of validation and test. Validation pairs without scores rank all their documents."""
    found = {}
    for name in ("validation", "test"):
        split = splits[name]
        if isinstance(split, RankingExamples):
            first, second = (
                trainer.embed(model, part, config.evaluation.batch_size) for part in (split.queries, split.documents)
            )
            found[name] = Judged(first, second, split.judgments)
        else:
            assert isinstance(split, PairExamples)
            z = trainer.embed(model, split.table, config.evaluation.batch_size)
            if split.scored:
                found[name] = Judged(z[split.columns[:, 0]], z[split.columns[:, 1]], split.labels)
            else:
                queries, documents, judgments = split.ranking()
                found[name] = Judged(z[queries], z[documents], judgments)
    return found


def _sample(config: Config, trainer: Trainer, model: Weights, splits: Splits, seed: int) -> np.ndarray:
    """Embeddings of training texts to fit a compression on."""
    train = splits["train"]
    assert isinstance(train, PairExamples)
    table = train.table
    if len(table) > FIT_ROWS:
        table = table.subset(np.sort(np.random.default_rng(seed).choice(len(table), FIT_ROWS, replace=False)))
    return trainer.embed(model, table, config.evaluation.batch_size)


def _keep_pairs(
    config: Config,
    directory: Path,
    name: str,
    label: str,
    seed: int,
    judged: Mapping[str, Judged],
    dims: Sequence[int],
) -> list[MetricRow]:
    scores = ((split, score) for split, one in judged.items() for score in one.scores(dims))
    labels = {split: np.zeros(len(one), np.int32) for split, one in judged.items()}
    return _keep(config, directory, name, label, seed, labels, scores)


def _keep(
    config: Config,
    directory: Path,
    name: str,
    label: str,
    seed: int,
    labels: Mapping[str, np.ndarray],
    scores: Iterable[tuple[str, Score]],
) -> list[MetricRow]:
    """Write the outcomes of an arm to predictions/`label`.npz and return its rows."""
    rows: list[MetricRow] = []
    outcomes = {f"{split}/label": labels[split] for split in ("validation", "test")}
    for split, s in scores:
        rows.append(MetricRow(config.name, name, seed, s.dim, split, s.metric, s.value))
        if s.outcomes is not None:
            outcomes[f"{split}/{s.metric}/{s.dim}"] = s.outcomes
        if s.prediction is not None:
            outcomes[f"{split}/prediction/{s.dim}"] = s.prediction
    if processes.is_process0():
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **outcomes)
        files.write(directory / "predictions" / f"{label}.npz", buffer.getvalue())
    return rows
