"""The folder of an export: it appears when it is complete, with config.json and tokenizer.json beside the model."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mrl_jax.data.prompts import put
from mrl_jax.encoders.image_rules import ImageRule
from mrl_jax.export.embedder import signature
from mrl_jax.model import EmbeddingModel
from mrl_jax.system import files
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import cannot_write_error

# What Hugging Face calls the special tokens → the names that tokenizers give them.
SPECIAL_TOKENS = {
    "unk_token": ("[UNK]", "<unk>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>", "<|endoftext|>"),
    "cls_token": ("[CLS]", "<s>"),
    "mask_token": ("[MASK]", "<mask>"),
}


def check_empty(out: Path) -> None:
    """Raise `UserError` if `out` is neither absent nor an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; nothing is overwritten, choose another name")


@contextlib.contextmanager
def whole_or_absent(out: Path) -> Iterator[Path]:
    """A folder beside `out` that gets its name if all goes well and is removed otherwise."""
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


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read."""
    files.write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def say_dims(model: EmbeddingModel) -> dict[str, Any]:
    """What config.json says of the dims: to people, and to vLLM and SGLang, which take `dimensions=…` in a request only
    for a model with `is_matryoshka` or `matryoshka_dimensions`. Vectors are to be scaled to unit length after a cut."""
    dims = list(model.dims)
    nested = {} if dims == [model.program.width] else {"is_matryoshka": True, "matryoshka_dimensions": dims}
    return {"matryoshka_dims": dims, **nested, "normalized": False}


def write_inputs(model: EmbeddingModel, folder: Path) -> Tokenizer | None:
    """Write config.json and, for images, images.json, which says how they are prepared; for texts, a tokenizer.json
    that pads a batch to its longest text; returns it."""
    description = (
        say_dims(model)
        | {
            "width": model.program.width,
            "encoder": model.program.encoder.name,
            "inputs": {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in signature(model).items()},
        }
        | ({"prompts": dict(model.prompts.texts)} if model.prompts.texts else {})
    )
    write_json(folder / "config.json", description)
    if model.reader.tokenizer is None:
        if isinstance(model.reader, ImageRule):  # the model is given what it makes of an image
            model.reader.save(folder)
        return None
    tokenizer = Tokenizer.from_str(model.reader.tokenizer.to_str())
    pad = padding_token(tokenizer)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    files.write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    return tokenizer


def example_texts(model: EmbeddingModel) -> str:
    """Two texts for examples of use, with the default prompt of the model: Python."""
    return json.dumps(put(model.prompts.of(), ["a goal in overtime", "how do I unmount a drive"]))


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that a tokenizer has, and one for padding, by Hugging Face's names for them."""
    tokens = {key: _first_known(tokenizer, names) for key, names in SPECIAL_TOKENS.items()}
    return {key: token for key, token in tokens.items() if token} | {"pad_token": padding_token(tokenizer)}


def padding_token(tokenizer: Tokenizer) -> str:
    """The token that fills up a batch. The mask hides it, so any will do where none is meant for it; but it becomes a
    special token, so one that is: an ordinary one, as id 0 may be, would be cut out of texts."""
    special = (i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    return _first_known(tokenizer, SPECIAL_TOKENS["pad_token"]) or str(tokenizer.id_to_token(min(special, default=0)))


def _first_known(tokenizer: Tokenizer, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if tokenizer.token_to_id(name) is not None), None)


def typical_dim(model: EmbeddingModel) -> int:
    """A dim for examples of use: the middle one of those that were trained."""
    return model.dims[(len(model.dims) - 1) // 2]
