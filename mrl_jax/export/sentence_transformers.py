"""A folder for sentence-transformers, which `transformers` reads as well: an encoder, its pooling, and its projection;
or a table of token vectors, whose mean needs no other module.

There is no Normalize module: it would come before the truncation. `normalize_embeddings=True` comes after it.
"""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from tokenizers import Tokenizer

from mrl_jax.data.prompts import DEFAULT, ROLES
from mrl_jax.encoders import ENCODERS, EncoderType
from mrl_jax.encoders.folder_settings import STATIC
from mrl_jax.encoders.huggingface import HuggingFaceModel, StaticModel
from mrl_jax.encoders.onnx_graph import as_float32
from mrl_jax.encoders.pooling import POOLINGS
from mrl_jax.export.folder import say_dims, special_tokens, typical_dim, write_json
from mrl_jax.model import EmbeddingModel
from mrl_jax.system import files

LIMITS = "it has no module for sublinear tf-idf weights, images or features"
NOTE = (
    "`encode` truncates to `truncate_dim` first and normalises then; there is no Normalize module, which would come "
    "too early. `similarity` is the cosine. Without `normalize_embeddings=True`, and from a server that does not "
    "normalise, vectors are not of unit length: truncate them first (`dimensions=…`), normalise them then."
)
Modules = tuple[tuple[str, str], ...]  # folder and class of each
MODULES: Modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))


def holds(encoder: EncoderType[Any]) -> bool:
    """Whether the encoder can be written in this format."""
    return encoder.hugging_face is not None


def write(model: EmbeddingModel, folder: Path, name: str) -> tuple[str, str]:
    """Write the files; returns an example of use and what was done."""
    program, tokenizer = model.program, model.reader.tokenizer
    convert = ENCODERS[program.encoder.name].hugging_face
    assert convert is not None
    assert tokenizer is not None
    encoder = convert(program.encoder, model.weights.params["encoder"])
    if isinstance(encoder, StaticModel):
        kinds = write_static(encoder, tokenizer, folder)
    else:
        kinds = write_transformer(encoder, model, folder)
    # Class names that all versions know: newer ones translate them.
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    # `encode_query` and `encode_document` take no other prompt than that of their name, not the default either.
    prompts = {**model.prompts.texts, **{role: model.prompts.of(role) for role in ROLES}}
    settings: dict[str, Any] = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"}
    settings |= {"prompts": prompts, "default_prompt_name": DEFAULT if DEFAULT in prompts else None}
    write_json(folder / "config_sentence_transformers.json", settings)
    usage = f"""\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}", truncate_dim={typical_dim(model)})
z = model.encode(["a goal in overtime", "how do I unmount a drive"], normalize_embeddings=True)
"""
    return usage, f"{program.width} coordinates, texts of up to {encoder.max_length} tokens"


def write_static(encoder: StaticModel, tokenizer: Tokenizer, folder: Path) -> Modules:
    """Write the table and its tokenizer; returns the folder and class of each module."""
    files.write(folder / "model.safetensors", save({"embedding.weight": encoder.table}, {"format": "pt"}))
    files.write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    return (("", STATIC),)


def write_transformer(encoder: HuggingFaceModel, model: EmbeddingModel, folder: Path) -> Modules:
    """Write the files of a transformer, its pooling and its projection; returns the folder and class of each module.

    A tokenizer that was learnt from scratch makes no token at all of an empty text: sentence-transformers embeds that
    only beside others, and with first-token pooling as its padding, not as zero.
    """
    program, tokenizer = model.program, model.reader.tokenizer
    assert tokenizer is not None
    # The pooler of a family, which no sentence embedding reads: without it, transformers would draw one and warn.
    sizes = {"weight": (encoder.hidden, encoder.hidden), "bias": (encoder.hidden,)} if encoder.pooler else {}
    pooler = {f"pooler.dense.{name}": np.zeros(shape, np.float32) for name, shape in sizes.items()}
    special = special_tokens(tokenizer)
    padding = {"pad_token_id": tokenizer.token_to_id(special["pad_token"])}  # unless positions depend on it
    write_json(folder / "config.json", padding | encoder.config | say_dims(model))
    files.write(folder / "model.safetensors", save(encoder.tensors | pooler, {"format": "pt"}))
    files.write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": encoder.max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": (tokenizer.truncation or {}).get("direction", "right"),
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config | special)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": encoder.max_length, "do_lower_case": False})
    pooling: dict[str, Any] = {key: mode == encoder.pooling for mode, key in POOLINGS.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": encoder.hidden} | pooling)
    if encoder.projection is not None:
        dense: dict[str, Any] = {"in_features": encoder.hidden, "out_features": program.width, "bias": True}
        dense["activation_function"] = "torch.nn.modules.linear.Identity"
        write_json(folder / "2_Dense" / "config.json", dense)
        kernel, bias = (as_float32(encoder.projection[name]) for name in ("kernel", "bias"))
        matrix = {"linear.weight": np.ascontiguousarray(kernel.T), "linear.bias": bias}
        files.write(folder / "2_Dense" / "model.safetensors", save(matrix, {"format": "pt"}))
    return MODULES[: 2 if encoder.projection is None else 3]
