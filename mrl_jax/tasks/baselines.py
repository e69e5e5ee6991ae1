"""The baselines of a run: which it has, whether they can be made, and their rows of evaluation.csv.

They are deterministic, so every seed has the same rows and outcomes, for comparisons that are paired by seed. They are
made before training; a run that is resumed gets those that it lacks.
"""

import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax import evaluate, runs
from mrl_jax.arms import ARMS, classical
from mrl_jax.config import Config
from mrl_jax.data import Dataset, MixedDataset, PairDataset, Pairs, Ranking, StreamedTexts
from mrl_jax.data.relevance import search_of
from mrl_jax.evaluate import Score, baselines, bm25, neighbours, ranking
from mrl_jax.losses import LOSSES
from mrl_jax.runs import MetricRow
from mrl_jax.system import console, files
from mrl_jax.system.errors import UserError
from mrl_jax.tasks.base import write_scores

MAX_DEFAULT_SIZE = 50_000_000  # training characters × classes of data=files with one by default: about ten seconds
KINDS = {"text": "texts", "image": "images", "features": "features", "image-text": "images with captions"}
REMEDY = "set evaluation.baseline=none"


def check_package(config: Config) -> None:
    """Raise `UserError` where a baseline that is asked for needs scikit-learn, and it is not installed."""
    for name in _asked(config):
        if name != "bm25" and not _has_package():
            raise UserError(
                f"evaluation.baseline={name} needs the package scikit-learn: pip install 'mrl_jax[baselines]'"
            )


def named(config: Config, dataset: Dataset | PairDataset | MixedDataset) -> tuple[str, ...]:
    """The baselines of a run; a mixture has none. Raises `UserError` where the data is not what they read."""
    if isinstance(dataset, MixedDataset):
        return ()
    streamed = any(isinstance(part.raw, StreamedTexts) for part in (dataset.train, dataset.validation))
    if config.evaluation.baseline is None:
        is_classified = isinstance(dataset, Dataset) and LOSSES[config.loss.name].learns_from == "classes"
        if config.data.source != "files" or not is_classified or streamed or not _has_package():
            return ()
        assert isinstance(dataset, Dataset)
        texts = dataset.train.inputs
        size = len(dataset.classes) * sum(map(len, texts)) if isinstance(texts, list) else math.inf
        return ("tfidf",) if size <= MAX_DEFAULT_SIZE else ()
    asked = _asked(config)
    scored = isinstance(dataset.test, Pairs) and dataset.test.scores is not None
    suited = tuple(name for name in asked if ARMS[name].reads == dataset.kind and not scored)
    if len(suited) < (1 if _is_all(config) else len(asked)):
        wrong = next((name for name in asked if name not in suited), "all")
        has = ("scored pairs of " if scored else "") + KINDS[dataset.kind]
        raise UserError(f"evaluation.baseline={wrong} is not for data={dataset.name}, which has {has}; {REMEDY}")
    if suited and streamed:
        raise UserError(
            f"evaluation.baseline={suited[0]} reads all texts into memory, and data={dataset.name} streams them; "
            f"{REMEDY}"
        )
    return suited


def are_made(config: Config, rows: Sequence[MetricRow]) -> bool:
    """Whether evaluation.csv has the baselines that the configuration asks for."""
    present = {(row.arm, row.seed) for row in rows}
    made = [all((name, seed) in present for seed in range(config.seeds)) for name in _asked(config)]
    return any(made) if _is_all(config) else all(made)


def score(config: Config, names: Sequence[str], dataset: Any, directory: Path) -> None:
    """Add the rows of the baselines to evaluation.csv, and their outcomes to predictions/, where they are not there."""
    path = directory / "evaluation.csv"
    for name in names:
        rows = runs.read_rows(path)
        outcomes = [directory / "predictions" / f"{name}-seed{seed}.npz" for seed in range(config.seeds)]
        if {row.seed for row in rows if row.arm == name} >= set(range(config.seeds)) and all(
            file.is_file() for file in outcomes
        ):
            continue
        with console.stage(f"evaluating the baseline {ARMS[name].label}"):
            labels, scores, settings = (
                _classify(name, config, dataset) if isinstance(dataset, Dataset) else _search(config, dataset)
            )
            new = write_scores(config, directory, name, outcomes[0].stem, 0, labels, scores)
        for seed, file in enumerate(outcomes[1:], 1):
            files.write(file, outcomes[0].read_bytes())
            new += [row._replace(seed=seed) for row in new if row.seed == 0]
        runs.write_baseline(directory, name, settings)
        runs.write_rows(path, [*(row for row in rows if row.arm != name), *new])


# The labels of the splits, (split, score), and the settings that were chosen.
Scores = tuple[dict[str, np.ndarray], Iterator[tuple[str, Score]], dict[str, Any]]


def _classify(name: str, config: Config, dataset: Dataset) -> Scores:
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    inputs = {split: part.inputs for split, part in splits.items()}
    labels = {split: part.labels for split, part in splits.items()}
    if name == "knn":
        found = {
            split: neighbours.outcomes(rows, labels[split], labels["train"], evaluate.K_NEIGHBOURS)
            for split, rows in baselines.neighbours(inputs, evaluate.K_NEIGHBOURS).items()
        }
        near = ((split, one) for split, x in found.items() for one in evaluate.of_outcomes(config.width, x))
        return labels, near, {"k": evaluate.K_NEIGHBOURS}
    fitted = baselines.CLASSIFIERS[name](inputs, labels, len(dataset.classes))
    scores = ((split, one) for split, x in fitted.answers.items() for one in evaluate.of_answers(config.width, x))
    return labels, scores, fitted.settings


def _search(config: Config, dataset: PairDataset) -> Scores:
    parts = {"validation": _ranking(dataset.validation), "test": _ranking(dataset.test)}

    def scores() -> Iterator[tuple[str, Score]]:
        for split, (queries, documents, judgments, own) in parts.items():
            excluded = own if config.evaluation.ignore_identical_ids else None
            found = bm25.rank(queries, documents, ranking.depth(excluded, len(documents)))
            found = ranking.without_own(found, excluded, len(documents))
            values = ranking.outcomes(found, judgments, len(documents))
            yield from ((split, one) for one in evaluate.of_outcomes(config.width, values))

    labels = {split: np.zeros(len(queries), np.int32) for split, (queries, *_) in parts.items()}
    return labels, scores(), {"k1": bm25.K1, "b": bm25.B}


def _ranking(part: Pairs | Ranking) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Queries, documents, judgments and own documents: of pairs as they are validated on."""
    if isinstance(part, Ranking):
        return list(part.queries), list(part.documents), part.judgments, part.own
    found, texts = search_of(part.columns), list(part.table)
    queries, documents = ([texts[row] for row in rows] for rows in (found.queries, found.documents))
    return queries, documents, found.judgments, found.own


def _asked(config: Config) -> tuple[str, ...]:
    return classical(config.evaluation.baseline, LOSSES[config.loss.name].learns_from)


def _is_all(config: Config) -> bool:
    return "all" in (config.evaluation.baseline or ())  # the word, or a list with it


def _has_package() -> bool:
    return find_spec("sklearn") is not None
