"""Classes that a run leaves out of everything but a probe: their test examples are of no class that it knows."""

from dataclasses import replace

import numpy as np

from mrl_jax.data.base import Dataset, PairDataset, Split
from mrl_jax.data.config import DataConfig
from mrl_jax.data.mixture import MixedDataset
from mrl_jax.system.errors import UserError, one_of


def hold_out(dataset: Dataset | PairDataset | MixedDataset, config: DataConfig) -> Dataset | PairDataset | MixedDataset:
    """The data set without the classes in `data.hold_out`, whose test examples become the probe `unknown`.

    Raises:
        UserError: the data has no such class, no test example of them, or less than two others.
    """
    if not config.hold_out:
        return dataset
    names = [str(name) for name in config.hold_out]
    if isinstance(dataset, MixedDataset):
        raise UserError(f"data.hold_out={names} is not for data=mixture; write it as data.sources.NAME.hold_out")
    if not isinstance(dataset, Dataset):
        raise UserError(f"data.hold_out={names} names classes, and data={dataset.name} has pairs")
    for name in names:
        one_of("data.hold_out", name, dataset.classes)
    stays = ~np.isin(dataset.classes, names)
    if stays.sum() < 2:
        raise UserError(f"data.hold_out leaves {stays.sum()} of {len(stays)} classes; at least 2 have to stay")
    number = (np.cumsum(stays) - 1).astype(np.int32)  # of the classes that stay

    def part(split: Split, wanted: np.ndarray) -> Split:
        taken = split.take(np.flatnonzero(wanted[split.labels]))
        return replace(taken, labels=number[taken.labels])

    unknown = part(dataset.test, ~stays)
    if not len(unknown):
        raise UserError(f"data.hold_out={names}: the test split has no example of these classes")
    return replace(
        dataset,
        classes=tuple(name for name in dataset.classes if name not in names),
        train=part(dataset.train, stays),
        validation=part(dataset.validation, stays),
        test=part(dataset.test, stays),
        probes={"unknown": unknown},
    )
