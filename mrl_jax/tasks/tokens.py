"""Texts: tokens are hidden, and the prefixes of their states predict them (masked language modelling, nested).

    Σ_k c_k · CE(h[:m_k] · E[:, :m_k]ᵀ + b, token)        (MRL paper on BERT, arXiv:2205.13147; see `losses.tokens`)

No layer stands between the state and the table of token vectors (BERT has one): the states themselves, which are pooled
into embeddings afterwards, learn to be read by prefixes. Labels, where the data has any, are ignored. Every text counts
the same in the scores: `masked_top1` is the mean over texts of the share of their hidden tokens that are predicted, and
`perplexity` is exp of the mean over texts of their mean log-loss.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax import arms, encoders, evaluate
from mrl_jax.config import Config, LossConfig
from mrl_jax.data import Dataset, Split, StreamedTexts
from mrl_jax.evaluate import Score
from mrl_jax.losses import heads, nested_token_prediction, tokens
from mrl_jax.runs import MetricRow
from mrl_jax.system import console, processes
from mrl_jax.system.console import say
from mrl_jax.system.errors import UserError
from mrl_jax.tasks.base import Preprocess, Splits, check_data, write_scores
from mrl_jax.text import masking
from mrl_jax.text.masking import Vocabulary
from mrl_jax.training import batches
from mrl_jax.training.batches import Examples
from mrl_jax.training.masked import MaskedExamples
from mrl_jax.training.models import FitResult
from mrl_jax.training.step import TrainStep, Weights
from mrl_jax.training.trainer import Trainer

MAX_EXPONENT = 700.0  # of a perplexity: beyond, it is no finite float64


@dataclass(frozen=True)
class TokenObjective:
    """The nested cross-entropy of hidden tokens. An answer is right where the largest logit is the token's."""

    dims: tuple[int, ...]
    vocabulary: int
    options: LossConfig
    table_learns: bool  # whether the table of token vectors learns with the encoder

    kinds = ("separate",)
    columns = 1
    couples_examples = False
    breaks_ties = True

    @property
    def sampled(self) -> int:
        return self.options.sampled

    def with_options(self, options: Mapping[str, Any]) -> "TokenObjective":
        return replace(self, options=replace(self.options, **options))

    def of(self, label: Any) -> tuple["TokenObjective", Any]:
        return self, label

    def init(self, key: jax.Array) -> dict[str, Any]:
        return {"token_bias": jnp.zeros(self.vocabulary)}

    def table(self, params: Any) -> jax.Array:
        """E [V, D]."""
        word: jax.Array = params["encoder"]["word"]
        return word if self.table_learns else jax.lax.stop_gradient(word)

    def loss(
        self,
        params: Any,
        z_SxD: jax.Array,
        label_Sx2: jax.Array,
        weights: jax.Array,
        of_arm: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """`z_SxD` are the states of the hidden tokens; the label is that of `MaskedExamples`."""
        total, losses_K = nested_token_prediction(
            z_SxD, self.table(params), params["token_bias"], label_Sx2[:, 0], self.dims, weights[0]
        )
        return total, losses_K[None]

    def score(
        self, params: Any, z_SxD: jax.Array, label_Sx2: jax.Array, valid_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Sums over texts of the share of tokens that are right, and of the mean loss."""
        right_KxS, losses_KxS = self.predict(params, z_SxD, label_Sx2, self.dims)
        token_S, text_S = label_Sx2.T
        counted_S = (token_S >= 0) & valid_B[text_S]
        tokens_B = jnp.zeros(len(valid_B)).at[text_S].add(counted_S)
        share_S = counted_S / jnp.maximum(tokens_B[text_S], 1.0)
        return (right_KxS @ share_S)[None], (losses_KxS @ share_S)[None]

    def predict(
        self, params: Any, z_SxD: jax.Array, label_Sx2: jax.Array, dims: Sequence[int]
    ) -> tuple[jax.Array, jax.Array]:
        """Whether each token is predicted right and its log-loss, float32 [K, S] each, at any `dims`."""
        head = tokens.head_of(self.table(params), params["token_bias"], self.dims)
        right_KxS, losses_KxS = heads.score(head, "tied", z_SxD, jnp.maximum(label_Sx2[:, 0], 0), dims)
        return right_KxS.astype(jnp.float32), losses_KxS

    def narrow(self, width: int) -> "TokenObjective":
        return replace(self, dims=(width,))

    def cut(self, wide: Any, params: Any) -> dict[str, Any]:
        return {"token_bias": params["token_bias"]}  # depends on no width

    def widen(self, wide: Any, full: dict[str, Any], params: Any) -> dict[str, Any]:
        return full | {"token_bias": params["token_bias"]}


class LearningFromTexts:
    """The task of `loss.name=mlm`."""

    def check(self, config: Config, dataset: Dataset) -> None:
        if config.data.sources:
            raise UserError("loss.name=mlm is not for data=mixture; train on the texts first, then on the mixture")
        check_data(config, dataset)
        check_encoder(config)
        if config.loss.whole_words and isinstance(dataset.train.inputs, StreamedTexts):
            raise UserError(
                f"loss.whole_words=true holds the words of all texts in memory, and data={dataset.name} streams them; "
                "set loss.whole_words=false or data.streaming=false"
            )

    def splits(self, config: Config, dataset: Dataset, preprocess: Preprocess) -> Splits:
        tokenizer = preprocess.tokenizer
        assert tokenizer is not None
        known = getattr(config.encoder, "weights", None)
        vocabulary = Vocabulary.of(tokenizer, f"encoder.weights={known}" if known else "this run")

        def part(name: str, split: Split) -> MaskedExamples:
            if isinstance(split.inputs, StreamedTexts):
                table = preprocess.on_disk(split.inputs, split.labels, name)
            else:
                table = preprocess(split.inputs, split.labels, name)
            words = None
            if config.loss.whole_words:
                words = masking.word_numbers(tokenizer, split.inputs, table.inputs["ids"].shape[1])
            kept = _with_tokens(table, vocabulary, name)
            chunks = config.trainer.accumulate if name == "train" else 1
            return MaskedExamples(table, vocabulary, config.loss.mask_rate, words, chunks, jax.device_count(), kept)

        splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
        return {name: part(name, split) for name, split in splits.items()}

    def describe(self, dataset: Dataset, splits: Splits) -> dict[str, Any]:
        return {"classes": []}

    def objective(self, config: Config, description: Mapping[str, Any]) -> TokenObjective:
        learns = encoders.trained(config.encoder, {}) is None
        return TokenObjective(config.nesting_dims, description["vocabulary"], config.loss, learns)

    def score(
        self, config: Config, trainer: Trainer, result: FitResult, splits: Splits, directory: Path
    ) -> list[MetricRow]:
        member, arm = result.member, result.member.arm
        every = evaluate.dims_of(None, config.nesting_dims, config.evaluation)
        names = {arm.name: (member.label, evaluate.dims_of(arm, config.nesting_dims, config.evaluation))}
        for name in arms.made_of(arm, config.arms, config.width):  # `truncated`: the same states, cut
            names[name] = f"{name}-seed{member.seed}", every
        found = {name: outcomes(trainer, result.model, splits[name], every) for name in ("validation", "test")}
        labels = {name: np.zeros(len(splits[name]), np.int32) for name in found}  # whatever labels the data has
        rows = []
        for name, (label, dims) in names.items():
            scores = ((split, one) for split, each in found.items() for m in dims for one in scores_of(m, *each[m]))
            rows += write_scores(config, directory, name, label, member.seed, labels, scores)
        return rows

    def score_untuned(
        self, config: Config, trainer: Trainer, splits: Splits, seed: int, directory: Path
    ) -> list[MetricRow]:
        raise AssertionError("the configuration allows no untuned arm where tokens are predicted")


def check_encoder(config: Config) -> None:
    """Raise `UserError` for an encoder whose tokens have no states, or none that the table of their vectors fits."""
    name = config.encoder.name
    if not encoders.ENCODERS[name].gives_states:
        fitting = ", ".join(other for other, entry in encoders.ENCODERS.items() if entry.gives_states)
        raise UserError(f"loss.name=mlm predicts tokens from their states, which encoder={name} lacks; use {fitting}")
    encoder: Any = encoders.standalone(config.encoder, 0)[0]
    if encoder.frozen:
        raise UserError("encoder.frozen=true is not for loss.name=mlm: of frozen weights nothing would learn")
    if encoder.projection:
        given = "encoder.projection=true" if config.encoder.projection else f"encoder.weights={config.encoder.weights}"  # type: ignore[attr-defined]
        raise UserError(
            f"{given} is not for loss.name=mlm: tokens are predicted from their states of encoder.hidden="
            f"{encoder.hidden} numbers, and a projection is of embeddings"
        )
    if encoder.hidden != config.width:
        raise UserError(
            f"width={config.width} is not allowed with loss.name=mlm; encoder.hidden={encoder.hidden} needs "
            f"width={encoder.hidden}"
        )


def _with_tokens(table: Examples, vocabulary: Vocabulary, name: str) -> np.ndarray | None:
    """The rows of the texts of a split that have a token to hide; None: all. Says how many have none."""
    assert table.lengths is not None
    has_token = np.zeros(len(table), bool)
    for start in range(0, len(table), 4096):
        rows = np.arange(start, min(start + 4096, len(table)))
        inside = np.arange(table.inputs["ids"].shape[1]) < table.lengths[rows, None]
        has_token[rows] = (vocabulary.is_ordinary[table.inputs["ids"][rows]] & inside).any(axis=1)
    if has_token.all():
        return None
    if not has_token.any():
        raise UserError(f"none of the {len(table):,} {name} texts has a token to predict")
    kept = np.flatnonzero(has_token)
    say(f"{len(table) - len(kept):,} of {len(table):,} {name} texts have no token to predict and are left out")
    return kept


@functools.lru_cache(maxsize=4)
def _predictor(program: TrainStep, dims: tuple[int, ...]) -> Any:
    """`TokenObjective.predict` of a batch, compiled once for all members of a run."""
    objective = program.objective
    assert isinstance(objective, TokenObjective)

    def predict(model: Weights, inputs: Any, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision("highest"):
            return objective.predict(model.params, program.embed(model, inputs), label, dims)

    return jax.jit(predict)


def outcomes(
    trainer: Trainer, model: Weights, examples: MaskedExamples, dims: tuple[int, ...]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Of each text the share of its hidden tokens that are predicted and their mean log-loss, float64 [n], by dim."""
    predict = _predictor(trainer.program, dims)
    model = jax.device_put(processes.on_host(model), jax.local_devices()[0])
    found = np.zeros((2, len(dims), len(examples)))
    with console.progress(len(examples), "predict hidden tokens", "text", leave=False) as bar:
        for rows, batch, valid in batches.slices(examples, trainer.config.batch_size):
            label = batch.pop("label")
            parts = [np.asarray(x, np.float64) for x in predict(model, batch, label)]
            counted = (label[:, 0] >= 0) & valid[label[:, 1]]
            text = label[counted, 1]  # the number of its text in the batch
            tokens_B = np.bincount(text, minlength=len(rows))
            for values_KxT, part in zip(found, parts, strict=True):
                values_KxT[:, rows] = [np.bincount(text, each, len(rows)) / tokens_B for each in part[:, counted]]
            bar.update(len(rows))
    return {m: (right, lost) for m, right, lost in zip(dims, *found, strict=True)}


def scores_of(dim: int, right: np.ndarray, lost: np.ndarray) -> Iterator[Score]:
    """The metrics of one dim; beside the perplexity stand the log-losses of the texts."""
    yield Score(dim, "masked_top1", float(right.mean()), right.astype(np.float32))
    perplexity = float(np.exp(min(lost.mean(), MAX_EXPONENT)))
    yield Score(dim, "perplexity", perplexity, lost.astype(np.float32))
