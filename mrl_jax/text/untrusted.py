"""Load a tokenizer.json that may come from anywhere, and use it: any failure is a one-sentence `UserError`.

Such a file is data for a library in Rust, whose panics are no ordinary exceptions, and it is a small program: its
regular expressions can take exponential time, its replacements can make texts grow without bound, and its ids can lie
beyond the model's table of embeddings.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from mrl_jax.system.errors import UserError

CHUNK_TEXTS = 4096  # texts per call of the library
PROBE_TEXTS = ["", "a", "\ua66e\ua66e \u0378 \0"]  # a word, and characters that hardly any vocabulary knows
REPEATED_GROUP = re.compile(r"\)\s*[*+{]")  # every pattern that takes exponential time has one


def read(path: Path, ids: int | None = None, edit: Callable[[Any], None] | None = None) -> Tokenizer:
    """The tokenizer in a file, without padding; it yields only token ids below `ids`. `edit` may change its content.

    Raises `UserError` for a file that is missing or damaged, or could not be used on every text.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; it is needed to turn text into token ids")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        check_steps(content)
        if edit is not None:
            edit(content)
            text = json.dumps(content)
        tokenizer: Tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        highest = max(tokenizer.get_vocab().values(), default=-1)
        for encoding in tokenizer.encode_batch(PROBE_TEXTS):
            highest = max([highest, *encoding.ids])
    except BaseException as error:
        raise _as_user_error(error, f"{path} cannot be read") from None
    if ids is not None and highest >= ids:
        raise UserError(f"{path} has the token id {highest:,}, but the model has {ids:,} token ids")
    return tokenizer


def check_steps(node: Any) -> None:
    """Raise `ValueError` for a step that could take exponential time, or make texts longer."""
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        if isinstance(child, dict | list):
            check_steps(child)
    if not isinstance(node, dict):
        return
    pattern = node.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if isinstance(regex, str) and REPEATED_GROUP.search(regex):
        raise ValueError(f"the pattern {regex} repeats a group, which may take exponential time")
    if node.get("type") == "Replace":
        replaced = pattern.get("String", "x") if isinstance(pattern, dict) else "x"
        if len(str(node.get("content"))) > max(1, len(str(replaced))):
            raise ValueError("a step Replace makes texts longer")


def encode_in_chunks(
    tokenizer: Tokenizer, texts: Sequence[str], chunk: int = CHUNK_TEXTS, words: bool = False
) -> Iterator[list[Encoding]]:
    """Yield the encodings of `chunk` texts at a time, which know the words of their tokens if asked for.

    Raises `UserError` that names the text that is not a valid string, or says that the tokenizer fails.
    """
    for start in range(0, len(texts), chunk):
        part = list(texts[start : start + chunk])
        try:
            # The fast one keeps neither offsets nor words.
            encodings = tokenizer.encode_batch(part) if words else tokenizer.encode_batch_fast(part)
        except BaseException as error:
            for number, text in enumerate(part, start):
                if not isinstance(text, str) or text != text.encode(errors="ignore").decode():
                    raise UserError(f"texts[{number}] is not a valid str: {ascii(text)[:40]}") from None
            raise _as_user_error(error, "the tokenizer of this model fails") from None
        yield encodings


def _as_user_error(error: BaseException, problem: str) -> BaseException:
    """The `UserError` for what the library raised, or `error` itself where it is not the library's (Ctrl-C)."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return UserError(f"{problem}: {' '.join(str(error).split())}")
    return error
