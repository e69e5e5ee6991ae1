"""Encoders: named arrays → embeddings [batch, D]. One module per encoder; `ENCODERS` is the table of them.

To add one, write its module and its entry.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from mrl_jax.data.prompts import Prompts
from mrl_jax.encoders import (
    bag,
    image_rules,
    lora,
    mlp,
    static,
    towers,
    transformer,
    transformer_onnx,
    transformer_settings,
    vit,
    vit_onnx,
)
from mrl_jax.encoders.bag import Bag, BagConfig
from mrl_jax.encoders.base import EncoderConfig, EncoderType
from mrl_jax.encoders.convnet import ConvNet, ConvNetConfig
from mrl_jax.encoders.mlp import MLP, MLPConfig
from mrl_jax.encoders.static import Static, StaticConfig
from mrl_jax.encoders.towers import Towers, TowersConfig
from mrl_jax.encoders.transformer import Transformer
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.encoders.vit import ViT, ViTConfig
from mrl_jax.system.errors import UserError
from mrl_jax.text.tokenizers import Preprocessor

__all__ = [
    "ENCODERS",
    "BagConfig",
    "EncoderConfig",
    "EncoderType",
    "TowersConfig",
    "TransformerConfig",
    "ViTConfig",
    "check",
    "check_width",
    "create",
    "digest",
    "fit",
    "learnt_values",
    "load",
    "prompts",
    "set_rates",
    "standalone",
    "trained",
    "with_dtype",
]

ENCODERS: dict[str, EncoderType[Any]] = {
    "bag": EncoderType(
        config=BagConfig,
        module=Bag,
        reads=("text",),
        fit_preprocessor=bag.fit_preprocessor,
        load_preprocessor=bag.load_preprocessor,
        learnt_from=("min_documents", "max_words", "units", "ngrams"),
        rates={"word_dropout": "word_dropout", "dropout": "dropout"},
        rotate=bag.rotate,
        module_inputs=bag.heaviest_words,
        onnx=bag.onnx,
    ),
    "static": EncoderType(
        config=StaticConfig,
        module=Static,
        reads=("text",),
        fit_preprocessor=static.fit_preprocessor,
        load_preprocessor=static.load_preprocessor,
        learnt_from=("weights", "tokenizer", "vocabulary", "max_length"),
        rates={"token_dropout": "word_dropout", "dropout": "dropout"},
        prompts=static.prompts,
        standalone=static.standalone,
        digest=static.digest,
        check_width=static.check_width,
        rotate=static.rotate,
        module_inputs=static.module_inputs,
        onnx=static.onnx,
        hugging_face=static.hugging_face,
    ),
    "transformer": EncoderType(
        config=TransformerConfig,
        module=Transformer,
        reads=("text",),
        fit_preprocessor=transformer.fit_preprocessor,
        load_preprocessor=transformer.load_preprocessor,
        learnt_from=("weights", "vocabulary", "max_length", "mask_token"),
        gives_states=True,
        rates={"dropout": "dropout", "attention_dropout": "attention_dropout"},
        prompts=transformer_settings.prompts,
        standalone=transformer_settings.standalone,
        digest=transformer_settings.digest,
        check_width=transformer_settings.check_width,
        blocks=transformer_settings.blocks,
        rotate=transformer.rotate,
        trained=lora.trained,
        module_inputs=transformer.module_inputs,
        onnx=transformer_onnx.onnx,
        hugging_face=transformer.hugging_face,
    ),
    "convnet": EncoderType(
        config=ConvNetConfig,
        module=ConvNet,
        reads=("image",),
        fit_preprocessor=image_rules.fit,
        load_preprocessor=image_rules.load_or_pass,
    ),
    "vit": EncoderType(
        config=ViTConfig,
        module=ViT,
        reads=("image",),
        fit_preprocessor=vit.fit_preprocessor,
        load_preprocessor=image_rules.load_or_pass,
        learnt_from=("weights", "image_size"),
        rates={"dropout": "dropout", "attention_dropout": "attention_dropout"},
        standalone=vit.standalone,
        digest=vit.digest,
        check_width=vit.check_width,
        blocks=vit.blocks,
        rotate=vit.rotate,
        trained=lora.trained,
        onnx=vit_onnx.onnx,
    ),
    "mlp": EncoderType(
        config=MLPConfig,
        module=MLP,
        reads=("features", "image"),
        fit_preprocessor=mlp.fit_preprocessor,
        load_preprocessor=mlp.load_preprocessor,
        learnt_from=("standardise",),
        rates={"dropout": "dropout"},
        rotate=mlp.rotate,
        module_inputs=mlp.module_inputs,
        onnx=mlp.onnx,
    ),
    "towers": EncoderType(
        config=TowersConfig,
        module=Towers,
        reads=("image-text",),
        fit_preprocessor=towers.fit_preprocessor,
        load_preprocessor=towers.load_preprocessor,
        learnt_from=("image", "text"),
        prompts=towers.prompts,
        standalone=towers.standalone,
        digest=towers.digest,
        check_width=towers.check_width,
        rotate=towers.rotate,
        trained=towers.trained,
    ),
}


def create(
    config: EncoderConfig, *, inputs: dict[str, tuple[int, ...]], vocabulary: int, width: int, rngs: nnx.Rngs
) -> nnx.Module:
    """Create the encoder that `config` describes.

    Args:
        config: settings of one of `ENCODERS`.
        inputs: name → shape of one example, without the batch.
        vocabulary: number of token ids; 0 if there are none.
        width: D, of the embedding.
        rngs: draws the initial parameters.

    Returns:
        A module that maps `(arrays, rngs=None)` to float32 [batch, D]; `rngs` given means training (dropout, batch
        statistics).

    Raises:
        UserError: a setting that this encoder cannot have, inputs that it does not read, or weights that are missing.
    """
    return ENCODERS[config.name].module(config, inputs=inputs, vocabulary=vocabulary, width=width, rngs=rngs)


def set_rates(config: EncoderConfig, module: nnx.Module, rates: Mapping[str, Any]) -> None:
    """Let the encoder drop out with these rates, by field of `config`; they may be traced."""
    for _, part in nnx.iter_modules(module) if rates else ():
        for name, rate in rates.items():
            attribute = ENCODERS[config.name].rates[name]
            if hasattr(part, attribute):
                setattr(part, attribute, rate)


def standalone(config: EncoderConfig, vocabulary: int) -> tuple[EncoderConfig, int]:
    """The config that rebuilds the encoder from a run alone, and its number of token ids."""
    alone: tuple[EncoderConfig, int] = ENCODERS[config.name].standalone(config, vocabulary)
    return alone


def trained(config: EncoderConfig, parameters: Any) -> Any:
    """Which parameters of the encoder learn, as a tree of bool; None: all."""
    return ENCODERS[config.name].trained(config, parameters)


def digest(config: EncoderConfig) -> str | None:
    """SHA-256 that identifies the pretrained weights that an encoder starts from; None without any."""
    return ENCODERS[config.name].digest(config)


def check(config: EncoderConfig, kind: str, dataset_name: str) -> None:
    """Raise `UserError` for an encoder that does not read the `kind` of data that the data set holds."""
    if kind not in ENCODERS[config.name].reads:
        suitable = ", ".join(name for name, encoder in ENCODERS.items() if kind in encoder.reads)
        raise UserError(f"encoder={config.name} cannot read {kind}, which {dataset_name} holds; use {suitable}")


def check_width(config: EncoderConfig, width: int) -> None:
    """Raise `UserError` for an embedding width that the pretrained weights do not have."""
    ENCODERS[config.name].check_width(config, width)


def prompts(config: EncoderConfig, given: Mapping[str, str] | None) -> Prompts:
    """The prompts of a run: those that are `given`, with None those of the pretrained weights. Raises `UserError` for
    some that the encoder cannot have."""
    return ENCODERS[config.name].prompts(config, given)


def with_dtype(config: EncoderConfig, dtype: str) -> EncoderConfig:
    """The config with matmul operands of this type, where the encoder (or a tower of it) lets them be chosen."""
    of = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    changed: dict[str, Any] = {
        name: with_dtype(value, dtype) for name, value in of.items() if isinstance(value, EncoderConfig)
    }
    return dataclasses.replace(config, **changed, **({"dtype": dtype} if "dtype" in of else {}))


def learnt_values(config: EncoderConfig) -> dict[str, Any]:
    """The settings that shape the preprocessor, with their values: all that `fit` depends on beside the texts."""
    return {key: getattr(config, key) for key in ENCODERS[config.name].learnt_from}


def fit(config: EncoderConfig, dataset_name: str, kind: str, texts: Any) -> Preprocessor:
    """Learn the preprocessor of an encoder.

    Args:
        config: settings of one of `ENCODERS`.
        dataset_name: for messages.
        kind: what the data set holds, one of those in `EncoderType.reads`.
        texts: the training inputs: texts, images or features.

    Raises:
        UserError: the encoder does not read this kind, or nothing can be learnt from these texts.
    """
    check(config, kind, dataset_name)
    return ENCODERS[config.name].fit_preprocessor(kind, texts, **learnt_values(config))


def load(config: EncoderConfig, directory: Path, kind: str) -> Preprocessor:
    """Load the preprocessor that was saved with a run. Raises `UserError` for a missing or damaged file."""
    return ENCODERS[config.name].load_preprocessor(config, directory, kind)
