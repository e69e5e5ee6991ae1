"""Nested losses: pure functions of arrays that return a scalar and the loss of each granularity.

`LOSSES` is the table of the losses that a run can be trained with (`loss.name`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax

from mrl_jax.losses.classification import (
    cross_entropy,
    nested_cross_entropy,
    nested_logit_distillation,
    sample_granularities,
    uncertainty_weighted,
)
from mrl_jax.losses.cosines import nested_cosines
from mrl_jax.losses.gradient_cache import cached_gradient
from mrl_jax.losses.info_nce import nested_info_nce
from mrl_jax.losses.quantised import straight_through_signs
from mrl_jax.losses.relevance import Guide, TextIds
from mrl_jax.losses.scored import (
    nested_cosent,
    nested_cosine_regression,
    nested_distillation,
    nested_pair_distillation,
    nested_similarity_regression,
)
from mrl_jax.losses.sigmoid import nested_sigmoid
from mrl_jax.losses.tokens import nested_token_prediction

__all__ = [
    "LOSSES",
    "Guide",
    "LossType",
    "PairBatch",
    "PairSettings",
    "TextIds",
    "cached_gradient",
    "cross_entropy",
    "nested_cosent",
    "nested_cosine_regression",
    "nested_cosines",
    "nested_cross_entropy",
    "nested_distillation",
    "nested_info_nce",
    "nested_logit_distillation",
    "nested_pair_distillation",
    "nested_sigmoid",
    "nested_similarity_regression",
    "nested_token_prediction",
    "sample_granularities",
    "straight_through_signs",
    "uncertainty_weighted",
]

LearnsFrom = Literal["classes", "pairs", "scored pairs", "texts"]  # the kind of examples in a data set


class PairBatch(NamedTuple):
    """A batch of B pairs as a pair loss reads it."""

    anchors: jax.Array  # [B, D]
    candidates: jax.Array  # [N, D]: the B positives, then hard negatives
    scores: jax.Array  # float32 [B]; ignored by losses of unscored pairs
    ids: TextIds | None = None  # numbers of the texts, where known positives are to be no negatives
    targets: jax.Array | None = None  # [B, N]: a teacher's cosines of anchors and candidates
    guide: Guide | None = None  # by whose similarities some candidates are no negatives

    @property
    def positives(self) -> jax.Array:
        """The positive of each anchor, [B, D]."""
        return self.candidates[: len(self.anchors)]


class PairSettings(NamedTuple):
    """What a pair loss depends on beside its batch; each loss reads what it needs."""

    temperature: Any  # τ that divides cosines
    symmetric: bool  # whether documents look for their queries too
    biases: Any = None  # [K], added to the logits of each granularity


# (batch, dims, weights [K], settings) → the scalar loss and the loss of each granularity [K]
PairLoss = Callable[[PairBatch, Sequence[int], jax.Array, PairSettings], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class LossType:
    """An entry of `LOSSES`: what the loss learns from, and the functions that compute it."""

    learns_from: LearnsFrom
    options: tuple[str, ...]  # configuration keys that apply to this loss but not to all losses
    of_pairs: PairLoss | None = None  # None for classes, see `heads.nested_loss`, and texts, see `losses.tokens`
    distillation: PairLoss | None = None  # what a teacher says: the batch's targets, or without any the full width
    is_biased: bool = False  # whether each granularity learns a number that is added to its logits


def _info_nce(
    batch: PairBatch, dims: Sequence[int], weights: jax.Array, settings: PairSettings
) -> tuple[jax.Array, jax.Array]:
    temperature, symmetric, _ = settings
    return nested_info_nce(
        batch.anchors, batch.candidates, dims, weights, temperature, symmetric, ids=batch.ids, guide=batch.guide
    )


def _sigmoid(
    batch: PairBatch, dims: Sequence[int], weights: jax.Array, settings: PairSettings
) -> tuple[jax.Array, jax.Array]:
    temperature, _, biases = settings
    return nested_sigmoid(
        batch.anchors, batch.candidates, dims, weights, temperature, biases, ids=batch.ids, guide=batch.guide
    )


def _cosent(
    batch: PairBatch, dims: Sequence[int], weights: jax.Array, settings: PairSettings
) -> tuple[jax.Array, jax.Array]:
    return nested_cosent(batch.anchors, batch.positives, batch.scores, dims, weights, settings.temperature)


def _cosine(batch: PairBatch, dims: Sequence[int], weights: jax.Array, _: PairSettings) -> tuple[jax.Array, jax.Array]:
    return nested_cosine_regression(batch.anchors, batch.positives, batch.scores, dims, weights)


def _teach_rankings(
    batch: PairBatch, dims: Sequence[int], weights: jax.Array, settings: PairSettings
) -> tuple[jax.Array, jax.Array]:
    return nested_distillation(batch.anchors, batch.candidates, dims, weights, settings.temperature, batch.targets)


def _teach_cosines(
    batch: PairBatch, dims: Sequence[int], weights: jax.Array, settings: PairSettings
) -> tuple[jax.Array, jax.Array]:
    if batch.targets is None:
        return nested_pair_distillation(batch.anchors, batch.positives, dims, weights)
    return nested_similarity_regression(
        batch.anchors, batch.candidates, batch.targets, dims, weights, settings.temperature
    )


CONTRASTED = (
    *("loss.learned_temperature", "loss.guide", "loss.guide_margin", "loss.binary", "trainer.no_duplicates"),
    "evaluation.quantised_search",
)
OF_CLASSES = (
    *("loss.label_smoothing", "loss.weighting", "loss.distillation", "evaluation.cascade", "evaluation.few_shot"),
    *("loss.shortlist", "loss.prefix_gradient"),
    *("evaluation.by_frequency", "evaluation.superclass", "evaluation.unknown", "evaluation.corruption"),
)
TAUGHT = ("loss.distillation", "loss.teacher", "loss.teacher_weight", "loss.supervised", "loss.shortlist")


LOSSES: dict[str, LossType] = {
    "cross_entropy": LossType("classes", OF_CLASSES),
    "info_nce": LossType("pairs", (*TAUGHT, *CONTRASTED), _info_nce, _teach_rankings),
    "sigmoid": LossType("pairs", (*TAUGHT, *CONTRASTED, "loss.bias"), _sigmoid, _teach_rankings, is_biased=True),
    "cosent": LossType("scored pairs", TAUGHT, _cosent, _teach_cosines),
    "cosine": LossType("scored pairs", TAUGHT, _cosine, _teach_cosines),
    "mlm": LossType("texts", ("loss.mask_rate", "loss.whole_words")),
}
