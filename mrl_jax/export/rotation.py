"""A trained model rotated, so that its prefixes are the principal directions of what it embeds.

    z ↦ z R,   R the eigenvectors of Σ z zᵀ over training embeddings of unit length, those of most energy first

The rotation is a part of the last layer, of two towers of that of both. Inner products and cosines at full width stay
as they are; of all rotations this one keeps most of them in a prefix, so that a shortlist by the prefix loses least
(see `evaluate/compress.py`). What the prefixes had learnt is given up: the classifier of every prefix becomes that of
the full width, rotated and cut.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax import config as configuration
from mrl_jax import data, runs
from mrl_jax.data import MixedDataset, Pairs
from mrl_jax.data.captioned import CaptionedImages
from mrl_jax.data.inputs import take
from mrl_jax.encoders import ENCODERS
from mrl_jax.evaluate import compress
from mrl_jax.losses import heads
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError

MAX_FIT_ROWS = 16_384  # training examples whose embeddings the directions are computed from


def rotate(model: EmbeddingModel, z: np.ndarray) -> EmbeddingModel:
    """The model whose prefixes are principal directions.

    Args:
        model: trained at its full width.
        z: embeddings float32 [n, D] of what is to be found, such as `model.encode(texts)`.

    Raises:
        UserError: the full width was not trained, or no layer of the encoder can be rotated.
        ValueError: there are no embeddings, or they are of another width.
    """
    program, params = model.program, model.weights.params
    if z.ndim != 2 or not len(z) or z.shape[1] != program.width:
        raise ValueError(f"embeddings must be [n, {program.width}], n at least 1; got shape {z.shape}")
    if max(model.dims) < program.width:
        raise UserError(f"--rotate needs a model that is trained at its full width; this one ends at {max(model.dims)}")
    rotation = compress.fit("rotated", z, 0).matrix.astype(np.float64)
    turned = ENCODERS[program.encoder.name].rotate(program.encoder, params["encoder"], rotation)
    if turned is None:
        raise UserError(
            f"--rotate is not allowed with this encoder={program.encoder.name}: its embedding is pooled, and no linear "
            "layer follows that a rotation could be a part of"
        )
    encoder, parameters = turned
    params = {**params, "encoder": parameters}
    if "heads" in params:
        params["heads"] = {
            kind: _rotate_head(head, kind, program.dims, rotation) for kind, head in params["heads"].items()
        }
    return EmbeddingModel(
        dataclasses.replace(program, encoder=encoder),
        model.weights._replace(params=params),
        model.reader,
        model.dims,
        model.head,
        model.classes,
        None,  # prefixes are others than those that were calibrated
        model.prompts,
    )


def _rotate_head(head: heads.Head, kind: str, dims: Sequence[int], rotation: np.ndarray) -> heads.Head:
    """The classifier of the full width, rotated; that of a prefix is its part."""
    kernel, bias = heads.classifiers(head, kind, dims, dims)[dims[-1]]
    rows = np.asarray(rotation.T @ np.asarray(kernel, np.float64), np.float32)
    if heads.IS_TIED[kind]:
        return {**head, "kernel": np.split(rows, dims[:-1])}
    return {**head, "kernel": [rows[:m] for m in dims], "bias": [bias for _ in dims]}


def training_embeddings(run: str | Path, model: EmbeddingModel) -> np.ndarray:
    """Embeddings [n, D] of what a run was trained on: of pairs the documents; of captions and pictures both, as one
    rotation is for both towers. Raises `UserError` where the data cannot be read."""
    config = configuration.from_yaml(runs.find(run) / "config.yaml")
    dataset = data.load(config.data)
    if isinstance(dataset, MixedDataset):
        raise UserError(f"--rotate is not for {run}, which was trained on several sources (data=mixture)")
    split: Any = dataset.train
    if isinstance(split, Pairs) and isinstance(split.table, CaptionedImages):
        return _of_pictures(split, model)
    if isinstance(split, Pairs):
        answers = split.columns if split.scores is not None else split.columns[:, 1:]
        inputs, rows = split.table, np.unique(answers)
    else:
        inputs, rows = split.inputs, np.arange(len(split))
    rows = rows[:: -(-len(rows) // MAX_FIT_ROWS)]
    searched = isinstance(split, Pairs) and split.scores is None  # of scored pairs no text is a document
    prompt = "document" if searched and model.prompts.texts else None
    return model.encode(take(inputs, rows), prompt=prompt)


def _of_pictures(split: Pairs, model: EmbeddingModel) -> np.ndarray:
    """Embeddings [n, D] of pairs of captions and pictures: as many of the one as of the other, so that neither side
    decides the directions alone."""
    table: Any = split.table
    pairs = split.columns[:: -(-2 * len(split.columns) // MAX_FIT_ROWS)]
    texts, pictures = (np.unique(column, return_inverse=True) for column in pairs.T)
    z = model.encode(take(table.texts, texts[0]), prompt="query" if model.prompts.texts else None)
    x = model.encode(take(table.images, pictures[0] - len(table.texts)))
    return np.concatenate([z[texts[1]], x[pictures[1]]])
