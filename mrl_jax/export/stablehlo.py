"""model.stablehlo: a serialised `jax.export.Exported` for CPU, CUDA and TPU, of any encoder."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from mrl_jax import encoders
from mrl_jax.encoders import EncoderType
from mrl_jax.export.embedder import embedder, largest_difference, signature
from mrl_jax.export.folder import example_texts, typical_dim, write_inputs
from mrl_jax.model import EmbeddingModel
from mrl_jax.system import files

NOTE = (
    "The output is float32 and not of unit length: truncate it first, normalise it then. Batches may have any size, "
    "but at least one example and one token. Lowered for CPU, CUDA and TPU; later versions of JAX read it for six "
    "months at least."
)
PLATFORMS = ("cpu", "cuda", "tpu")
SYMBOLS = {"batch": "b", "length": "l"}  # of dimensions of any size


def holds(encoder: EncoderType[Any]) -> bool:
    """Whether the encoder can be written in this format: JAX lowers every one."""
    del encoder
    return True


def write(model: EmbeddingModel, folder: Path, name: str) -> tuple[str, str]:
    """Write and check the files; returns an example of use and what was done."""
    encoder, _ = encoders.standalone(model.program.encoder, model.program.vocabulary)
    positions = getattr(encoder, "positions", None)
    scope = jax_export.SymbolicScope([] if positions is None else [f"l <= {positions}"])
    specs = []
    for dtype, shape in signature(model).values():
        symbols = jax_export.symbolic_shape(", ".join(SYMBOLS.get(str(n), str(n)) for n in shape), scope=scope)
        dtype = "int32" if dtype == "int64" else dtype  # JAX's own width
        specs.append(jax.ShapeDtypeStruct(symbols, dtype))  # type: ignore[no-untyped-call]
    exported = jax_export.export(jax.jit(embedder(model)), platforms=PLATFORMS)(*specs)
    serialised = exported.serialize()
    files.write(folder / "model.stablehlo", bytes(serialised))
    tokenizer = write_inputs(model, folder)
    call = jax.jit(jax_export.deserialize(serialised).call)

    def run(*arrays: np.ndarray) -> np.ndarray:
        return np.asarray(call(*(x.astype(spec.dtype) for x, spec in zip(arrays, specs, strict=True))))

    difference = largest_difference(model, tokenizer, run)
    if tokenizer is None:
        dtype, shape = next(iter(signature(model).values()))
        inputs = f"arrays = [np.zeros(({', '.join(map(str, (2, *shape[1:])))}), np.{dtype})]\n"
        imports = ""
    else:
        imports = "from tokenizers import Tokenizer\n"
        inputs = f"""\
texts = Tokenizer.from_file("{name}/tokenizer.json").encode_batch({example_texts(model)})
arrays = [np.array(rows, np.int32) for rows in ([t.ids for t in texts], [t.attention_mask for t in texts])]
"""
    usage = f"""\
import jax.export
import numpy as np
{imports}
{inputs}model = jax.export.deserialize(open("{name}/model.stablehlo", "rb").read())
z = np.asarray(model.call(*arrays))[:, :{typical_dim(model)}]
z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
"""
    return usage, difference
