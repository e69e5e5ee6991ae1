"""Raw data as the arrays of a run, and dataset.json: what a model needs to be built again, and proof of what it saw."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mrl_jax import config as configuration
from mrl_jax import encoders, tasks
from mrl_jax.config import Config
from mrl_jax.data import MixedDataset, StreamedTexts
from mrl_jax.data.captioned import CaptionedImages
from mrl_jax.data.mixture import AnyDataset
from mrl_jax.data.prompts import ROLES, Prompts, put_before
from mrl_jax.losses import LOSSES
from mrl_jax.runs import read_dataset
from mrl_jax.system.console import say
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import frozen, teacher
from mrl_jax.tasks.base import Splits
from mrl_jax.tasks.mixture import splits_of
from mrl_jax.text.tokenizers import Preprocessor
from mrl_jax.training import disk_examples
from mrl_jax.training.batches import Examples
from mrl_jax.training.captioned import CaptionedExamples


class _Preprocess:
    """The reader of a run, with a count of the texts that it cuts, or knows nothing of. See `base.Preprocess`."""

    def __init__(self, reader: Preprocessor, config: Config) -> None:
        self.reader, self.config = reader, config
        self.cut = self.texts = 0
        self.unknown: dict[str, tuple[int, int]] = {}  # by name: texts without any known token, and all texts

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.reader.tokenizer

    def __call__(self, raw: Any, labels: np.ndarray, name: str) -> Examples:
        if isinstance(raw, CaptionedImages):
            return CaptionedExamples(
                *(self(part, np.zeros(len(part), np.int32), name) for part in (raw.texts, raw.images))
            )
        examples = self._count(Examples(self.reader(raw), labels), name, getattr(self.reader, "cut", 0))
        is_mixed = self.config.data.source == "mixture"
        return examples if is_mixed else frozen.embed_once(self.config, self.reader, examples, name)

    def on_disk(
        self, texts: StreamedTexts, labels: np.ndarray, name: str, columns: np.ndarray | None = None
    ) -> Examples:
        examples = disk_examples.examples(texts, labels, self.reader, self.config.data.cache_dir, name, columns)
        return self._count(examples, name, examples.cut)

    def _count(self, examples: Examples, name: str, cut: int) -> Examples:
        self.cut, self.texts = self.cut + cut, self.texts + (examples.lengths is not None and len(examples))
        if examples.lengths is not None:
            self.unknown[name] = int(np.count_nonzero(examples.lengths == 0)), len(examples)
        return examples


def put_prompts(config: Config, dataset: AnyDataset) -> AnyDataset:
    """The data set with the prompts of the run before its texts. Says which name of one looks like a typo."""
    if isinstance(dataset, MixedDataset):
        of = configuration.parts(config)
        return replace(dataset, parts={name: put_prompts(of[name], part) for name, part in dataset.parts.items()})
    prompts = encoders.prompts(config.encoder, config.data.prompts)
    for sentence in Prompts(config.data.prompts or {}).likely_typos():
        say(sentence)
    if LOSSES[config.loss.name].learns_from != "pairs" and any(prompts.of(role) != prompts.of() for role in ROLES):
        say("no text of the data is a query or a document, so the default prompt stands before all; others are for use")
    return put_before(dataset, prompts)


def read_splits(config: Config, dataset: AnyDataset, reader: Preprocessor, tell: Callable[[str], None] = say) -> Splits:
    """The three splits of a data set as arrays. Says how many texts are longer than the encoder reads, and how many
    hold nothing that it knows; raises `UserError` where that is most of the training or the validation texts, or a
    prompt leaves no room for a text."""
    for part in (configuration.parts(config) or {"": config}).values():
        encoders.prompts(config.encoder, part.data.prompts).check_room(reader.tokenizer)
    preprocess = _Preprocess(reader, config)
    splits = tasks.of(config).splits(config, dataset, preprocess)
    if preprocess.cut:
        longest = getattr(encoders.standalone(config.encoder, reader.vocabulary)[0], "max_length", None)
        tell(
            f"{preprocess.cut:,} of {preprocess.texts:,} texts are longer than encoder.max_length={longest} and are cut"
        )
    for name, (unknown, total) in preprocess.unknown.items():
        problem = (
            f"{unknown:,} of {total:,} {name} texts hold no word or token that encoder={config.encoder.name} knows"
        )
        if name.split()[-1] in ("train", "validation") and 2 * unknown > total:
            raise UserError(
                f"{problem}, so it would learn nothing; use encoder=transformer, which reads parts of words, or a bag "
                "of runs of characters: encoder.units=characters encoder.ngrams=5"
            )
        if unknown:
            tell(f"{problem}: nothing tells them apart")
    return splits


def describe(config: Config, dataset: AnyDataset, reader: Preprocessor, splits: Splits) -> dict[str, Any]:
    """The content of dataset.json; with several sources it holds that of each."""
    encoder, vocabulary = encoders.standalone(config.encoder, reader.vocabulary)
    others = {"weights": encoders.digest(config.encoder), **teacher.digests(config)}
    sources = {}
    if isinstance(dataset, MixedDataset):
        for name, part in configuration.parts(config).items():
            sources[name] = describe(part, dataset.parts[name], reader, splits_of(splits, name))
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        **tasks.of(config).describe(dataset, splits),
        "inputs": {name: list(array[:1].shape[1:]) for name, array in _first_rows(splits["train"].raw_inputs).items()},
        "encoder": dataclasses.asdict(encoder),
        "prompts": dict(encoders.prompts(config.encoder, config.data.prompts).texts),
        "vocabulary": vocabulary,
        "examples": {name: len(split) for name, split in splits.items()},
        "fingerprint": {name: fingerprint(split) for name, split in splits.items()},
        **{name: digest for name, digest in others.items() if digest},
        **({"sources": sources} if sources else {}),
    }


def to_json(description: dict[str, Any]) -> str:
    """As it stands in the file."""
    return json.dumps(description, indent=1, ensure_ascii=False) + "\n"


def refuse_other_data(directory: Path, description: dict[str, Any]) -> None:
    """Raise `UserError` where a run that is resumed was begun with other data."""
    if (directory / "dataset.json").exists():
        if changed := changed_keys(read_dataset(directory), description):
            known = {"weights": "pretrained weights are", "teacher": "teacher is", "guide": "guide is"}
            what = known.get(changed[0], "data is") if len(changed) == 1 else "data is"
            raise UserError(f"resume=true: the {what} no longer that of {directory}; restore it, or start a new run")
    elif (directory / "checkpoints").exists():
        raise UserError(f"resume=true: {directory} has checkpoints but no dataset.json to compare the data with")


def changed_keys(then: Mapping[str, Any], description: dict[str, Any]) -> list[str]:
    """The keys of an earlier dataset.json that are described otherwise now."""
    now = _with_keys_of(then, json.loads(to_json(description)))
    return [key for key in then if then[key] != now.get(key)]


def _with_keys_of(then: Mapping[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A description without the settings of encoders that an earlier version had not."""
    if isinstance(encoder := now.get("encoder"), dict):
        now["encoder"] = {key: value for key, value in encoder.items() if key in then["encoder"]}
    for name, part in now.get("sources", {}).items():
        if name in then.get("sources", {}):
            _with_keys_of(then["sources"][name], part)
    return now


def _first_rows(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array[np.arange(1)]) for name, array in arrays.items()}


def fingerprint(split: Any) -> str:
    """SHA-256 over all arrays of a split; of inputs that are read lazily only the first is looked at."""
    if (known := split.fingerprint) is not None:  # of the same arrays, made when they were written to disk
        return str(known)
    first, arrays = split.arrays()
    lazy = {name: array for name, array in arrays.items() if not isinstance(array, np.ndarray)}
    return disk_examples.digest_of(first, arrays | _first_rows(lazy)).hexdigest()
