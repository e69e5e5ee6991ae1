"""The fit loop of one group of members: steps, log lines, validation, checkpoints.

The model with the best validation accuracy (of a mixture, the mean over its sources) is kept; of several with the same
accuracy the first or, where the task `breaks_ties`, that with the smallest loss (and of the same loss the first). With
`optimizer.ema`, these models are averages over the steps. A killed run continues from its last checkpoint, bit-exactly.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mrl_jax.arms import Member, Row
from mrl_jax.config import TrainerConfig
from mrl_jax.runs import Log, checkpoint
from mrl_jax.system import processes
from mrl_jax.system.errors import UserError
from mrl_jax.training.mixture import AnyExamples, MixedExamples, NamedExamples
from mrl_jax.training.models import FitResult, save_model
from mrl_jax.training.placement import Best, Layout
from mrl_jax.training.step import Measures, State, TrainStep, Weights


class Interrupted(Exception):
    """Raised after Ctrl-C or SIGTERM (`signum`); the state has been saved and the run can be resumed."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class Evaluator(Protocol):
    """The part of `trainer.Trainer` that the loop uses."""

    config: TrainerConfig
    program: TrainStep

    def layout(self, members: int | None) -> Layout:
        """The compiled functions for `members` trained together, or for one trained alone (None)."""
        ...

    def accuracy(
        self,
        model: Weights,
        examples: AnyExamples | NamedExamples,
        batch_size: int,
        members: int | None,
        settings: Mapping[str, Any] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and mean loss [(members,) kinds, K] over a split, as `Trainer.accuracy`."""
        ...


class GroupLoop:
    """The fit loop of one group of members: `fit` runs it."""

    def __init__(
        self,
        trainer: Evaluator,
        members: tuple[Member, ...],
        seeds: tuple[int, ...],
        train: AnyExamples,
        validation: AnyExamples,
        directory: Path,
        log: Log,
        bar: tqdm,
        may_diverge: bool = False,
    ) -> None:
        self.trainer, self.members, self.seeds = trainer, members, seeds
        self.train, self.validation = train, validation
        self.directory, self.log, self.bar = directory, log, bar
        self.may_diverge, self.diverged = may_diverge, np.zeros(len(members), bool)
        self.together = len(members) > 1
        self.config, self.program = trainer.config, trainer.program
        self.layout = trainer.layout(len(members) if self.together else None)
        rows = [m.row(self.program.kinds) for m in members]
        self.row: Row = jax.tree.map(lambda *parts: np.stack(parts), *rows)
        self.weights = self.row.weights  # [members, kinds, K], or [members, L, kinds, K]
        self.scored = self.weights  # of the scores on validation, which also have an axis of the hidden widths
        if self.row.hidden is not None:
            self.scored = np.stack([np.multiply.outer(row.hidden, row.weights) for row in rows])
        self.programs = [self.program.with_settings(dict(member.settings)) for member in members]  # of each alone
        self.total = self.program.steps
        moments = np.linspace(0, self.total, self.config.evaluations + 1)[1:]
        self.moments = {max(1, round(moment)) for moment in moments}

    def fit(self) -> list[FitResult]:
        """Train to the end, from the newest checkpoint if there is one, and return the best model of each member."""
        state, best, start, window = self._start()
        saved = since = time.monotonic()
        layout, row = self.layout, self.row
        # Independent of the key of the initial parameters, which `TrainStep.init` splits.
        keys = [jax.random.fold_in(jax.random.key(member.seed), 1) for member in self.members]
        key = jax.random.key_data(jnp.stack(keys))
        if not self.together:
            row, key = jax.tree.map(lambda x: x[0], (row, key))
        row, key = layout.on_devices((row, key), layout.state)
        key = jax.random.wrap_key_data(key)
        with processes.signals() as signalled:
            for step, batch in enumerate(self._batches(start), start + 1):
                state, measures = layout.step(state, batch, row, key)
                window.append(measures)
                self.bar.update()
                report = step % self.config.log_every == 0 or step in self.moments or step == self.total
                stop = signalled()
                if not report and not stop:
                    continue
                window = [processes.on_host(measures) for measures in window]
                self._check_finite(step - len(window), window, best)
                if self.diverged.all():
                    break
                if report:
                    self._report(step, window, time.monotonic() - since)
                    since, window = time.monotonic(), []
                if step in self.moments:
                    best = self._validate(step, state, best)
                elapsed = time.monotonic() - saved  # negative if the clock was set back
                due = not 0 <= elapsed < self.config.checkpoint_seconds and step < self.total
                if stop or processes.on_process0(lambda due=due: due):  # type: ignore[misc]
                    self._save(step, state, best, window)
                    saved = time.monotonic()
                if stop:
                    raise Interrupted(f"stopped at step {step} of {self.total} ({self._names()})", stop)
        best = processes.on_host(best)
        return [self._result(best, i) for i in range(len(self.members))]

    def _start(self) -> tuple[State, Best, int, list[Measures]]:
        """The state, best models, step and unlogged measures at the newest intact checkpoint, or at the beginning."""
        states = [processes.on_host(of.init(m.seed)) for of, m in zip(self.programs, self.members, strict=True)]
        state = jax.tree.map(lambda *leaves: np.stack(leaves), *states) if self.together else states[0]
        shape = (len(self.members),) if self.together else ()
        places = (*shape, 2) if self.program.objective.breaks_ties else shape
        best = Best(self.program.evaluated(state), np.full(places, -1.0, np.float32), np.zeros(shape, np.int32))
        newest_state: dict[str, Any] = {}

        def newest() -> dict[str, Any]:
            """The step and the log window of the newest intact checkpoint; its arrays go to `newest_state`."""
            steps = checkpoint.saved_steps(self.directory)
            for at in reversed(steps):
                try:
                    newest_state["state"], meta = checkpoint.load(self.directory, at, (state, best))
                except UserError as damaged:
                    if at == steps[0]:
                        raise UserError(
                            f"cannot resume: {damaged}; delete {self.directory} to train it again"
                        ) from None
                    tqdm.write(f"{damaged}; continuing from the one before", file=sys.stderr)
                    continue
                if (reads := meta.get("reading", {"next_index": at})) != {"next_index": at}:
                    raise UserError(
                        f"cannot resume: the checkpoint of step {at} in {self.directory} reads on from {reads}"
                    )
                return {"step": at, "window": meta["window"]}
            return {"step": 0, "window": []}

        start = processes.on_process0(newest)
        if start["step"]:
            state, best = processes.broadcast(newest_state.get("state", (state, best)))
        self.log.rewind([m.label for m in self.members], start["step"])
        self.bar.n = self.bar.initial = start["step"]
        self.bar.refresh()
        window = [Measures(*(np.asarray(x, np.float32) for x in measures)) for measures in start["window"]]
        # `state` and `best` need separate copies of the model, as the step donates the buffers of the state.
        state, best = (self.layout.on_devices(tree, self.layout.state) for tree in (state, best))
        return state, best, start["step"], window

    def _batches(self, start: int) -> Iterator[Any]:
        """Batches on the devices: [B, …] for one member, [members, B, …] for several.

        Texts are padded to the longest of the step over all seeds of the population, not only those of this group: the
        shape of a dropout mask must not depend on how the population is grouped.
        """
        size, layout = self.config.batch_size, self.layout
        index = [self.seeds.index(member.seed) for member in self.members]
        streams = [self.train.stream(seed, size, start, self.total) for seed in self.seeds]

        def take(parts: tuple[np.ndarray, ...]) -> Any:
            length = self.train.padded_length(np.concatenate(parts))
            rows = np.stack([parts[i] for i in index]) if self.together else parts[index[0]]
            if self.train.separable:
                return layout.read(self.train, rows, length, layout.batch)
            batch = self.train.stack(list(rows), length) if self.together else self.train.take(rows, length)
            return layout.on_devices(batch, layout.batch)

        self.reader = self.train.read_ahead(zip(*streams, strict=True), take, start, self.total)
        yield from self.reader

    def _report(self, step: int, window: list[Measures], seconds: float) -> None:
        """Log the means of the steps since the last report."""
        losses, norms = self._by_member(window)
        speed = len(window) * self.config.batch_size * len(self.members) / max(seconds, 1e-9)
        rates = {program: float(program.schedule(step - 1)) for program in {*self.programs}}
        mean = losses.mean(0)
        self.log.append(
            self._line(i, step, "train", self.weights[i], {"loss": mean[i]})
            | {
                "gradient_norm": float(norms[:, i].mean()),
                "learning_rate": rates[self.programs[i]],
                "examples_per_second": round(speed, 1),
            }
            for i in range(len(self.members))
        )
        loss = np.mean([_average(self.weights[i], mean[i]) for i in range(len(self.members))])
        self.bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} examples/s", refresh=False)

    def _by_member(self, window: list[Measures]) -> tuple[np.ndarray, np.ndarray]:
        """Losses [steps, members, kinds, K], or [steps, members, L, kinds, K], and gradient norms [steps, members]."""
        losses, norms = np.stack([m.losses for m in window]), np.stack([m.gradient_norm for m in window])
        return (losses, norms) if self.together else (losses[:, None], norms[:, None])

    def _check_finite(self, before: int, window: list[Measures], best: Best) -> None:
        """Raise `UserError` for the first step whose losses or gradient are not finite, or note whose they are."""
        losses, norms = self._by_member(window)
        weighted = np.where(self.weights > 0, losses, 0.0)  # ignore granularities that the arm does not train
        for offset in range(len(losses)):
            for i, member in enumerate(self.members):
                bad = ~np.isfinite(weighted[offset, i]).reshape(-1, len(self.program.dims)).all(axis=0)
                if not bad.any() and np.isfinite(norms[offset, i]):
                    continue
                if self.may_diverge:
                    self.diverged[i] = True
                    continue
                where = (
                    f"the loss at granularity {self.program.dims[int(np.argmax(bad))]}" if bad.any() else "the gradient"
                )
                hint = "try a smaller optimizer.learning_rate or optimizer.clip_norm=1"
                if member.settings:  # chosen by trials, or of the arm
                    own = " ".join(f"{key}={value:g}" for key, value in member.settings)
                    hint = f"its settings are {own}; a narrower tune.space in a new run, or optimizer.clip_norm, helps"
                raise UserError(
                    f"{where} of arm {member.arm.label}, seed {member.seed}, is not finite at step "
                    f"{before + offset + 1}; {self._keep_best(i, best)}; {hint}"
                )

    def _keep_best(self, i: int, best: Best) -> str:
        """Save the best model so far of member i where `mrl_jax.load` finds it, and return a clause that says where."""
        result = self._result(processes.on_host(best), i)
        if result.step == 0:
            return "no model is kept: none had been validated yet"
        folder = self.directory.parent.parent / result.member.label / "model"
        save_model(folder, result, trained=False)
        return f"its best model, of step {result.step}, is kept in {folder}"

    def _validate(self, step: int, state: State, best: Best) -> Best:
        """Score the validation split and update the best model of each member: by the mean over sources."""
        model = self.program.evaluated(state)
        each = self._scores(model)
        # of one source the numbers as they are: a mean would be of another type, and round otherwise
        accuracy, loss = (np.mean(x, axis=0) if len(x) > 1 else x[0] for x in zip(*each.values(), strict=True))

        def line(i: int) -> dict[str, Any]:
            of = {
                name: self._by_part([], self.weights[i], {"loss": lost[i], "accuracy": right[i]})
                for name, (right, lost) in each.items()
                if name
            }
            plain = self._line(i, step, "validation", self.scored[i], {"loss": loss[i], "accuracy": accuracy[i]})
            return plain | ({"sources": of} if of else {})

        self.log.append(map(line, range(len(self.members))))
        average = np.array([_average(self.scored[i], accuracy[i]) for i in range(len(self.members))], np.float32)
        if self.program.objective.breaks_ties:
            losses = np.array([_average(self.scored[i], loss[i]) for i in range(len(self.members))], np.float32)
            average = np.stack([average, -np.nan_to_num(losses, nan=np.inf, posinf=np.inf)], axis=1)
        moment: Any = average, np.full(len(average), step, np.int32)
        if not self.together:
            moment = average[0], np.int32(step)
        better: Best = self.layout.keep(Best(model, *self.layout.on_devices(moment, self.layout.state)), best)
        return better

    def _scores(self, model: Weights) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Accuracy and loss of each member on the validation split, as `Trainer.accuracy`; of a mixture, of each source
        by its name."""
        parts: dict[str, AnyExamples | NamedExamples] = {"": self.validation}
        if isinstance(self.validation, MixedExamples):
            parts = {part.name: part for part in self.validation.named}
        size, members = self.config.batch_size, self.layout.members
        settings = self.row.settings if self.together else {key: x[0] for key, x in self.row.settings.items()}
        found = {name: self.trainer.accuracy(model, part, size, members, settings) for name, part in parts.items()}
        return found if self.together else {name: (right[None], lost[None]) for name, (right, lost) in found.items()}

    def _save(self, step: int, state: State, best: Best, window: list[Measures]) -> None:
        meta = {"members": [m.label for m in self.members], "window": [[x.tolist() for x in m] for m in window]}
        meta |= {"reading": self.reader.state}
        whole = processes.on_host((state, best))
        processes.on_process0(lambda: bool(checkpoint.save(self.directory, step, whole, meta)))

    def _result(self, best: Best, i: int) -> FitResult:
        """The best model of member i; `best` holds NumPy arrays."""
        own = jax.tree.map(lambda x: x[i], best) if self.together else best
        accuracy = math.nan if self.diverged[i] else float(own.accuracy.flat[0])
        return FitResult(self.members[i], self.program.widen(own.model), accuracy, int(own.step))

    def _line(
        self, i: int, step: int, split: str, weights: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """A line of metrics.jsonl with these values by name, of the granularities that member i trains, by dim: those
        of the largest encoder, and below `layers` and `hidden` those of others."""
        member = self.members[i]
        names = {"member": member.label, "arm": member.arm.name, "seed": member.seed}
        width = {} if member.arm.width is None else {"width": member.arm.width}
        axes = [("hidden", self.program.hidden), ("layers", self.program.layers)]
        axes = [(name, sizes) for name, sizes in axes if sizes]
        axes = axes[len(axes) - (weights.ndim - 2) :]  # losses of a step are of the hidden units that it drew
        return {"step": step, "split": split, **names, **width, **self._by_part(axes, weights, values)}

    def _by_part(
        self, axes: Sequence[tuple[str, Sequence[int]]], weights: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """The values by dim of the last size along the first of the axes of `weights` and `values` that has a weight,
        and by size those of the others."""
        if not axes:
            return {name: self._per_dim(weights, of) for name, of in values.items()}
        name, sizes = axes[0]
        each = {
            str(size): self._by_part(axes[1:], weights[at], {key: of[at] for key, of in values.items()})
            for at, size in enumerate(sizes)
            if weights[at].any()
        }
        _, last = each.popitem()
        return last | ({name: each} if each else {})

    def _per_dim(self, weights: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """From values [kinds, K], those of the granularities with a weight [kinds, K], by dim."""
        active = weights > 0
        dims = enumerate(self.program.dims)
        return {str(m): float(values[:, k][active[:, k]][0]) for k, m in dims if active[:, k].any()}

    def _names(self) -> str:
        return self.members[0].label if not self.together else f"{len(self.members)} members together"


def _average(weights: np.ndarray, values: np.ndarray) -> float:
    """The mean of values, weighted by the loss weights of a member, both [kinds, K] or with axes before these."""
    return float(np.sum(weights * np.where(weights > 0, values, 0)) / np.sum(weights))
