"""Tiles of rows: the losses of a batch's Gram matrices work through them, so that no whole matrix is held."""

from typing import Any

import jax
import jax.numpy as jnp

TILE_ROWS = 128  # per tile: K tiles of `TILE_ROWS × N` float32 should fit in the cache


def pad(arrays: Any, tile: int) -> Any:
    """[B, …] → [B', …] in whole tiles, filled up with zeros."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, -len(x) % tile), *((0, 0),) * (x.ndim - 1))), arrays)


def split(arrays: Any, tile: int) -> Any:
    """[B, …] → [B / tile, tile, …]. Tile t holds the rows t, t + B / tile, …, so that each tile of a batch that is
    sharded over devices is sharded too."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(tile, -1, *x.shape[1:]), 0, 1), arrays)


def join(tiles: jax.Array) -> jax.Array:
    """The inverse of `split`."""
    return jnp.swapaxes(tiles, 0, 1).reshape(-1, *tiles.shape[2:])
