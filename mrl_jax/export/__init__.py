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
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save
from tokenizers import Tokenizer

import mrl_jax
from mrl_jax import console, files, runs
from mrl_jax.encoders import huggingface
from mrl_jax.encoders.bag import BagConfig
from mrl_jax.encoders.convnet import ConvNetConfig
from mrl_jax.encoders.transformer import TransformerConfig
from mrl_jax.errors import UserError, one_of
from mrl_jax.export.model_card import card, typical
from mrl_jax.export.onnx_graph import architecture, array, onnx_model
from mrl_jax.files import cannot_write_error
from mrl_jax.model import EmbeddingModel
from mrl_jax.text.tokenizers import Plain, Subwords, Words
from mrl_jax.training.step import TrainStep, Weights

TOLERANCE = 1e-4  # largest difference of an exported model, relative to the largest coordinate
LENGTHS = (5, 0, 40, 900)  # tokens of the texts, made of words that the model knows, that it is compared on
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
        files.write(folder / "README.md", card(runs.find(run), model, arm, seed, to, usage))
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
            raise cannot_write_error(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _cpu() -> jax.Device:
    """Exports are made and checked where float32 products are exact; other devices round them by default."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise UserError("an export is checked on the CPU, which JAX_PLATFORMS leaves out; add cpu to it") from None


def _json(path: Path, content: Any) -> None:
    files.write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


# ---- the model as functions of what a user has -----------------------------------------------------------------------


def full_precision(model: EmbeddingModel) -> tuple[TrainStep, Weights]:
    """The program with float32 operands, and the weights of the encoder alone."""
    program, encoder = model.program, model.program.encoder
    if not isinstance(encoder, BagConfig):
        program = dataclasses.replace(program, encoder=dataclasses.replace(encoder, dtype="float32"))
    weights = Weights({"encoder": model.weights.params["encoder"]}, model.weights.statistics)
    return program, jax.device_put(weights, _cpu())


def signature(model: EmbeddingModel) -> dict[str, tuple[str, tuple[str | int, ...]]]:
    """Name → (type, shape) of what an exported model reads, in order."""
    if isinstance(model.reader, Plain):
        shape = model.program.inputs[model.reader.kind]
        return {model.reader.kind: ("uint8" if model.reader.kind == "image" else "float32", ("batch", *shape))}
    return dict.fromkeys(("input_ids", "attention_mask"), ("int64", ("batch", "length")))


def embedder(model: EmbeddingModel) -> Callable[..., jax.Array]:
    """The arrays of `signature` → float32 [batch, D], with weights inside."""
    program, weights = full_precision(model)
    reader = model.reader
    if isinstance(reader, Subwords):
        return lambda ids, mask: program.embed(weights, {"ids": ids, "mask": mask})
    if isinstance(reader, Words):
        idf, most = jnp.asarray(reader.idf), reader.max_words
        return lambda ids, mask: program.embed(weights, heaviest_words(ids, mask, idf, most))
    kind = next(iter(signature(model)))
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


def largest_difference(model: EmbeddingModel, tokenizer: Tokenizer | None, run: Callable[..., np.ndarray]) -> str:
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


def sentence_transformers(model: EmbeddingModel, folder: Path, name: str) -> tuple[str, str]:
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
    config, sizes = architecture(config, program.vocabulary)
    params = model.weights.params["encoder"]
    tensors, hugging_face = huggingface.to_hugging_face(sizes, params, config.dropout, config.attention_dropout)
    # BERT's pooler, which no sentence embedding reads: transformers would draw a random one and warn.
    tensors["pooler.dense.weight"] = np.zeros((sizes.hidden, sizes.hidden), np.float32)
    tensors["pooler.dense.bias"] = np.zeros(sizes.hidden, np.float32)
    words = reader.tokenizer
    special = {key: token for key in SPECIAL if (token := _special(words, key))} | {"pad_token": _padding(words)}
    hugging_face |= {"pad_token_id": words.token_to_id(special["pad_token"]), "matryoshka_dims": list(model.dims)}
    _json(folder / "config.json", hugging_face)
    files.write(folder / "model.safetensors", save(tensors, {"format": "pt"}))
    files.write(folder / "tokenizer.json", words.to_str(pretty=True))
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
    pooling |= {key: mode == config.pooling for key, mode in huggingface.POOLINGS.items()}
    _json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": sizes.hidden} | pooling)
    if config.projection:
        dense: dict[str, Any] = {"in_features": sizes.hidden, "out_features": program.width, "bias": True}
        dense["activation_function"] = "torch.nn.modules.linear.Identity"
        _json(folder / "2_Dense" / "config.json", dense)
        kernel, bias = (array(params["projection"][name]) for name in ("kernel", "bias"))
        matrix = {"linear.weight": np.ascontiguousarray(kernel.T), "linear.bias": bias}
        files.write(folder / "2_Dense" / "model.safetensors", save(matrix, {"format": "pt"}))
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

model = SentenceTransformer("{name}", truncate_dim={typical(model)})
z = model.encode(["a goal in overtime", "how do I unmount a drive"], normalize_embeddings=True)
"""
    return usage, f"{program.width} coordinates, texts of up to {config.max_length} tokens"


def _special(tokenizer: Tokenizer, key: str) -> str | None:
    return next((token for token in SPECIAL[key] if tokenizer.token_to_id(token) is not None), None)


def _padding(tokenizer: Tokenizer) -> str:
    """The token that fills up a batch. The mask hides it, so any will do where none is meant for it."""
    return _special(tokenizer, "pad_token") or str(tokenizer.id_to_token(0))


# ---- ONNX and StableHLO ----------------------------------------------------------------------------------------------


def onnx(model: EmbeddingModel, folder: Path, name: str) -> tuple[str, str]:
    """model.onnx, checked by the ONNX checker and in onnxruntime."""
    try:
        import onnx as library
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--to=onnx needs the package {error.name}: pip install 'mrl_jax[onnx]'") from None
    if isinstance(model.program.encoder, ConvNetConfig):
        raise UserError("--to=onnx does not know encoder=convnet; allowed here: stablehlo")
    content = onnx_model(model, signature(model))
    library.checker.check_model(content, full_check=True)
    written = content.SerializeToString()
    files.write(folder / "model.onnx", written)
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
z = model.run(["embedding"], {feed})[0][:, :{typical(model)}]
z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
"""
    return usage, said


def stablehlo(model: EmbeddingModel, folder: Path, name: str) -> tuple[str, str]:
    """model.stablehlo: a serialised `jax.export.Exported` for CPU, CUDA and TPU."""
    places = {"batch": "b", "length": "l"}
    config, limit = model.program.encoder, []
    if isinstance(config, TransformerConfig):
        limit = [f"l <= {architecture(config, model.program.vocabulary)[1].positions}"]
    scope = jax.export.SymbolicScope(limit)
    specs = []
    for dtype, shape in signature(model).values():
        symbols = jax.export.symbolic_shape(", ".join(places.get(str(n), str(n)) for n in shape), scope=scope)
        dtype = "int32" if dtype == "int64" else dtype  # JAX's own width
        specs.append(jax.ShapeDtypeStruct(symbols, dtype))  # type: ignore[no-untyped-call]
    exported = jax.export.export(jax.jit(embedder(model)), platforms=("cpu", "cuda", "tpu"))(*specs)
    written = exported.serialize()
    files.write(folder / "model.stablehlo", bytes(written))
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
z = np.asarray(model.call(*given))[:, :{typical(model)}]
z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
"""
    return usage, said


FORMATS = {"sentence-transformers": sentence_transformers, "onnx": onnx, "stablehlo": stablehlo}


def _describe(model: EmbeddingModel, folder: Path) -> Tokenizer | None:
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
    files.write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    return tokenizer


# ---- the command line ------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    console.replace_unencodable()
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
