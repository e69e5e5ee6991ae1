"""Train a population: members (an arm and a seed) through one compiled step, in turn (`loop`) or together (`vmap`).

Members that share a seed see the same batches, dropout and initial parameters. In both ways of running, a *group* of
members is trained to the end before the next: one member a group in `loop`, all of them in one for `vmap`.
The moment with the best validation accuracy is kept; a killed run continues from its last checkpoint to the same bits.
"""

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm

from mrl_jax import batches, checkpoint
from mrl_jax.arms import Member, Row
from mrl_jax.batches import Examples, PairExamples
from mrl_jax.config import TrainerConfig
from mrl_jax.errors import UserError
from mrl_jax.program import Measures, Model, Program, State
from mrl_jax.runs import Log, progress

# Steps of all seeds from which on a program of its own repays its compilation: some 8 s against 7 ms a step, two cores.
WORTH_COMPILING = 1500

CACHED_TOKENS = 1024


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the state has been saved, the run can be resumed."""


class Best(NamedTuple):
    """The best moment so far, by validation accuracy averaged over an arm's granularities."""

    model: Model
    accuracy: jax.Array  # [] or [members]
    step: jax.Array


class Fitted(NamedTuple):
    """A trained member: its best model, that moment's validation accuracy and step."""

    member: Member
    model: Model
    accuracy: float
    step: int


def save_model(folder: Path, fitted: Fitted) -> Path:
    """Write the best model of a member, and only that, to `folder`."""
    meta = {"member": fitted.member.label, "validation_accuracy": fitted.accuracy}
    return checkpoint.save(folder, fitted.step, fitted.model, meta, keep=1)


def steps(config: TrainerConfig, examples: int) -> int:
    """Optimiser steps of a run: `trainer.steps`, or `trainer.epochs` passes."""
    if config.steps is not None:
        return config.steps
    return max(1, round((config.epochs or 0) * examples / config.batch_size))


def grouped(members: Sequence[Member], at_once: int) -> list[tuple[Member, ...]]:
    """The members in groups of at most `at_once` that are trained together."""
    return [tuple(members[i : i + at_once]) for i in range(0, len(members), at_once)]


def tokens_at_once() -> int | None:
    """Tokens that are embedded together: on a CPU as many as its cache takes, elsewhere as many as the batch has."""
    return CACHED_TOKENS if jax.default_backend() == "cpu" else None


class Trainer:
    """The compiled functions of a `Program`, shared by all groups of a run, and their placement on the devices."""

    def __init__(self, program: Program, config: TrainerConfig) -> None:
        self.program = program
        self.config = config
        devices = jax.local_devices()
        if config.batch_size % (len(devices) * config.accumulate):
            raise UserError(
                f"trainer.batch_size={config.batch_size} cannot be split evenly over {len(devices)} devices "
                f"with trainer.accumulate={config.accumulate}; use a multiple of {len(devices) * config.accumulate}"
            )
        self.mesh = jax.make_mesh((len(devices),), ("devices",), axis_types=(AxisType.Auto,))
        self.step = jax.jit(program.step, donate_argnums=0)
        self.step_together = jax.jit(jax.vmap(program.step), donate_argnums=0)
        self._narrow: dict[int, Trainer | None] = {}
        self._embed = jax.jit(program.embed)
        self._score = jax.jit(program.score)
        self._score_together = jax.jit(jax.vmap(program.score, in_axes=(0, None, None)))

    def place(self, tree: Any, *axes: str | None) -> Any:
        """Put arrays on the devices: whole on each, or split along the axis called "devices"."""
        sharding = NamedSharding(self.mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]
        return jax.device_put(tree, sharding)

    def at_once(self, members: Sequence[Member], train: Examples | PairExamples) -> int:
        """How many of the members to train together, by `trainer.population` and `trainer.arms_at_once`.

        `auto` trains them in turn on the CPU, where they would compete for the same cores and a larger working set only
        costs cache, and together elsewhere: as many as fit in 80 % of the devices' memory, by XLA's own account of one
        member's step.
        """
        population = self.config.population
        if population == "loop" or (population == "auto" and jax.default_backend() == "cpu"):
            return 1
        if self.config.arms_at_once is not None:
            return min(self.config.arms_at_once, len(members))
        devices = jax.local_devices()
        stats = devices[0].memory_stats() or {}
        if "bytes_limit" not in stats:
            return len(members)
        fitting = int(0.8 * stats["bytes_limit"] * len(devices) / max(1, self._bytes_of_member(members[0], train)))
        chunk = max(1, min(fitting, len(members)))
        return chunk - chunk % len(devices) if chunk > len(devices) else chunk

    def _bytes_of_member(self, member: Member, train: Examples | PairExamples) -> int:
        """Memory of one member's step on its longest batch, and of its best model so far."""
        rows = np.zeros(self.config.batch_size, np.int32)
        longest = None if train.lengths is None else train.padded(np.array([np.argmax(train.lengths)]))
        row, key = member.arm.row(self.program.kinds), jax.random.key(0)
        state = jax.eval_shape(self.program.init, 0)
        analysis = self.step.lower(state, train.take(rows, longest), row, key).compile().memory_analysis()
        if analysis is None:  # not every backend keeps this account
            return 0
        used = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        return int(used + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.model)))

    def fit(
        self,
        group: Sequence[Member],
        seeds: Sequence[int],
        train: Examples | PairExamples,
        validation: Examples | PairExamples,
        directory: Path,
        log: Log,
        bar: tqdm,
    ) -> list[Fitted]:
        """Train the members of one group to the end and return the best model of each.

        `seeds` are those of the whole population.

        Training states are checkpointed below `directory` and continued from there when there are any.

        Raises:
            UserError: a loss or gradient is not finite (names step, arm, granularity); no intact checkpoint; disk full.
            Interrupted: after a signal, with the state saved.
        """
        trainer, members = self, tuple(group)
        if len(members) == 1 and (width := members[0].arm.width) is not None:
            narrow = self._narrowed(width, len(seeds))
            if narrow is not None:
                alone = dataclasses.replace(members[0].arm, weights=(1.0,))
                trainer, members = narrow, (dataclasses.replace(members[0], arm=alone),)
        fitted = _Group(trainer, members, tuple(seeds), train, validation, directory, log, bar).fit()
        return [one._replace(member=member) for one, member in zip(fitted, group, strict=True)]

    def _narrowed(self, width: int, seeds: int) -> "Trainer | None":
        """The trainer of fixed-size models of `width`, where they are cheaper to train in a program of their own."""
        if width not in self._narrow:
            worth = width < self.program.width and self.program.steps * seeds >= WORTH_COMPILING
            program = self.program.narrowed(width) if worth else None
            self._narrow[width] = None if program is None else Trainer(program, self.config)
        return self._narrow[width]

    def embed(self, model: Model, examples: Examples, batch_size: int) -> np.ndarray:
        """Embeddings float32 [n, D] of one member for every example, in their order."""
        z = np.empty((len(examples), self.program.width), np.float32)
        with progress(len(examples), "embed", "example", leave=False) as bar:
            for rows, batch, valid in batches.slices(examples, batch_size, tokens_at_once()):
                del batch["label"]
                z[rows] = np.asarray(self._embed(model, batch))[valid]
                bar.update(len(rows))
        return z

    def accuracy(
        self, model: Model, examples: Examples | PairExamples, batch_size: int, together: bool
    ) -> tuple[Any, Any]:
        """Accuracy and mean loss [(members,) kinds, K] over a split."""
        score = self._score_together if together else self._score
        right: Any = 0
        lost: Any = 0
        for _, batch, valid in batches.slices(examples, batch_size):
            hits, losses = score(model, batch, valid)
            right, lost = right + np.asarray(hits), lost + np.asarray(losses, np.float64)
        return right / len(examples), lost / len(examples)


class _Group:
    """The fit loop of one group of members."""

    def __init__(
        self,
        trainer: Trainer,
        members: tuple[Member, ...],
        seeds: tuple[int, ...],
        train: Examples | PairExamples,
        validation: Examples | PairExamples,
        directory: Path,
        log: Log,
        bar: tqdm,
    ) -> None:
        self.trainer, self.members, self.seeds = trainer, members, seeds
        self.train, self.validation = train, validation
        self.directory, self.log, self.bar = directory, log, bar
        self.together = len(members) > 1
        self.config, self.program = trainer.config, trainer.program
        # Members over the devices where they come out even; otherwise the examples of a batch.
        self.spread = self.together and len(members) % trainer.mesh.size == 0
        arms = [m.arm.row(self.program.kinds) for m in members]
        self.arms: Row = jax.tree.map(lambda *parts: np.stack(parts), *arms)
        self.rows = self.arms.weights  # [members, kinds, K]
        self.total = self.program.steps
        moments = np.linspace(0, self.total, self.config.evaluations + 1)[1:]
        self.moments = {max(1, round(moment)) for moment in moments}

    def fit(self) -> list[Fitted]:
        state, best, start, window = self._start()
        saved = since = time.monotonic()
        # Not the key of the initial parameters: that is split in `Program.init`.
        key = jnp.stack([jax.random.fold_in(jax.random.key(member.seed), 1) for member in self.members])
        step_of, arm = self.trainer.step_together, self.arms
        if not self.together:
            step_of, (arm, key) = self.trainer.step, jax.tree.map(lambda x: x[0], (self.arms, key))
        arm, key = self._place((arm, key))
        with _signals() as stopped:
            for step, batch in enumerate(self._batches(start), start + 1):
                state, measures = step_of(state, batch, arm, key)
                window.append(measures)
                self.bar.update()
                report = step % self.config.log_every == 0 or step in self.moments or step == self.total
                if not report and not stopped():
                    continue
                window = [Measures(*map(np.asarray, measured)) for measured in window]
                self._check_finite(step - len(window), window, best)
                if report:
                    self._report(step, window, time.monotonic() - since)
                    since, window = time.monotonic(), []
                if step in self.moments:
                    best = self._validate(step, state, best)
                due = time.monotonic() - saved >= self.config.checkpoint_seconds and step < self.total
                if due or stopped():
                    self._save(step, state, best, window)
                    saved = time.monotonic()
                if stopped():
                    raise Interrupted(f"stopped at step {step} of {self.total} ({self._names()})")
        return [self._fitted(best, i) for i in range(len(self.members))]

    def _place(self, tree: Any) -> Any:
        return self.trainer.place(tree, "devices") if self.spread else self.trainer.place(tree)

    def _start(self) -> tuple[State, Best, int, list[Measures]]:
        """The initial state, or that of the newest intact checkpoint, with its step and what it had not logged yet."""
        states = [self.program.init(member.seed) for member in self.members]
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if self.together else states[0]
        state = self._place(state)
        shape = (len(self.members),) if self.together else ()
        # A copy: the step donates the state's buffers.
        best = Best(jax.tree.map(jnp.copy, state.model), jnp.full(shape, -1.0), jnp.zeros(shape, jnp.int32))
        found = checkpoint.steps(self.directory)
        for at in reversed(found):
            try:
                (state, best), meta = checkpoint.load(self.directory, at, (state, best))
            except UserError as damaged:
                if at == found[0]:
                    raise UserError(f"cannot resume: {damaged}; delete {self.directory} to train it again") from None
                tqdm.write(f"{damaged}; continuing from the one before", file=sys.stderr)
                continue
            self.log.rewind([m.label for m in self.members], at)
            self.bar.n = self.bar.initial = at
            self.bar.refresh()
            window = [Measures(*(np.asarray(x, np.float32) for x in measured)) for measured in meta["window"]]
            return state, best, at, window
        self.log.rewind([m.label for m in self.members], 0)
        return state, best, 0, []

    def _batches(self, start: int) -> Iterator[Any]:
        """Batches on the devices: [B, …] for one member, [members, B, …] for several.

        Texts are padded to the longest of the step in any seed of the population, whichever of them are trained here:
        the shape of a dropout mask must not depend on how the population is grouped.
        """
        size, mine = self.config.batch_size, [m.seed for m in self.members]
        streams = [batches.stream(self.train, seed, size, start, self.total) for seed in self.seeds]

        def take(parts: tuple[np.ndarray, ...]) -> Any:
            length = self.train.padded(np.concatenate(parts))
            index = [self.seeds.index(seed) for seed in mine]
            if not self.together:
                return self.trainer.place(self.train.take(parts[index[0]], length), "devices")
            stacked = {name: array[index] for name, array in self.train.stacked(parts, length).items()}
            return self._place(stacked) if self.spread else self.trainer.place(stacked, None, "devices")

        yield from batches.prefetch(zip(*streams, strict=True), take)

    def _report(self, step: int, window: list[Measures], seconds: float) -> None:
        """Log the means of the last steps."""
        losses, norms = self._by_member(window)
        speed = len(window) * self.config.batch_size * len(self.members) / max(seconds, 1e-9)
        rate = float(self.program.schedule(step - 1))
        mean = losses.mean(0)
        self.log.append(
            self._line(i, step, "train", mean[i])
            | {
                "gradient_norm": float(norms[:, i].mean()),
                "learning_rate": rate,
                "examples_per_second": round(speed, 1),
            }
            for i in range(len(self.members))
        )
        loss = np.mean([self._average(i, mean[i]) for i in range(len(self.members))])
        self.bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} examples/s", refresh=False)

    def _by_member(self, window: list[Measures]) -> tuple[np.ndarray, np.ndarray]:
        """Losses [steps, members, kinds, K] and gradient norms [steps, members]."""
        losses, norms = np.stack([m.losses for m in window]), np.stack([m.gradient_norm for m in window])
        return (losses, norms) if self.together else (losses[:, None], norms[:, None])

    def _check_finite(self, before: int, window: list[Measures], best: Best) -> None:
        """Stop the run at the first step whose losses or gradient are not finite."""
        losses, norms = self._by_member(window)
        weighted = np.where(self.rows > 0, losses, 0.0)  # a granularity that the arm does not train may say anything
        for offset in range(len(losses)):
            for i, member in enumerate(self.members):
                bad = ~np.isfinite(weighted[offset, i]).all(axis=0)
                if not bad.any() and np.isfinite(norms[offset, i]):
                    continue
                where = (
                    f"the loss at granularity {self.program.dims[int(np.argmax(bad))]}" if bad.any() else "the gradient"
                )
                raise UserError(
                    f"{where} of arm {member.arm.label}, seed {member.seed}, is not finite at step "
                    f"{before + offset + 1}; {self._keep_best(i, best)}; "
                    "try a smaller optimizer.learning_rate or optimizer.clip_norm=1"
                )

    def _keep_best(self, i: int, best: Best) -> str:
        """Save the best model so far of member i where `load` finds it; says where."""
        fitted = self._fitted(best, i)
        if fitted.step == 0:
            return "nothing is kept: it had not been validated yet"
        folder = self.directory.parent.parent / fitted.member.label / "model"
        path = save_model(folder, fitted)
        return f"its best model, of step {fitted.step}, is kept in {path}"

    def _validate(self, step: int, state: State, best: Best) -> Best:
        """Score the validation split and keep each member's model if it is its best so far."""
        accuracy, loss = self.trainer.accuracy(state.model, self.validation, self.config.batch_size, self.together)
        if not self.together:
            accuracy, loss = accuracy[None], loss[None]
        self.log.append(
            self._line(i, step, "validation", loss[i]) | {"accuracy": self._per_dim(i, accuracy[i])}
            for i in range(len(self.members))
        )
        average = jnp.asarray([self._average(i, accuracy[i]) for i in range(len(self.members))], jnp.float32)
        if not self.together:
            average = average[0]
        better = average > best.accuracy

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - better.ndim)), new, old)

        kept: Best = jax.tree.map(keep, Best(state.model, average, jnp.full_like(best.step, step)), best)
        return kept

    def _save(self, step: int, state: State, best: Best, window: list[Measures]) -> None:
        meta = {"members": [m.label for m in self.members], "window": [[x.tolist() for x in m] for m in window]}
        checkpoint.save(self.directory, step, (state, best), meta)

    def _fitted(self, best: Best, i: int) -> Fitted:
        one = jax.tree.map(lambda x: x[i], best) if self.together else best
        return Fitted(self.members[i], self.program.widen(one.model), float(one.accuracy), int(one.step))

    def _line(self, i: int, step: int, split: str, loss: np.ndarray) -> dict[str, Any]:
        member = self.members[i]
        names = {"member": member.label, "arm": member.arm.name, "seed": member.seed}
        width = {} if member.arm.width is None else {"width": member.arm.width}
        return {"step": step, "split": split, **names, **width, "loss": self._per_dim(i, loss)}

    def _per_dim(self, i: int, values: np.ndarray) -> dict[str, float]:
        """Values [kinds, K] of the granularities that member i trains, by dim."""
        active = self.rows[i] > 0
        dims = enumerate(self.program.dims)
        return {str(m): float(values[:, k][active[:, k]][0]) for k, m in dims if active[:, k].any()}

    def _average(self, i: int, values: np.ndarray) -> float:
        """The mean over the granularities of member i, weighted as its loss is."""
        return float(np.sum(self.rows[i] * np.where(self.rows[i] > 0, values, 0)) / np.sum(self.rows[i]))

    def _names(self) -> str:
        return self.members[0].label if not self.together else f"{len(self.members)} members together"


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Note SIGINT and SIGTERM, so that the loop can save at the next step; a second one acts as usual."""
    caught: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs us handles signals
        previous = {}
    try:
        yield lambda: bool(caught)
    finally:
        if not caught:
            for signum, handler in previous.items():
                signal.signal(signum, handler)
