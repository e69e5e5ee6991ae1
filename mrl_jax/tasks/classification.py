"""Classes: labelled examples, a linear classifier per granularity, accuracy of own and refitted classifiers.

Σ_k c_k · CE(classifier_k(z[:m_k]), y)                                            (MRL paper, eq. 1)
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax import arms, evaluate
from mrl_jax.config import Config, LossConfig
from mrl_jax.data import Dataset, Split, StreamedTexts
from mrl_jax.errors import UserError
from mrl_jax.evaluate import Score, adaptive, compress, refit
from mrl_jax.evaluate.classification import Classifiers
from mrl_jax.losses import heads, uncertainty_weighted
from mrl_jax.runs import MetricRow
from mrl_jax.tasks.base import MAX_EMBEDDINGS_BYTES, Preprocess, Splits, check_data, write_scores
from mrl_jax.training.batches import Examples
from mrl_jax.training.models import FitResult
from mrl_jax.training.trainer import Trainer


@dataclass(frozen=True)
class ClassObjective:
    """The nested cross-entropy of one or both kinds of heads."""

    dims: tuple[int, ...]
    kinds: tuple[str, ...]  # of heads, see `losses.heads`
    classes: int
    options: LossConfig

    columns = 1
    couples_examples = False

    @property
    def sampled(self) -> int:
        return self.options.sampled

    def init(self, key: jax.Array) -> dict[str, Any]:
        return self._log_variances() | {
            "heads": {
                kind: heads.init(jax.random.fold_in(key, heads.KINDS.index(kind)), kind, self.dims, self.classes)
                for kind in self.kinds
            }
        }

    def _log_variances(self) -> dict[str, Any]:
        if self.options.weighting != "uncertainty":
            return {}
        return {"log_variances": {kind: jnp.zeros(len(self.dims)) for kind in self.kinds}}

    def loss(
        self, params: Any, z_BxD: jax.Array, labels_B: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        total, each = jnp.float32(0), []
        for kind, weights_K in zip(self.kinds, weights, strict=True):
            head = params["heads"][kind]
            loss, losses_K = heads.nested_loss(
                head, kind, z_BxD, labels_B, weights_K, self.dims, self.options.label_smoothing
            )
            if self.options.weighting == "uncertainty":
                loss = uncertainty_weighted(losses_K, params["log_variances"][kind], weights_K)
            total += loss
            each.append(losses_K)
        return total, jnp.stack(each)

    def score(
        self, params: Any, z_BxD: jax.Array, labels_B: jax.Array, valid_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """An answer is right where the largest logit is that of the label."""
        right, lost = [], []
        for kind in self.kinds:
            hits_KxB, losses_KxB = heads.score(params["heads"][kind], kind, z_BxD, labels_B, self.dims)
            right.append(jnp.sum(hits_KxB & valid_B, axis=1))
            lost.append(jnp.sum(jnp.where(valid_B, losses_KxB, 0.0), axis=1))
        return jnp.stack(right), jnp.stack(lost)

    def narrow(self, width: int) -> "ClassObjective":
        return replace(self, dims=(width,), kinds=("separate",))

    def cut(self, wide: Any, params: Any) -> dict[str, Any]:
        k = wide.dims.index(self.dims[0])
        separate = {name: [parts[k]] for name, parts in params["heads"]["separate"].items()}
        return self._log_variances() | {"heads": {"separate": separate}}

    def widen(self, wide: Any, full: dict[str, Any], params: Any) -> dict[str, Any]:
        k = wide.dims.index(self.dims[0])
        separate = {
            name: [*parts[:k], params["heads"]["separate"][name][0], *parts[k + 1 :]]
            for name, parts in full["heads"]["separate"].items()
        }
        return full | {"heads": full["heads"] | {"separate": separate}}


class Classification:
    """The task of `loss.name=cross_entropy`."""

    def check(self, config: Config, dataset: Dataset) -> None:
        check_data(config, dataset)
        classes, settings = len(dataset.classes), config.evaluation
        refit.check(refit_kind(config), classes, config.width)
        if settings.cascade:
            adaptive.check(len(dataset.validation), settings.epsilon, settings.delta)
            examples = len(dataset.validation) + len(dataset.test)
            adaptive.check_memory(examples, classes, len(config.nesting_dims))
        if isinstance(dataset.train.inputs, StreamedTexts):
            _check_memory(config, dataset)

    def splits(self, config: Config, dataset: Dataset, preprocess: Preprocess) -> Splits:
        def part(name: str, split: Split) -> Examples:
            if isinstance(split.inputs, StreamedTexts):
                return preprocess.on_disk(split.inputs, split.labels, name)
            return preprocess(split.inputs, split.labels)

        parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
        return {name: part(name, split) for name, split in parts.items()}

    def describe(self, dataset: Dataset, splits: Splits) -> dict[str, Any]:
        return {"classes": list(dataset.classes)}

    def objective(self, config: Config, description: Mapping[str, Any]) -> ClassObjective:
        population = arms.expand(config.arms, config.nesting_dims, config.loss.weights)
        return ClassObjective(config.nesting_dims, arms.kinds(population), len(description["classes"]), config.loss)

    def score(
        self, config: Config, trainer: Trainer, result: FitResult, splits: Splits, directory: Path
    ) -> list[MetricRow]:
        member, arm, dims, settings = result.member, result.member.arm, config.nesting_dims, config.evaluation
        classifier = refit_kind(config)
        needed = {name: split for name, split in splits.items() if name != "train" or settings.neighbours or classifier}
        z = {name: trainer.embed(result.model, split, settings.batch_size) for name, split in needed.items()}
        labels = {name: split.labels for name, split in splits.items()}
        head = result.model.params["heads"][arm.head]
        classes = int(jax.tree.leaves(head)[0].shape[-1])

        def refitted(z: dict[str, np.ndarray], at: Sequence[int]) -> Classifiers:
            fit = refit.CLASSIFIERS[classifier or "logistic"]
            fixed = [m for m in at if m in dims or m in (settings.dims or ())]  # between nesting dims it takes long
            return fit(z["train"], labels["train"], z["validation"], labels["validation"], fixed, classes)

        def write(name: str, scores: Iterable[tuple[str, Score]]) -> list[MetricRow]:
            label = member.label if name == arm.name else f"{name}-seed{member.seed}"
            return write_scores(config, directory, name, label, member.seed, labels, scores)

        wanted = evaluate.dims_of(arm, dims, settings)
        own = heads.classifiers(head, arm.head, dims, wanted if arm.head == "tied" else arm.trained(dims))
        others = {"refit_top1": refitted(z, wanted)} if classifier else {}
        scores = evaluate.score(z, labels, own, others, wanted, dims, settings)
        if settings.cascade and len(stages := arm.trained(dims)) > 1:
            tied = arm.head == "tied"
            scores = itertools.chain(
                scores, evaluate.score_cascade(z, labels, own, tied, stages, settings, member.seed)
            )
        rows = write(arm.name, scores)
        at = evaluate.dims_of(None, dims, settings)
        for name in arms.posthoc(config.arms) if arm.width == config.width else ():
            compression = compress.fit(str(arms.ARMS[name].compression), z["train"], member.seed)
            compressed = {split: compression.apply(x) for split, x in z.items()}
            others = {"own_head_top1": compress.own_head(compression, *own[config.width], at)}
            scores = evaluate.score(compressed, labels, refitted(compressed, at), others, at, dims, settings)
            # What a refitted classifier says is no probability, so it is not asked for its calibration.
            rows += write(name, ((split, s) for split, s in scores if s.metric != "ece"))
        return rows

    def score_untuned(
        self, config: Config, trainer: Trainer, splits: Splits, seed: int, directory: Path
    ) -> list[MetricRow]:
        raise AssertionError("the configuration allows no untuned arm where classes are learnt")


def refit_kind(config: Config) -> str | None:
    """The kind of classifier that is fitted anew, if any is: post-hoc arms need one."""
    return config.evaluation.refit or ("logistic" if arms.posthoc(config.arms) else None)


def _check_memory(config: Config, dataset: Dataset) -> None:
    """Raise `UserError` where streamed data would be evaluated on too many embeddings."""
    settings, compressed = config.evaluation, arms.posthoc(config.arms)
    needed = 4 * config.width * (len(dataset.validation) + len(dataset.test))
    if needed > MAX_EMBEDDINGS_BYTES:
        raise UserError(
            f"embeddings of the {len(dataset.validation):,} validation and {len(dataset.test):,} test texts take "
            f"{needed:,} bytes, more than {MAX_EMBEDDINGS_BYTES:,}; "
            "use a smaller data.validation_fraction, data.test or width"
        )
    if not (settings.neighbours or settings.refit or compressed):
        return
    needed += 4 * config.width * len(dataset.train)
    if needed > MAX_EMBEDDINGS_BYTES:
        fewer = f" and arms without {', '.join(compressed)}" if compressed else ""
        raise UserError(
            f"embeddings of the {len(dataset.train):,} training texts are needed to evaluate, and with the others they "
            f"take {needed:,} bytes, more than {MAX_EMBEDDINGS_BYTES:,}; set evaluation.neighbours=false "
            f"evaluation.refit=null{fewer}"
        )
