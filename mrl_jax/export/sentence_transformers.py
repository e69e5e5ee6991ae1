"""A folder for sentence-transformers, which `transformers` reads as well: a BERT, its pooling, and its projection.

There is no Normalize module: it would come before the truncation. `normalize_embeddings=True` comes after it.
"""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mrl_jax import files
from mrl_jax.encoders import ENCODERS, EncoderType
from mrl_jax.encoders.huggingface import POOLINGS
from mrl_jax.encoders.onnx_graph import as_float32
from mrl_jax.export.folder import special_tokens, typical_dim, write_json
from mrl_jax.model import EmbeddingModel

LIMITS = "it has no module for sublinear tf-idf weights, images or features"
NOTE = (
    "`encode` truncates to `truncate_dim` first and normalises then; there is no Normalize module, which would come "
    "too early. `similarity` is the cosine."
)
MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))  # folder and class of each


def holds(encoder: EncoderType[Any]) -> bool:
    """Whether the encoder can be written in this format."""
    return encoder.hugging_face is not None


def write(model: EmbeddingModel, folder: Path, name: str) -> tuple[str, str]:
    """Write the files; returns an example of use and what was done.

    A tokenizer that was learnt from scratch makes no token at all of an empty text: sentence-transformers embeds that
    only beside others, and with first-token pooling as its padding, not as zero.
    """
    program, tokenizer = model.program, model.reader.tokenizer
    convert = ENCODERS[program.encoder.name].hugging_face
    assert convert is not None
    assert tokenizer is not None
    bert = convert(program.encoder, model.weights.params["encoder"])
    # BERT's pooler, which no sentence embedding reads: without one, transformers would draw it at random and warn.
    pooler = {
        "pooler.dense.weight": np.zeros((bert.hidden, bert.hidden), np.float32),
        "pooler.dense.bias": np.zeros(bert.hidden, np.float32),
    }
    special = special_tokens(tokenizer)
    padding_id = tokenizer.token_to_id(special["pad_token"])
    write_json(folder / "config.json", bert.config | {"pad_token_id": padding_id, "matryoshka_dims": list(model.dims)})
    files.write(folder / "model.safetensors", save(bert.tensors | pooler, {"format": "pt"}))
    files.write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": bert.max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config | special)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": bert.max_length, "do_lower_case": False})
    pooling: dict[str, Any] = dict.fromkeys(("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"), False)
    pooling |= {key: mode == bert.pooling for key, mode in POOLINGS.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": bert.hidden} | pooling)
    if bert.projection is not None:
        dense: dict[str, Any] = {"in_features": bert.hidden, "out_features": program.width, "bias": True}
        dense["activation_function"] = "torch.nn.modules.linear.Identity"
        write_json(folder / "2_Dense" / "config.json", dense)
        kernel, bias = (as_float32(bert.projection[name]) for name in ("kernel", "bias"))
        matrix = {"linear.weight": np.ascontiguousarray(kernel.T), "linear.bias": bias}
        files.write(folder / "2_Dense" / "model.safetensors", save(matrix, {"format": "pt"}))
    # Class names that all versions know: newer ones translate them.
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(MODULES[: 2 if bert.projection is None else 3])
    ]
    write_json(folder / "modules.json", modules)
    settings: dict[str, Any] = {"model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None}
    write_json(folder / "config_sentence_transformers.json", settings | {"similarity_fn_name": "cosine"})
    usage = f"""\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}", truncate_dim={typical_dim(model)})
z = model.encode(["a goal in overtime", "how do I unmount a drive"], normalize_embeddings=True)
"""
    return usage, f"{program.width} coordinates, texts of up to {bert.max_length} tokens"
