"""Pairs: texts (features, captions and pictures) that belong together, learnt by contrast or from scores of how alike
they are; see `pair_objectives`. Pairs without scores are scored by ranking, others by Spearman's correlation.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mrl_jax import arms, evaluate
from mrl_jax.config import Config
from mrl_jax.data import PairDataset, Pairs, Ranking, StreamedTexts
from mrl_jax.evaluate import Score, compress
from mrl_jax.evaluate.metrics import TO_TEXT
from mrl_jax.runs import MetricRow
from mrl_jax.system.console import say
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import slices, teacher
from mrl_jax.tasks.base import MAX_EMBEDDINGS_BYTES, Preprocess, Splits, check_data, write_scores
from mrl_jax.tasks.pair_objectives import PairObjective
from mrl_jax.training.batches import Examples, PairExamples, RankingExamples
from mrl_jax.training.captioned import CaptionedExamples
from mrl_jax.training.models import FitResult
from mrl_jax.training.step import Weights
from mrl_jax.training.trainer import Trainer

MAX_COMPARISONS = 10**11  # of a query and a document, to validate streamed pairs; some minutes at 128 dims
MAX_FIT_ROWS = 20_000  # training texts whose embeddings a compression is fitted on


class Judged(NamedTuple):
    """The embeddings of a split and the truth about them: the judgments of a ranking, or the scores of pairs."""

    first: np.ndarray  # of queries [Q, D], or of the pairs' first texts [n, D]
    second: np.ndarray  # of documents [N, D], or of the second texts [n, D]
    truth: np.ndarray  # int [j, 3], or float32 [n]
    own: np.ndarray | None = None  # int [m, 2], row of a query and of the document that is no candidate for it
    both_ways: bool = False  # of captions and pictures: documents also search queries

    def compressed(self, compression: compress.Compression) -> "Judged":
        first, second = compression.apply(self.first), compression.apply(self.second)
        return Judged(first, second, self.truth, self.own, self.both_ways)

    def scores(self, dims: Sequence[int], is_quantised: bool = False) -> Iterator[Score]:
        """The metrics at each of `dims`; of a search also, if asked for, those with quantised documents."""
        if self.truth.ndim == 1:
            yield from evaluate.similarity(self.first, self.second, self.truth, dims)
            return
        yield from evaluate.search(self.first, self.second, self.truth, dims, self.own, is_quantised)
        for score in evaluate.search(self.second, self.first, self.truth[:, [1, 0, 2]], dims) if self.both_ways else ():
            # Without outcomes: the examples of predictions/ are the queries of the way there.
            yield score._replace(metric=TO_TEXT + score.metric, outcomes=None)

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class LearningFromPairs:
    """The task of the losses of pairs, scored or not."""

    objective_type: type[PairObjective]

    def check(self, config: Config, dataset: PairDataset) -> None:
        check_data(config, dataset)
        teacher.check(config, dataset)
        validation, texts = dataset.validation, dataset.validation.table
        if isinstance(texts, StreamedTexts):  # and not read from a file of its own
            _check_memory(config, validation, len(texts))

    def splits(self, config: Config, dataset: PairDataset, preprocess: Preprocess) -> Splits:
        def read(texts: Any, name: str) -> Examples:
            return preprocess(texts, np.zeros(len(texts), np.int32), name)

        scores = dataset.train.scores
        low, high = (0.0, 1.0) if scores is None else (float(scores.min()), float(scores.max()))

        def pairs(name: str, part: Pairs, chunks: int = 1) -> PairExamples:
            # To 0…1, as cosine regression needs them; nothing else depends on their unit.
            to_unit = None if part.scores is None else (part.scores - low) / max(high - low, 1e-12)
            if isinstance(part.table, StreamedTexts):
                labels = np.zeros(len(part), np.float32) if to_unit is None else to_unit.astype(np.float32)
                table = preprocess.on_disk(part.table, labels, name, part.columns)
            else:
                table = read(part.table, name)
            devices, mask_known = jax.device_count(), config.loss.mask_known
            if name != "train":
                return PairExamples(table, part.columns, to_unit, chunks, devices, mask_known, part.text_ids)
            others: Mapping[str, Any] = teacher.vectors(config, part.table)
            others = {**others, "no_duplicates": config.trainer.no_duplicates}
            return PairExamples(table, part.columns, to_unit, chunks, devices, mask_known, part.text_ids, **others)

        test = dataset.test
        if isinstance(test, Ranking) and config.evaluation.ignore_identical_ids:
            say_own(test, " (evaluation.ignore_identical_ids)")
        return {
            "train": pairs("train", dataset.train, config.trainer.accumulate),
            "validation": pairs("validation", dataset.validation),
            "test": RankingExamples(
                read(test.queries, "test query"), read(test.documents, "test document"), test.judgments, test.own
            )
            if isinstance(test, Ranking)
            else pairs("test", test),
        }

    def describe(self, dataset: PairDataset, splits: Splits) -> dict[str, Any]:
        return {"classes": [], "columns": int(splits["train"].columns.shape[1])}

    def objective(self, config: Config, description: Mapping[str, Any]) -> PairObjective:
        return self.objective_type(config.nesting_dims, description.get("columns", 1), config.loss)

    def score(
        self, config: Config, trainer: Trainer, result: FitResult, splits: Splits, directory: Path
    ) -> list[MetricRow]:
        member, arm = result.member, result.member.arm
        judged = _judged(config, trainer, result.model, splits)
        wanted = evaluate.dims_of(arm, config.nesting_dims, config.evaluation)
        of_smaller = (
            (split, score)
            for prefix, other, weights in slices.smaller(config, trainer, arm, result.model)
            for split, one in _judged(config, other, weights, splits).items()
            for score in slices.named(prefix, one.scores(config.nesting_dims))
        )
        rows = _write(config, directory, arm.name, member.label, member.seed, judged, wanted, of_smaller)
        if compressions := arms.made_of(arm, config.arms, config.width):
            z = _sample(config, trainer, result.model, splits, member.seed, compressions)
            rows += _score_compressed(config, directory, compressions, z, judged, member.seed)
        return rows

    def score_untuned(
        self, config: Config, trainer: Trainer, splits: Splits, seed: int, directory: Path
    ) -> list[MetricRow]:
        model = trainer.program.init(seed).model
        judged = _judged(config, trainer, model, splits)
        names = arms.untuned(config.arms)
        z = _sample(config, trainer, model, splits, seed, names)
        return _score_compressed(config, directory, names, z, judged, seed)


def _score_compressed(
    config: Config, directory: Path, names: Sequence[str], z: np.ndarray, judged: Mapping[str, Judged], seed: int
) -> list[MetricRow]:
    """The rows of the arms `names`, whose compressions are fitted on `z`."""
    rows, dims = [], evaluate.dims_of(None, config.nesting_dims, config.evaluation)
    for name in names:
        compression = compress.fit(str(arms.ARMS[name].compression), z, seed)
        smaller = {split: one.compressed(compression) for split, one in judged.items()}
        rows += _write(config, directory, name, f"{name}-seed{seed}", seed, smaller, dims)
    return rows


def _judged(config: Config, trainer: Trainer, model: Weights, splits: Splits) -> dict[str, Judged]:
    """The embeddings of validation and test. Validation pairs without scores rank all their documents."""

    def embed(examples: Examples) -> np.ndarray:
        return trainer.embed(model, examples, config.evaluation.batch_size)

    judged, excludes = {}, config.evaluation.ignore_identical_ids
    for name in ("validation", "test"):
        split = splits[name]
        if isinstance(split, RankingExamples):
            queries, documents = embed(split.queries), embed(split.documents)
            own, both_ways = split.own if excludes else None, "image" in split.documents.inputs
            judged[name] = Judged(queries, documents, split.judgments, own, both_ways)
            continue
        z = embed(split.table)
        if split.scored:
            judged[name] = Judged(z[split.columns[:, 0]], z[split.columns[:, 1]], split.labels)
        else:
            search = split.search()
            queries, documents = z[search.queries], z[search.documents]
            own, both_ways = search.own if excludes else None, isinstance(split.table, CaptionedExamples)
            judged[name] = Judged(queries, documents, search.judgments, own, both_ways)
    return judged


def say_own(test: Ranking, why: str = "") -> None:
    """Say how many queries of the test are documents, and how often that is judged relevant and cannot be found; `why`
    ends the sentence."""
    if not len(test.own):
        return
    judged = {(int(query), int(document)) for query, document, gain in test.judgments if gain > 0}
    count = sum((int(query), int(document)) in judged for query, document in test.own)
    also = f"; {count:,} of these are judged relevant and count as missed" if count else ""
    queries = len(np.unique(test.own[:, 0]))
    say(f"test: {queries:,} of {len(test):,} queries are documents themselves and do not rank their own{also}{why}")


def _sample(
    config: Config, trainer: Trainer, model: Weights, splits: Splits, seed: int, names: Sequence[str]
) -> np.ndarray:
    """Embeddings of training texts to fit the compressions of the arms `names` on; one row of zeros where none of them
    learns from embeddings."""
    if not any(arms.ARMS[name].compression in compress.LEARNT for name in names):
        return np.zeros((1, config.width), np.float32)
    table = splits["train"].table
    if len(table) > MAX_FIT_ROWS:
        table = table.subset(np.sort(np.random.default_rng(seed).choice(len(table), MAX_FIT_ROWS, replace=False)))
    return trainer.embed(model, table, config.evaluation.batch_size)


def _write(
    config: Config,
    directory: Path,
    arm: str,
    label: str,
    seed: int,
    judged: Mapping[str, Judged],
    dims: Sequence[int],
    more: Iterable[tuple[str, Score]] = (),
) -> list[MetricRow]:
    quantised = config.evaluation.quantised_search
    scores = ((split, score) for split, one in judged.items() for score in one.scores(dims, quantised))
    labels = {split: np.zeros(len(one), np.int32) for split, one in judged.items()}
    return write_scores(config, directory, arm, label, seed, labels, itertools.chain(scores, more))


def _check_memory(config: Config, validation: Pairs, texts: int) -> None:
    """Raise `UserError` where streamed pairs would be validated on too many embeddings, or by too many comparisons."""
    problem = f"the {len(validation):,} validation pairs have {texts:,} different texts"
    remedy = "use a smaller data.validation_fraction, or a small file as data.validation"
    needed = 2 * 4 * config.width * texts  # of the texts, and of them as queries and documents
    if needed > MAX_EMBEDDINGS_BYTES:
        raise UserError(
            f"{problem}, whose embeddings take {needed:,} bytes, more than {MAX_EMBEDDINGS_BYTES:,}; {remedy}"
        )
    queries = len(np.unique(validation.columns[:, 0]))
    if validation.scores is None and queries * (texts - queries) > MAX_COMPARISONS:
        raise UserError(
            f"{problem}; ranking all documents for {queries:,} queries is more than {MAX_COMPARISONS:.0e} "
            f"comparisons; {remedy}"
        )
