"""How members and the examples of a batch lie on the devices, and the functions that are compiled for that."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mrl_jax.training.batches import Examples, PairExamples
from mrl_jax.training.step import TrainStep, Weights


class Best(NamedTuple):
    """The best moment so far, by validation accuracy averaged over an arm's granularities."""

    model: Weights
    accuracy: Any  # [] or [members]
    step: Any


class Layout(NamedTuple):
    """How members and the examples of a batch lie on the devices of all processes, and the functions compiled for it.

    Together, members are spread over the devices as far as their number divides evenly (axis `arms`), and the examples
    of a batch over the rest (axis `data`). One alone has its examples spread over all.
    """

    members: int | None
    state: NamedSharding  # of a state, its model, an arm's row: [members, …], or whole everywhere
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
            step, score = jax.vmap(step), jax.vmap(score, in_axes=(0, None, None))
            state, batch = over("arms"), over("arms", "data")
        return cls(
            members,
            state,
            batch,
            over("data"),
            step=jax.jit(step, donate_argnums=0, out_shardings=(state, state)),
            score=jax.jit(score, out_shardings=(state, state)),
            keep=jax.jit(_better, donate_argnums=1, out_shardings=state),
        )

    def on_devices(self, tree: Any, sharding: NamedSharding) -> Any:
        """Arrays that every process has whole, each device with its part."""
        return jax.tree.map(lambda x: _placed(x, sharding), tree)

    def read(
        self, examples: Examples | PairExamples, rows: np.ndarray, length: int | None, sharding: NamedSharding
    ) -> dict[str, Any]:
        """The batch of `rows` [B] or [members, B]; every process reads only what its own devices hold of it."""
        blocks: dict[tuple[Any, ...], dict[str, np.ndarray]] = {}
        parts: dict[str, list[jax.Array]] = {}
        for device, index in sharding.addressable_devices_indices_map(rows.shape).items():
            wanted = rows[index]
            place = tuple((cut.start, cut.stop) for cut in index or ())
            if place not in blocks:
                blocks[place] = (
                    examples.take(wanted, length) if rows.ndim == 1 else examples.stacked(list(wanted), length)
                )
            for name, array in blocks[place].items():
                parts.setdefault(name, []).append(jax.device_put(array, device))
        shapes = {name: (*rows.shape, *arrays[0].shape[rows.ndim :]) for name, arrays in parts.items()}
        return {
            name: jax.make_array_from_single_device_arrays(shapes[name], sharding, arrays)
            for name, arrays in parts.items()
        }


def _placed(x: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _better(new: Best, best: Best) -> Best:
    """The better of two moments, member by member."""
    better = new.accuracy > best.accuracy

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - better.ndim)), new, old)

    kept: Best = jax.tree.map(keep, new, best)
    return kept
