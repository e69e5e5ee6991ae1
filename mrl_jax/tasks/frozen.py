"""The output of a frozen encoder, made once: with `encoder.frozen`, every epoch would compute the same again.

The vectors stand for the texts in the splits of a run, and only the projection after them is trained. They are made
without dropout and stored under a hash of the weights, the settings and the texts, so that a run's trials share them.
Texts that stay on disk and mixtures are embedded again in every step.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from mrl_jax import encoders
from mrl_jax.config import Config
from mrl_jax.data import disk_cache
from mrl_jax.encoders import huggingface
from mrl_jax.encoders.layers import frozen
from mrl_jax.encoders.transformer import Transformer, TransformerConfig
from mrl_jax.system import console
from mrl_jax.text.tokenizers import Preprocessor
from mrl_jax.training import batches
from mrl_jax.training.batches import Examples
from mrl_jax.training.disk_examples import digest_of
from mrl_jax.training.trainer import tokens_at_once

BATCH_SIZE = 256  # texts, at most
VERSION = "1"  # of the vectors that are stored
TOKEN_SHAPES: dict[str, tuple[int, ...]] = {"ids": (1,), "mask": (1,)}  # inputs of a transformer


class Embedded(Examples):
    """Examples whose texts a frozen encoder has read: `pooled`, float32 [n, hidden], stands for their tokens."""

    def __init__(self, pooled: np.ndarray, tokens: Examples) -> None:
        super().__init__({"pooled": pooled}, tokens.labels)
        self.tokens = tokens

    @property
    def raw_inputs(self) -> Mapping[str, Any]:
        """The tokens."""
        return self.tokens.inputs

    def arrays(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The content of the split: its labels and its tokens; the vectors differ in the last digits on other cores."""
        return self.tokens.arrays()


def embed_once(config: Config, reader: Preprocessor, examples: Examples, name: str) -> Examples:
    """The texts of the split `name` as their vectors, if the encoder is a frozen one; else as they are."""
    encoder = config.encoder
    if not (isinstance(encoder, TransformerConfig) and encoder.frozen):
        return examples
    encoders.check_width(encoder, config.width)
    settings = dataclasses.replace(encoder, weights=None, dropout=0.0, attention_dropout=0.0, remat=False)
    inputs = digest_of(np.zeros(0), examples.inputs).hexdigest()
    identity = huggingface.identity(huggingface.resolve(str(encoder.weights)))
    key = (identity, json.dumps(dataclasses.asdict(settings)), inputs, VERSION)
    place = disk_cache.folder(config.data.cache_dir, "frozen", *key)
    return Embedded(disk_cache.vectors(place, lambda: _pooled(config, encoder, reader, examples, name)), examples)


def _pooled(
    config: Config, encoder: TransformerConfig, reader: Preprocessor, examples: Examples, name: str
) -> np.ndarray:
    module = Transformer(
        encoder, inputs=TOKEN_SHAPES, vocabulary=reader.vocabulary, width=config.width, rngs=nnx.Rngs(0)
    )
    module.projection = None
    return run_over(frozen(module), examples, f"embed {name}")


def run_over(run: Callable[[Mapping[str, Any]], jax.Array], examples: Examples, name: str) -> np.ndarray:
    """The output of a transformer for each of the tokenised texts, float32 [n, width]."""
    z: np.ndarray | None = None
    with console.progress(len(examples), name, "text", leave=False) as bar:
        for rows, batch, valid in batches.slices(examples, BATCH_SIZE, tokens_at_once()):
            out = np.asarray(run({key: batch[key] for key in TOKEN_SHAPES}))[valid]
            z = np.empty((len(examples), out.shape[1]), np.float32) if z is None else z
            z[rows] = out
            bar.update(len(rows))
    return np.zeros((0, 1), np.float32) if z is None else z
