"""The placement of members and batches on the devices, and the functions compiled for it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mrl_jax.training.mixture import AnyExamples
from mrl_jax.training.step import TrainStep, Weights


class Best(NamedTuple):
    """The best model so far, by validation accuracy averaged over an arm's granularities."""

    model: Weights
    accuracy: Any  # [] or [members]; with ties broken, [2] or [members, 2]: the accuracy, and minus the loss
    step: Any  # [] or [members]


class Layout(NamedTuple):
    """The placement of members and batches on the devices of all processes, and the functions compiled for it.

    Members trained together are sharded over as many devices as divide their number (axis `arms`), and the examples of
    a batch over the remaining factor (axis `data`). For a single member, the examples are sharded over all devices.
    """

    members: int | None
    state: NamedSharding  # of a state, a model, loss weights: [members, …], or replicated
    batch: NamedSharding  # [members, B, …], or [B, …]
    shared: NamedSharding  # [B, …]: the same examples for all members
    step: Any
    score: Any
    keep: Any

    @classmethod
    def of(cls, program: TrainStep, members: int | None) -> "Layout":
        devices = jax.device_count()
        arms = math.gcd(members or 1, devices)
        mesh = jax.make_mesh((arms, devices // arms), ("arms", "data"), axis_types=(AxisType.Auto,) * 2)

        def over(*axes: str) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]

        step: Any = program.step
        score: Any = program.score
        state, batch = over(), over("data")
        if members is not None:
            step, score = jax.vmap(step), jax.vmap(score, in_axes=(0, None, None, 0))
            state, batch = over("arms"), over("arms", "data")
        return cls(
            members,
            state,
            batch,
            over("data"),
            step=jax.jit(step, donate_argnums=0, out_shardings=(state, state)),
            score=jax.jit(score, out_shardings=(state, state)),
            keep=jax.jit(_keep_better, donate_argnums=1, out_shardings=state),
        )

    def on_devices(self, tree: Any, sharding: NamedSharding) -> Any:
        """Place arrays that every process has as a whole, each device receiving its part."""
        return jax.tree.map(lambda x: _place(x, sharding), tree)

    def read(
        self, examples: AnyExamples, rows: np.ndarray, length: int | None, sharding: NamedSharding
    ) -> dict[str, Any]:
        """The batch of `rows` [B] or [members, B]; every process reads only the part that its own devices hold."""
        blocks: dict[tuple[Any, ...], dict[str, np.ndarray]] = {}
        parts: dict[str, list[jax.Array]] = {}
        for device, index in sharding.addressable_devices_indices_map(rows.shape).items():
            part = rows[index]
            block = tuple((cut.start, cut.stop) for cut in index or ())  # several devices may hold the same one
            if block not in blocks:
                blocks[block] = examples.take(part, length) if rows.ndim == 1 else examples.stack(list(part), length)
            for name, array in blocks[block].items():
                parts.setdefault(name, []).append(jax.device_put(array, device))
        shapes = {name: (*rows.shape, *arrays[0].shape[rows.ndim :]) for name, arrays in parts.items()}
        return {
            name: jax.make_array_from_single_device_arrays(shapes[name], sharding, arrays)
            for name, arrays in parts.items()
        }


def _place(x: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _keep_better(new: Best, best: Best) -> Best:
    """The better of two models of each member: the former best unless the new one is ahead."""
    better = new.accuracy > best.accuracy
    if better.ndim > best.step.ndim:
        tie = new.accuracy[..., 0] == best.accuracy[..., 0]
        better = better[..., 0] | (tie & better[..., 1])

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - better.ndim)), new, old)

    result: Best = jax.tree.map(keep, new, best)
    return result
