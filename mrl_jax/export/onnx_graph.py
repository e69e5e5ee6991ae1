"""Encoders as ONNX graphs, node by node: a transformer, a bag of words, an MLP.

Written by hand: a converter of JAX programs would make eight times as many nodes of a transformer, most of them shape
arithmetic, and bring a dozen packages.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mrl_jax.encoders import transformer
from mrl_jax.encoders.bag import BagConfig
from mrl_jax.encoders.huggingface import Architecture
from mrl_jax.encoders.transformer import TransformerConfig
from mrl_jax.model import EmbeddingModel
from mrl_jax.text.tokenizers import Plain, Words

OPSET, IR = 17, 8  # the first ONNX with layer normalisation, 2022: runtimes of all years since read it


class Graph:
    """The nodes of an ONNX graph: `graph("Add", a, b)` adds one and gives the name of its result.

    Operands are names, or arrays, which become constants.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, kind: str, *operands: Any, **attributes: Any) -> str:
        return self.several(1, kind, *operands, **attributes)[0]

    def several(self, results: int, kind: str, *operands: Any, **attributes: Any) -> list[str]:
        from onnx import helper

        names = [x if isinstance(x, str) else self.constant(np.asarray(x)) for x in operands]
        made = [f"{kind}_{len(self.nodes)}_{i}" for i in range(results)]
        self.nodes.append(helper.make_node(kind, names, made, **attributes))
        return made

    def constant(self, array: np.ndarray) -> str:
        """Floats as float32 unless they are arrays of float64, whole numbers as int64."""
        from onnx import numpy_helper

        if array.dtype == np.float64 and array.ndim == 0:
            array = array.astype(np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def linear(self, x: str, p: Any) -> str:
        product = self("MatMul", x, array(p["kernel"]))
        return self("Add", product, array(p["bias"])) if "bias" in p else product

    def float_(self, x: str, double: bool = False) -> str:
        from onnx import TensorProto

        return self("Cast", x, to=TensorProto.DOUBLE if double else TensorProto.FLOAT)


def onnx_model(model: EmbeddingModel, inputs: Mapping[str, tuple[str, tuple[str | int, ...]]]) -> Any:
    """The ONNX model: arrays of the names, types and shapes `inputs` → `embedding` float32 [batch, D]."""
    from onnx import TensorProto, helper

    g, params = Graph(), model.weights.params["encoder"]
    config, program = model.program.encoder, model.program
    if isinstance(config, TransformerConfig):
        z = _transformer(g, *architecture(config, program.vocabulary), params)
    elif isinstance(config, BagConfig):
        assert isinstance(model.reader, Words)
        z = _bag(g, config, model.reader, params)
    else:
        z = _mlp(g, model.reader.kind if isinstance(model.reader, Plain) else "", params)
    g.nodes.append(helper.make_node("Identity", [z], ["embedding"]))
    types = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
    given = [helper.make_tensor_value_info(n, types[t], shape) for n, (t, shape) in inputs.items()]
    made = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("batch", program.width))
    graph = helper.make_graph(g.nodes, "mrl_jax", given, [made], g.constants)
    content = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="mrl_jax"
    )
    helper.set_model_props(content, {"matryoshka_dims": json.dumps(list(model.dims))})
    return content


def _transformer(g: Graph, config: TransformerConfig, sizes: Architecture, p: Any) -> str:
    """As `encoders.transformer`, in evaluation."""
    from onnx import TensorProto

    def norm(x: str, p: Any) -> str:
        return g("LayerNormalization", x, array(p["scale"]), array(p["bias"]), epsilon=sizes.layer_norm_eps)

    def gelu(x: str) -> str:
        return g("Mul", g("Mul", x, 0.5), g("Add", g("Erf", g("Mul", x, 0.5**0.5)), 1.0))

    k = sizes.hidden // sizes.heads
    table = array(p["position"]) + array(p["token_type"])[0]
    position = g("Slice", table, [0], g("Shape", "input_ids", start=1, end=2), [0])
    x = norm(g("Add", g("Gather", array(p["word"]), "input_ids"), position), p["norm"])
    seen = g("Cast", "attention_mask", to=TensorProto.BOOL)
    bias = g("Where", g("Unsqueeze", seen, [1, 2]), 0.0, -1e30)
    for i in range(sizes.layers):
        b = p["blocks"][i]

        def split(name: str, *order: int, x: str = x, b: Any = b) -> str:
            return g("Transpose", g("Reshape", g.linear(x, b[name]), [0, 0, sizes.heads, k]), perm=order)

        scores = g("MatMul", g("Mul", split("query", 0, 2, 1, 3), k**-0.5), split("key", 0, 2, 3, 1))
        weights = g("Softmax", g("Add", scores, bias), axis=-1)
        mixed = g("Transpose", g("MatMul", weights, split("value", 0, 2, 1, 3)), perm=(0, 2, 1, 3))
        mixed = g.linear(g("Reshape", mixed, [0, 0, sizes.hidden]), b["attended"])
        x = norm(g("Add", x, mixed), b["attention_norm"])
        x = norm(g("Add", x, g.linear(gelu(g.linear(x, b["up"])), b["down"])), b["output_norm"])
    if config.pooling == "cls":
        z = g("Where", g("Gather", seen, [0], axis=1), g("Gather", x, 0, axis=1), 0.0)
    else:
        tokens = g("Unsqueeze", g.float_(seen), [2])
        total, count = (g("ReduceSum", y, [1], keepdims=0) for y in (g("Mul", x, tokens), tokens))
        z = g("Div", total, g("Max", count, 1.0))
    return g.linear(z, p["projection"]) if config.projection else z


def _bag(g: Graph, config: BagConfig, words: Words, p: Any) -> str:
    """As `inputs.Words`, with its logarithm in float64, and `encoders.bag`, in evaluation."""
    shape = g("Concat", g("Shape", "input_ids", start=0, end=1), [words.vocabulary], axis=0)
    counts = g(
        "ScatterElements", g("Expand", 0.0, shape), "input_ids", g.float_("attention_mask"), axis=1, reduction="add"
    )
    tf = g("Add", g("Log", g.float_(g("Max", counts, 1.0), double=True)), np.ones(1))
    heavy = g.float_(g("Mul", tf, words.idf.astype(np.float64)))
    heavy = g("Where", g("Greater", counts, 0.0), heavy, 0.0)
    weights, ids = g.several(2, "TopK", heavy, [min(words.max_words, words.vocabulary)])
    norm = g("ReduceL2", weights, axes=[-1], keepdims=1)
    weights = g("Unsqueeze", g("Div", weights, g("Max", norm, 1e-6)), [2])
    weighted = g("Mul", weights, g("Gather", array(p["embedding"]), ids))
    h = g("ReduceSum", weighted, [1], keepdims=0)
    if config.pooling == "mean_max":
        present = g("Greater", weights, 0.0)
        largest = g("ReduceMax", g("Where", present, weighted, -np.inf), axes=[1], keepdims=0)
        h = g("Concat", h, g("Where", g("Equal", largest, -np.inf), 0.0, largest), axis=1)
    z = g.linear(h, p["projection"]) if "projection" in p else h
    if "up" in p:
        up = g.linear(h, p["up"])  # gelu by its tanh formula, as flax has it
        inner = g("Mul", g("Add", up, g("Mul", g("Mul", g("Mul", up, up), up), 0.044715)), (2 / np.pi) ** 0.5)
        z = g("Add", z, g.linear(g("Mul", g("Mul", up, 0.5), g("Add", g("Tanh", inner), 1.0)), p["down"]))
    return z


def _mlp(g: Graph, kind: str, p: Any) -> str:
    """As `encoders.mlp`, in evaluation."""
    x = g("Div", g.float_(g("Flatten", kind, axis=1)), 255.0) if kind == "image" else kind
    for i in range(len(p.get("hidden", ()))):
        x = g("Relu", g.linear(x, p["hidden"][i]))
    return g.linear(x, p["last"])


def architecture(config: TransformerConfig, vocabulary: int) -> tuple[TransformerConfig, Architecture]:
    config, vocabulary = transformer.standalone(config, vocabulary)
    return transformer.complete(config, vocabulary)


def array(parameter: Any) -> np.ndarray:
    return np.asarray(parameter, np.float32)
