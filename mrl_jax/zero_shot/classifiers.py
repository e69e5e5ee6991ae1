"""The classifiers of a run on other labelled examples of its classes, at every dim: `--classifier`.

    python -m mrl_jax.evaluate results/imagenet_rn50/latest --classifier --on imagenet-r tfds:imagenet_a

Classes are matched by name. A test set may have some of the run's classes only, as ImageNet-R and -A have 200 of 1,000:
the logits of the others are left out, which is the convention for these sets (Hendrycks et al. 2020, arXiv:2006.16241,
and 2019, arXiv:1907.07174). Where all folders are numbers and no class has such a name, as in ImageNet-V2 (Recht et al.
2019, arXiv:1902.10811), a number counts the classes of the run from 0, in the order of their names.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax import config as configuration
from mrl_jax import evaluate, model, report, runs
from mrl_jax.config import Config
from mrl_jax.data import DataConfig
from mrl_jax.data.readers import tfds as builders
from mrl_jax.data.readers.decoders import Decoders, of_workers
from mrl_jax.data.readers.images import StoredImages
from mrl_jax.data.sources import files as texts
from mrl_jax.data.sources import images as folders
from mrl_jax.encoders.image_rules import BILINEAR, ImageRule
from mrl_jax.evaluate import EvaluationConfig, Score
from mrl_jax.evaluate.classification import Classifiers
from mrl_jax.losses import heads
from mrl_jax.model import EmbeddingModel
from mrl_jax.system import console, files
from mrl_jax.system.errors import UserError, nearest
from mrl_jax.system.files import path_of
from mrl_jax.tasks.base import write_scores

KEY, CATALOGUE = "--on", "tfds:"


@dataclass(frozen=True)
class LabelledSet:
    """Labelled examples of a test set."""

    given: str  # as the command names it
    name: str  # of the folder of its results
    inputs: Any  # images on disk, or a list of texts
    names: Sequence[str]  # of the class of each example


@dataclass(frozen=True)
class Matched:
    """The classes of a test set among those of a run."""

    present: np.ndarray  # int [P], ascending: numbers of the run's classes that the test set has
    labels: np.ndarray  # int32 [n], into `present`

    def classifiers(self, own: Classifiers) -> Classifiers:
        """Without the other classes, whose logits are left out."""
        return {dim: (kernel[:, self.present], bias[self.present]) for dim, (kernel, bias) in own.items()}


class Records:
    """The images of a split of TFDS, as `images.ImageFiles`."""

    def __init__(self, records: builders.Records, name: str) -> None:
        self.records, self.given = records, name

    def __len__(self) -> int:
        return len(self.records)

    def read(self, row: int) -> bytes:
        return self.records.inputs([row], "image")[0]

    def name(self, row: int) -> str:
        return f"{self.given}, image {row} (from 0)"


def evaluate_all(
    models: Sequence[str],
    on: Sequence[str],
    dims: Sequence[int] | None,
    arm: str | None,
    seed: int,
    out: str,
    cache_dir: str | None,
    workers: int | None,
) -> None:
    """Score the classifiers of every run on every test set; writes a folder as of a run for each, and prints it."""
    for given in models:
        directory = runs.find(given)
        config, loaded = configuration.from_yaml(directory / "config.yaml"), model.load(directory, arm, seed)
        description = runs.read_dataset(directory)
        own = classifiers(loaded, dims)  # before anything is read that takes time
        trained = {one.label: one for one in config.population}
        label = arm or next(iter(trained))
        for name in on:
            test = read(name, description["kind"], cache_dir, workers)
            matched = match(test, loaded.classes)
            with console.stage(f"evaluating {given} on {test.name}"):
                z = loaded.embed(prepared(test, loaded))
                scores = list(evaluate.linear(z, matched.labels, matched.classifiers(own)))
            shown = _configuration(config, trained[label].name, test, f"{directory} {label}", sorted(own), out)
            place = runs.claim(dataclasses.replace(shown, run=_free(shown, directory, arm, seed)))
            write(place, shown, test, matched, loaded.classes, description, seed, scores)
            count = f"{len(matched.present):,} of {len(loaded.classes):,} classes"
            print(f"{given} on {test.name}: {len(test.names):,} examples, {count}")
            print(report.table(place))
            console.say(f"{place}: evaluation.csv, predictions")


def classifiers(loaded: EmbeddingModel, dims: Sequence[int] | None) -> Classifiers:
    """The run's classifiers, at these dims. Raises `UserError` for a dim that has none."""
    if dims and not heads.IS_TIED[loaded.head] and (other := [dim for dim in dims if dim not in loaded.dims]):
        allowed = ", ".join(map(str, loaded.dims))
        raise UserError(f"--dims={other[0]} has no classifier; allowed: {allowed}")
    if dims and max(dims) > loaded.dims[-1]:
        raise UserError(f"--dims={max(dims)} is more than the model has: {loaded.dims[-1]}")
    return loaded.classifiers(dims)


def read(given: str, kind: str, cache_dir: str | None, workers: int | None) -> LabelledSet:
    """The labelled examples that a word of the command means: a folder of a folder of images for each class, Parquet
    files of images, `tfds:NAME`, or for a model of texts a file of texts with labels. Raises `UserError`."""
    if kind == "text":
        rows = texts.rows(KEY, given)
        return LabelledSet(given, Path(given).stem, [row.text for row in rows], [row.label for row in rows])
    if kind != "image":
        raise UserError(f"--classifier is for runs on images or texts; this one is on {kind}")
    decoders = of_workers(workers)
    if given.startswith(CATALOGUE):
        return of_catalogue(given, cache_dir, decoders)
    found = folders.find(KEY, given, cache_dir)
    images = StoredImages(found.files, found.rows, True, decoders=decoders)
    return LabelledSet(
        given, path_of(KEY, given).resolve().stem, images, [found.labels[row] for row in found.rows.tolist()]
    )


def of_catalogue(given: str, cache_dir: str | None, decoders: Decoders | None) -> LabelledSet:
    """The test split of a data set of the TFDS catalogue, or its validation split."""
    from mrl_jax.data.sources import tfds as catalogue

    name = given.removeprefix(CATALOGUE)
    if not name:
        raise UserError(f"{KEY}={given} has no name behind the colon; expected one such as tfds:imagenet_r")
    try:
        builder = catalogue.prepare(name, cache_dir)
        key, kind = catalogue.input_feature(builder, name)
    except UserError as error:  # which names the key of a run's data
        raise UserError(str(error).replace(f"data.name={name}", f"{KEY}={given}", 1)) from error
    if kind != "image" or key != "image":
        raise UserError(f"{KEY}={given} has no images")
    split = next((split for split in ("test", "validation") if catalogue.has_labels(builder, split)), None)
    if split is None:
        raise UserError(
            f"{KEY}={given} has no labelled test or validation; its splits are {', '.join(builder.info.splits)}"
        )
    records = builders.Records(builder, split)
    labels = builders.cached_labels(records, builder, split, cache_dir)
    classes = builder.info.features["label"].names
    images = StoredImages(Records(records, given), np.arange(len(records)), True, decoders=decoders)
    return LabelledSet(given, name.replace("/", "_"), images, [classes[label] for label in labels.tolist()])


def match(test: LabelledSet, classes: Sequence[str]) -> Matched:
    """The classes of a test set by their names, or by their numbers where no class has such a name.

    Raises `UserError` for a class that the run does not have.
    """
    index = {name: number for number, name in enumerate(classes)}
    found = sorted(set(test.names))
    if not index.keys() & set(found):
        if not all(name.isascii() and name.isdigit() and int(name) < len(classes) for name in found):
            some = f"{found[0]!r}{nearest(found[0], index)}"
            raise UserError(f"{KEY}={test.given} and the run have no class in common; {some} is none of the run's")
        console.say(f"{KEY}={test.given}: its classes are numbers, which count those of the run by their names, from 0")
        index = {name: index[sorted(classes)[int(name)]] for name in found}
    if unknown := [name for name in found if name not in index]:
        raise UserError(
            f"{KEY}={test.given} has the class {unknown[0]!r}, which is none of the run's {len(classes):,}"
            f"{nearest(unknown[0], index)}; of its {len(found):,} classes {len(unknown):,} are unknown"
        )
    labels, present = np.array([index[name] for name in test.names]), np.unique([index[name] for name in found])
    return Matched(present, np.searchsorted(present, labels).astype(np.int32))


def prepared(test: LabelledSet, loaded: EmbeddingModel) -> Any:
    """The inputs as the model reads them: of runs that do not say how images are prepared, scaled to cover its size."""
    if not isinstance(test.inputs, StoredImages) or isinstance(loaded.reader, ImageRule):
        return test.inputs
    height, width, channels = loaded.program.inputs["image"]
    rule = ImageRule("cover", (height, width), (height, width), BILINEAR, channels)
    return test.inputs.prepared(rule)


def write(
    place: Path,
    config: Config,
    test: LabelledSet,
    matched: Matched,
    classes: Sequence[str],
    description: Mapping[str, Any],
    seed: int,
    scores: Sequence[Score],
) -> None:
    """Write dataset.json, predictions and evaluation.csv. Predictions count the classes that dataset.json lists, which
    are those of the test set."""
    digest = hashlib.sha256(json.dumps([list(test.names), test.given]).encode()).hexdigest()
    own = {
        "name": test.name,
        "classes": [classes[number] for number in matched.present],
        "examples": {"train": 0, "test": len(test.names)},
        "fingerprint": {"test": digest},
        "zero_shot": True,  # no run that resume=true continues, nor a model
    }
    content = {key: description[key] for key in ("kind", "inputs", "encoder", "vocabulary", "prompts")} | own
    files.write(place / "dataset.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    labels = {"validation": np.zeros(0, np.int32), "test": matched.labels}
    arm = config.arms[0]
    rows = write_scores(config, place, arm, f"{arm}-seed{seed}", seed, labels, (("test", one) for one in scores))
    runs.write_rows(place / "evaluation.csv", rows)


def _configuration(config: Config, arm: str, test: LabelledSet, source: str, dims: Sequence[int], out: str) -> Config:
    """The configuration that stands for an evaluation, see `scores.configuration`."""
    return dataclasses.replace(
        config,
        data=DataConfig("images", test=test.given, train=source),
        name=test.name,
        nesting_dims=tuple(dims),
        width=max(dims),
        arms=(arm,),
        seeds=1,
        evaluation=EvaluationConfig(interpolated=False, neighbours=False, refit=None),
        results_dir=out,
    )


def _free(config: Config, directory: Path, arm: str | None, seed: int) -> str:
    """A name that no folder of results has."""
    name = f"{directory.parent.name}_{directory.name}" + (f"-{arm}" if arm else "") + (f"-seed{seed}" if seed else "")
    candidates = (name if n == 1 else f"{name}-{n}" for n in range(1, 1000))
    return next(each for each in candidates if not (Path(config.results_dir) / config.name / each).exists())
