"""A multilayer perceptron of vectors, or of small images as vectors: `z = W_L … dropout(relu(W_1 x + b_1)) … + b_L`.

With no hidden layer it is one linear map: the adaptor that makes frozen embeddings of another model Matryoshka.
Nothing follows the last linear map, so FF(m) trains the first m of its columns and no more.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mrl_jax.encoders import image_rules
from mrl_jax.encoders.base import EncoderConfig, load_passthrough, rotate_layers
from mrl_jax.encoders.image_rules import ImageRule
from mrl_jax.encoders.layers import bf16_dot_general
from mrl_jax.encoders.onnx_graph import Graph
from mrl_jax.encoders.scaler import Scaler
from mrl_jax.rows import is_zero
from mrl_jax.system.errors import UserError, one_of
from mrl_jax.text.tokenizers import Passthrough

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class MLPConfig(EncoderConfig):
    """A multilayer perceptron."""

    name: str = "mlp"
    hidden: tuple[int, ...] = (512,)  # widths of the hidden layers; empty: a linear map
    dropout: float = 0.0  # share of each hidden layer's units dropped in training
    dtype: Dtype = "float32"  # operands of matmuls; sums, activations and parameters stay float32
    standardise: bool = True  # features: each coordinate to mean 0 and variance 1 of the training split, in the model


class MLP(nnx.Module):
    """Perceptron: `{"features": float32 [B, d]}` or `{"image": uint8 [B, h, w, c]}` (as [0, 1]) → float32 [B, width].

    Raises `UserError` for a setting that is not supported, or inputs that are neither.
    """

    def __init__(
        self, config: MLPConfig, *, inputs: dict[str, tuple[int, ...]], vocabulary: int, width: int, rngs: nnx.Rngs
    ):
        del vocabulary  # text only
        if not inputs.keys() & {"features", "image"}:
            raise UserError(f"encoder=mlp needs features or images, but the data has {', '.join(inputs) or 'no input'}")
        if any(units < 1 for units in config.hidden):
            raise UserError(f"encoder.hidden={list(config.hidden)} must be positive widths, or empty for a linear map")
        if not 0 <= config.dropout < 1:
            raise UserError(f"encoder.dropout={config.dropout} must be at least 0 and less than 1")
        one_of("encoder.dtype", config.dtype, get_args(Dtype))
        self.input = "features" if "features" in inputs else "image"
        dot_general = bf16_dot_general if config.dtype == "bfloat16" else jax.lax.dot_general
        widths = [math.prod(inputs[self.input]), *config.hidden]
        he = nnx.initializers.he_normal()
        self.hidden = nnx.List(
            [nnx.Linear(a, b, kernel_init=he, dot_general=dot_general, rngs=rngs) for a, b in pairwise(widths)]
        )
        self.last = nnx.Linear(widths[-1], width, dot_general=dot_general, rngs=rngs)
        self.dropout = config.dropout

    def __call__(self, inputs: dict[str, jax.Array], *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = inputs[self.input]
        x = x if self.input == "features" else x.reshape(x.shape[0], -1).astype(jnp.float32) / 255
        for layer in self.hidden:
            x = nnx.relu(layer(x))
            if rngs is not None and not is_zero(self.dropout):
                kept = jax.random.bernoulli(rngs.dropout(), 1 - self.dropout, x.shape)
                x = jnp.where(kept, x / (1 - self.dropout), 0.0)
        return self.last(x)


def fit_preprocessor(kind: str, examples: Any, *, standardise: bool) -> Passthrough | Scaler | ImageRule:
    """Learn the scale of features; images have theirs."""
    if kind == "image":
        return image_rules.of_data(examples)
    if kind != "features" or not standardise:
        return Passthrough(kind)
    scaler = Scaler.fit(examples)
    if not scaler.inverse.any():
        raise UserError("the features of all training rows are the same: there is nothing to learn from")
    return scaler


def load_preprocessor(config: MLPConfig, directory: Path, kind: str) -> Passthrough | Scaler | ImageRule:
    """The scale of features, or the size of images, as saved with a run."""
    if kind == "image":
        return image_rules.load_or_pass(config, directory, kind)
    if kind == "features" and config.standardise:
        return Scaler.load(directory)
    return load_passthrough(config, directory, kind)


def rotate(config: MLPConfig, parameters: Any, rotation: np.ndarray) -> tuple[MLPConfig, Any]:
    """The last layer rotated."""
    return config, rotate_layers(parameters, ("last",), rotation)


def module_inputs(preprocessor: Passthrough | Scaler | ImageRule, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What `MLP` reads, from raw features or images."""
    return {"features": preprocessor.traced(arrays["features"])} if isinstance(preprocessor, Scaler) else arrays


def onnx(g: Graph, config: MLPConfig, preprocessor: Passthrough | Scaler | ImageRule, parameters: Any) -> str:
    """`MLP` in evaluation, as an ONNX graph of raw features or images."""
    del config  # the parameters say it all
    if isinstance(preprocessor, Scaler):
        x = preprocessor.onnx(g, "features")
    else:
        kind = preprocessor.kind
        x = g("Div", g.cast(g("Flatten", kind, axis=1), "float"), 255.0) if kind == "image" else kind
    for i in range(len(parameters.get("hidden", ()))):
        x = g("Relu", g.linear(x, parameters["hidden"][i]))
    return g.linear(x, parameters["last"])
