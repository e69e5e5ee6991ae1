"""Objectives of pairs: what a training step minimises and how an answer is scored, at every prefix.

Contrastive: what is near its own document and far from those of the others of its batch, but for the documents that
are known to answer it too. Similarity: cosines that follow scores. There are no heads: the K entries of a row of loss
weights weigh the loss of each prefix.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from mrl_jax.config import LossConfig
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
from mrl_jax.tasks.base import shortlist, where_taught
from mrl_jax.training.objective import OF_LABEL

COLDEST = 0.01  # the smallest temperature that is learned, as in CLIP (Radford et al., 2021, arXiv:2103.00020)


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
