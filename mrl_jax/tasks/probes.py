"""Probes: further examples that a trained model is only evaluated on. Unknown inputs, and damaged test inputs.

They are added to a data set as it was read, before prompts: damage spares the prompt.
"""

from dataclasses import replace

import numpy as np

from mrl_jax import config as configuration
from mrl_jax.config import Config
from mrl_jax.data import Dataset, MixedDataset, Split
from mrl_jax.data.base import take
from mrl_jax.data.cuts import first_rows
from mrl_jax.data.mixture import AnyDataset
from mrl_jax.data.readers.texts import Inputs
from mrl_jax.evaluate import parts
from mrl_jax.evaluate.corrupt import CORRUPTIONS, corrupt
from mrl_jax.system import console
from mrl_jax.system.errors import UserError, within


def add(config: Config, dataset: AnyDataset) -> AnyDataset:
    """The data set with the probes that `evaluation` asks for. Says how many classes are too small for few_shot.

    Raises:
        UserError: what is asked for does not suit the data, or a file cannot be read.
    """
    if isinstance(dataset, MixedDataset):
        of = configuration.parts(config)
        added = {}
        for name, part in dataset.parts.items():
            with within(f"data.sources.{name}"):
                added[name] = add(of[name], part)
        return replace(dataset, parts=added)
    if not isinstance(dataset, Dataset):
        return dataset
    settings = config.evaluation
    if settings.superclass is not None:
        parts.superclasses(settings.superclass, dataset.classes)
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.classes))
    for examples in dict.fromkeys(settings.few_shot or ()):
        if short := int((counts < examples).sum()):
            console.say(
                f"evaluation.few_shot={examples}: {short} of {len(counts)} classes have fewer training examples, and "
                "give all they have"
            )
    probes = dict(dataset.probes)
    if settings.unknown is not None:
        if probes:
            raise UserError("evaluation.unknown and data.hold_out both say what is unknown; give one of them")
        probes["unknown"] = _unknown(settings.unknown, config.data.limit, dataset)
    return replace(dataset, probes=probes | _damaged(settings.corruption or (), dataset))


def _unknown(name: str, limit: int | None, dataset: Dataset) -> Split:
    """The inputs in a file."""
    if dataset.kind == "image":
        raise UserError(f"evaluation.unknown={name} is not for images; leave classes out instead: data.hold_out=[…]")
    rows = Inputs("evaluation.unknown", name, dataset.kind).rest()
    inputs = rows if isinstance(rows, np.ndarray) else list(rows)
    if isinstance(inputs, np.ndarray) and inputs.shape[1] != (width := dataset.test.inputs.shape[1]):  # type: ignore[union-attr]
        raise UserError(f"evaluation.unknown={name} has vectors of {inputs.shape[1]} numbers, the data of {width}")
    if not len(inputs):
        raise UserError(f"evaluation.unknown={name} is empty")
    if limit is not None and limit < len(inputs):
        inputs = take(inputs, first_rows(len(inputs), limit))
    return Split(inputs, np.zeros(len(inputs), np.int32))


def _damaged(names: tuple[str, ...], dataset: Dataset) -> dict[str, Split]:
    """The test split damaged in each way at each strength, by name and strength."""
    for name in names:
        if CORRUPTIONS[name].kind != dataset.kind:
            fitting = [other for other, entry in CORRUPTIONS.items() if entry.kind == dataset.kind]
            remedy = f"use {', '.join(fitting)}" if fitting else "leave it out"
            raise UserError(
                f"evaluation.corruption={name} is not for data={dataset.name}, whose kind is {dataset.kind}; {remedy}"
            )
        if not isinstance(dataset.test.inputs, list | np.ndarray):
            raise UserError(
                f"evaluation.corruption={name} reads the test split into memory, and data={dataset.name} streams it"
            )
    copies = [(name, strength) for name in names for strength in range(1, len(CORRUPTIONS[name].strengths) + 1)]
    damaged = {}
    with console.progress(len(copies), "damage the test split", "copy", leave=False, shown=bool(copies)) as bar:
        for name, strength in copies:
            inputs = corrupt(name, dataset.test.inputs, strength)  # type: ignore[arg-type]
            damaged[f"{name}{strength}"] = replace(dataset.test, inputs=inputs)
            bar.update()
    return damaged
