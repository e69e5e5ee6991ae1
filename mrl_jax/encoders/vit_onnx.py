"""`ViT` in evaluation, as an ONNX graph of images that are prepared, uint8 [batch, h, w, c]."""

from typing import Any

import numpy as np

from mrl_jax.encoders.image_rules import ImageRule
from mrl_jax.encoders.lora import merge
from mrl_jax.encoders.onnx_graph import Graph, as_float32
from mrl_jax.encoders.positions import sincos
from mrl_jax.encoders.transformer_onnx import activated, attention, feed_forward, norm
from mrl_jax.encoders.vit import ViTConfig, complete, standalone
from mrl_jax.encoders.vit_families import Architecture


def onnx(g: Graph, config: ViTConfig, preprocessor: ImageRule, parameters: Any) -> str:
    """Add the encoder to the graph; returns the name of the embedding [batch, D]."""
    config, a = complete(standalone(config, 0)[0], preprocessor.shape)
    parameters, family = merge(parameters), a.described
    x = tokens(g, a, parameters, pixels(g, a, config, preprocessor.shape))
    x = norm(g, a, x, parameters["norm"]) if family.embedding_norm else x
    for block in (parameters["blocks"][i] for i in range(a.layers)):
        attended = attention(g, a, block, norm(g, a, x, block["attention_norm"]), 0.0, None)
        x = g("Add", x, scaled(g, attended, block, "attention_scale"))
        fed = feed_forward(g, a, block, norm(g, a, x, block["output_norm"]))
        x = g("Add", x, scaled(g, fed, block, "output_scale"))
    x = norm(g, a, x, parameters["final_norm"])
    if a.pooling == "attention":
        z = attention_pool(g, a, parameters["pool"], x)
    elif a.pooling == "cls":
        z = g("Gather", x, 0, axis=1)
    else:
        before = int(a.class_token) + a.registers
        z = g("ReduceMean", g("Slice", x, [before], [np.iinfo(np.int64).max], [1]), axes=[1], keepdims=0)
    return g.linear(z, parameters["projection"]) if config.projection else z


def scaled(g: Graph, x: str, block: Any, name: str) -> str:
    """x times the factors of LayerScale, where there are any."""
    return g("Mul", x, as_float32(block[name])) if name in block else x


def pixels(g: Graph, a: Architecture, config: ViTConfig, shape: tuple[int, int, int]) -> str:
    """The centre of each image, with mean and deviation taken off, float32 [batch, h, w, c]."""
    height, width = a.grid[0] * a.patch, a.grid[1] * a.patch
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    x = g.cast(g("Slice", "image", [top, left], [top + height, left + width], [1, 2]), "float")
    assert config.mean is not None
    assert config.std is not None
    return g(
        "Div", g("Sub", g("Div", x, 255.0), np.asarray(config.mean, np.float32)), np.asarray(config.std, np.float32)
    )


def tokens(g: Graph, a: Architecture, parameters: Any, x: str) -> str:
    """The tokens before the first layer [batch, L, hidden]."""
    rows, columns = a.grid
    blocks = g("Reshape", x, [0, rows, a.patch, columns, a.patch, a.channels])
    blocks = g("Transpose", blocks, perm=(0, 1, 3, 2, 4, 5))
    x = g.linear(g("Reshape", blocks, [0, rows * columns, a.patch**2 * a.channels]), parameters["patches"])
    before, table = int(a.class_token), None
    if "position" in parameters:
        table = as_float32(parameters["position"])
    x = g("Add", x, sincos(a.grid, a.hidden) if table is None else table[before:])
    parts = []
    if a.class_token:
        token = as_float32(parameters["class_token"])
        parts.append((token if table is None else token + table[0])[None])
    if a.registers:
        parts.append(as_float32(parameters["registers"]))
    if not parts:
        return x
    first = np.concatenate(parts)
    batch = g("Shape", "image", start=0, end=1)
    return g("Concat", g("Expand", first[None], g("Concat", batch, list(first.shape), axis=0)), x, axis=1)


def attention_pool(g: Graph, a: Architecture, p: Any, x: str) -> str:
    """As `vit.AttentionPool`."""
    query = as_float32(p["probe"]) @ as_float32(p["query"]["kernel"]) + as_float32(p["query"]["bias"])
    query = (query * np.float32(a.features**-0.5)).reshape(1, a.heads, 1, a.features)

    def split(name: str, *order: int) -> str:
        return g("Transpose", g("Reshape", g.linear(x, p[name]), [0, 0, a.heads, a.features]), perm=order)

    weights = g("Softmax", g("MatMul", query, split("key", 0, 2, 3, 1)), axis=-1)
    mixed = g("MatMul", weights, split("value", 0, 2, 1, 3))  # [batch, heads, 1, k]
    h = g.linear(g("Reshape", mixed, [0, a.hidden]), p["attended"])
    inner = activated(g, a.described.function, g.linear(norm(g, a, h, p["norm"]), p["up"]))
    return g("Add", h, g.linear(inner, p["down"]))
