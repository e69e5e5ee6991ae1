"""model.onnx: the graph that the encoder writes, checked by the ONNX checker and in onnxruntime."""

import json
from pathlib import Path
from typing import Any

from mrl_jax import files
from mrl_jax.encoders import ENCODERS, EncoderType
from mrl_jax.encoders.onnx_graph import Graph
from mrl_jax.errors import UserError
from mrl_jax.export.embedder import Signature, largest_difference, signature
from mrl_jax.export.folder import typical_dim, write_inputs
from mrl_jax.model import EmbeddingModel

LIMITS = "its graph is not written"
NOTE = (
    "The output `embedding` is float32 and not of unit length: truncate it first, normalise it then. Batches may have "
    "any size, texts any length that tokenizer.json gives."
)
OPSET, IR_VERSION = 17, 8  # the first ONNX with layer normalisation, 2022: runtimes of all years since read it


def holds(encoder: EncoderType[Any]) -> bool:
    """Whether the encoder can be written in this format."""
    return encoder.onnx is not None


def write(model: EmbeddingModel, folder: Path, name: str) -> tuple[str, str]:
    """Write and check the files; returns an example of use and the outcome. Raises `UserError` without the library."""
    try:
        import onnx as library
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--to=onnx needs the package {error.name}: pip install 'mrl_jax[onnx]'") from None
    content = assemble(model, signature(model))
    library.checker.check_model(content, full_check=True)
    serialised = content.SerializeToString()
    files.write(folder / "model.onnx", serialised)
    tokenizer = write_inputs(model, folder)
    session = onnxruntime.InferenceSession(serialised, providers=["CPUExecutionProvider"])
    difference = largest_difference(
        model, tokenizer, lambda *arrays: session.run(None, dict(zip(signature(model), arrays, strict=True)))[0]
    )
    if tokenizer is None:
        kind, (dtype, shape) = next(iter(signature(model).items()))
        inputs, feed = f"x = np.zeros(({', '.join(map(str, (2, *shape[1:])))}), np.{dtype})\n", f'{{"{kind}": x}}'
        imports = "import onnxruntime\n"
    else:
        imports = "import onnxruntime\nfrom tokenizers import Tokenizer\n"
        inputs = f"""\
tokenizer = Tokenizer.from_file("{name}/tokenizer.json")
texts = tokenizer.encode_batch(["a goal in overtime", "how do I unmount a drive"])
feed = {{
    "input_ids": np.array([text.ids for text in texts], np.int64),
    "attention_mask": np.array([text.attention_mask for text in texts], np.int64),
}}
"""
        feed = "feed"
    usage = f"""\
import numpy as np
{imports}
{inputs}model = onnxruntime.InferenceSession("{name}/model.onnx")
z = model.run(["embedding"], {feed})[0][:, :{typical_dim(model)}]
z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
"""
    return usage, difference


def assemble(model: EmbeddingModel, inputs: Signature) -> Any:
    """The ONNX model: arrays of the names, dtypes and shapes `inputs` → `embedding` float32 [batch, D]."""
    from onnx import TensorProto, helper

    graph, program = Graph(), model.program
    add_encoder = ENCODERS[program.encoder.name].onnx
    assert add_encoder is not None
    z = add_encoder(graph, program.encoder, model.reader, model.weights.params["encoder"])
    graph.nodes.append(helper.make_node("Identity", [z], ["embedding"]))
    types = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
    infos = [helper.make_tensor_value_info(name, types[dtype], shape) for name, (dtype, shape) in inputs.items()]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("batch", program.width))
    content = helper.make_model(
        helper.make_graph(graph.nodes, "mrl_jax", infos, [output], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="mrl_jax",
    )  # fmt: skip
    helper.set_model_props(content, {"matryoshka_dims": json.dumps(list(model.dims))})
    return content
