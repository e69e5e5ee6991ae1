"""The training step that every member of a population runs: encoder, objective (nested loss), optimiser.

`step` and `score` are pure functions of one member's state. Its row, the loss weights and settings of its own, is an
argument, so all arms share one compilation. `vmap` over the leading axis turns them into a population.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mrl_jax import encoders, rows
from mrl_jax.arms import Row
from mrl_jax.config import OptimizerConfig
from mrl_jax.encoders import EncoderConfig, mixing, slices
from mrl_jax.losses import cached_gradient, sample_granularities
from mrl_jax.system.errors import UserError
from mrl_jax.training import averaging, optimizer, parts
from mrl_jax.training.objective import OF_LABEL, Objective

Inputs = Mapping[str, jax.Array]


class Weights(NamedTuple):
    """The weights of a member: all that evaluation needs."""

    params: Any  # {"encoder": …} and what the objective's `init` adds
    statistics: Any  # running statistics of batch norm; empty elsewhere


class State(NamedTuple):
    """The training state of a member."""

    model: Weights
    optimizer: Any  # optax.OptState; with `optimizer.ema`, `averaging.Averaged`
    step: jax.Array  # int32 []


class Measures(NamedTuple):
    """The metrics of a training step: losses [kinds, K] and the gradient's global norm."""

    losses: Any
    gradient_norm: Any


@dataclass(frozen=True, eq=False)
class TrainStep:
    """An encoder, its objective and its optimiser, for given shapes of data."""

    encoder: EncoderConfig
    inputs: dict[str, tuple[int, ...]]  # shape of one example, by input
    vocabulary: int  # number of token ids
    width: int
    objective: Objective
    optimizer_config: OptimizerConfig
    steps: int
    accumulate: int = 1  # parts that a batch is split into
    precision: str = "highest"  # matmul precision of the training step; evaluation always uses "highest"
    wide: "TrainStep | None" = None  # the step that this one is cut from, see `narrow`
    rates: Mapping[str, Any] = field(default_factory=dict)  # of dropout, in place of the encoder's settings
    layers: tuple[int, ...] = ()  # L nesting layers, after each of which the embedding is read; none: at the end alone
    hidden: tuple[int, ...] = ()  # H nesting hidden widths, one of which is drawn for a step; none: all units always
    units: Any = None  # the hidden units that are used, see `slices.set_units`; None: all

    @property
    def dims(self) -> tuple[int, ...]:
        return self.objective.dims

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.objective.kinds

    def with_settings(self, settings: rows.Settings) -> "TrainStep":
        """This step with these settings in place of those of its configuration: numbers, or arguments that are traced.

        Whether a value is 0 is not known of what is traced: a rate of 0 in a row draws a mask that keeps everything,
        where the constant 0 draws none, so masks that are drawn after it in the same step are others."""
        if not settings:
            return self
        return dataclasses.replace(
            self,
            optimizer_config=dataclasses.replace(self.optimizer_config, **rows.of_section(settings, "optimizer")),
            objective=self.objective.with_options(rows.of_section(settings, "loss")),
            rates=rows.of_section(settings, "encoder"),
        )

    @cached_property
    def graph(self) -> nnx.GraphDef[Any]:
        # Without pretrained weights: only shapes are needed, and files cannot be read while tracing.
        encoder, _ = encoders.standalone(self.encoder, self.vocabulary)
        graph, _, _ = nnx.eval_shape(lambda: self._split(encoder, jax.random.key(0)))
        return graph

    @cached_property
    def schedule(self) -> optax.Schedule:
        return optimizer.schedule(self.optimizer_config, self.steps)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        rule = optimizer.create(self.optimizer_config, self.schedule)
        if encoders.trained(self.encoder, {}) is None:
            return rule

        def part(params: Any) -> Any:
            return jax.tree.map(lambda _: True, params) | {"encoder": encoders.trained(self.encoder, params["encoder"])}

        return optimizer.of_part(rule, part)

    def narrow(self, width: int) -> "TrainStep | None":
        """A step for the fixed-size model of `width` alone, with the same results as one-hot loss weights give.

        None if that would be a different model (a layer before the last one depends on the width), or if it would not
        even halve the parameters, so that compiling it does not pay.
        """
        narrow = dataclasses.replace(self, width=width, objective=self.objective.narrow(width), wide=self)
        try:
            ours, theirs = (jax.tree.leaves(step.shapes.params["encoder"]) for step in (self, narrow))
        except UserError:  # the backbone has a fixed width
            return None
        same = len(ours) == len(theirs) and all(a.shape[:-1] == b.shape[:-1] for a, b in zip(ours, theirs, strict=True))
        pays = 2 * sum(x.size for x in theirs) <= sum(x.size for x in ours)
        return narrow if same and pays else None

    def widen(self, model: Weights) -> Weights:
        """Convert the weights of this step to those of the `wide` step that it was cut from, padded with zeros."""
        if self.wide is None:
            return model
        full = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.wide.shapes).params

        def place(whole: jax.Array, part: jax.Array) -> jax.Array:
            return whole.at[..., : part.shape[-1]].set(part)

        encoder = jax.tree.map(place, full["encoder"], model.params["encoder"])
        params = self.objective.widen(self.wide.objective, full, model.params)
        return Weights(params | {"encoder": encoder}, model.statistics)

    def _cut(self, wide: "TrainStep", seed: int) -> Weights:
        """The part of the initial weights of `wide` that the model of our width reads."""
        model = wide.init(seed).model
        shapes = self.shapes.params["encoder"]
        encoder = jax.tree.map(lambda x, shape: x[..., : shape.shape[-1]], model.params["encoder"], shapes)
        return Weights({"encoder": encoder} | self.objective.cut(wide.objective, model.params), model.statistics)

    @cached_property
    def shapes(self) -> Weights:
        """Shapes and types of the weights, without computing them or reading files."""
        encoder, _ = encoders.standalone(self.encoder, self.vocabulary)
        step = dataclasses.replace(self, encoder=encoder, wide=None)
        shapes: Weights = jax.eval_shape(lambda: step.init(0).model)
        return shapes

    def _split(self, encoder: EncoderConfig, key: jax.Array) -> tuple[nnx.GraphDef[Any], Any, Any]:
        module = encoders.create(
            encoder, inputs=self.inputs, vocabulary=self.vocabulary, width=self.width, rngs=nnx.Rngs(key)
        )
        parts: Any = nnx.split(module, nnx.Param, nnx.BatchStat)
        graph, params, statistics = parts
        return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)

    def check(self) -> None:
        """Raise `UserError` if the encoder cannot be built. It is only traced, so this is cheap."""
        encoders.check_width(self.encoder, self.width)
        slices.check(self.encoder, self.layers or None, self.hidden or None)
        _ = self.graph
        if mixing.draws(self.encoder) and (self.objective.columns > 1 or self.objective.couples_examples):
            raise UserError("encoder.mixup and encoder.cutmix are not allowed with loss.shortlist or pairs; 0")

    def part(self, layers: int | None, hidden: int | None) -> "TrainStep":
        """The step of the encoder that has the first layers and hidden units alone; None: all."""
        encoder, vocabulary = slices.cut_config(self.encoder, self.vocabulary, layers, hidden)
        return dataclasses.replace(self, encoder=encoder, vocabulary=vocabulary, layers=(), hidden=())

    def cut(self, model: Weights, layers: int | None, hidden: int | None) -> Weights:
        """The weights of `part`, out of those of this step."""
        return model._replace(params={**model.params, "encoder": slices.cut(model.params["encoder"], layers, hidden)})

    def with_hidden(self, size: Any) -> "TrainStep":
        """This step with the first `size` hidden units of each feed-forward; may be traced."""
        return dataclasses.replace(self, units=(jnp.arange(self.hidden[-1]) < size).astype(jnp.float32))

    def init(self, seed: int) -> State:
        """The initial state for a seed, which all its arms share."""
        if self.wide is not None:
            model = self._cut(self.wide, seed)
            return State(model, self.init_optimizer(model), jnp.int32(0))
        encoder_key, head_key = jax.random.split(jax.random.key(seed))
        _, encoder, statistics = self._split(self.encoder, encoder_key)
        params = {"encoder": encoder} | self.objective.init(head_key)
        model = Weights(params, statistics)
        return State(model, self.init_optimizer(model), jnp.int32(0))

    def init_optimizer(self, model: Weights) -> Any:
        """The initial state of the optimiser and, with `optimizer.ema`, the average of the weights."""
        state = self.optimizer.init(model.params)
        return averaging.begin(state, model) if self.optimizer_config.ema else state

    def evaluated(self, state: State) -> Weights:
        """The weights that are evaluated and kept: those of the last step, or their average with `optimizer.ema`."""
        return state.optimizer.weights if self.optimizer_config.ema else state.model

    def embed(self, model: Weights, inputs: Inputs) -> jax.Array:
        """Embeddings [B, D] in evaluation mode, at full matmul precision."""
        with jax.default_matmul_precision("highest"):
            return self._forward(model, inputs, None)[0]

    def _forward(
        self, model: Weights, inputs: Inputs, key: jax.Array | None, layers: tuple[int, ...] = ()
    ) -> tuple[jax.Array, Any]:
        """The embeddings [B, D], after each of `layers` [L, B, D], and the statistics of batch norm."""
        encoder = model.params["encoder"]
        if (learns := encoders.trained(self.encoder, encoder)) is not None:
            encoder = jax.tree.map(lambda x, learn: x if learn else jax.lax.stop_gradient(x), encoder, learns)
        module = nnx.merge(self.graph, encoder, model.statistics)
        encoders.set_rates(self.encoder, module, self.rates)
        if self.units is not None:
            slices.set_units(module, self.units)
        read = {"layers": layers} if layers else {}
        z = module(dict(inputs), rngs=None if key is None else nnx.Rngs(dropout=key), **read)
        return z, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def _losses(self, params: Any, statistics: Any, batch: Inputs, weights: Any, key: jax.Array) -> Any:
        inputs, label = _inputs(batch), _label(batch)
        if not mixing.draws(self.encoder):
            z, statistics = self._forward(Weights(params, statistics), inputs, key, self.layers)
            total, losses = parts.loss(self.objective, params, z, label, weights)
            return total, (losses, statistics)
        mix = mixing.draw(key, self.encoder)
        z, statistics = self._forward(Weights(params, statistics), {**inputs, "mix": mix}, key, self.layers)
        own, other = (parts.loss(self.objective, params, z, part, weights) for part in (label, label[::-1]))
        total, losses = jax.tree.map(lambda a, b: mix[0] * a + (1 - mix[0]) * b, own, other)
        return total, (losses, statistics)

    def _cached_gradient(self, params: Any, statistics: Any, batch: Inputs, weights: Any, key: jax.Array) -> Any:
        """As `jax.grad(self._losses)`, holding the activations of one part of the batch at a time."""
        split = {k: v.reshape(self.accumulate, -1, *v.shape[1:]) for k, v in _inputs(batch).items()}
        keys = jax.random.split(key, self.accumulate)

        def embed(params: Any, part: Any) -> jax.Array:
            inputs, key = part
            return self._forward(Weights(params, statistics), inputs, key, self.layers)[0]

        def loss(params: Any, z: jax.Array) -> Any:  # [A, S, D], or [A, L, S, D]
            *before, _, width = z.shape
            z = z.reshape(*before, self.objective.columns, -1, width)
            z = jnp.moveaxis(z, 0, -3).reshape(*before[1:], -1, width)
            return parts.loss(self.objective, params, z, _label(batch), weights)

        gradient, losses = cached_gradient(embed, loss, params, (split, keys))
        if jax.tree.leaves(statistics):  # of batch norm, which normalises each part by its own

            def follow(statistics: Any, part: Any) -> tuple[Any, None]:
                inputs, key = part
                return self._forward(Weights(params, statistics), inputs, key)[1], None

            statistics, _ = jax.lax.scan(follow, statistics, (split, keys))
        return gradient, (losses, statistics)

    def _weights(self, row: Row, key: jax.Array) -> jax.Array:
        """The loss weights, [kinds, K] or [L, kinds, K], of one step, with granularities sampled if the arm does so."""
        factors_K = sample_granularities(key, len(self.dims), min(self.objective.sampled, len(self.dims)))
        return jnp.where(row.sampled, row.weights * factors_K, row.weights)

    def step(self, state: State, batch: Inputs, row: Row, key: jax.Array) -> tuple[State, Measures]:
        """One update. `batch` holds the inputs and `label`, `row` is the member's, `key` the seed's."""
        with jax.default_matmul_precision(self.precision):
            program, batch = self.with_settings(row.settings)._of(batch)
            key = jax.random.fold_in(key, state.step)
            if program.hidden:
                program = program.with_hidden(parts.draw(program.hidden, row.hidden, key))
            return program._update(state, batch, row, key)

    def _of(self, batch: Inputs) -> tuple["TrainStep", Inputs]:
        """The step and the batch of one source of a mixture; elsewhere this step and the batch as it is."""
        objective, label = self.objective.of(batch["label"])
        if objective is self.objective:
            return self, batch
        return dataclasses.replace(self, objective=objective), {**batch, "label": label}

    def _update(self, state: State, batch: Inputs, row: Row, key: jax.Array) -> tuple[State, Measures]:
        gradient = jax.grad(self._losses, has_aux=True)
        weights = self._weights(row, key), row.weights
        params, statistics = state.model
        if self.accumulate > 1 and self.objective.couples_examples:
            grads, (losses, statistics) = self._cached_gradient(params, statistics, batch, weights, key)
        elif self.accumulate == 1:
            grads, (losses, statistics) = gradient(params, statistics, batch, weights, key)
        else:
            split = jax.tree.map(lambda x: x.reshape(self.accumulate, -1, *x.shape[1:]), dict(batch))

            def add(carry: Any, part: Any) -> tuple[Any, None]:
                sums, statistics = carry
                index, inputs = part
                grads, (losses, statistics) = gradient(
                    params, statistics, inputs, weights, jax.random.fold_in(key, index)
                )
                return (jax.tree.map(jnp.add, sums, (grads, losses)), statistics), None

            zeros = jax.tree.map(jnp.zeros_like, (params, weights[0]))
            sums, _ = jax.lax.scan(add, (zeros, statistics), (jnp.arange(self.accumulate), split))
            (grads, losses), statistics = jax.tree.map(lambda x: x / self.accumulate, sums[0]), sums[1]
        decay = self.optimizer_config.ema
        updates, optimizer = self.optimizer.update(grads, state.optimizer.rule if decay else state.optimizer, params)
        model = Weights(optax.apply_updates(params, updates), statistics)
        if decay:
            average = averaging.follow(state.optimizer.weights, model, state.step, decay)
            optimizer = averaging.Averaged(optimizer, average)
        return State(model, optimizer, state.step + 1), Measures(losses, optax.global_norm(grads))

    def score(
        self, model: Weights, batch: Inputs, valid_B: jax.Array, settings: rows.Settings | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Numbers of correct answers and summed losses over the examples where `valid_B` is true, both [kinds, K]; with
        nesting layers [L, kinds, K], and with hidden widths one such array for each, [H, …]."""
        if self.hidden and self.units is None:
            return parts.stacked([self.with_hidden(n).score(model, batch, valid_B, settings) for n in self.hidden])
        with jax.default_matmul_precision("highest"):
            z, _ = self._forward(model, _inputs(batch), None, self.layers)
            objective, label = self.with_settings(settings or {}).objective.of(batch["label"])
            return parts.score(objective, model.params, z, label, valid_B)


def _inputs(batch: Inputs) -> dict[str, jax.Array]:
    return {name: array for name, array in batch.items() if name not in OF_LABEL}


def _label(batch: Inputs) -> Any:
    """The label, or a mapping of the label and other models' vectors of the texts."""
    given = {name: batch[name] for name in OF_LABEL if name in batch}
    return given if len(given) > 1 else batch["label"]
