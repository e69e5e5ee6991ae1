"""The compiled program that every member of a population runs: encoder, heads, nested loss, optimiser.

`step` and `score` are pure functions of one member's state; the loss weights are an argument, so all arms share one
compilation. `vmap` over the leading axis turns them into a population.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mrl_jax import arms, encoders
from mrl_jax.arms import LossWeights
from mrl_jax.config import Config, LossConfig, OptimizerConfig
from mrl_jax.encoders import EncoderConfig
from mrl_jax.errors import UserError
from mrl_jax.losses import contrastive, heads, sample_granularities, uncertainty_weighted
from mrl_jax.nesting import truncate

Inputs = Mapping[str, jax.Array]

COLDEST = 0.01  # the smallest temperature that is learned, as in CLIP (Radford et al., 2021, arXiv:2103.00020)


class Weights(NamedTuple):
    """What is kept of a trained member: everything that evaluation needs."""

    # {"encoder": …}, with "heads": {kind: …} for classes; "log_variances": {kind: [K]} for uncertainty weighting; and
    # "log_temperature" [] where it is learned
    params: Any
    statistics: Any  # running statistics of batch norm; empty elsewhere


class State(NamedTuple):
    """What training carries from step to step."""

    model: Weights
    optimizer: optax.OptState
    step: jax.Array  # int32 []


class Measures(NamedTuple):
    """What a training step reports: losses [kinds, K] and the gradient's global norm."""

    losses: Any
    gradient_norm: Any


@dataclass(frozen=True, eq=False)
class TrainStep:
    """A network and its optimiser for given shapes of data; see the module."""

    encoder: EncoderConfig
    inputs: dict[str, tuple[int, ...]]  # shape of one example of each input
    vocabulary: int
    width: int
    dims: tuple[int, ...]
    kinds: tuple[str, ...]
    classes: int  # 0 where pairs are trained on
    columns: int  # texts of an example: 1, or those of a pair with its hard negatives
    optimizer_config: OptimizerConfig
    loss: LossConfig
    steps: int
    accumulate: int = 1
    precision: str = "highest"  # of float32 products in a training step; elsewhere they are float32 on every device
    wide: "TrainStep | None" = None  # the program that this one is cut from, see `narrowed`

    @classmethod
    def of(cls, config: Config, dataset: Mapping[str, Any], steps: int = 1) -> "TrainStep":
        """The program of a run, from its configuration and the content of its dataset.json."""
        return cls(
            encoder=config.encoder,
            inputs={name: tuple(shape) for name, shape in dataset["inputs"].items()},
            vocabulary=dataset["vocabulary"],
            width=config.width,
            dims=config.nesting_dims,
            kinds=arms.kinds(arms.expand(config.arms, config.nesting_dims, config.loss.weights)),
            classes=len(dataset["classes"]),
            columns=dataset.get("columns", 1),
            optimizer_config=config.optimizer,
            loss=config.loss,
            steps=steps,
            accumulate=config.trainer.accumulate,
            precision=config.trainer.precision,
        )

    @cached_property
    def graph(self) -> nnx.GraphDef[Any]:
        # Without pretrained weights: shapes are enough, and files cannot be read under a trace.
        encoder, _ = encoders.standalone(self.encoder, self.vocabulary)
        graph, _, _ = nnx.eval_shape(lambda: self._split(encoder, jax.random.key(0)))
        return graph

    @cached_property
    def schedule(self) -> optax.Schedule:
        config = self.optimizer_config
        warmup = round(config.warmup * self.steps)
        if config.schedule == "cosine":
            after = optax.cosine_decay_schedule(config.learning_rate, max(1, self.steps - warmup))
        else:
            after = optax.constant_schedule(config.learning_rate)
        rise = optax.linear_schedule(config.learning_rate / (warmup + 1), config.learning_rate, max(1, warmup))
        return optax.join_schedules([rise, after], [warmup])

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        config = self.optimizer_config

        def matrices(params: Any) -> Any:  # no decay on biases, norms and other vectors
            return jax.tree.map(lambda p: p.ndim >= 2, params)

        decay = optax.add_decayed_weights(config.weight_decay, matrices)
        clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
        if config.name == "adamw":
            rule = [optax.scale_by_adam(b1=config.momentum), decay]
        else:
            rule = [decay, optax.trace(config.momentum, nesterov=True)]
        return optax.chain(*clip, *rule, optax.scale_by_learning_rate(self.schedule))

    def narrowed(self, width: int) -> "TrainStep | None":
        """The program that trains the fixed-size model of `width` by itself: the same numbers as with a one-hot row.

        None where that is another model (a layer before the last one depends on the width) or where it would not even
        halve the parameters, and compiling it is not worth while.
        """
        narrow = dataclasses.replace(self, width=width, dims=(width,), kinds=("separate",), wide=self)
        try:
            ours, theirs = (jax.tree.leaves(program.shapes.params["encoder"]) for program in (self, narrow))
        except UserError:  # a backbone of a fixed width
            return None
        same = len(ours) == len(theirs) and all(a.shape[:-1] == b.shape[:-1] for a, b in zip(ours, theirs, strict=True))
        pays = 2 * sum(x.size for x in theirs) <= sum(x.size for x in ours)
        return narrow if same and pays else None

    def widen(self, model: Weights) -> Weights:
        """A model of a narrowed program as one of the program that it was cut from; what it lacks is zero."""
        if self.wide is None:
            return model
        full = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.wide.shapes)
        k = self.wide.dims.index(self.width)

        def place(whole: jax.Array, part: jax.Array) -> jax.Array:
            return whole.at[..., : part.shape[-1]].set(part)

        encoder = jax.tree.map(place, full.params["encoder"], model.params["encoder"])
        for name in ("kernel", "bias") if self.classes else ():
            full.params["heads"]["separate"][name][k] = model.params["heads"]["separate"][name][0]
        scalars = {key: model.params[key] for key in ("log_temperature",) if key in model.params}
        return Weights(full.params | {"encoder": encoder} | scalars, model.statistics)

    def _cut(self, wide: "TrainStep", seed: int) -> Weights:
        """The initial parameters of `wide`, as far as the model of our width reads them."""
        model = wide.init(seed).model
        shapes = self.shapes.params["encoder"]
        encoder = jax.tree.map(lambda x, shape: x[..., : shape.shape[-1]], model.params["encoder"], shapes)
        params = {"encoder": encoder}
        if self.classes:
            k = wide.dims.index(self.width)
            separate = {name: [parts[k]] for name, parts in model.params["heads"]["separate"].items()}
            params["heads"] = {"separate": separate}
        return Weights(params | self._scalars(), model.statistics)

    @cached_property
    def shapes(self) -> Weights:
        """Shapes and types of a model, without reading or computing any number."""
        encoder, _ = encoders.standalone(self.encoder, self.vocabulary)
        program = dataclasses.replace(self, encoder=encoder, wide=None)
        shapes: Weights = jax.eval_shape(lambda: program.init(0).model)
        return shapes

    def _scalars(self) -> dict[str, Any]:
        """Parameters of the loss itself."""
        scalars: dict[str, Any] = {}
        if self.loss.weighting == "uncertainty":
            scalars["log_variances"] = {kind: jnp.zeros(len(self.dims)) for kind in self.kinds}
        if self.loss.learned_temperature:
            scalars["log_temperature"] = jnp.log(jnp.float32(self.loss.temperature))
        return scalars

    def _split(self, encoder: EncoderConfig, key: jax.Array) -> tuple[nnx.GraphDef[Any], Any, Any]:
        module = encoders.create(
            encoder, inputs=self.inputs, vocabulary=self.vocabulary, width=self.width, rngs=nnx.Rngs(key)
        )
        parts: Any = nnx.split(module, nnx.Param, nnx.BatchStat)
        graph, params, statistics = parts
        return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)

    def check(self) -> None:
        """Raise the `UserError` of an encoder that cannot be built, before anything is written. Shapes only."""
        _ = self.graph

    def init(self, seed: int) -> State:
        """The initial state of every arm of `seed`: the same parameters whatever its weights."""
        if self.wide is not None:
            model = self._cut(self.wide, seed)
            return State(model, self.optimizer.init(model.params), jnp.int32(0))
        encoder_key, head_key = jax.random.split(jax.random.key(seed))
        _, encoder, statistics = self._split(self.encoder, encoder_key)
        params = {"encoder": encoder} | self._scalars()
        if self.classes:
            params["heads"] = {
                kind: heads.init(jax.random.fold_in(head_key, heads.KINDS.index(kind)), kind, self.dims, self.classes)
                for kind in self.kinds
            }
        return State(Weights(params, statistics), self.optimizer.init(params), jnp.int32(0))

    def embed(self, model: Weights, inputs: Inputs) -> jax.Array:
        """Embeddings [B, D] as evaluation sees them."""
        with jax.default_matmul_precision("highest"):
            return self._forward(model, inputs, None)[0]

    def _forward(self, model: Weights, inputs: Inputs, key: jax.Array | None) -> tuple[jax.Array, Any]:
        module = nnx.merge(self.graph, model.params["encoder"], model.statistics)
        z_BxD = module(dict(inputs), rngs=None if key is None else nnx.Rngs(dropout=key))
        return z_BxD, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def _losses(self, params: Any, statistics: Any, batch: Inputs, weights: jax.Array, key: jax.Array) -> Any:
        z_BxD, statistics = self._forward(
            Weights(params, statistics), {k: v for k, v in batch.items() if k != "label"}, key
        )
        if not self.classes:
            total, losses = self._of_pairs(params, z_BxD, batch["label"], weights)
            return total, (losses, statistics)
        total, each = jnp.float32(0), []
        for kind, weights_K in zip(self.kinds, weights, strict=True):
            head, smoothing = params["heads"][kind], self.loss.label_smoothing
            loss, losses_K = heads.nested_loss(head, kind, z_BxD, batch["label"], weights_K, self.dims, smoothing)
            if self.loss.weighting == "uncertainty":
                loss = uncertainty_weighted(losses_K, params["log_variances"][kind], weights_K)
            total += loss
            each.append(losses_K)
        return total, (jnp.stack(each), statistics)

    def _of_pairs(self, params: Any, z_SxD: jax.Array, scores_B: jax.Array, weights: jax.Array) -> Any:
        """The loss and its granularities [1, K]; the S = columns · B embeddings stand column by column."""
        loss, dims, weights_K = self.loss, self.dims, weights[0]
        anchors, positives, *_ = jnp.split(z_SxD, self.columns)
        others = z_SxD[len(anchors) :]
        match loss.name:
            case "info_nce":
                total, losses_K = contrastive.nested_info_nce(
                    anchors, others, dims, weights_K, self._temperature(params), loss.symmetric
                )
            case "cosent":
                total, losses_K = contrastive.nested_cosent(
                    anchors, positives, scores_B, dims, weights_K, loss.temperature
                )
            case _:
                total, losses_K = contrastive.nested_cosine_regression(anchors, positives, scores_B, dims, weights_K)
        if loss.distillation:
            if loss.name == "info_nce":
                taught, _ = contrastive.nested_distillation(anchors, others, dims, weights_K, loss.temperature)
            else:
                taught, _ = contrastive.nested_pair_distillation(anchors, positives, dims, weights_K)
            total += loss.distillation * taught
        return total, losses_K[None]

    def _temperature(self, params: Any) -> Any:
        """τ, a number where it is not learned."""
        if not self.loss.learned_temperature:
            return self.loss.temperature
        return jnp.maximum(jnp.exp(params["log_temperature"]), COLDEST)

    def _cached_gradient(self, params: Any, statistics: Any, batch: Inputs, weights: jax.Array, key: jax.Array) -> Any:
        """As `jax.grad(self._losses)` of pairs, with the activations of one part of the batch at a time."""
        parts = {k: v.reshape(self.accumulate, -1, *v.shape[1:]) for k, v in batch.items() if k != "label"}
        keys = jax.random.split(key, self.accumulate)

        def embed(params: Any, part: Any) -> jax.Array:
            inputs, key = part
            return self._forward(Weights(params, statistics), inputs, key)[0]

        def loss(params: Any, z_AxSxD: jax.Array) -> Any:
            parts, _, width = z_AxSxD.shape
            z_SxD = z_AxSxD.reshape(parts, self.columns, -1, width).swapaxes(0, 1).reshape(-1, width)
            return self._of_pairs(params, z_SxD, batch["label"], weights)

        gradient, losses = contrastive.cached_gradient(embed, loss, params, (parts, keys))
        return gradient, (losses, statistics)

    def _weights(self, row: LossWeights, key: jax.Array) -> jax.Array:
        """The loss weights [kinds, K] of one step."""
        kept_K = sample_granularities(key, len(self.dims), min(self.loss.sampled, len(self.dims)))
        return jnp.where(row.sampled, row.weights * kept_K, row.weights)

    def step(self, state: State, batch: Inputs, row: LossWeights, key: jax.Array) -> tuple[State, Measures]:
        """One update. `batch` holds the inputs and `label`, `row` is the member's arm, `key` the seed's."""
        with jax.default_matmul_precision(self.precision):
            return self._updated(state, batch, row, key)

    def _updated(self, state: State, batch: Inputs, row: LossWeights, key: jax.Array) -> tuple[State, Measures]:
        gradient = jax.grad(self._losses, has_aux=True)
        key = jax.random.fold_in(key, state.step)
        weights = self._weights(row, key)
        params, statistics = state.model
        if self.accumulate > 1 and not self.classes:
            grads, (losses, statistics) = self._cached_gradient(params, statistics, batch, weights, key)
        elif self.accumulate == 1:
            grads, (losses, statistics) = gradient(params, statistics, batch, weights, key)
        else:
            parts = jax.tree.map(lambda x: x.reshape(self.accumulate, -1, *x.shape[1:]), dict(batch))

            def add(carry: Any, part: Any) -> tuple[Any, None]:
                sums, statistics = carry
                index, inputs = part
                grads, (losses, statistics) = gradient(
                    params, statistics, inputs, weights, jax.random.fold_in(key, index)
                )
                return (jax.tree.map(jnp.add, sums, (grads, losses)), statistics), None

            zeros = jax.tree.map(jnp.zeros_like, (params, weights))
            sums, _ = jax.lax.scan(add, (zeros, statistics), (jnp.arange(self.accumulate), parts))
            (grads, losses), statistics = jax.tree.map(lambda x: x / self.accumulate, sums[0]), sums[1]
        updates, optimizer = self.optimizer.update(grads, state.optimizer, params)
        model = Weights(optax.apply_updates(params, updates), statistics)
        return State(model, optimizer, state.step + 1), Measures(losses, optax.global_norm(grads))

    def score(self, model: Weights, batch: Inputs, valid_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Numbers of right answers and summed losses, both [kinds, K], over the rows where `valid_B` is true.

        For pairs an answer is right where a query is nearest to its own document of the batch; for scored ones it is
        the share of the batch's other pairs that cosine puts on the right side of it.
        """
        with jax.default_matmul_precision("highest"):
            return self._scored(model, batch, valid_B)

    def _scored(self, model: Weights, batch: Inputs, valid_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        z_BxD = self.embed(model, {k: v for k, v in batch.items() if k != "label"})
        if not self.classes:
            right_K, lost_K = self._score_pairs(model.params, z_BxD, batch["label"], valid_B)
            return right_K[None], lost_K[None]
        right, lost = [], []
        for kind in self.kinds:
            hits_KxB, losses_KxB = heads.score(model.params["heads"][kind], kind, z_BxD, batch["label"], self.dims)
            right.append(jnp.sum(hits_KxB & valid_B, axis=1))
            lost.append(jnp.sum(jnp.where(valid_B, losses_KxB, 0.0), axis=1))
        return jnp.stack(right), jnp.stack(lost)

    def _score_pairs(self, params: Any, z_SxD: jax.Array, scores_B: jax.Array, valid_B: jax.Array) -> Any:
        # A validation file may have other hard negatives than the training file, or none.
        anchors, positives, *_ = jnp.split(z_SxD, len(z_SxD) // len(valid_B))
        if self.loss.name == "info_nce":
            right = []
            for m in self.dims:
                cosines = truncate(anchors, m) @ truncate(positives, m).T
                nearest = jnp.argmax(jnp.where(valid_B, cosines, -2.0), axis=1)
                right.append(jnp.sum((nearest == jnp.arange(len(cosines))) & valid_B))
            weights_K = jnp.ones(len(self.dims))
            _, losses_K = contrastive.nested_info_nce(
                anchors, positives, self.dims, weights_K, self._temperature(params), self.loss.symmetric, valid=valid_B
            )
            return jnp.stack(right), losses_K * jnp.sum(valid_B)
        cosines_KxB = contrastive.nested_cosines(anchors, positives, self.dims)
        order_BxB = jnp.sign(scores_B[:, None] - scores_B) * (valid_B[:, None] & valid_B)
        agree = jnp.sign(cosines_KxB[:, :, None] - cosines_KxB[:, None]) * order_BxB
        others = jnp.maximum(jnp.sum(order_BxB != 0, axis=-1), 1)
        right_KxB = (1 + jnp.sum(agree, axis=-1) / others) / 2
        return jnp.sum(right_KxB * valid_B, axis=-1), jnp.sum((1 - right_KxB) * valid_B, axis=-1)
