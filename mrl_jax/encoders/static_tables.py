"""Tables of token vectors, one row per token id: read from a folder or a package, or distilled from a transformer.

A folder has them where its modules.json names a StaticEmbedding. Any other folder is a transformer, and is distilled as
in model2vec (Tulkens and van Dongen, 2024): each token of its vocabulary is embedded as a text of its own, and the
principal directions of these vectors are their coordinates.

A narrower embedding is a prefix of the table's. Principal directions come by descending variance, so the prefix is the
best linear map to its width; a table that is read keeps its own order, as one that was trained to be truncated (as
wordllama's) has its most important coordinates first. `arms=[untuned_pca]` measures the other choice.

Tokens may be weighted by their rank in the vocabulary, which lists frequent ones first (Zipf, 1949): with p ∝ 1 / rank,

    w = a / (a + p),  a = 1e-4                             smooth inverse frequency, Arora, Liang and Ma, 2017, ICLR
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from mrl_jax.data import disk_cache
from mrl_jax.data.readers.artefacts import fetch
from mrl_jax.encoders import huggingface
from mrl_jax.encoders.folder_settings import STATIC, list_modules, read_prompts
from mrl_jax.encoders.layers import frozen
from mrl_jax.encoders.pretrained import TABLES
from mrl_jax.encoders.transformer import Transformer
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.evaluate import compress
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import sha256_of
from mrl_jax.text import untrusted

SMOOTHING = 1e-4  # a
UNUSED = re.compile(r"\[unused\d+\]")  # tokens of BERT's vocabulary that no text has
DISTILLED_VERSION = "2"  # of the vectors that are stored
BATCH_TOKENS = 1024  # of the vocabulary, embedded at a time


def files_of(weights: str, key: str = "encoder.weights") -> tuple[Path, Path] | None:
    """The files of a table and its tokenizer; None where `weights` are those of a transformer.

    Raises `UserError`, naming the setting `key`, where there are no such weights, or a folder does more with a text
    than to pool its vectors.
    """
    if (known := TABLES.get(weights)) is not None:
        table, tokenizer, *_ = known.artefact.members
        folder = fetch(known.artefact)
        return folder / table, folder / tokenizer
    folder = huggingface.resolve(weights, key)
    file = folder / "modules.json"
    listed = list_modules(folder) if file.exists() else []
    kinds = [kind for kind, _ in listed]
    if kinds[:1] != [STATIC]:
        return None
    if kinds not in ([STATIC], [STATIC, "Normalize"]):
        raise UserError(f"{file}: {', '.join(kinds)} is not supported; allowed: {STATIC}, then Normalize or not")
    place = folder / listed[0][1]
    return place / "model.safetensors", place / "tokenizer.json"


def prompts_of(weights: str) -> dict[str, str]:
    """The prompts of a StaticEmbedding folder; none of other weights, whose tokens were embedded without one."""
    is_folder = weights not in TABLES and files_of(weights) is not None
    return read_prompts(huggingface.resolve(weights)) if is_folder else {}


def digest_of(weights: str) -> str | None:
    """SHA-256 that identifies the weights; None where their file is missing."""
    if (files := files_of(weights)) is None:
        return huggingface.weights_digest(huggingface.resolve(weights))
    return sha256_of(files[0]) if files[0].is_file() else None


def read_tokenizer(weights: str, max_length: int, key: str = "weights") -> Tokenizer:
    """The tokenizer of the weights, without special tokens; it truncates to `max_length`, or what its file says if that
    is less. Raises `UserError`, naming the setting `key`, for a missing or broken file."""
    if (files := files_of(weights, key)) is None:
        content = json.loads(huggingface.load_tokenizer(huggingface.resolve(weights)).to_str())
        side, length = content["truncation"]["direction"].lower(), max_length
        content["post_processor"] = None
        tokenizer = Tokenizer.from_str(json.dumps(content))
    else:
        side, length = "right", max_length

        def edit(content: dict[str, Any]) -> None:
            nonlocal side, length
            if truncation := content.get("truncation"):
                side, length = truncation["direction"].lower(), min(truncation["max_length"], max_length)
            content["post_processor"] = content["padding"] = content["truncation"] = None

        tokenizer = untrusted.read(files[1], len(read_table(files[0])), edit)
    tokenizer.enable_truncation(length, direction=side)
    return tokenizer


def read_table(file: Path) -> np.ndarray:
    """The table in a file, float32 [V, D], of sentence-transformers or of model2vec, whose table may have fewer rows,
    shared by tokens, and weights of tokens. Raises `UserError` for a file without one."""
    tensors = huggingface.read_tensors(file)
    table = tensors.get("embedding.weight", tensors.get("embeddings", np.zeros(0)))
    rows, weights = tensors.get("mapping"), tensors.get("weights")
    whole = table.ndim == 2 and table.size > 0
    if whole and rows is not None:
        whole = rows.ndim == 1 and rows.dtype.kind in "iu" and rows.min() >= 0 and rows.max() < len(table)
        table = table[rows] if whole else table
    if not whole or (weights is not None and weights.shape != (len(table),)):
        raise UserError(f"{file} holds no table of token vectors: embedding.weight [V, D]")
    table = table.astype(np.float32) if weights is None else table.astype(np.float32) * weights[:, None]
    if not np.isfinite(table).all():
        raise UserError(f"{file} holds numbers that are not finite")
    return table.astype(np.float32)


def width_of(weights: str) -> int:
    """The largest width of an embedding from the weights."""
    if (files := files_of(weights)) is not None:
        return int(read_table(files[0]).shape[1])
    described = huggingface.describe(huggingface.resolve(weights))
    return described.projected or described.architecture.hidden


def vectors(weights: str, tokenizer: Tokenizer, width: int, zipf: bool | None) -> np.ndarray:
    """The vectors of the tokens, float32 [V, width]; `zipf` None: weighted where they are distilled."""
    vocabulary = tokenizer.get_vocab()
    names = {i: token for token, i in vocabulary.items()}
    used = np.array([not UNUSED.fullmatch(names.get(i, "[unused0]")) for i in range(max(names) + 1)])
    if (files := files_of(weights)) is not None:
        table = read_table(files[0])[: len(used)]
    else:
        table = distil(weights, tokenizer)
        mean, directions = compress.pca(table[used], np.random.default_rng(0))
        directions *= np.sign(directions[np.argmax(np.abs(directions), axis=0), np.arange(directions.shape[1])])
        table = (table - mean) @ directions
    if zipf or (zipf is None and files is None):
        share = 1 / (1 + np.cumsum(used))
        table = table * (SMOOTHING / (SMOOTHING + share / share[used].sum()))[:, None]
    return np.ascontiguousarray(table[:, :width], np.float32)


def distil(weights: str, tokenizer: Tokenizer) -> np.ndarray:
    """Each token through the transformer, between the special tokens, float32 [V, D]; computed once and stored."""
    count = 1 + max(tokenizer.get_vocab().values())
    key = (huggingface.identity(huggingface.resolve(weights)), str(count), DISTILLED_VERSION)
    return disk_cache.vectors(disk_cache.folder(None, "distilled", *key), lambda: _embed_tokens(weights, count))


def _embed_tokens(weights: str, count: int) -> np.ndarray:
    """The embeddings of texts of one token each, float32 [count, D]."""
    whole = huggingface.load_tokenizer(huggingface.resolve(weights))
    ids, inner = (np.array(whole.encode("a", add_special_tokens=special).ids) for special in (True, False))
    start = next(i for i in range(len(ids)) if np.array_equal(ids[i : i + len(inner)], inner))
    before, after = ids[:start], ids[start + len(inner) :]
    config = TransformerConfig(weights=weights)
    shapes: dict[str, tuple[int, ...]] = {"ids": (1,), "mask": (1,)}
    module = Transformer(config, inputs=shapes, vocabulary=count, width=width_of(weights), rngs=nnx.Rngs(0))
    embed = frozen(module)
    parts = []
    for first in range(0, count, BATCH_TOKENS):
        tokens = np.minimum(np.arange(first, first + BATCH_TOKENS), count - 1)[:, None]
        around = (np.broadcast_to(part, (BATCH_TOKENS, len(part))) for part in (before, after))
        rows = np.concatenate([next(around), tokens, next(around)], axis=1)
        parts.append(np.asarray(embed({"ids": rows.astype(np.int32), "mask": np.ones(rows.shape, np.int8)})))
    return np.concatenate(parts)[:count]
