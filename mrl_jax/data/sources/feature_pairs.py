"""A user's own pairs of vectors: `.npz` files with the arrays `anchors` and `positives`, both [n, d].

Optional are `scores` [n], or `negatives` [n, h, d], hard negatives of each anchor. A test file without scores means to
search among its distinct positives and negatives. `data.packed_bits` is as for features with labels.
"""

from pathlib import Path

import numpy as np

from mrl_jax.data.base import PairDataset, Pairs
from mrl_jax.data.config import DataConfig
from mrl_jax.data.pair_ops import build_pairs, ranking, separate_anchors
from mrl_jax.data.readers.arrays import check_features, check_scores, hint_packed, load_npz
from mrl_jax.data.readers.records import require_file
from mrl_jax.system.errors import UserError


def read(config: DataConfig) -> PairDataset:
    """Read train, test and, if given, validation (else it is empty).

    Raises `UserError` naming the file and what is wrong with its arrays.
    """
    for key in ("train_labels", "test_labels", "validation_labels"):
        if getattr(config, key) is not None:
            raise UserError(f"data.{key} is not used by data=features data.task=pairs: pairs have no labels")
    train = load_part("data.train", config.train, config.packed_bits)
    test = load_part("data.test", config.test, config.packed_bits)
    if config.validation is None:
        validation = Pairs(np.asarray(train.table)[:0], np.zeros((0, 2), np.int32))
    else:
        validation = load_part("data.validation", config.validation, config.packed_bits)
    width, *others = (np.asarray(part.table).shape[1] for part in (train, test, validation))
    for other, path in zip(others, (config.test, config.validation), strict=True):
        if other != width:
            raise UserError(f"{path} has vectors of width {other}, {config.train} of {width}")
    name = Path(config.train or "").stem
    parts = train, validation, ranking(test) if test.scores is None else test
    return separate_anchors(PairDataset(name, "features", *parts))


def load_part(key: str, name: str | None, packed: bool | None) -> Pairs:
    """Read and check the pairs of one file."""
    if name is None:
        raise UserError(f"data=features data.task=pairs needs {key}, a .npz file with anchors and positives")
    path = require_file(key, name, (".npz",))
    arrays = load_npz(path, ("anchors", "positives"), ("negatives", "scores"))
    anchors, positives = arrays["anchors"], arrays["positives"]
    negatives, scores = arrays.get("negatives"), arrays.get("scores")
    if key == "data.train":
        hint_packed(path, anchors, packed)
    columns = [check_features(path, anchors, "anchors", packed), check_features(path, positives, "positives", packed)]
    if columns[1].shape != columns[0].shape:
        raise UserError(f"{path}: positives have the shape {positives.shape}, expected {anchors.shape}, as anchors")
    if negatives is not None:
        if scores is not None:
            raise UserError(f"{path} has negatives and scores; a file holds one of them")
        columns += hard_negatives(path, negatives, anchors.shape, packed)
    return build_pairs(columns, None if scores is None else check_scores(path, scores, len(anchors)))


def hard_negatives(path: Path, negatives: np.ndarray, shape: tuple[int, ...], packed: bool | None) -> list[np.ndarray]:
    """The negatives [n, h, d] as h columns [n, d]."""
    if negatives.ndim != 3 or negatives.shape[::2] != shape:
        expected = f"[{shape[0]}, h, {shape[1]}]"
        raise UserError(f"{path}: negatives have the shape {negatives.shape}, expected {expected}")
    count = negatives.shape[1]
    return [check_features(path, negatives[:, column], "negatives", packed) for column in range(count)]
