"""The output of a frozen encoder, made once: with `encoder.frozen`, every epoch would compute the same again.

The vectors stand for the texts or images in the splits of a run, and only the projection after them is trained. They
are made without dropout and stored under a hash of the weights, the settings and the inputs, so that a run's trials
share them. Texts that stay on disk, mixtures, the towers of `encoder=towers`, and images that training augments are
embedded again in every step; images that stay on disk are read once more, for that hash.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from mrl_jax import encoders
from mrl_jax.config import Config
from mrl_jax.data import disk_cache
from mrl_jax.encoders import EncoderConfig, huggingface, vit_folder
from mrl_jax.encoders.layers import frozen
from mrl_jax.encoders.transformer import Transformer
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.encoders.vit import ViT, ViTConfig
from mrl_jax.system import console
from mrl_jax.text.tokenizers import Preprocessor
from mrl_jax.training import batches
from mrl_jax.training.batches import Examples
from mrl_jax.training.disk_examples import digest_of
from mrl_jax.training.trainer import tokens_at_once

BATCH_SIZE = 256  # texts, at most
BATCH_IMAGES = 64
READ_IMAGES = 1024  # that are on disk, and read together for their hash
VERSION = "1"  # of the vectors that are stored
TOKEN_SHAPES: dict[str, tuple[int, ...]] = {"ids": (1,), "mask": (1,)}  # inputs of a transformer


class Embedded(Examples):
    """Examples that a frozen encoder has read: `pooled`, float32 [n, hidden], stands for their tokens or pixels."""

    def __init__(self, pooled: np.ndarray, read: Examples) -> None:
        super().__init__({"pooled": pooled}, read.labels)
        self.read = read

    @property
    def raw_inputs(self) -> Mapping[str, Any]:
        """The tokens, or pixels."""
        return self.read.inputs

    def arrays(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The content of the split: its labels, and its tokens or pixels; the vectors differ in the last digits on
        other cores."""
        return self.read.arrays()


def embed_once(config: Config, reader: Preprocessor, examples: Examples, name: str) -> Examples:
    """The texts or images of the split `name` as their vectors, if the encoder is a frozen one that reads the same in
    every step; else as they are."""
    encoder = config.encoder
    if not (isinstance(encoder, TransformerConfig | ViTConfig) and encoder.frozen) or is_augmented(encoder):
        return examples
    encoders.check_width(encoder, config.width)
    settings = dataclasses.replace(encoder, weights=None, dropout=0.0, attention_dropout=0.0, remat=False)
    inputs = _digest(examples)
    folder = huggingface.resolve(str(encoder.weights))
    if isinstance(encoder, TransformerConfig):
        identity = huggingface.identity(folder)
    else:  # what the folder says of pixels and layers counts as its tensors do
        described = vit_folder.describe(folder, encoder.image_size)
        identity = f"{huggingface.weights_digest(folder)} {described!r}"
    key = (identity, json.dumps(dataclasses.asdict(settings)), inputs, VERSION)
    place = disk_cache.folder(config.data.cache_dir, "frozen", *key)
    return Embedded(disk_cache.vectors(place, lambda: _pooled(config, encoder, reader, examples, name)), examples)


def is_augmented(encoder: EncoderConfig) -> bool:
    """Whether training shows an encoder of images each of them in another way at every step."""
    mixed = any(getattr(encoder, key, 0) for key in ("randaugment", "mixup", "cutmix"))
    return mixed or getattr(encoder, "augment", "none") != "none"


def _digest(examples: Examples) -> str:
    """SHA-256 of the inputs; those that are on disk are read for it, some at a time."""
    found = digest_of(np.zeros(0), {name: x for name, x in examples.inputs.items() if isinstance(x, np.ndarray)})
    for name, lazy in examples.inputs.items():
        if not isinstance(lazy, np.ndarray):
            for start in range(0, len(lazy), READ_IMAGES):
                part = np.asarray(lazy[np.arange(start, min(start + READ_IMAGES, len(lazy)))])
                found.update(
                    f"{name} {start} {part.shape} {part.dtype}".encode() + np.ascontiguousarray(part).tobytes()
                )
    return found.hexdigest()


def _pooled(
    config: Config, encoder: TransformerConfig | ViTConfig, reader: Preprocessor, examples: Examples, name: str
) -> np.ndarray:
    module: Transformer | ViT
    if isinstance(encoder, TransformerConfig):
        module = Transformer(
            encoder, inputs=TOKEN_SHAPES, vocabulary=reader.vocabulary, width=config.width, rngs=nnx.Rngs(0)
        )
    elif not len(examples):
        return np.zeros((0, 1), np.float32)
    else:
        shape = np.asarray(examples.inputs["image"][np.arange(1)]).shape[1:]
        module = ViT(encoder, inputs={"image": shape}, vocabulary=0, width=config.width, rngs=nnx.Rngs(0))
    module.projection = None
    return run_over(frozen(module), examples, f"embed {name}", tuple(examples.inputs))


def run_over(
    run: Callable[[Mapping[str, Any]], jax.Array],
    examples: Examples,
    name: str,
    inputs: Sequence[str] = tuple(TOKEN_SHAPES),
) -> np.ndarray:
    """The output of a transformer for each of the tokenised texts, or images, float32 [n, width]."""
    z: np.ndarray | None = None
    unit, size = ("image", BATCH_IMAGES) if "image" in inputs else ("text", BATCH_SIZE)
    with console.progress(len(examples), name, unit, leave=False) as bar:
        for rows, batch, valid in batches.slices(examples, size, tokens_at_once()):
            out = np.asarray(run({key: batch[key] for key in inputs}))[valid]
            z = np.empty((len(examples), out.shape[1]), np.float32) if z is None else z
            z[rows] = out
            bar.update(len(rows))
    return np.zeros((0, 1), np.float32) if z is None else z
