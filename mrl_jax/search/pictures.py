"""Pictures as documents and as queries, for models that read them: of images, or two towers of images and texts.

The id of a picture is its path below the folder of the corpus, and its text the captions that a table gives it, or the
path. The index keeps the folder (`Description.pictures`), so that ids lead to the files again.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax.data.readers import image_files
from mrl_jax.data.readers.image_files import SUFFIXES, FilesBelow
from mrl_jax.data.readers.images import StoredImages
from mrl_jax.data.readers.records import FORMATS, records, text_field
from mrl_jax.data.sources import image_text
from mrl_jax.encoders.image_rules import rule_of
from mrl_jax.model import EmbeddingModel
from mrl_jax.search.index import Document
from mrl_jax.system.errors import UserError, printable
from mrl_jax.system.files import need_file

KEY = "CORPUS"  # what messages call the argument
BETWEEN_CAPTIONS = "; "


def reads(model: EmbeddingModel) -> tuple[str, ...]:
    """What a model can be given: text, image, both; neither of them where it reads features."""
    texts = bool(set(model.program.inputs) - {"image", "features"})
    return tuple(kind for kind, can in (("text", texts), ("image", rule_of(model.reader) is not None)) if can)


@dataclass(frozen=True)
class Pictures:
    """A corpus of pictures."""

    root: Path  # the folder of all of them, absolute
    captions: dict[str, list[str]]  # of each picture that can be decoded, by its path below the root

    def documents(self) -> Iterator[tuple[int, Document]]:
        """(1, document) of each picture."""
        for path, captions in self.captions.items():
            yield 1, Document(path, BETWEEN_CAPTIONS.join(dict.fromkeys(captions)) or path)


def find(corpus: Path, run: str, model: EmbeddingModel) -> Pictures | None:
    """The pictures of a corpus: those below a folder, or those that a table names; None for a corpus of texts.

    For a model of images a file is a table of pictures; for two towers it is one where its first row names a picture.

    Raises:
        UserError: a corpus that the model cannot read, one without pictures, or one of pictures most of which cannot
            be decoded.
    """
    kinds = reads(model)
    if not kinds:
        raise UserError(f"{run} reads neither texts nor files of pictures, of which an index is built")
    if "image" not in kinds:
        need_file(corpus, corpus, f", as {run} reads texts and no pictures" if corpus.is_dir() else "")
        return None
    if corpus.is_dir():
        captions = {path: list[str]() for path in image_files.files_below(corpus)}
        if not captions:
            raise UserError(f"{corpus} has no pictures in it; their names end in {', '.join(SUFFIXES)}")
        return _checked(corpus, captions, corpus)
    if "text" in kinds and not _names_pictures(corpus):
        return None
    captions = {}
    for place, record in records(KEY, str(corpus), _columns):
        image, text = _columns_of(f"{corpus}, {place}", list(record))
        path = str(Path(text_field(corpus, place, record, image)))
        given = [] if text is None or record[text] in (None, "") else image_text.texts_of(corpus, place, record, text)
        captions.setdefault(path, []).extend(given)
    if not captions:
        raise UserError(f"{corpus} is empty")
    return _checked(corpus.parent, captions, corpus)


def _checked(root: Path, captions: dict[str, list[str]], corpus: Path) -> Pictures:
    for path in captions:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UserError(f"{root / path}: the name of this picture is not valid UTF-8; rename it") from None
    files = FilesBelow(root.resolve(), tuple(captions))
    rows = image_files.without_broken(KEY, str(corpus), files, None).tolist()
    return Pictures(files.root, {files.paths[row]: captions[files.paths[row]] for row in rows})


class _Header(Exception):
    """The names of columns: more of a file need not be read."""


def _names_pictures(corpus: Path) -> bool:
    """Whether a table is one of pictures, and not of texts: by its header or, in JSONL, its first row."""
    if corpus.suffix.lower() not in FORMATS:  # JSONL of texts may have any name
        return False

    def choose(_: Path, names: list[str]) -> list[str]:
        raise _Header(names)

    try:
        names = list(next(records(KEY, str(corpus), choose), ("", {}))[1])
    except _Header as header:
        names = header.args[0]
    if any(name in image_text.ROLES["image"] for name in names):
        return True
    if names and not ("text" in names and {"_id", "id"} & set(names)):
        raise UserError(
            f"{corpus} has neither image, the path of a picture, nor _id and text; it has {', '.join(names)}"
        )
    return False


def _columns_of(where: str, names: list[str]) -> tuple[str, str | None]:
    """The columns of the picture and, if there is one, of its caption."""
    image = image_text.column_of(where, names, "image")
    if image is None:
        others = ", ".join(image_text.ROLES["image"][1:])
        raise UserError(f"{where} has no image (or {others}), the path of a picture; it has {', '.join(names)}")
    return image, image_text.column_of(where, names, "text")


def _columns(path: Path, names: list[str]) -> list[str]:
    """The columns to read, of those that a file has."""
    image, text = _columns_of(str(path), names)
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        kind = pq.read_schema(path).field(image).type
        if pa.types.is_struct(kind) or pa.types.is_binary(kind):
            raise UserError(f"{path} holds the pictures themselves; a column of their paths is needed, or a folder")
    return [image] if text is None else [image, text]


# ---- documents and queries → embeddings ------------------------------------------------------------------------------


def embed_documents(
    model: EmbeddingModel, root: str | None, documents: Sequence[Document], batch_size: int
) -> np.ndarray:
    """The embeddings [n, D] of documents: of their texts or, with the folder `root`, of the pictures of their ids."""
    if root is None:
        return model.encode([one.text for one in documents], batch_size=batch_size, prompt="document")
    return _embed_files(model, Path(root), [one.id for one in documents], batch_size)


def _embed_files(model: EmbeddingModel, root: Path, paths: Sequence[str], batch_size: int = 256) -> np.ndarray:
    """The embeddings [n, D] of files, decoded on all cores when a batch needs them."""
    images: Any = StoredImages(FilesBelow(root, tuple(paths)), np.arange(len(paths)), streaming=True)
    return model.encode(images, batch_size=batch_size)


def queries_of(model: EmbeddingModel, words: Sequence[str], files: Sequence[str]) -> list[str | Path]:
    """What a command asks for: texts, and paths of pictures.

    Args:
        model: of the index.
        words: texts; for a model that reads pictures, one that is the name of a picture's file stands for it.
        files: pictures.

    Raises:
        UserError: the model does not read what is given, or there is no such file.
    """
    kinds = reads(model)
    if files and "image" not in kinds:
        raise UserError(f"--image={files[0]} is not allowed: the model of this index reads texts, and no pictures")
    found: list[str | Path] = []
    for word in words:
        if "image" in kinds and ("text" not in kinds or _is_picture(word)):
            found.append(_need_file(word, "" if "text" in kinds else ", and the model of this index reads no words"))
        else:
            found.append(word)
    return [*found, *(_need_file(name, "") for name in files)]


def _is_picture(word: str) -> bool:
    """Whether a word of a command names a picture; a sentence may end in such a name, too."""
    if Path(word).suffix.lower() not in SUFFIXES:
        return False
    return len(word.split()) == 1 or _file(word) is not None


def _file(name: str) -> Path | None:
    """The file of this name; None where there is none."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # a name that no file can have
        path = Path(name).expanduser()
        if path.is_file():
            return path
    return None


def _need_file(name: str, why: str) -> Path:
    if (path := _file(name)) is not None:
        return path
    raise UserError(f"{printable(name)[:200]}: there is no such file{why}; a picture is needed")


def embed_queries(model: EmbeddingModel, queries: Sequence[str | Path]) -> np.ndarray:
    """The embeddings [n, D] of texts and pictures, each by what reads it."""
    z = np.zeros((len(queries), model.program.width), np.float32)
    texts = [row for row, one in enumerate(queries) if isinstance(one, str)]
    pictures = [row for row, one in enumerate(queries) if not isinstance(one, str)]
    if texts:
        z[texts] = model.encode([str(queries[row]) for row in texts], prompt="query")
    if pictures:
        z[pictures] = _embed_files(model, Path(), [str(queries[row]) for row in pictures])
    return z


def id_of(root: str | None, picture: Path | None) -> str | None:
    """The id that a picture has in the index of those below `root`; None for a text, or a picture elsewhere."""
    if root is None or picture is None:
        return None
    named = Path(os.path.abspath(picture.expanduser()))  # a link inside the folder is a picture of its own
    for path in (named, named.parent.resolve() / named.name):  # the folder itself may be reached by a link
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return None
