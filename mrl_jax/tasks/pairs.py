"""Pairs: texts (or features) that belong together, learnt by contrast or from scores of how alike they are.

Contrastive: what is near its own document and far from those of the others of its batch; scored by ranking. Similarity:
cosines that follow scores; scored by Spearman's correlation. There are no heads: the K entries of a row of loss weights
weigh the loss of each prefix.
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
from mrl_jax.errors import UserError
from mrl_jax.evaluate import Score, compress
from mrl_jax.losses import LOSSES, PairBatch, nested_cosines, nested_info_nce
from mrl_jax.nesting import truncate
from mrl_jax.runs import MetricRow
from mrl_jax.tasks.base import MAX_EMBEDDINGS_BYTES, Preprocess, Splits, check_data, write_scores
from mrl_jax.training.batches import Examples, PairExamples, RankingExamples
from mrl_jax.training.models import FitResult
from mrl_jax.training.step import Weights
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

    kinds = ("separate",)
    couples_examples = True

    @property
    def sampled(self) -> int:
        return self.options.sampled

    def init(self, key: jax.Array) -> dict[str, Any]:
        if not self.options.learned_temperature:
            return {}
        return {"log_temperature": jnp.log(jnp.float32(self.options.temperature))}

    def temperature(self, params: Any) -> Any:
        """τ, a number where it is not learned."""
        if not self.options.learned_temperature:
            return self.options.temperature
        return jnp.maximum(jnp.exp(params["log_temperature"]), COLDEST)

    def loss(self, params: Any, z_SxD: jax.Array, scores_B: jax.Array, weights: jax.Array) -> Any:
        """The S = columns · B embeddings stand column by column."""
        options, entry, weights_K = self.options, LOSSES[self.options.name], weights[0]
        assert entry.of_pairs is not None
        size = len(z_SxD) // self.columns
        batch = PairBatch(z_SxD[:size], z_SxD[size:], scores_B)
        total, losses_K = entry.of_pairs(batch, self.dims, weights_K, self.temperature(params), options.symmetric)
        if options.distillation:
            assert entry.distillation is not None
            taught, _ = entry.distillation(batch, self.dims, weights_K, options.temperature, options.symmetric)
            total += options.distillation * taught
        return total, losses_K[None]

    def score(
        self, params: Any, z_SxD: jax.Array, scores_B: jax.Array, valid_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # A validation file may have other hard negatives than the training file, or none.
        anchors, positives = z_SxD[: len(valid_B)], z_SxD[len(valid_B) : 2 * len(valid_B)]
        right_K, lost_K = self._score(params, anchors, positives, scores_B, valid_B)
        return right_K[None], lost_K[None]

    def _score(
        self, params: Any, anchors: jax.Array, positives: jax.Array, scores_B: jax.Array, valid_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Numbers of right answers and summed losses, [K] each."""
        raise NotImplementedError

    def narrow(self, width: int) -> "PairObjective":
        return replace(self, dims=(width,))

    def cut(self, wide: Any, params: Any) -> dict[str, Any]:
        return self.init(jax.random.key(0))  # depends on no width

    def widen(self, wide: Any, full: dict[str, Any], params: Any) -> dict[str, Any]:
        return full | {name: value for name, value in params.items() if name != "encoder"}


class ContrastiveObjective(PairObjective):
    """An answer is right where a query is nearest to its own document of the batch; the score's loss is InfoNCE."""

    def _score(
        self, params: Any, anchors: jax.Array, positives: jax.Array, scores_B: jax.Array, valid_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        right = []
        for m in self.dims:
            cosines = truncate(anchors, m) @ truncate(positives, m).T
            nearest = jnp.argmax(jnp.where(valid_B, cosines, -2.0), axis=1)
            right.append(jnp.sum((nearest == jnp.arange(len(cosines))) & valid_B))
        ones_K, options = jnp.ones(len(self.dims)), self.options
        _, losses_K = nested_info_nce(
            anchors, positives, self.dims, ones_K, self.temperature(params), options.symmetric, valid=valid_B
        )
        return jnp.stack(right), losses_K * jnp.sum(valid_B)


class SimilarityObjective(PairObjective):
    """An answer is right by the share of the batch's other pairs that cosine puts on the right side of it."""

    def _score(
        self, params: Any, anchors: jax.Array, positives: jax.Array, scores_B: jax.Array, valid_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        cosines_KxB = nested_cosines(anchors, positives, self.dims)
        order_BxB = jnp.sign(scores_B[:, None] - scores_B) * (valid_B[:, None] & valid_B)
        agree = jnp.sign(cosines_KxB[:, :, None] - cosines_KxB[:, None]) * order_BxB
        others = jnp.maximum(jnp.sum(order_BxB != 0, axis=-1), 1)
        right_KxB = (1 + jnp.sum(agree, axis=-1) / others) / 2
        return jnp.sum(right_KxB * valid_B, axis=-1), jnp.sum((1 - right_KxB) * valid_B, axis=-1)


class Judged(NamedTuple):
    """The embeddings of a split and the truth about them: the judgments of a ranking, or the scores of pairs."""

    first: np.ndarray  # of queries [Q, D], or of the pairs' first texts [n, D]
    second: np.ndarray  # of documents [N, D], or of the second texts [n, D]
    truth: np.ndarray  # int [j, 3], or float32 [n]

    def compressed(self, compression: compress.Compression) -> "Judged":
        return Judged(compression.apply(self.first), compression.apply(self.second), self.truth)

    def scores(self, dims: Sequence[int]) -> Iterator[Score]:
        return (evaluate.search if self.truth.ndim == 2 else evaluate.similarity)(*self, dims)

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class LearningFromPairs:
    """The task of the losses of pairs, scored or not."""

    objective_type: type[PairObjective]

    def check(self, config: Config, dataset: PairDataset) -> None:
        check_data(config, dataset)
        validation, texts = dataset.validation, dataset.validation.table
        if isinstance(texts, StreamedTexts):  # and not read from a file of its own
            _check_memory(config, validation, len(texts))

    def splits(self, config: Config, dataset: PairDataset, preprocess: Preprocess) -> Splits:
        def read(texts: Any) -> Examples:
            return preprocess(texts, np.zeros(len(texts), np.int32))

        scores = dataset.train.scores
        low, high = (0.0, 1.0) if scores is None else (float(scores.min()), float(scores.max()))

        def pairs(name: str, part: Pairs, chunks: int = 1) -> PairExamples:
            # To 0…1, as cosine regression needs them; nothing else depends on their unit.
            to_unit = None if part.scores is None else (part.scores - low) / max(high - low, 1e-12)
            if isinstance(part.table, StreamedTexts):
                labels = np.zeros(len(part), np.float32) if to_unit is None else to_unit.astype(np.float32)
                table = preprocess.on_disk(part.table, labels, name, part.columns)
            else:
                table = read(part.table)
            return PairExamples(table, part.columns, to_unit, chunks, multiple=jax.device_count())

        test = dataset.test
        return {
            "train": pairs("train", dataset.train, config.trainer.accumulate),
            "validation": pairs("validation", dataset.validation),
            "test": RankingExamples(read(test.queries), read(test.documents), test.judgments)
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
        if arm.width == config.width and (compressions := arms.posthoc(config.arms)):
            z = _sample(config, trainer, result.model, splits, member.seed)
            rows += _score_compressed(config, directory, compressions, z, judged, member.seed)
        return rows

    def score_untuned(
        self, config: Config, trainer: Trainer, splits: Splits, seed: int, directory: Path
    ) -> list[MetricRow]:
        model = trainer.program.init(seed).model
        judged = _judged(config, trainer, model, splits)
        z = _sample(config, trainer, model, splits, seed)
        return _score_compressed(config, directory, arms.untuned(config.arms), z, judged, seed)


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

    judged = {}
    for name in ("validation", "test"):
        split = splits[name]
        if isinstance(split, RankingExamples):
            judged[name] = Judged(embed(split.queries), embed(split.documents), split.judgments)
            continue
        z = embed(split.table)
        if split.scored:
            judged[name] = Judged(z[split.columns[:, 0]], z[split.columns[:, 1]], split.labels)
        else:
            queries, documents, judgments = split.ranking()
            judged[name] = Judged(z[queries], z[documents], judgments)
    return judged


def _sample(config: Config, trainer: Trainer, model: Weights, splits: Splits, seed: int) -> np.ndarray:
    """Embeddings of training texts to fit a compression on."""
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
    scores = ((split, score) for split, one in judged.items() for score in one.scores(dims))
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
