"""Models to evaluate, as they are: a trained run, pretrained weights that nothing has tuned, or a file of vectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mrl_jax import config as configuration
from mrl_jax import encoders, model, runs
from mrl_jax.config import LossConfig
from mrl_jax.data.readers.arrays import check_features, load_npz
from mrl_jax.encoders import EncoderConfig
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.model import EmbeddingModel, vectors
from mrl_jax.model.pretrained import KNOWN, is_run, pretrained
from mrl_jax.nesting import log_spaced
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import need_file, path_of
from mrl_jax.zero_shot import embeddings
from mrl_jax.zero_shot.collections import SIDES, Collection, Side

UNTUNED = {"truncated": "untuned", "pca": "untuned_pca", "random_projection": "random_projection"}


class Embedder(Protocol):
    """What gives both sides of a collection their vectors."""

    def __call__(self, collection: Collection, side: Side) -> np.ndarray:
        """float32 [n, D]."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A model that is evaluated."""

    given: str  # as the command names it
    name: str  # of the folders of its results
    width: int
    dims: tuple[int, ...]  # at which it is scored by default
    arms: Mapping[str, str]  # compression → the arm that its scores stand under
    seed: int
    encoder: EncoderConfig
    loss: LossConfig
    source: str | None  # the run or the file that it comes from
    description: Mapping[str, Any]  # of the encoder, for dataset.json
    embed: Embedder


def find(name: str, arm: str | None = None, seed: int = 0, cache_dir: str | None = None) -> Candidate:
    """The model that a word of the command means; `arm` and `seed` choose one of a run. Raises `UserError`."""
    path = path_of("MODEL", name)
    if path.suffix.lower() == ".npz":
        return of_vectors(name, path)
    return of_run(name, path, arm, seed, cache_dir) if is_run(name) else of_weights(name, path, cache_dir)


def of_run(given: str, path: Path, arm: str | None, seed: int, cache_dir: str | None) -> Candidate:
    """A member of a trained run."""
    directory = runs.find(path)
    config, loaded = configuration.from_yaml(directory / "config.yaml"), model.load(directory, arm, seed)
    description = runs.read_dataset(directory)
    if description["kind"] != "text":
        raise UserError(f"{given} is a model of {description['kind']}; a collection has texts")
    trained = {one.label: one for one in config.population}
    label = arm or next(iter(trained))
    fixed, width = trained[label].width is not None, loaded.dims[-1]
    own = "truncated" if fixed else trained[label].name  # no prefix of a fixed-size model has been trained
    return Candidate(
        given,
        f"{directory.parent.name}_{directory.name}" + (f"-{label}" if arm else "") + (f"-seed{seed}" if seed else ""),
        width,
        log_spaced(width) if fixed else loaded.dims,
        {"truncated": own, "pca": "pca", "random_projection": "random_projection"},
        seed,
        config.encoder,
        LossConfig(name=config.loss.name),
        f"{directory} {label}",  # by which reports tell the arms of a run apart; its seeds are pooled
        {key: description[key] for key in ("inputs", "encoder", "prompts", "vocabulary")},
        _embedder(loaded, given, cache_dir),
    )


def of_weights(given: str, path: Path, cache_dir: str | None) -> Candidate:
    """The pretrained weights of a folder, or those that have a name."""
    loaded = pretrained(given)
    program = loaded.program
    settings, vocabulary = encoders.standalone(program.encoder, program.vocabulary)
    return Candidate(
        given,
        given if given in KNOWN else (path.resolve().name if path.is_dir() else given.replace("/", "_")),
        program.width,
        log_spaced(program.width),
        UNTUNED,
        0,
        program.encoder,
        LossConfig(name="info_nce"),
        None,
        {
            "inputs": {key: list(shape) for key, shape in program.inputs.items()},
            "encoder": vars(settings),
            "prompts": dict(loaded.prompts.texts),
            "vocabulary": vocabulary,
        },
        _embedder(loaded, given, cache_dir),
    )


def _embedder(loaded: EmbeddingModel, given: str, cache_dir: str | None) -> Embedder:
    def embed(collection: Collection, side: Side) -> np.ndarray:
        what = f"{given} on {collection.name}: {len(side.texts):,} {side.name}"
        return vectors.embed(loaded, side.texts, side.role, what, cache_dir)

    return embed


def of_vectors(given: str, path: Path) -> Candidate:
    """A file of vectors that another program made of one collection."""
    need_file(given, path)
    arrays = load_npz(path, (), (*SIDES, *(f"{side}_ids" for side in SIDES)))
    stored = {key: check_features(path, array, key) for key, array in arrays.items() if key in SIDES}
    ids = {key: embeddings.check_ids(path, arrays[f"{key}_ids"], f"{key}_ids", len(z))
           for key, z in stored.items() if f"{key}_ids" in arrays}  # fmt: skip
    if not stored:
        raise UserError(f"{given} has none of the arrays {', '.join(SIDES)}")
    widths = {z.shape[1] for z in stored.values()}
    if len(widths) != 1:
        raise UserError(f"{given} has vectors of widths {', '.join(map(str, sorted(widths)))}; they need one width")
    width = widths.pop()

    def embed(collection: Collection, side: Side) -> np.ndarray:
        return embeddings.of_vectors(path, stored, ids, side)

    description = {"inputs": {"features": [width]}, "encoder": vars(MLPConfig()), "prompts": {}, "vocabulary": 0}
    source, loss = str(path.resolve()), LossConfig(name="info_nce")
    return Candidate(
        given, path.stem, width, log_spaced(width), UNTUNED, 0, MLPConfig(), loss, source, description, embed
    )
