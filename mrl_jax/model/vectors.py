"""Embeddings in the cache folder, by the content of the model and of the texts.

    <cache>/embeddings/<SHA-256 of both>.npy    float32 [n, D], rows of unit length

They are written in blocks: after a kill or Ctrl-C the same command continues behind the last whole row.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mrl_jax import encoders
from mrl_jax.data.disk_cache import texts_digest
from mrl_jax.data.readers.arrays import DAMAGED
from mrl_jax.model import EmbeddingModel
from mrl_jax.nesting import truncate
from mrl_jax.system import console, files
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import ResumableFile, keep_rows, npy_header

BLOCK_ROWS = 1024  # texts that are embedded and written together; a kill loses no more
FLOAT32 = np.dtype(np.float32)


def embed(
    model: EmbeddingModel, texts: Sequence[str], role: str | None, what: str, cache_dir: str | None = None
) -> np.ndarray:
    """The embeddings of texts at the width that the model was trained at, float32 [n, D].

    Args:
        model: D is its largest trained dim: that of a fixed-size model of a run is less than the run's width.
        texts: n of them.
        role: of the prompt before them.
        what: names model and texts in messages.
        cache_dir: the cache folder, None for the default one.
    """
    key = hashlib.sha256(f"{identity(model, role)} {texts_digest(texts)}".encode()).hexdigest()
    path = files.cache_folder(cache_dir) / "embeddings" / f"{key}.npy"
    if not path.exists():
        console.say(what)
        _write(model, texts, role, path)
    z = _read(path, len(texts), model.program.width)
    return z if model.dims[-1] == z.shape[1] else np.asarray(truncate(jnp.asarray(z), model.dims[-1]))


def identity(model: EmbeddingModel, role: str | None) -> str:
    """All that an embedding depends on beside its text: weights, settings, tokenizer, words with their idf, prompt."""
    program, tokenizer = model.program, getattr(model.reader, "tokenizer", None)
    settings, _ = encoders.standalone(program.encoder, program.vocabulary)
    spelt = repr(vars(model.reader)) if tokenizer is None else tokenizer.to_str()
    parts = [model.fingerprint, repr(settings), spelt, model.prompts.of(role)]
    words = [np.ascontiguousarray(getattr(model.reader, key)) for key in ("idf", "runs") if hasattr(model.reader, key)]
    return json.dumps([*parts, *(hashlib.sha256(array).hexdigest() for array in words)])


def _write(model: EmbeddingModel, texts: Sequence[str], role: str | None, path: Path) -> None:
    width, texts = model.program.width, list(texts)
    with ResumableFile(path, {"texts": len(texts)}) as out:
        count = min(keep_rows(out, npy_header(0, width, FLOAT32), width * FLOAT32.itemsize), len(texts))
        done = count - count % BLOCK_ROWS  # in blocks of the same texts as ever, whose last digits are the same
        if done:
            console.say(f"continued after {done:,} texts")
        out.cut(len(npy_header(0, width, FLOAT32)) + done * width * FLOAT32.itemsize)
        for z in model.encode_stream(texts[done:], chunk_size=BLOCK_ROWS, show_progress=True, prompt=role):
            out.file.write(z.tobytes())
            out.file.flush()
        out.file.seek(0)
        out.file.write(npy_header(len(texts), width, FLOAT32))
        out.finish()


def _read(path: Path, rows: int, width: int) -> np.ndarray:
    try:
        z = np.load(path, allow_pickle=False)
    except DAMAGED as error:
        raise UserError(f"{path} cannot be read ({error}); delete it to embed the texts again") from None
    if z.shape != (rows, width) or z.dtype != FLOAT32:
        raise UserError(f"{path} is damaged: {z.dtype} {list(z.shape)}; delete it to embed the texts again")
    return np.asarray(z)
