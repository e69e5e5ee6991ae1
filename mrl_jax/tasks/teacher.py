"""Another model's vectors of the training texts: of a teacher, whose similarities the student's prefixes are to have,
or of a guide, by whose similarities a document of the batch is no negative (see `losses.relevance`).

They are computed once, with the model's own default prompt before the texts, and stored under a hash of the model and
the texts, or read from a file: `.npz` with `texts`, str [n], and `vectors` [n, T]. Texts are looked up, so a file may
have more of them, in any order.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flax import nnx

from mrl_jax import encoders
from mrl_jax.config import Config
from mrl_jax.data import PairDataset, StreamedTexts, disk_cache
from mrl_jax.data.prompts import Prompts, put
from mrl_jax.data.readers.arrays import load_npz
from mrl_jax.encoders import huggingface, static_tables
from mrl_jax.encoders.layers import frozen
from mrl_jax.encoders.pretrained import PRETRAINED, TABLES
from mrl_jax.encoders.transformer import Transformer
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import need_file, path_of, sha256_of
from mrl_jax.tasks.frozen import TOKEN_SHAPES, run_over
from mrl_jax.training.batches import Examples

VERSION = "2"  # of the vectors that are stored
ROLES = ("teacher", "guide")  # keys of `loss` that name another model


def check(config: Config, dataset: PairDataset) -> None:
    """Raise `UserError` for a teacher or guide that does not exist, or data that it does not read."""
    for role in ROLES:
        if (name := getattr(config.loss, role)) is not None:
            _check(role, name, config, dataset)


def _check(role: str, name: str, config: Config, dataset: PairDataset) -> None:
    key = f"loss.{role}={name}"
    if dataset.kind != "text" or isinstance(dataset.train.table, StreamedTexts):
        what = "texts that fit in memory (data.streaming=false)"
        raise UserError(f"{key} needs {what}; data={dataset.name} is not of that kind")
    if any(encoders.prompts(config.encoder, config.data.prompts).texts.values()):
        raise UserError(
            f"{key} is not allowed with prompts, which the {role} would read as its own texts; set data.prompts={{}}"
        )
    if name.endswith(".npz"):
        need_file(key, path_of(f"loss.{role}", name))
        return
    if name in TABLES or static_tables.files_of(name, f"loss.{role}") is not None:
        raise UserError(
            f"{key} is a table of token vectors, which is not allowed; a {role} is a transformer "
            f"({', '.join(PRETRAINED)}, a model folder) or an .npz of texts and vectors"
        )
    described = huggingface.describe(huggingface.resolve(name))
    if (prompt := Prompts(described.prompts).of()) and not described.pools_prompt:
        raise UserError(
            f"{key} puts {prompt!r} before texts and leaves it out of the pooling (include_prompt=false), which is not "
            "supported; give its vectors as an .npz of texts and vectors"
        )


def digests(config: Config) -> dict[str, str]:
    """SHA-256 that identifies the teacher and the guide, as far as there are any."""
    return {role: _digest(role, name) for role in ROLES if (name := getattr(config.loss, role)) is not None}


def _digest(role: str, name: str) -> str:
    if name.endswith(".npz"):
        return sha256_of(path_of(f"loss.{role}", name))
    return huggingface.identity(huggingface.resolve(name))


def vectors(config: Config, table: Iterable[str]) -> dict[str, np.ndarray]:
    """The vectors of the texts by the teacher and the guide, as far as there are any: float32 [t, T], rows of unit
    length. Raises `UserError` for a file that lacks any."""
    names = {role: name for role in ROLES if (name := getattr(config.loss, role)) is not None}
    texts = list(table) if names else []
    made = {name: _vectors(role, name, config.data.cache_dir, texts) for role, name in names.items()}
    return {role: made[name] for role, name in names.items()}


def _vectors(role: str, name: str, cache_dir: str | None, texts: list[str]) -> np.ndarray:
    if name.endswith(".npz"):
        z = read(f"loss.{role}", path_of(f"loss.{role}", name), texts)
    else:
        key = (_digest(role, name), disk_cache.texts_digest(texts), VERSION)
        z = disk_cache.vectors(disk_cache.folder(cache_dir, "teacher", *key), lambda: embed(name, texts))
    unit: np.ndarray = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), np.float32(1e-12))
    return unit


def read(key: str, file: Path, texts: list[str]) -> np.ndarray:
    """The vectors of the texts in an .npz file. Raises `UserError` where they are missing or have no finite length."""
    known, z = load_npz(file, ("texts", "vectors")).values()
    fit = known.ndim == 1 and known.dtype.kind == "U" and z.ndim == 2 and z.dtype.kind == "f" and z.shape[1] > 0
    if not fit or len(z) != len(known):
        raise UserError(
            f"{key}={file}: texts {known.dtype} {list(known.shape)}, vectors {z.dtype} {list(z.shape)} are not "
            "allowed; str [n], float [n, T] with T above 0"
        )
    row = {text: i for i, text in enumerate(known.tolist())}
    if missing := [text for text in texts if text not in row]:
        raise UserError(
            f"{key}={file} has no vector of {len(missing):,} of the {len(texts):,} training texts, the first: "
            f"{missing[0][:80]!r}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        z = z[[row[text] for text in texts]].astype(np.float32)
        lengths = np.linalg.norm(z, axis=1)
    if not np.isfinite(lengths).all():
        raise UserError(f"{key}={file} holds vectors whose length is not a finite float32")
    return z


def embed(weights: str, texts: list[str]) -> np.ndarray:
    """The embeddings of the texts by a pretrained transformer, float32 [t, T]."""
    described = huggingface.describe(huggingface.resolve(weights))
    width = static_tables.width_of(weights)
    config = TransformerConfig(weights=weights)
    reader = encoders.fit(config, "teacher", "text", texts)
    run = frozen(Transformer(config, inputs=TOKEN_SHAPES, vocabulary=reader.vocabulary, width=width, rngs=nnx.Rngs(0)))
    examples = Examples(reader(put(Prompts(described.prompts).of(), texts)), np.zeros(len(texts), np.int32))
    return run_over(run, examples, f"embed by {weights}")
