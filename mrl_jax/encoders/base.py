"""What other packages know of an encoder: its settings, `EncoderConfig`, and its table entry, `EncoderType`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from flax import nnx

from mrl_jax.data.prompts import Prompts
from mrl_jax.encoders.huggingface import HuggingFaceModel, StaticModel
from mrl_jax.encoders.onnx_graph import Graph
from mrl_jax.text.tokenizers import Passthrough, Preprocessor


@dataclass(frozen=True)
class EncoderConfig:
    """Settings of an encoder, the section `encoder` of a configuration.

    Fields that other packages read where an encoder has them: `weights` (pretrained ones that it starts from),
    `max_length` (tokens to which a text is truncated), `positions` (tokens of the longest input), `dtype` (of the
    operands of matmuls; an export is in float32), `mixup` and `cutmix` (whether training mixes the examples of a batch:
    then its inputs have `mix`, see `mixing`).
    """

    name: str  # the key of `ENCODERS`


ConfigT = TypeVar("ConfigT", bound=EncoderConfig)


def fit_passthrough(kind: str, examples: Any) -> Passthrough:
    """The preprocessor of an encoder that reads images or features as they are: nothing is learnt."""
    del examples
    return Passthrough(kind)


def load_passthrough(config: EncoderConfig, directory: Path, kind: str) -> Passthrough:
    """As `fit_passthrough`: nothing was saved."""
    del config, directory
    return Passthrough(kind)


def arrays_as_given(preprocessor: Preprocessor, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The inputs of a module that reads what an exported model is given."""
    del preprocessor
    return arrays


def config_as_given(config: ConfigT, vocabulary: int) -> tuple[ConfigT, int]:
    """The config of an encoder that needs no other files to be rebuilt."""
    return config, vocabulary


def prompts_as_given(config: EncoderConfig, given: Mapping[str, str] | None) -> Prompts:
    """The prompts of an encoder that has none of its own."""
    del config
    return Prompts(given or {})


def all_learn(config: EncoderConfig, parameters: Any) -> None:
    """Of an encoder all of whose parameters learn."""
    del config, parameters


def no_weights(config: EncoderConfig) -> None:
    """The digest of the weights of an encoder that has none."""
    del config


def rotate_projection(config: ConfigT, parameters: Any, rotation: np.ndarray) -> tuple[ConfigT, Any] | None:
    """As `rotate_layers`, of an encoder whose last layer is its projection, if it has one."""
    return (config, rotate_layers(parameters, ("projection",), rotation)) if "projection" in parameters else None


def rotate_layers(parameters: Mapping[str, Any], names: Sequence[str], rotation: np.ndarray) -> dict[str, Any]:
    """The parameters with the layers of these names, in whose last axis the embedding is linear, rotated."""

    def rotate(x: Any) -> np.ndarray:
        return np.asarray(np.asarray(x, np.float64) @ rotation, np.float32)

    return {**parameters, **{name: jax.tree.map(rotate, parameters[name]) for name in names}}


def any_width(config: EncoderConfig, width: int) -> None:
    """The check of an encoder that can be built with any width."""
    del config, width


@dataclass(frozen=True)
class EncoderType(Generic[ConfigT]):
    """An entry of `ENCODERS`: all that distinguishes one encoder from another.

    Attributes:
        config: the dataclass of its settings, with defaults.
        module: `(config, *, inputs, vocabulary, width, rngs)` → the module, as `encoders.create` describes it.
        reads: the kinds of data that it reads, of text, image, features and image-text.
        fit_preprocessor: `(kind, texts, **settings)` → the preprocessor, learnt from the training texts. It is given
            the settings that `learnt_from` names and no others, so that a preprocessor cached under their values cannot
            depend on one that is left out.
        load_preprocessor: `(config, directory, kind)` → the preprocessor that was saved there.
        learnt_from: the fields of `config` that shape the preprocessor.
        rates: the fields of `config` that are rates of dropout, and the attribute of the modules that holds each.
        standalone: `(config, vocabulary)` → the config and number of token ids that rebuild the encoder from its run
            alone.
        prompts: `(config, given)` → the prompts that are given, with None those of pretrained weights.
        digest: `config` → SHA-256 that identifies the pretrained weights it starts from; None without any.
        check_width: `(config, width)` raises `UserError` where pretrained weights have another width.
        blocks: `config` → the number of layers and of units inside the feed-forward of each, of an encoder that can be
            cut to some of both, see `slices`, and whose module takes `layers`; None: it has no such layers.
        rotate: `(config, parameters, rotation [D, D])` → the config and the parameters of the encoder whose embeddings
            are those of this one times the rotation; None where no layer is linear in the embedding.
        trained: `(config, parameters)` → a tree of bool, which parameters learn; None: all.
        module_inputs: `(preprocessor, arrays)` → what the module reads, from the arrays that an exported model is
            given; for texts these are `input_ids` and `attention_mask`, int [batch, length].
        onnx: `(graph, config, preprocessor, parameters)` adds the encoder in evaluation to the graph and returns the
            name of the embedding [batch, D]; None where it is not written.
        gives_states: whether the module returns the states of the tokens in the cells `masked`, see `Transformer`, and
            has the parameter `word`, the vectors of tokens [V, hidden].
        hugging_face: `(config, parameters)` → the encoder in Hugging Face's terms; None where they have no such.
    """

    config: type[ConfigT]
    module: Callable[..., nnx.Module]
    reads: tuple[str, ...]
    fit_preprocessor: Callable[..., Preprocessor] = fit_passthrough
    load_preprocessor: Callable[[ConfigT, Path, str], Preprocessor] = load_passthrough
    learnt_from: tuple[str, ...] = ()
    rates: Mapping[str, str] = field(default_factory=dict)
    standalone: Callable[[ConfigT, int], tuple[ConfigT, int]] = config_as_given
    prompts: Callable[[ConfigT, Mapping[str, str] | None], Prompts] = prompts_as_given
    digest: Callable[[ConfigT], str | None] = no_weights
    check_width: Callable[[ConfigT, int], None] = any_width
    blocks: Callable[[ConfigT], tuple[int, int]] | None = None
    rotate: Callable[[ConfigT, Any, np.ndarray], tuple[ConfigT, Any] | None] = rotate_projection
    trained: Callable[[ConfigT, Any], Any] = all_learn
    module_inputs: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]] = arrays_as_given
    onnx: Callable[[Graph, ConfigT, Any, Any], str] | None = None
    gives_states: bool = False
    hugging_face: Callable[[ConfigT, Any], HuggingFaceModel | StaticModel] | None = None
