"""Files of vectors that another program made of the texts of a collection."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mrl_jax.data.readers.arrays import check_labels
from mrl_jax.system.errors import UserError
from mrl_jax.zero_shot.collections import Side


def check_ids(path: Path, ids: np.ndarray, name: str, count: int) -> list[str]:
    """The ids of `count` vectors as strings, none twice. Raises `UserError`."""
    if ids.dtype.kind == "S":
        try:
            ids = np.char.decode(ids, "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: {name} are bytes that are not UTF-8 ({error.reason})") from None
    names = check_labels(path, ids, count, name)
    if twice := [one for one, times in Counter(names).items() if times > 1]:
        raise UserError(f"{path}: {name} repeat {len(twice):,} of the ids, such as {twice[0]}; each may stand once")
    return names


def of_vectors(
    path: Path, vectors: Mapping[str, np.ndarray], ids_of: Mapping[str, Sequence[str]], side: Side
) -> np.ndarray:
    """The rows of a file of vectors for one side of a collection, by their ids where it has these.

    Raises:
        UserError: the file has no vectors of this side, or they do not fit.
    """
    z, ids = vectors.get(side.name), ids_of.get(side.name)
    if z is None:
        raise UserError(f"{path} has no array {side.name}; needed are {side.name} and {side.name}_ids")
    if ids is None and len(z) == len(side.ids):
        return z
    if ids is None:
        raise UserError(
            f"{path}: {side.name} has {len(z):,} rows and the collection {len(side.ids):,}, and there is no "
            f"{side.name}_ids; give the id of each row"
        )
    row_of = {name: row for row, name in enumerate(ids)}
    missing = [name for name in side.ids if name not in row_of]
    if missing:
        raise UserError(f"{path}: {side.name}_ids lacks {len(missing):,} ids of the collection, such as {missing[0]}")
    return z[[row_of[name] for name in side.ids]]
