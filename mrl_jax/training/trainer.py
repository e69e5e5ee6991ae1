"""Train a population of members (arm and seed) with one compiled step, in turn (`loop`) or together (`vmap`).

Members that share a seed see the same batches, dropout and initial parameters. A *group* of members is trained to the
end before the next one starts: `loop` has one member per group, `vmap` as many as are trained together.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mrl_jax.arms import Member
from mrl_jax.config import TrainerConfig
from mrl_jax.runs import Log
from mrl_jax.system import processes
from mrl_jax.system.console import progress
from mrl_jax.system.errors import UserError
from mrl_jax.training import batches
from mrl_jax.training.batches import Examples
from mrl_jax.training.loop import GroupLoop
from mrl_jax.training.mixture import AnyExamples, MixedExamples, NamedExamples
from mrl_jax.training.models import FitResult
from mrl_jax.training.placement import Layout
from mrl_jax.training.step import State, TrainStep, Weights

# Compile a narrow step only above this many steps of all trainings: compiling takes some 8 s, a step 7 ms (two cores).
WORTH_COMPILING_STEPS = 1500

CACHED_TOKENS = 1024  # per embedding batch on a CPU, so that activations fit in its cache


def group_members(members: Sequence[Member], at_once: int) -> list[tuple[Member, ...]]:
    """Split the members into groups of at most `at_once`, which are trained together."""
    return [tuple(members[i : i + at_once]) for i in range(0, len(members), at_once)]


def tokens_at_once() -> int | None:
    """Tokens per embedding batch: as many as fit in the cache of a CPU; None, no limit, on other devices."""
    return CACHED_TOKENS if jax.default_backend() == "cpu" else None


class Trainer:
    """The compiled functions of a `TrainStep`, shared by all groups of a run, and their placement on the devices."""

    def __init__(self, program: TrainStep, config: TrainerConfig, trainings: int = 1) -> None:
        """`trainings` is how often each arm is trained, by its seeds and trials."""
        self.program = program
        self.trainings = trainings
        self.config = config
        devices = jax.device_count()
        if config.batch_size % (devices * config.accumulate):
            raise UserError(
                f"trainer.batch_size={config.batch_size} cannot be split evenly over {devices} devices "
                f"with trainer.accumulate={config.accumulate}; use a multiple of {devices * config.accumulate}"
            )
        self._narrow: dict[int, Trainer | None] = {}
        self._parts: dict[tuple[int | None, int | None], Trainer] = {}
        self._embed = jax.jit(program.embed)
        self._layouts: dict[int | None, Layout] = {}

    def layout(self, members: int | None) -> Layout:
        """The compiled functions for `members` trained together, or for one trained alone (None)."""
        if members not in self._layouts:
            self._layouts[members] = Layout.of(self.program, members)
        return self._layouts[members]

    def at_once(self, members: Sequence[Member], train: AnyExamples) -> int:
        """How many of the members to train together, by `trainer.population` and `trainer.arms_at_once`.

        On CPUs `auto` trains one per device, as more would compete for the same cores and the same cache. Elsewhere it
        trains as many as fit in 80 % of the devices' memory, by XLA's analysis of the step of one member.
        """
        population, devices = self.config.population, jax.device_count()
        if population == "loop" or len(members) == 1:
            return 1
        if self.config.arms_at_once is not None:
            return min(self.config.arms_at_once, len(members))
        if population == "auto" and jax.default_backend() == "cpu":
            return devices if devices <= len(members) else 1
        stats = jax.local_devices()[0].memory_stats() or {}
        if "bytes_limit" not in stats:
            return len(members)
        fitting = int(0.8 * stats["bytes_limit"] * devices / max(1, self._bytes_of_member(members[0], train)))
        chunk = max(1, min(fitting, len(members)))
        return int(processes.on_process0(lambda: chunk - chunk % devices if chunk > devices else chunk))

    def _bytes_of_member(self, member: Member, train: AnyExamples | NamedExamples) -> int:
        """Memory of one member's step on its longest batch plus that of its best model so far, 0 if unknown; the most
        of any source of a mixture."""
        if isinstance(train, MixedExamples):
            return max(self._bytes_of_member(member, part) for part in train.named)
        rows = np.zeros(self.config.batch_size, np.int32)
        longest = None if train.lengths is None else train.padded_length(np.array([np.argmax(train.lengths)]))
        row, key = member.row(self.program.kinds), jax.random.key(0)
        model = self.program.shapes
        init_optimizer = self.program.with_settings(dict(member.settings)).init_optimizer
        state = State(model, jax.eval_shape(init_optimizer, model), jnp.int32(0))
        step = jax.jit(self.program.step, donate_argnums=0)
        analysis = step.lower(state, train.take(rows, longest), row, key).compile().memory_analysis()
        if analysis is None:  # not every backend has this analysis
            return 0
        used = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        return int(used + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.model)))

    def fit(
        self,
        group: Sequence[Member],
        seeds: Sequence[int],
        train: AnyExamples,
        validation: AnyExamples,
        directory: Path,
        log: Log,
        bar: tqdm,
        *,
        may_diverge: bool = False,
    ) -> list[FitResult]:
        """Train the members of one group to the end and return the best model of each.

        Args:
            group: the members, from `group_members`.
            seeds: of the whole population, not only of this group.
            train: the examples to train on.
            validation: the examples that choose the best model.
            directory: training states are checkpointed here, and training continues from the newest one.
            log: gets the training log.
            bar: progress bar, updated per step.
            may_diverge: a member whose loss or gradient is not finite has an accuracy of NaN, instead of ending all.

        Raises:
            UserError: a loss or gradient is not finite (names step, arm, granularity); no intact checkpoint; disk full.
            Interrupted: after a signal, with the state saved.
        """
        trainer, members = self, tuple(group)
        if len(members) == 1 and (width := members[0].arm.width) is not None:
            narrow = self._narrow_trainer(width)
            if narrow is not None:
                alone = dataclasses.replace(members[0].arm, weights=(1.0,))
                trainer, members = narrow, (dataclasses.replace(members[0], arm=alone),)
        loop = GroupLoop(trainer, members, tuple(seeds), train, validation, directory, log, bar, may_diverge)
        results = loop.fit()
        return [result._replace(member=member) for result, member in zip(results, group, strict=True)]

    def _narrow_trainer(self, width: int) -> "Trainer | None":
        """The trainer of fixed-size models of `width`, or None if a separate compiled step does not pay for them."""
        if width not in self._narrow:
            pays = width < self.program.width and self.program.steps * self.trainings >= WORTH_COMPILING_STEPS
            program = self.program.narrow(width) if pays else None
            self._narrow[width] = None if program is None else Trainer(program, self.config)
        return self._narrow[width]

    def part(self, layers: int | None, hidden: int | None) -> "Trainer":
        """The trainer of `TrainStep.part`, to embed with the weights that `cut` gives."""
        if (layers, hidden) not in self._parts:
            self._parts[layers, hidden] = Trainer(self.program.part(layers, hidden), self.config)
        return self._parts[layers, hidden]

    def embed(self, model: Weights, examples: Examples, batch_size: int) -> np.ndarray:
        """Embed all examples with one member; each process embeds a share of the batches and gets all embeddings.

        Returns:
            float32 [n, D], in the order of the examples.
        """
        z, positions = [np.empty((0, self.program.width), np.float32)], [np.empty(0, np.int64)]
        model = jax.device_put(processes.on_host(model), jax.local_devices()[0])
        share = (processes.rank(), processes.count())
        with progress(len(examples), "embed", "example", leave=False) as bar:
            for rows, batch, valid in batches.slices(examples, batch_size, tokens_at_once(), share):
                del batch["label"]
                z.append(np.asarray(self._embed(model, batch))[valid])
                positions.append(rows)
                bar.update(len(rows) * share[1])
        return processes.gather_rows(np.concatenate(z), np.concatenate(positions), len(examples))

    def accuracy(
        self,
        model: Weights,
        examples: AnyExamples | NamedExamples,
        batch_size: int,
        members: int | None,
        settings: Mapping[str, Any] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and mean loss over a split of one source, shaped as of `TrainStep.score`, [members, …] for several;
        `settings` are of the rows."""
        layout = self.layout(members)
        own = layout.on_devices(dict(settings or {}), layout.state)
        right: Any = 0
        lost: Any = 0
        for _, batch, valid in batches.slices(examples, batch_size):
            scores = layout.score(model, *layout.on_devices([batch, valid], layout.shared), own)
            hits, losses = processes.on_host(scores)
            right, lost = right + hits, lost + losses.astype(np.float64)
        return right / len(examples), lost / len(examples)
