"""model.onnx: the graph that the encoder writes, checked by the ONNX checker and in onnxruntime.

With `int8`, matrices and tables of embeddings are stored in 8 bits, and activations are rounded to 8 bits as they come,
by onnxruntime's dynamic quantisation: a quarter of the size.
"""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax.encoders import ENCODERS, EncoderType
from mrl_jax.encoders.onnx_graph import Graph
from mrl_jax.export.embedder import TOLERANCE, Signature, largest_difference, signature
from mrl_jax.export.folder import example_texts, typical_dim, write_inputs
from mrl_jax.model import EmbeddingModel
from mrl_jax.system import files
from mrl_jax.system.errors import UserError

LIMITS = "its graph is not written"
NOTE = (
    "The output `embedding` is float32 and not of unit length: truncate it first, normalise it then. Batches may have "
    "any size, texts any length that tokenizer.json gives."
)
INT8_NOTE = (
    "Weights are stored in 8 bits, and activations rounded to 8 bits when the model runs, so vectors differ from those "
    "of the run, whose quality is given below: embed queries and documents with the same file."
)
MAX_BYTES = 2**31 - 1  # of the constants of a graph: a protobuf message holds no more
INT8_TOLERANCE = 0.5  # as `TOLERANCE`, of random texts: more is a graph that computes something else
OPSET, IR_VERSION = 17, 8  # the first ONNX with layer normalisation, 2022: runtimes of all years since read it


def holds(encoder: EncoderType[Any]) -> bool:
    """Whether the encoder can be written in this format."""
    return encoder.onnx is not None


def write(model: EmbeddingModel, folder: Path, name: str, int8: bool = False) -> tuple[str, str]:
    """Write and check the files; returns an example of use and the outcome. Raises `UserError` without the library, and
    for a model that is too large."""
    try:
        import onnx as library
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--to=onnx needs the package {error.name}: pip install 'mrl_jax[onnx]'") from None
    content = assemble(model, signature(model))
    library.checker.check_model(content, full_check=True)
    tokenizer = write_inputs(model, folder)

    def compare(serialised: bytes, tolerance: float) -> str:
        session = onnxruntime.InferenceSession(serialised, providers=["CPUExecutionProvider"])

        def run(*arrays: np.ndarray) -> Any:
            return session.run(None, dict(zip(signature(model), arrays, strict=True)))[0]

        return largest_difference(model, tokenizer, run, tolerance)

    serialised = content.SerializeToString()
    difference = compare(serialised, TOLERANCE)
    if int8:  # what the graph computes is compared above: rounding would hide a small mistake
        serialised = quantise(content)
        difference = compare(serialised, INT8_TOLERANCE)
    files.write(folder / "model.onnx", serialised)
    if tokenizer is None:
        kind, (dtype, shape) = next(iter(signature(model).items()))
        inputs, feed = f"x = np.zeros(({', '.join(map(str, (2, *shape[1:])))}), np.{dtype})\n", f'{{"{kind}": x}}'
        imports = "import onnxruntime\n"
    else:
        imports = "import onnxruntime\nfrom tokenizers import Tokenizer\n"
        inputs = f"""\
tokenizer = Tokenizer.from_file("{name}/tokenizer.json")
texts = tokenizer.encode_batch({example_texts(model)})
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


def quantise(content: Any) -> bytes:
    """The serialised model with weights in 8 bits, each column of a matrix on a scale of its own.

    Matrices use 7 of the 8 bits (`reduce_range`): sums of products of all 8 saturate on processors without VNNI, and
    vectors would depend on the processor. Unsigned weights would not, but take as long as float32.
    """
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        logging.disable()  # advice on graphs that are to be optimised first, which leaves the vectors as they are
        try:
            quantization.quantize_dynamic(content, path, per_channel=True, reduce_range=True)
        finally:
            logging.disable(logging.NOTSET)
        return path.read_bytes()


def assemble(model: EmbeddingModel, inputs: Signature) -> Any:
    """The ONNX model: arrays of the names, dtypes and shapes `inputs` → `embedding` float32 [batch, D]."""
    from onnx import TensorProto, helper

    graph, program = Graph(), model.program
    add_encoder = ENCODERS[program.encoder.name].onnx
    assert add_encoder is not None
    z = add_encoder(graph, program.encoder, model.reader, model.weights.params["encoder"])
    size = sum(len(constant.raw_data) for constant in graph.constants)
    if size > MAX_BYTES:
        raise UserError(
            f"the weights take {size:,} bytes, an ONNX file holds at most {MAX_BYTES:,}; use --to=sentence-transformers"
        )
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
