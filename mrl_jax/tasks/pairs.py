"""Pairs: texts (or features) that belong together, learnt by contrast or from scores of how alike they are.

Contrastive: what is near its own document and far from those of the others of its batch, but for the documents that
are known to answer it too; scored by ranking. Similarity: cosines that follow scores; scored by Spearman's correlation.
There are no heads: the K entries of a row of loss weights weigh the loss of each prefix.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax import arms, evaluate
from mrl_jax.config import Config, LossConfig
from mrl_jax.data import PairDataset, Pairs, Ranking, StreamedTexts
from mrl_jax.evaluate import Score, compress
from mrl_jax.evaluate.metrics import TO_TEXT
from mrl_jax.losses import (
    LOSSES,
    Guide,
    PairBatch,
    PairSettings,
    TextIds,
    nested_cosines,
    nested_info_nce,
    relevance,
    straight_through_signs,
)
from mrl_jax.nesting import truncate
from mrl_jax.rows import is_zero
from mrl_jax.runs import MetricRow
from mrl_jax.system.console import say
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import teacher
from mrl_jax.tasks.base import (
    MAX_EMBEDDINGS_BYTES,
    Preprocess,
    Splits,
    check_data,
    shortlist,
    where_taught,
    write_scores,
)
from mrl_jax.training.batches import Examples, PairExamples, RankingExamples
from mrl_jax.training.captioned import CaptionedExamples
from mrl_jax.training.models import FitResult
from mrl_jax.training.step import OF_LABEL, Weights
from mrl_jax.training.trainer import Trainer

COLDEST = 0.01  # the smallest temperature that is learned, as in CLIP (Radford et al., 2021, arXiv:2103.00020)
MAX_COMPARISONS = 10**11  # of a query and a document, to validate streamed pairs; some minutes at 128 dims
MAX_FIT_ROWS = 20_000  # training texts whose embeddings a compression is fitted on


@dataclass(frozen=True)
class PairObjective:
    """A nested loss of pairs, from `losses.LOSSES`; subclasses say when an answer is right."""

    dims: tuple[int, ...]
    columns: int  # texts per pair, its hard negatives included
    options: LossConfig

    kinds, couples_examples = ("separate",), True

    @property
    def sampled(self) -> int:
        return self.options.sampled

    def with_options(self, options: Mapping[str, Any]) -> "PairObjective":
        return replace(self, options=replace(self.options, **options))

    def of(self, label: Any) -> tuple["PairObjective", Any]:
        return self, label

    def init(self, key: jax.Array) -> dict[str, Any]:
        params: dict[str, Any] = {}
        if self.options.learned_temperature:
            params["log_temperature"] = jnp.log(jnp.float32(self.options.temperature))
        if LOSSES[self.options.name].is_biased:
            params["bias"] = {str(m): jnp.float32(self.options.bias) for m in self.dims}
        return params

    def temperature(self, params: Any) -> Any:
        """τ, a number where it is not learned."""
        if not self.options.learned_temperature:
            return self.options.temperature
        return jnp.maximum(jnp.exp(params["log_temperature"]), COLDEST)

    @property
    def breaks_ties(self) -> bool:
        return self.options.mask_known

    def loss(
        self, params: Any, z_SxD: jax.Array, label: Any, weights: jax.Array, of_arm: jax.Array | None = None
    ) -> Any:
        """The S = columns · B embeddings stand column by column; the label is that of `PairExamples`."""
        options, entry, weights_K = self.options, LOSSES[self.options.name], weights[0]
        assert entry.of_pairs is not None
        given = label if isinstance(label, dict) else {"label": label}
        label, teacher_SxT, guide_SxG = (given.get(name) for name in OF_LABEL)
        size = len(z_SxD) // self.columns
        batch = PairBatch(z_SxD[:size], z_SxD[size:], _scores(label), _ids(label, self.columns))
        if guide_SxG is not None:
            batch = batch._replace(guide=Guide(guide_SxG[:size], guide_SxG[size:], options.guide_margin))
        biases_K = jnp.stack([params["bias"][str(m)] for m in self.dims]) if entry.is_biased else None
        settings = PairSettings(self.temperature(params), options.symmetric, biases_K)
        total, losses_K = entry.of_pairs(batch, self.dims, weights_K, settings)
        if not is_zero(options.binary):
            of_signs = batch._replace(candidates=straight_through_signs(batch.candidates))
            stored, _ = entry.of_pairs(of_signs, self.dims, weights_K, settings)
            total += options.binary * stored
        if not options.supervised:
            total = jnp.float32(0)
        of_teacher = PairSettings(options.temperature, options.symmetric)
        taught_K = where_taught(weights_K, None if of_arm is None else of_arm[0])
        if not is_zero(options.distillation):
            assert entry.distillation is not None
            taught, _ = entry.distillation(batch, self.dims, taught_K, of_teacher)
            total += options.distillation * taught
        if not is_zero(options.shortlist):
            # Scored pairs have one document per query: the texts of the batch are each other's documents.
            scored = LOSSES[options.name].learns_from == "scored pairs"
            queries, documents = (z_SxD, None) if scored else (batch.anchors, batch.candidates)
            total += options.shortlist * shortlist(options, queries, documents, self.dims, taught_K)
        if teacher_SxT is not None:
            assert entry.distillation is not None
            batch = batch._replace(targets=teacher_SxT[:size] @ teacher_SxT[size:].T)
            taught, _ = entry.distillation(batch, self.dims, weights_K, of_teacher)
            total += options.teacher_weight * taught
        return total, losses_K[None]

    def score(self, params: Any, z_SxD: jax.Array, label: jax.Array, valid_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        # A validation file may have other hard negatives than the training file, or none.
        size, columns = len(valid_B), len(z_SxD) // len(valid_B)
        ids = _ids(label, columns)
        ids = ids and ids._replace(documents=ids.documents[:size])
        batch = PairBatch(z_SxD[:size], z_SxD[size : 2 * size], _scores(label), ids)
        right_K, lost_K = self._score(params, batch, valid_B)
        return right_K[None], lost_K[None]

    def _score(self, params: Any, batch: PairBatch, valid_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Numbers of right answers and summed losses, [K] each, of pairs without hard negatives."""
        raise NotImplementedError

    def narrow(self, width: int) -> "PairObjective":
        return replace(self, dims=(width,))

    def cut(self, wide: Any, params: Any) -> dict[str, Any]:
        return self.init(jax.random.key(0))  # depends on no width

    def widen(self, wide: Any, full: dict[str, Any], params: Any) -> dict[str, Any]:
        own = {name: value for name, value in params.items() if name != "encoder"}
        if "bias" in own:
            own["bias"] = full["bias"] | own["bias"]
        return full | own


class ContrastiveObjective(PairObjective):
    """An answer is right where the nearest document of the batch is relevant; the score's loss is InfoNCE."""

    def _score(self, params: Any, batch: PairBatch, valid_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        anchors, positives, ids, right = batch.anchors, batch.positives, batch.ids, []
        relevant = jnp.eye(len(anchors), dtype=bool)
        candidates = jnp.broadcast_to(valid_B, relevant.shape)
        if ids is not None:
            relevant |= relevance.relevant(ids.rows(), ids.columns())
            candidates &= relevant | ~relevance.own(ids.rows(), ids.columns())
        for m in self.dims:
            cosines = truncate(anchors, m) @ truncate(positives, m).T
            nearest = jnp.argmax(jnp.where(candidates, cosines, -2.0), axis=1)
            right.append(jnp.sum(jnp.take_along_axis(relevant, nearest[:, None], axis=1)[:, 0] & valid_B))
        ones_K, options = jnp.ones(len(self.dims)), self.options
        _, losses_K = nested_info_nce(
            anchors, positives, self.dims, ones_K, self.temperature(params), options.symmetric, valid=valid_B, ids=ids
        )
        return jnp.stack(right), losses_K * jnp.sum(valid_B)


class SimilarityObjective(PairObjective):
    """An answer is right by the share of the batch's other pairs that cosine puts on the right side of it."""

    def _score(self, params: Any, batch: PairBatch, valid_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores_B, cosines_KxB = batch.scores, nested_cosines(batch.anchors, batch.positives, self.dims)
        order_BxB = jnp.sign(scores_B[:, None] - scores_B) * (valid_B[:, None] & valid_B)
        agree = jnp.sign(cosines_KxB[:, :, None] - cosines_KxB[:, None]) * order_BxB
        others = jnp.maximum(jnp.sum(order_BxB != 0, axis=-1), 1)
        right_KxB = (1 + jnp.sum(agree, axis=-1) / others) / 2
        return jnp.sum(right_KxB * valid_B, axis=-1), jnp.sum((1 - right_KxB) * valid_B, axis=-1)


def _scores(label: jax.Array) -> jax.Array:
    """The scores [B] of pairs; zeros of pairs without."""
    return label if label.ndim == 1 else jnp.zeros(len(label))


def _ids(label: jax.Array, columns: int) -> TextIds | None:
    """The numbers of the texts of pairs, `columns` texts each, where their label has them."""
    return TextIds(label[:, 0], label[:, 1:columns].T.ravel(), label[:, columns:]) if label.ndim == 2 else None


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
        rows = _write(config, directory, arm.name, member.label, member.seed, judged, wanted)
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
) -> list[MetricRow]:
    quantised = config.evaluation.quantised_search
    scores = ((split, score) for split, one in judged.items() for score in one.scores(dims, quantised))
    labels = {split: np.zeros(len(one), np.int32) for split, one in judged.items()}
    return write_scores(config, directory, arm, label, seed, labels, scores)


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
