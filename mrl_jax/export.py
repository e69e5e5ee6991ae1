"""Export a trained run for other libraries: a folder with the weights, the tokenizer and a model card.

    python -m mrl_jax.export results/newsgroups_minilm/latest --to sentence-transformers minilm-news
    python -m mrl_jax.export results/newsgroups/latest        --to onnx                  news-onnx --arm mrl_e --seed 1
    python -m mrl_jax.export results/fashion_mnist/latest     --to stablehlo             fashion

    sentence-transformers   transformer              `SentenceTransformer(DIR, truncate_dim=64)`, also `transformers`
    onnx                    transformer, bag, mlp    model.onnx for any ONNX runtime
    stablehlo               every encoder            model.stablehlo for JAX without this package, on CPU, GPU and TPU

Every export maps inputs to the whole embedding [batch, D], as the classifiers of the run read it: float32 and not of
unit length, since a prefix has to be cut first and scaled then. Text models take the token ids and mask that
tokenizer.json gives, batch and length free; the tf-idf weights of a bag are computed inside. A model trained with
bfloat16 operands is exported in float32. Classifier heads stay behind. An ONNX or StableHLO file is run on a few inputs
and compared with the model that it was made from before the folder appears under its name. Exit status: 0 done, 2 a
mistake, 130 interrupted.
"""

import argparse
import contextlib
import dataclasses
import json
import shlex
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from safetensors.numpy import save
from tokenizers import Tokenizer

import mrl_jax
from mrl_jax import arms, pretrained, report, runs, study
from mrl_jax import config as configuration
from mrl_jax.checkpoint import cannot_write
from mrl_jax.encoders import transformer
from mrl_jax.encoders.bag import BagConfig
from mrl_jax.encoders.convnet import ConvNetConfig
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.encoders.transformer import TransformerConfig
from mrl_jax.errors import UserError, one_of
from mrl_jax.inputs import Plain, Subwords, Words
from mrl_jax.model import Model
from mrl_jax.pretrained import Architecture
from mrl_jax.program import Model as Weights
from mrl_jax.program import Program

TOLERANCE = 1e-4  # largest difference of an exported model, relative to the largest coordinate
LENGTHS = (5, 0, 40, 900)  # tokens of the texts, made of words that the model knows, that it is compared on
OPSET, IR = 17, 8  # the first ONNX with layer normalisation, 2022: runtimes of all years since read it
SPECIAL = {
    "unk_token": ("[UNK]", "<unk>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))


def export(run: str | Path, to: str, out: str | Path, arm: str | None = None, seed: int = 0) -> str:
    """Write one member of a run into the new folder `out`, in the format `to`.

    Args:
        run: a run directory, or an experiment's folder, which stands for its latest run.
        to: `sentence-transformers`, `onnx` or `stablehlo`.
        out: a folder that does not exist or is empty; it appears when it is complete, or not at all.
        arm: `mrl`, `mrl_e`, `ff64`, …; the first arm of the run by default.
        seed: which seed of that arm.

    Returns:
        What was done, in a sentence.

    Raises:
        UserError: no such run, arm, seed or format; a format that cannot hold this encoder; a package that is missing;
            or a folder that is not empty or cannot be written.
    """
    writer = FORMATS[one_of("--to", to, FORMATS)]
    out = Path(out).expanduser().resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; nothing is overwritten, choose another name")
    model = mrl_jax.load(run, arm, seed)
    with _whole_or_absent(out) as folder, jax.default_device(_cpu()):
        usage, said = writer(model, folder, out.name)
        runs.write(folder / "README.md", card(runs.find(run), model, arm, seed, to, usage))
    return f"{out}: {to}, {said}"


@contextlib.contextmanager
def _whole_or_absent(out: Path) -> Iterator[Path]:
    """A folder beside `out` that gets its name when all went well and is removed otherwise."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
            partial.mkdir(parents=True)
            yield partial
            partial.replace(out)
        except OSError as error:
            raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _cpu() -> jax.Device:
    """Exports are made and checked where float32 products are exact; other devices round them by default."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise UserError("an export is checked on the CPU, which JAX_PLATFORMS leaves out; add cpu to it") from None


def _json(path: Path, content: Any) -> None:
    runs.write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


# ---- the model as functions of what a user has -----------------------------------------------------------------------


def full_precision(model: Model) -> tuple[Program, Weights]:
    """The program with float32 operands, and the weights of the encoder alone."""
    program, encoder = model.program, model.program.encoder
    if not isinstance(encoder, BagConfig):
        program = dataclasses.replace(program, encoder=dataclasses.replace(encoder, dtype="float32"))
    weights = Weights({"encoder": model.weights.params["encoder"]}, model.weights.statistics)
    return program, jax.device_put(weights, _cpu())


def signature(model: Model) -> dict[str, tuple[str, tuple[str | int, ...]]]:
    """Name → (type, shape) of what an exported model reads, in order."""
    if isinstance(model.reader, Plain):
        shape = model.program.inputs[model.reader.kind]
        return {model.reader.kind: ("uint8" if model.reader.kind == "image" else "float32", ("batch", *shape))}
    return dict.fromkeys(("input_ids", "attention_mask"), ("int64", ("batch", "length")))


def embedder(model: Model) -> Callable[..., jax.Array]:
    """The arrays of `signature` → float32 [batch, D], with weights inside."""
    program, weights = full_precision(model)
    reader = model.reader
    if isinstance(reader, Subwords):
        return lambda ids, mask: program.embed(weights, {"ids": ids, "mask": mask})
    if isinstance(reader, Words):
        idf, most = jnp.asarray(reader.idf), reader.max_words
        return lambda ids, mask: program.embed(weights, heaviest_words(ids, mask, idf, most))
    kind = next(iter(signature(model)))
    if isinstance(program.encoder, MLPConfig):  # it asks for the length of its batch, which is a symbol here
        return jax.vmap(lambda x: program.embed(weights, {kind: x[None]})[0])
    return lambda x: program.embed(weights, {kind: x})


def heaviest_words(ids_BxL: jax.Array, mask_BxL: jax.Array, idf_V: jax.Array, most: int) -> dict[str, jax.Array]:
    """What `inputs.Words` makes of a text, from all of its word ids: the heaviest `most` by (1 + ln tf) · idf.

    O(B·V) memory. Ties go to the smaller id in both; `Bag` scales the weights to unit length.
    """
    rows = jnp.arange(ids_BxL.shape[0])[:, None]
    tf_BxV = jnp.zeros((ids_BxL.shape[0], len(idf_V))).at[rows, ids_BxL].add(mask_BxL.astype(jnp.float32))
    weights_BxV = jnp.where(tf_BxV > 0, (1 + jnp.log(jnp.maximum(tf_BxV, 1))) * idf_V, 0)
    weights, ids = jax.lax.top_k(weights_BxV, min(most, len(idf_V)))
    return {"ids": ids, "weights": weights}


def largest_difference(model: Model, tokenizer: Tokenizer | None, run: Callable[..., np.ndarray]) -> str:
    """Compare `run`, which takes the arrays of `signature`, with the model itself on a few inputs of several lengths.

    Raises `UserError` when the exported model computes something else.
    """
    program, weights = full_precision(model)
    embed, worst = jax.jit(program.embed), 0.0
    random = np.random.default_rng(0)
    for lengths in (LENGTHS, LENGTHS[:1]):
        if tokenizer is not None:
            ids = (random.integers(tokenizer.get_vocab_size(), size=n).tolist() for n in lengths)
            raw: Any = [tokenizer.decode(row) for row in ids]
            encodings = tokenizer.encode_batch(raw)
            given = [np.array([e.ids for e in encodings]), np.array([e.attention_mask for e in encodings])]
        else:
            dtype, shape = next(iter(signature(model).values()))
            values = random.normal(size=(len(lengths), *map(int, shape[1:])))
            raw = values.astype(np.float32) if dtype == "float32" else (values * 64 + 128).clip(0, 255).astype(np.uint8)
            given = [raw]
        wanted, found = np.asarray(embed(weights, model.reader(raw))), run(*given)
        worst = max(worst, float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12)))
    if not worst <= TOLERANCE:  # NaN too
        raise UserError(f"the exported model differs from the run by {worst:.1e}, more than {TOLERANCE}: not written")
    return f"largest difference to the run {worst:.1e} of the largest coordinate"


# ---- sentence-transformers -------------------------------------------------------------------------------------------


def sentence_transformers(model: Model, folder: Path, name: str) -> tuple[str, str]:
    """A Transformer, its Pooling and, where there is a projection, a Dense module.

    No Normalize module: it would come before the truncation. `normalize_embeddings=True` comes after it. A tokenizer
    that was learnt from scratch makes no token at all of an empty text: sentence-transformers embeds that only beside
    others, and with first-token pooling as its padding, not as zero.
    """
    config, program, reader = model.program.encoder, model.program, model.reader
    if not isinstance(config, TransformerConfig) or not isinstance(reader, Subwords):
        why = ", whose sublinear tf-idf weights it cannot express" if isinstance(config, BagConfig) else ""
        others = "stablehlo" if isinstance(config, ConvNetConfig) else "onnx or stablehlo"
        raise UserError(
            f"--to=sentence-transformers has no module for encoder={config.name}{why}; allowed here: {others}"
        )
    config, sizes = _architecture(config, program.vocabulary)
    params = model.weights.params["encoder"]
    tensors, hugging_face = pretrained.to_hugging_face(sizes, params, config.dropout, config.attention_dropout)
    # BERT's pooler, which no sentence embedding reads: transformers would draw a random one and warn.
    tensors["pooler.dense.weight"] = np.zeros((sizes.hidden, sizes.hidden), np.float32)
    tensors["pooler.dense.bias"] = np.zeros(sizes.hidden, np.float32)
    words = reader.tokenizer
    special = {key: token for key in SPECIAL if (token := _special(words, key))} | {"pad_token": _padding(words)}
    hugging_face |= {"pad_token_id": words.token_to_id(special["pad_token"]), "matryoshka_dims": list(model.dims)}
    _json(folder / "config.json", hugging_face)
    runs.write(folder / "model.safetensors", save(tensors, {"format": "pt"}))
    runs.write(folder / "tokenizer.json", words.to_str(pretty=True))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    _json(folder / "tokenizer_config.json", tokenizer_config | special)
    _json(folder / "sentence_bert_config.json", {"max_seq_length": config.max_length, "do_lower_case": False})
    pooling: dict[str, Any] = dict.fromkeys(("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"), False)
    pooling |= {key: mode == config.pooling for key, mode in pretrained.POOLINGS.items()}
    _json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": sizes.hidden} | pooling)
    if config.projection:
        dense: dict[str, Any] = {"in_features": sizes.hidden, "out_features": program.width, "bias": True}
        dense["activation_function"] = "torch.nn.modules.linear.Identity"
        _json(folder / "2_Dense" / "config.json", dense)
        kernel, bias = (_array(params["projection"][name]) for name in ("kernel", "bias"))
        matrix = {"linear.weight": np.ascontiguousarray(kernel.T), "linear.bias": bias}
        runs.write(folder / "2_Dense" / "model.safetensors", save(matrix, {"format": "pt"}))
    # Names of modules that all versions know: newer ones translate them.
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(MODULES[: 3 if config.projection else 2])
    ]
    _json(folder / "modules.json", modules)
    settings: dict[str, Any] = {"model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None}
    _json(folder / "config_sentence_transformers.json", settings | {"similarity_fn_name": "cosine"})
    usage = f"""\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}", truncate_dim={_typical(model)})
z = model.encode(["a goal in overtime", "how do I unmount a drive"], normalize_embeddings=True)
"""
    return usage, f"{program.width} coordinates, texts of up to {config.max_length} tokens"


def _architecture(config: TransformerConfig, vocabulary: int) -> tuple[TransformerConfig, Architecture]:
    config, vocabulary = transformer.standalone(config, vocabulary)
    return transformer.complete(config, vocabulary)


def _special(tokenizer: Tokenizer, key: str) -> str | None:
    return next((token for token in SPECIAL[key] if tokenizer.token_to_id(token) is not None), None)


def _padding(tokenizer: Tokenizer) -> str:
    """The token that fills up a batch. The mask hides it, so any will do where none is meant for it."""
    return _special(tokenizer, "pad_token") or str(tokenizer.id_to_token(0))


def _array(parameter: Any) -> np.ndarray:
    return np.asarray(parameter, np.float32)


def _typical(model: Model) -> int:
    """A dim for examples of use: the middle one of those that were trained."""
    return model.dims[(len(model.dims) - 1) // 2]


# ---- ONNX and StableHLO ----------------------------------------------------------------------------------------------


def onnx(model: Model, folder: Path, name: str) -> tuple[str, str]:
    """model.onnx, checked by the ONNX checker and in onnxruntime."""
    try:
        import onnx as library
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--to=onnx needs the package {error.name}: pip install 'mrl_jax[onnx]'") from None
    if isinstance(model.program.encoder, ConvNetConfig):
        raise UserError("--to=onnx does not know encoder=convnet; allowed here: stablehlo")
    content = onnx_model(model)
    library.checker.check_model(content, full_check=True)
    written = content.SerializeToString()
    runs.write(folder / "model.onnx", written)
    tokenizer = _describe(model, folder)
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    said = largest_difference(
        model, tokenizer, lambda *given: session.run(None, dict(zip(signature(model), given, strict=True)))[0]
    )
    if tokenizer is None:
        kind, (dtype, shape) = next(iter(signature(model).items()))
        made, feed = f"x = np.zeros(({', '.join(map(str, (2, *shape[1:])))}), np.{dtype})\n", f'{{"{kind}": x}}'
        imports = "import onnxruntime\n"
    else:
        imports = "import onnxruntime\nfrom tokenizers import Tokenizer\n"
        made = f"""\
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
{made}model = onnxruntime.InferenceSession("{name}/model.onnx")
z = model.run(["embedding"], {feed})[0][:, :{_typical(model)}]
z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
"""
    return usage, said


def stablehlo(model: Model, folder: Path, name: str) -> tuple[str, str]:
    """model.stablehlo: a serialised `jax.export.Exported` for CPU, CUDA and TPU."""
    places = {"batch": "b", "length": "l"}
    config, limit = model.program.encoder, []
    if isinstance(config, TransformerConfig):
        limit = [f"l <= {_architecture(config, model.program.vocabulary)[1].positions}"]
    scope = jax.export.SymbolicScope(limit)
    specs = []
    for dtype, shape in signature(model).values():
        symbols = jax.export.symbolic_shape(", ".join(places.get(str(n), str(n)) for n in shape), scope=scope)
        dtype = "int32" if dtype == "int64" else dtype  # JAX's own width
        specs.append(jax.ShapeDtypeStruct(symbols, dtype))  # type: ignore[no-untyped-call]
    exported = jax.export.export(jax.jit(embedder(model)), platforms=("cpu", "cuda", "tpu"))(*specs)
    written = exported.serialize()
    runs.write(folder / "model.stablehlo", bytes(written))
    tokenizer = _describe(model, folder)
    call = jax.jit(jax.export.deserialize(written).call)

    def run(*given: np.ndarray) -> np.ndarray:
        return np.asarray(call(*(x.astype(spec.dtype) for x, spec in zip(given, specs, strict=True))))

    said = largest_difference(model, tokenizer, run)
    if tokenizer is None:
        dtype, shape = next(iter(signature(model).values()))
        made = f"given = [np.zeros(({', '.join(map(str, (2, *shape[1:])))}), np.{dtype})]\n"
        imports = ""
    else:
        imports = "from tokenizers import Tokenizer\n"
        made = f"""\
texts = Tokenizer.from_file("{name}/tokenizer.json").encode_batch(["a goal in overtime", "how do I unmount a drive"])
given = [np.array(rows, np.int32) for rows in ([t.ids for t in texts], [t.attention_mask for t in texts])]
"""
    usage = f"""\
import jax.export
import numpy as np
{imports}
{made}model = jax.export.deserialize(open("{name}/model.stablehlo", "rb").read())
z = np.asarray(model.call(*given))[:, :{_typical(model)}]
z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
"""
    return usage, said


FORMATS = {"sentence-transformers": sentence_transformers, "onnx": onnx, "stablehlo": stablehlo}


def _describe(model: Model, folder: Path) -> Tokenizer | None:
    """Write config.json and tokenizer.json, which pads a batch to its longest text; return that tokenizer."""
    described = {
        "matryoshka_dims": list(model.dims),
        "width": model.program.width,
        "encoder": model.program.encoder.name,
        "inputs": {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in signature(model).items()},
        "normalized": False,
    }
    _json(folder / "config.json", described)
    if not isinstance(model.reader, Words | Subwords):
        return None
    tokenizer = Tokenizer.from_str(model.reader.tokenizer.to_str())
    pad = _padding(tokenizer)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    runs.write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    return tokenizer


class Graph:
    """The nodes of an ONNX graph: `graph("Add", a, b)` adds one and gives the name of its result.

    Operands are names, or arrays, which become constants. Written by hand: a converter of JAX programs would make
    eight times as many nodes of a transformer, most of them shape arithmetic, and bring a dozen packages.
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
        product = self("MatMul", x, _array(p["kernel"]))
        return self("Add", product, _array(p["bias"])) if "bias" in p else product

    def float_(self, x: str, double: bool = False) -> str:
        from onnx import TensorProto

        return self("Cast", x, to=TensorProto.DOUBLE if double else TensorProto.FLOAT)


def onnx_model(model: Model) -> Any:
    """The ONNX model: the arrays of `signature` → `embedding` float32 [batch, D]."""
    from onnx import TensorProto, helper

    g, params = Graph(), model.weights.params["encoder"]
    config, program = model.program.encoder, model.program
    if isinstance(config, TransformerConfig):
        z = _transformer(g, *_architecture(config, program.vocabulary), params)
    elif isinstance(config, BagConfig):
        assert isinstance(model.reader, Words)
        z = _bag(g, config, model.reader, params)
    else:
        z = _mlp(g, model.reader.kind if isinstance(model.reader, Plain) else "", params)
    g.nodes.append(helper.make_node("Identity", [z], ["embedding"]))
    types = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
    given = [helper.make_tensor_value_info(n, types[t], shape) for n, (t, shape) in signature(model).items()]
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
        return g("LayerNormalization", x, _array(p["scale"]), _array(p["bias"]), epsilon=sizes.layer_norm_eps)

    def gelu(x: str) -> str:
        return g("Mul", g("Mul", x, 0.5), g("Add", g("Erf", g("Mul", x, 0.5**0.5)), 1.0))

    k = sizes.hidden // sizes.heads
    table = _array(p["position"]) + _array(p["token_type"])[0]
    position = g("Slice", table, [0], g("Shape", "input_ids", start=1, end=2), [0])
    x = norm(g("Add", g("Gather", _array(p["word"]), "input_ids"), position), p["norm"])
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
    weighted = g("Mul", weights, g("Gather", _array(p["embedding"]), ids))
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


# ---- the model card --------------------------------------------------------------------------------------------------

LIBRARIES = {"sentence-transformers": "sentence-transformers", "onnx": "onnx", "stablehlo": "jax"}
NOTES = {
    "sentence-transformers": "`encode` cuts to `truncate_dim` first and scales then; there is no Normalize module, "
    "which would come too early. `similarity` is the cosine.",
    "onnx": "The output `embedding` is float32 and not of unit length: cut it first, scale it then. Batches may have "
    "any size, texts any length that tokenizer.json gives.",
    "stablehlo": "The output is float32 and not of unit length: cut it first, scale it then. Batches may have any "
    "size, but at least one example and one token. Lowered for CPU, CUDA and TPU; later versions of JAX read it for "
    "six months at least.",
}


def card(directory: Path, model: Model, arm: str | None, seed: int, to: str, usage: str) -> str:
    """README.md: front matter, what the model is, how to use it, its quality at each dim and how it was trained."""
    config = configuration.from_yaml(directory / "config.yaml")
    dataset = runs.read_dataset(directory)
    members = {a.label: a for a in arms.expand(config.arms, config.nesting_dims, config.loss.weights)}
    member = members[arm or next(iter(members))]
    text, dims = not isinstance(model.reader, Plain), ", ".join(map(str, model.dims))
    start = getattr(config.encoder, "weights", None)
    base = "sentence-transformers/all-MiniLM-L6-v2" if start == "minilm" else start
    front: dict[str, Any] = {"library_name": LIBRARIES[to]}
    tags = ["sentence-transformers", "sentence-similarity"] * (to == "sentence-transformers")
    front["tags"] = [*tags, "feature-extraction", "matryoshka", "mrl_jax"]
    front |= {"pipeline_tag": "sentence-similarity"} if text else {}
    front |= {"base_model": base} if base and not Path(base).expanduser().exists() else {}
    kinds = {"text": "texts", "image": "images", "features": "feature vectors"}
    kind = kinds.get(dataset["kind"], dataset["kind"])
    about = [
        f"[Matryoshka embeddings](https://arxiv.org/abs/2205.13147) of {kind}: {model.program.width} coordinates, "
        f"encoder {config.encoder.name}, trained with mrl_jax on {dataset.get('name', config.data.source)}"
        f"{_sizes(dataset)} with a loss at {dims} dims.",
    ]
    if max(model.dims) < model.program.width:
        about.append(f"No loss was taken beyond {max(model.dims)} dims: the coordinates after them mean nothing.")
    elif len(model.dims) > 1:
        about.append("A prefix of one of these lengths, scaled to unit length, is an embedding too.")
    if base == "sentence-transformers/all-MiniLM-L6-v2":
        about.append(f"It started from [{base}](https://huggingface.co/{base}), Apache-2.0.")
    if getattr(model.program.encoder, "dtype", "float32") != "float32":
        about.append("Trained with bfloat16 operands of matrix products, exported in float32: the last digits differ.")
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
        f"# {config.name}: {study.LABELS.get(member.name, member.name)}{f' {member.width}' if member.width else ''}",
        " ".join(about),
        f"## Use\n\n```python\n{usage}```\n\n{NOTES[to]} Any of {dims} dims may take the place of {_typical(model)}.",
        "## Quality on the test split\n\n" + _quality(directory, member, seed, model.dims),
        "## Training\n\n" + _training(directory, config),
    ]
    return "\n\n".join(parts) + "\n"


def _sizes(dataset: dict[str, Any]) -> str:
    counts = [f"{dataset['examples']['train']:,} training examples"] if dataset.get("examples") else []
    counts += [f"{len(dataset['classes'])} classes"] if dataset["classes"] else []
    return f" ({', '.join(counts)})" if counts else ""


def _quality(directory: Path, member: arms.Arm, seed: int, dims: Sequence[int]) -> str:
    """The metrics of the exported member; where its arm has several seeds, their mean in brackets."""
    own: dict[tuple[int, str], float] = {}
    every = defaultdict(list)
    for row in runs.read_rows(directory / "evaluation.csv"):
        compressed = row.metric.startswith(("int8_", "bit_"))
        if row.arm == member.name and row.split == "test" and member.width in (None, row.dim) and not compressed:
            every[row.dim, row.metric].append(row.value)
            if row.seed == seed:
                own[row.dim, row.metric] = row.value
    if not own:
        return "The run has no evaluation on a test split."
    found = {metric for _, metric in own}
    metrics = [m for m in report.METRICS if m in found] + sorted(found - set(report.METRICS))
    lines = ["| dims | " + " | ".join(metrics) + " |", "|---:" * (len(metrics) + 1) + "|"]
    for dim in sorted({dim for dim, _ in own}):
        cells = []
        for metric in metrics:
            value, values = own.get((dim, metric)), every[dim, metric]
            mean = f" ({np.mean(values):.4f})" if len(values) > 1 else ""
            cells.append("–" if value is None else f"{value:.4f}{mean}")
        lines.append(f"| {dim}{'' if dim in dims else ' †'} | " + " | ".join(cells) + " |")
    notes = ["† no loss was taken at these dims."] if any(dim not in dims for dim, _ in own) else []
    seeds = max(map(len, every.values()))
    notes += [f"Seed {seed}, in brackets the mean over {seeds} seeds."] if seeds > 1 else []
    return "\n".join(lines) + ("\n\n" + " ".join(notes) if notes else "")


def _training(directory: Path, config: configuration.Config) -> str:
    """The command, the versions and the whole configuration, without the places of the machine that it ran on."""
    try:
        environment = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
        program, *words = environment["command"]
        versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
        said = [f"Python {environment['python']}, {versions}; {', '.join(environment['devices'])}."]
        changed = " with uncommitted changes" if environment.get("git_changes") else ""
        said += [f"Commit {environment['git_commit']}{changed}."] if environment["git_commit"] else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory / 'environment.json'} cannot be read: {error!r}") from None
    kept = [word for word in words if not word.startswith(("run=", "results_dir=", "resume="))]
    command = f"```bash\npython -m mrl_jax.train {shlex.join(kept)}\n```\n\n" if program == "train.py" else ""
    placeless = dataclasses.replace(config, run=None, results_dir="results", resume=False)
    shown = f"<details><summary>Configuration</summary>\n\n```yaml\n{configuration.to_yaml(placeless)}```\n\n</details>"
    return f"{command}{' '.join(said)}\n\n{shown}"


# ---- the command line ------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    report.forgiving_output()
    parser = argparse.ArgumentParser(
        prog="python -m mrl_jax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run directory, or an experiment's folder for its latest run")
    parser.add_argument("out", metavar="DIR", help="a new or empty folder")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--arm", help="mrl, mrl_e, ff64, …; the run's first by default")
    parser.add_argument("--seed", type=int, default=0)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stopped:  # argparse has said why
        return int(stopped.code or 0)
    try:
        print(export(options.run, options.to, options.out, options.arm, options.seed))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
