"""`Transformer` in evaluation, as an ONNX graph of `input_ids` and `attention_mask`."""

from typing import Any

import numpy as np

from mrl_jax.encoders.families import Architecture
from mrl_jax.encoders.lora import merge
from mrl_jax.encoders.onnx_graph import Graph, as_float32
from mrl_jax.encoders.pooling import Pooling
from mrl_jax.encoders.transformer_block import Sizes, frequencies, relative_buckets
from mrl_jax.encoders.transformer_settings import TransformerConfig, complete, standalone
from mrl_jax.text.tokenizers import Subwords


def onnx(g: Graph, config: TransformerConfig, preprocessor: Subwords, parameters: Any) -> str:
    """Add the encoder to the graph; returns the name of the embedding [batch, D]."""
    del preprocessor
    config, sizes = complete(*standalone(config, len(parameters["word"])))
    assert config.pooling is not None
    parameters = merge(parameters)
    family = sizes.described
    length = g("Shape", "input_ids", start=1, end=2)
    place = g("Range", np.int64(0), g("Squeeze", length), np.int64(1))
    visible = g.cast("attention_mask", "bool")
    x = g("Gather", as_float32(parameters["word"]), "input_ids")
    if family.position:
        x = g("Add", x, positions(g, sizes, parameters, length))
    elif sizes.token_types:
        x = g("Add", x, as_float32(parameters["token_type"])[0])
    x = norm(g, sizes, x, parameters["norm"]) if family.embedding_norm else x
    local = [sizes.is_local(layer) for layer in range(sizes.layers)]
    seen = {kind: attended_pairs(g, sizes, parameters, visible, place, kind) for kind in {*local}}
    for block, kind in zip((parameters["blocks"][i] for i in range(sizes.layers)), local, strict=True):
        bias, turn = seen[kind]
        if family.final_norm is None:
            x = norm(g, sizes, g("Add", x, attention(g, sizes, block, x, bias, turn)), block["attention_norm"])
            x = norm(g, sizes, g("Add", x, feed_forward(g, sizes, block, x)), block["output_norm"])
            continue
        y = norm(g, sizes, x, block["attention_norm"]) if "attention_norm" in block else x
        x = g("Add", x, attention(g, sizes, block, y, bias, turn))
        x = g("Add", x, feed_forward(g, sizes, block, norm(g, sizes, x, block["output_norm"])))
    x = norm(g, sizes, x, parameters["final_norm"]) if family.final_norm else x
    z = pooled(g, config.pooling, x, visible)
    return g.linear(z, parameters["projection"]) if config.projection else z


def norm(g: Graph, sizes: Sizes, x: str, p: Any) -> str:
    """The norm of the family: of the deviations from the mean, or of x itself."""
    scale = as_float32(p["scale"])
    if sizes.described.norm == "rms":
        square = g("ReduceMean", g("Mul", x, x), axes=[-1])
        return g("Mul", g("Div", x, g("Sqrt", g("Add", square, sizes.layer_norm_eps))), scale)
    bias = [as_float32(p["bias"])] if "bias" in p else []
    return g("LayerNormalization", x, scale, *bias, epsilon=sizes.layer_norm_eps)


def positions(g: Graph, sizes: Architecture, parameters: Any, length: str) -> str:
    """The row of each token in the table of positions, and the first token type."""
    table = as_float32(parameters["position"])
    table = table + as_float32(parameters["token_type"])[0] if sizes.token_types else table
    if (padding_id := sizes.padding_id) is None:
        return g("Slice", table, [0], length, [0])
    counted = g.cast(g("Not", g("Equal", "input_ids", np.int64(padding_id))), "int64")
    count = g("CumSum", counted, np.int64(1))
    return g("Gather", table, g("Add", g("Mul", count, counted), np.int64(padding_id)))


def attended_pairs(
    g: Graph, sizes: Architecture, parameters: Any, visible: str, place: str, local: bool
) -> tuple[str, tuple[str, str] | None]:
    """What is added to the attention scores of a layer; and the cosines and sines of its rotations [L, 1, k/2]."""
    distance = g("Sub", g("Unsqueeze", place, [0]), g("Unsqueeze", place, [1]))
    pairs = g("Unsqueeze", visible, [1, 2])
    if sizes.causal:
        pairs = g("And", pairs, g("LessOrEqual", distance, np.int64(0)))
    if local and sizes.window is not None:
        pairs = g("And", pairs, g("LessOrEqual", g("Abs", distance), np.int64(sizes.window // 2)))
    bias = g("Where", pairs, 0.0, -1e30)
    if sizes.described.relative:
        by_distance = as_float32(parameters["relative"])[relative_buckets(sizes.positions)].T
        bias = g("Add", bias, g("Gather", by_distance, g("Add", distance, np.int64(sizes.positions - 1)), axis=1))
    theta = sizes.local_theta if local else sizes.rope_theta
    if theta is None:
        return bias, None
    turned = g("Mul", g("Unsqueeze", g.cast(place, "float"), [1, 2]), frequencies(theta, sizes.features))
    return bias, (g("Cos", turned), g("Sin", turned))


def attention(g: Graph, sizes: Sizes, block: Any, x: str, bias: Any, turn: tuple[str, str] | None) -> str:
    """The output of attention [batch, L, hidden]."""
    groups = sizes.heads // sizes.heads_of_keys

    def split(name: str, heads: int, *order: int) -> str:
        y = g("Reshape", g.linear(x, block[name]), [0, 0, heads, sizes.features])
        if f"{name}_norm" in block:
            y = norm(g, sizes, y, block[f"{name}_norm"])
        if turn is not None and name != "value":
            first, second = g.several(2, "Split", y, axis=-1)
            turned = [
                g(operator, g("Mul", a, turn[0]), g("Mul", b, turn[1]))
                for operator, a, b in (("Sub", first, second), ("Add", second, first))
            ]
            y = g("Concat", *turned, axis=-1)
        if heads < sizes.heads:  # each of them for several heads of queries
            y = g("Tile", g("Unsqueeze", y, [3]), np.array([1, 1, 1, groups, 1]))
            y = g("Reshape", y, [0, 0, sizes.heads, sizes.features])
        return g("Transpose", y, perm=order)

    queries = split("query", sizes.heads, 0, 2, 1, 3)
    queries = g("Mul", queries, sizes.features**-0.5) if sizes.described.scaled else queries
    scores = g("MatMul", queries, split("key", sizes.heads_of_keys, 0, 2, 3, 1))
    weights = g("Softmax", g("Add", scores, bias), axis=-1)
    mixed = g("MatMul", weights, split("value", sizes.heads_of_keys, 0, 2, 1, 3))
    side_by_side = g("Reshape", g("Transpose", mixed, perm=(0, 2, 1, 3)), [0, 0, sizes.heads * sizes.features])
    return g.linear(side_by_side, block["attended"])


def feed_forward(g: Graph, sizes: Sizes, block: Any, x: str) -> str:
    """The output of feed-forward [batch, L, hidden]."""
    first = g.linear(x, block["gate" if "gate" in block else "up"])
    inner = activated(g, sizes.described.function, first)
    inner = g("Mul", inner, g.linear(x, block["up"])) if "gate" in block else inner
    return g.linear(inner, block["down"])


def activated(g: Graph, function: str, x: str) -> str:
    """f(x), as `transformer_block.FUNCTIONS`."""
    if function == "relu":
        return g("Relu", x)
    if function == "silu":
        return g("Mul", x, g("Sigmoid", x))
    if function == "quick_gelu":
        return g("Mul", x, g("Sigmoid", g("Mul", x, 1.702)))
    if function == "gelu":
        return g("Mul", g("Mul", x, 0.5), g("Add", g("Erf", g("Mul", x, 0.5**0.5)), 1.0))
    cube = g("Mul", g("Mul", x, x), g("Mul", x, 0.044715))
    inner = g("Mul", g("Add", x, cube), (2 / np.pi) ** 0.5)
    return g("Mul", g("Mul", x, 0.5), g("Add", g("Tanh", inner), 1.0))


def pooled(g: Graph, pooling: Pooling, x: str, visible: str) -> str:
    """The vector of each text [batch, hidden], as `pooling.pool`."""
    if pooling == "cls":
        return g("Where", g("Gather", visible, [0], axis=1), g("Gather", x, 0, axis=1), 0.0)
    if pooling == "max":
        lowest = float(np.finfo(np.float32).min)
        largest = g("ReduceMax", g("Where", g("Unsqueeze", visible, [2]), x, lowest), axes=[1], keepdims=0)
        return g("Where", g("Greater", largest, lowest), largest, 0.0)
    weights = g.cast(visible, "float")
    if pooling != "mean":
        count = g("CumSum", weights, np.int64(1))
        last = g.cast(g("Equal", count, g("ReduceMax", count, axes=[1])), "float")
        weights = g("Mul", weights, count if pooling == "weightedmean" else last)
    weights = g("Unsqueeze", weights, [2])
    total, count = (g("ReduceSum", y, [1], keepdims=0) for y in (g("Mul", x, weights), weights))
    return g("Div", total, g("Max", count, 1.0))
