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

from mrl_jax import arms, evaluate, runs
from mrl_jax.config import Config, LossConfig, space
from mrl_jax.data import Dataset, Split, StreamedTexts
from mrl_jax.evaluate import EvaluationConfig, Score, adaptive, compress, corrupt, parts, refit, sparse
from mrl_jax.evaluate.classification import Classifiers
from mrl_jax.losses import heads, nested_logit_distillation, uncertainty_weighted
from mrl_jax.rows import is_zero
from mrl_jax.runs import MetricRow
from mrl_jax.system import processes
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import slices
from mrl_jax.tasks.base import (
    MAX_EMBEDDINGS_BYTES,
    Preprocess,
    Splits,
    check_data,
    shortlist,
    where_taught,
    write_scores,
)
from mrl_jax.training.batches import Examples
from mrl_jax.training.models import FitResult
from mrl_jax.training.trainer import Trainer

MAX_CALIBRATION_LOGITS = 1 << 24  # of the validation examples that a run keeps the answers to, per granularity


@dataclass(frozen=True)
class ClassObjective:
    """The nested cross-entropy of one or both kinds of heads."""

    dims: tuple[int, ...]
    kinds: tuple[str, ...]  # of heads, see `losses.heads`
    classes: int
    options: LossConfig

    columns = 1
    breaks_ties = False

    @property
    def couples_examples(self) -> bool:
        return not is_zero(self.options.shortlist)

    @property
    def sampled(self) -> int:
        return self.options.sampled

    def with_options(self, options: Mapping[str, Any]) -> "ClassObjective":
        return replace(self, options=replace(self.options, **options))

    def of(self, label: Any) -> tuple["ClassObjective", Any]:
        return self, label

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
        self,
        params: Any,
        z_BxD: jax.Array,
        labels_B: jax.Array,
        weights: jax.Array,
        of_arm: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        total, each = jnp.float32(0), []
        for kind, weights_K in zip(self.kinds, weights, strict=True):
            head = params["heads"][kind]
            loss, losses_K = heads.nested_loss(
                head,
                kind,
                z_BxD,
                labels_B,
                weights_K,
                self.dims,
                self.options.label_smoothing,
                share=self.options.prefix_gradient,
            )
            if self.options.weighting == "uncertainty":
                loss = uncertainty_weighted(losses_K, params["log_variances"][kind], weights_K)
            total += loss
            each.append(losses_K)
            if not is_zero(self.options.distillation):
                taught_K = where_taught(weights_K, None if of_arm is None else of_arm[self.kinds.index(kind)])
                answers = heads.logits(head, kind, z_BxD, self.dims, self.options.prefix_gradient)
                total += self.options.distillation * nested_logit_distillation(answers, taught_K)[0]
        if not is_zero(self.options.shortlist):
            taught_K = where_taught(jnp.sum(weights, axis=0), None if of_arm is None else jnp.sum(of_arm, axis=0))
            total += self.options.shortlist * shortlist(self.options, z_BxD, None, self.dims, taught_K)
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
        if classes < 2:
            only = dataset.classes[0] if classes else "none"
            raise UserError(f"{dataset.name}: all labels of the training data are {only!r}; at least 2 are needed")
        with_codes = "csr" in config.arms
        if with_codes:
            damaged = sum(len(corrupt.CORRUPTIONS[name].strengths) for name in {*(settings.corruption or ())})
            splits = (dataset.train, dataset.validation, *[dataset.test] * (1 + damaged), *dataset.probes.values())
            sparse.check(config.width, sum(map(len, splits)))
        refit.check(refit_kind(config), classes, config.width * (sparse.FEATURES if with_codes else 1))
        self._check_direct(config, classes)
        if settings.cascade:
            adaptive.check(len(dataset.validation), settings.epsilon, settings.delta)
            examples = len(dataset.validation) + len(dataset.test)
            adaptive.check_memory(examples, classes, len(config.nesting_dims))
        if isinstance(dataset.train.inputs, StreamedTexts):
            _check_memory(config, dataset)

    def _check_direct(self, config: Config, classes: int) -> None:
        """Raise `UserError` where a loss that needs all logits at once would not fit in memory."""
        logits = config.trainer.batch_size * classes * len(config.nesting_dims)
        given = space.giver(config, "loss.distillation") or space.giver(config, "loss.prefix_gradient")
        if given and logits > heads.DIRECT_ELEMENTS:
            raise UserError(
                f"{given} needs the logits of all {classes:,} classes at once, {logits:,} per batch; at most "
                f"{heads.DIRECT_ELEMENTS:,}: lower trainer.batch_size"
            )

    def splits(self, config: Config, dataset: Dataset, preprocess: Preprocess) -> Splits:
        def part(name: str, split: Split) -> Examples:
            if isinstance(split.inputs, StreamedTexts):
                return preprocess.on_disk(split.inputs, split.labels, name)
            return preprocess(split.inputs, split.labels, name)

        splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test, **dataset.probes}
        return {name: part(name, split) for name, split in splits.items()}

    def describe(self, dataset: Dataset, splits: Splits) -> dict[str, Any]:
        return {"classes": list(dataset.classes)}

    def objective(self, config: Config, description: Mapping[str, Any]) -> ClassObjective:
        population = config.population
        return ClassObjective(config.nesting_dims, arms.kinds(population), len(description["classes"]), config.loss)

    def score(
        self, config: Config, trainer: Trainer, result: FitResult, splits: Splits, directory: Path
    ) -> list[MetricRow]:
        member, arm, dims, settings = result.member, result.member.arm, config.nesting_dims, config.evaluation
        classifier = refit_kind(config)
        train = settings.neighbours or classifier or settings.few_shot or "unknown" in splits
        needed = {name: split for name, split in splits.items() if name != "train" or train}
        z = {name: trainer.embed(result.model, split, settings.batch_size) for name, split in needed.items()}
        labels = {name: split.labels for name, split in splits.items()}
        head = result.model.params["heads"][arm.head]
        classes = int(jax.tree.leaves(head)[0].shape[-1])

        superclasses = self._superclasses(settings.superclass, directory)

        def fixed(at: Sequence[int]) -> list[int]:  # between nesting dims it takes long to fit classifiers
            return [m for m in at if m in dims or m in (settings.dims or ())]

        def refitted(z: dict[str, np.ndarray], at: Sequence[int]) -> Classifiers:
            fit = refit.CLASSIFIERS[classifier or "logistic"]
            return fit(z["train"], labels["train"], z["validation"], labels["validation"], at, classes)

        def generalise(
            z: dict[str, np.ndarray], own: Classifiers, at: Sequence[int], fixed: Sequence[int]
        ) -> Iterable[tuple[str, Score]]:
            return evaluate.generalise(z, labels, own, at, fixed, superclasses, settings, member.seed)

        def of_compressed(name: str, at: Sequence[int]) -> Iterable[tuple[str, Score]]:
            kind = str(arms.ARMS[name].compression)
            sizes = fixed(at) if kind in compress.CODES else at
            for columns, smaller, compression in compress.views(kind, z, sizes, member.seed):
                some, dim_of = [columns[m] for m in fixed(list(columns))], {n: m for m, n in columns.items()}
                own_of_arm, others = refitted(smaller, some), dict[str, Classifiers]()
                if compression is not None:
                    kernel, bias = map(np.asarray, own[config.width])
                    others = {"own_head_top1": compress.own_head(compression, kernel, bias, at)}
                scores = evaluate.score(smaller, labels, own_of_arm, others, list(dim_of), dims, settings)
                more = generalise(smaller, own_of_arm, list(dim_of), some)
                for split, s in itertools.chain(scores, more):
                    if s.metric != "ece":  # what a refitted classifier says is no probability
                        yield split, s._replace(dim=dim_of[s.dim])

        def write(name: str, scores: Iterable[tuple[str, Score]]) -> list[MetricRow]:
            label = member.label if name == arm.name else f"{name}-seed{member.seed}"
            return write_scores(config, directory, name, label, member.seed, labels, scores)

        wanted = evaluate.dims_of(arm, dims, settings)
        own = heads.classifiers(head, arm.head, dims, wanted if arm.head == "tied" else arm.trained(dims))
        stages = arm.trained(dims)
        calibration = calibrate(z["validation"], labels["validation"], [own[m] for m in stages], settings, member.seed)
        runs.write_calibration(directory / "checkpoints" / member.label / "calibration.npz", stages, calibration)
        others = {"refit_top1": refitted(z, fixed(wanted))} if classifier else {}
        scores = evaluate.score(z, labels, own, others, wanted, dims, settings)
        if settings.cascade and len(stages) > 1:
            tied = arm.head == "tied"
            scores = itertools.chain(
                scores, evaluate.score_cascade(z, labels, own, tied, stages, settings, member.seed)
            )

        def of_smaller() -> Iterable[tuple[str, Score]]:
            at_dims, plain = {m: own[m] for m in dims if m in own}, replace(settings, quantised=False)
            for prefix, other, weights in slices.smaller(config, trainer, arm, result.model):
                used = {name: splits[name] for name in z if name in ("train", "validation", "test")}
                smaller = {name: other.embed(weights, part, settings.batch_size) for name, part in used.items()}
                for split, s in evaluate.score(smaller, labels, at_dims, {}, dims, dims, plain):
                    yield from ((split, one) for one in slices.named(prefix, [s]))

        rows = write(arm.name, itertools.chain(scores, generalise(z, own, wanted, fixed(wanted)), of_smaller()))
        at = evaluate.dims_of(None, dims, settings)
        for name in arms.made_of(arm, config.arms, config.width):
            rows += write(name, of_compressed(name, at))
        return rows

    def _superclasses(self, rule: str | None, directory: Path) -> list[int] | None:
        """The super-class of each class of the run, where they are asked for."""

        def numbers() -> list[int]:
            return list(map(int, parts.superclasses(str(rule), runs.read_dataset(directory)["classes"])))

        return None if rule is None else processes.on_process0(numbers)

    def score_untuned(
        self, config: Config, trainer: Trainer, splits: Splits, seed: int, directory: Path
    ) -> list[MetricRow]:
        raise AssertionError("the configuration allows no untuned arm where classes are learnt")


def refit_kind(config: Config) -> str | None:
    """The kind of classifier that is fitted anew, if any is: post-hoc arms need one."""
    return config.evaluation.refit or ("logistic" if arms.posthoc(config.arms) else None)


def calibrate(
    z: np.ndarray, labels: np.ndarray, classifiers: Sequence[Any], settings: EvaluationConfig, seed: int
) -> adaptive.Calibration:
    """What the run keeps to calibrate probabilities and cascades, from embeddings [n, D] of the validation split."""
    most = max(1, MAX_CALIBRATION_LOGITS // len(classifiers[0][1]))
    rows = np.sort(np.random.default_rng(seed).permutation(len(z))[:most])
    logits = (z[rows, : len(kernel)] @ np.asarray(kernel) + np.asarray(bias) for kernel, bias in classifiers)
    return adaptive.calibrate(logits, labels[rows], settings.confidence, seed)


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
    if not (settings.neighbours or settings.refit or compressed or settings.few_shot or dataset.probes):
        return
    needed += 4 * config.width * len(dataset.train)
    if needed > MAX_EMBEDDINGS_BYTES:
        fewer = f" and arms without {', '.join(compressed)}" if compressed else ""
        raise UserError(
            f"embeddings of the {len(dataset.train):,} training texts are needed to evaluate, and with the others they "
            f"take {needed:,} bytes, more than {MAX_EMBEDDINGS_BYTES:,}; set evaluation.neighbours=false "
            f"evaluation.refit=null evaluation.few_shot=null{fewer}"
        )
