"""What other packages know of an encoder: its settings, `EncoderConfig`, and its table entry, `EncoderType`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
from flax import nnx

from mrl_jax.encoders.huggingface import BertModel
from mrl_jax.encoders.onnx_graph import Graph
from mrl_jax.text.tokenizers import Passthrough, Preprocessor


@dataclass(frozen=True)
class EncoderConfig:
    """Settings of an encoder, the section `encoder` of a configuration.

    Fields that other packages read where an encoder has them: `weights` (pretrained ones that it starts from),
    `max_length` (tokens to which a text is truncated), `positions` (tokens of the longest input), `dtype` (of the
    operands of matmuls; an export is in float32).
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


@dataclass(frozen=True)
class EncoderType(Generic[ConfigT]):
    """An entry of `ENCODERS`: all that distinguishes one encoder from another.

    Attributes:
        config: the dataclass of its settings, with defaults.
        module: `(config, *, inputs, vocabulary, width, rngs)` → the module, as `encoders.create` describes it.
        reads: the kinds of data that it reads, of text, image and features.
        fit_preprocessor: `(kind, texts, **settings)` → the preprocessor, learnt from the training texts. It is given
            the settings that `learnt_from` names and no others, so that a preprocessor cached under their values cannot
            depend on one that is left out.
        load_preprocessor: `(config, directory, kind)` → the preprocessor that was saved there.
        learnt_from: the fields of `config` that shape the preprocessor.
        standalone: `(config, vocabulary)` → the config and number of token ids that rebuild the encoder from its run
            alone.
        module_inputs: `(preprocessor, arrays)` → what the module reads, from the arrays that an exported model is
            given; for texts these are `input_ids` and `attention_mask`, int [batch, length].
        onnx: `(graph, config, preprocessor, parameters)` adds the encoder in evaluation to the graph and returns the
            name of the embedding [batch, D]; None where it is not written.
        hugging_face: `(config, parameters)` → the encoder as a Hugging Face BERT; None where it is none.
    """

    config: type[ConfigT]
    module: Callable[..., nnx.Module]
    reads: tuple[str, ...]
    fit_preprocessor: Callable[..., Preprocessor] = fit_passthrough
    load_preprocessor: Callable[[ConfigT, Path, str], Preprocessor] = load_passthrough
    learnt_from: tuple[str, ...] = ()
    standalone: Callable[[ConfigT, int], tuple[ConfigT, int]] = config_as_given
    module_inputs: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]] = arrays_as_given
    onnx: Callable[[Graph, ConfigT, Any, Any], str] | None = None
    hugging_face: Callable[[ConfigT, Any], BertModel] | None = None
