"""A user's own texts without labels, for losses that need none: the column `text` of JSONL, CSV, TSV or Parquet files,
or the lines of .txt files. Texts without any character that is seen are left out.

    {"text": "the goalie stopped 31 shots"}

Without `data.test`, as many texts as for validation are held out to test on. Files that exceed memory stay on disk
(`data.streaming`).
"""

from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax.data.base import DataConfig, Split, StreamedTexts, cut_validation
from mrl_jax.data.readers.records import is_streamed
from mrl_jax.data.readers.texts import Inputs
from mrl_jax.data.unlabelled import TextDataset, UnlabelledSplit
from mrl_jax.system import console
from mrl_jax.system.errors import UserError


def read(config: DataConfig) -> TextDataset:
    """Read `data.train` and, if given, `data.test` and `data.validation` (else that split is empty).

    Raises `UserError` for a file that is missing, damaged or empty.
    """
    if config.train is None:
        raise UserError("data=texts needs data.train, a .jsonl, .csv, .tsv, .parquet or .txt file of texts")
    if not (config.test or config.validation_fraction):
        raise UserError(
            "data=texts without data.test holds out data.validation_fraction of the texts to test on, which is 0; give "
            "a file, or a fraction above 0"
        )
    train: Split = part("data.train", config.train, is_streamed(config))
    none = UnlabelledSplit([], np.zeros(0, np.int32))
    given: dict[str, Split] = {
        name: part(f"data.{name}", file, streamed=False) if file else none
        for name, file in (("test", config.test), ("validation", config.validation))
    }
    if not config.test:
        train, given["test"] = cut_validation(train, none, config)
    return TextDataset(Path(config.train).stem, "text", (), train, given["validation"], given["test"])


def part(key: str, name: str, streamed: bool) -> UnlabelledSplit:
    """The texts of a file, streamed or not, without those that have no character that is seen."""
    inputs = Inputs(key, name, "text")
    assert inputs.total is not None
    if inputs.empty == inputs.total:
        raise UserError(f"{key}={name} has no text: all {inputs.total:,} rows are empty")
    texts: Any = StreamedTexts(inputs.texts, inputs.total, str(inputs.digest))
    if inputs.empty:
        texts = texts.subset(np.flatnonzero(np.fromiter((bool(text.strip()) for text in inputs.texts()), bool)))
        console.say(f"{key}={name}: {inputs.total - len(texts):,} of {inputs.total:,} rows are empty and are left out")
    return UnlabelledSplit(texts if streamed else list(texts), np.zeros(len(texts), np.int32))
