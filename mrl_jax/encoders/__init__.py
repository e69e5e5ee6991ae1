"""Encoders: named inputs → embeddings [batch, D]. One file each; `CONFIGS` is the list of them."""

from typing import assert_never

from flax import nnx

from mrl_jax.encoders import transformer
from mrl_jax.encoders.bag import Bag, BagConfig
from mrl_jax.encoders.convnet import ConvNet, ConvNetConfig
from mrl_jax.encoders.mlp import MLP, MLPConfig
from mrl_jax.encoders.transformer import Transformer, TransformerConfig

EncoderConfig = BagConfig | TransformerConfig | ConvNetConfig | MLPConfig

CONFIGS: dict[str, type[EncoderConfig]] = {
    "bag": BagConfig,
    "transformer": TransformerConfig,
    "convnet": ConvNetConfig,
    "mlp": MLPConfig,
}


def standalone(config: EncoderConfig, vocabulary: int) -> tuple[EncoderConfig, int]:
    """The encoder as it can be rebuilt from a run alone, and its number of token ids."""
    return transformer.standalone(config, vocabulary) if isinstance(config, TransformerConfig) else (config, vocabulary)


def create(
    config: EncoderConfig, *, inputs: dict[str, tuple[int, ...]], vocabulary: int, width: int, rngs: nnx.Rngs
) -> nnx.Module:
    """The encoder that `config` describes.

    `inputs` are the shapes of one example, `vocabulary` the number of token ids (0 if none), `width` the embedding's D.
    Called with `(arrays, rngs=None)` it gives float32 [batch, D]; `rngs` means training (dropout, batch statistics).
    """
    match config:
        case BagConfig():
            return Bag(config, inputs=inputs, vocabulary=vocabulary, width=width, rngs=rngs)
        case TransformerConfig():
            return Transformer(config, inputs=inputs, vocabulary=vocabulary, width=width, rngs=rngs)
        case ConvNetConfig():
            return ConvNet(config, inputs=inputs, vocabulary=vocabulary, width=width, rngs=rngs)
        case MLPConfig():
            return MLP(config, inputs=inputs, vocabulary=vocabulary, width=width, rngs=rngs)
        case _:
            assert_never(config)
