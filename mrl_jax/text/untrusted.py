"""tokenizer.json files, which may come from anywhere: read with care, and used so that nothing but a sentence fails.

Such a file is data for a library in Rust, whose panics are no ordinary exceptions, and it is a small program: its
regular expressions can take for ever, its replacements can make a book of a letter, and its ids can lie beyond every
table.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from mrl_jax.errors import UserError

CHUNK = 4096  # texts at a time
STRANGE = ["", "a", "\ua66e\ua66e \u0378 \0"]  # a word and signs that hardly any vocabulary knows
NESTED = re.compile(r"\)\s*[*+{]")  # a repeated group: where matching takes exponential time, there is one


def read(path: Path, ids: int | None = None) -> Tokenizer:
    """The tokenizer in a file, without padding; all that it gives are token ids below `ids`.

    Raises `UserError` for a file that is missing or damaged, or could not be used on every text.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; it is needed to turn text into token ids")
    try:
        content = path.read_text(encoding="utf-8")
        check_steps(json.loads(content))
        tokenizer: Tokenizer = Tokenizer.from_str(content)
        tokenizer.no_padding()
        highest = max(tokenizer.get_vocab().values(), default=-1)
        for encoding in tokenizer.encode_batch(STRANGE):
            highest = max([highest, *encoding.ids])
    except BaseException as error:
        raise _said(error, f"{path} cannot be read") from None
    if ids is not None and highest >= ids:
        raise UserError(f"{path} has the token id {highest:,}, but the model has {ids:,} token ids")
    return tokenizer


def check_steps(node: Any) -> None:
    """Raise `ValueError` for a step that could take for ever, or make a text longer and longer."""
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        if isinstance(child, dict | list):
            check_steps(child)
    if not isinstance(node, dict):
        return
    pattern = node.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if isinstance(regex, str) and NESTED.search(regex):
        raise ValueError(f"the pattern {regex} repeats a group, which may take for ever")
    if node.get("type") == "Replace":
        replaced = pattern.get("String", "x") if isinstance(pattern, dict) else "x"
        if len(str(node.get("content"))) > max(1, len(str(replaced))):
            raise ValueError("a step Replace makes texts longer")


def encoded(tokenizer: Tokenizer, texts: Sequence[str], chunk: int = CHUNK) -> Iterator[list[Encoding]]:
    """The encodings of the texts, a chunk at a time; `UserError` names what is no text, or a tokenizer that fails."""
    for start in range(0, len(texts), chunk):
        some = list(texts[start : start + chunk])
        try:
            found = tokenizer.encode_batch(some)
        except BaseException as error:
            for number, text in enumerate(some, start):
                if not isinstance(text, str) or text != text.encode(errors="ignore").decode():
                    raise UserError(f"text {number} (from 0) is no text: {ascii(text)[:40]}") from None
            raise _said(error, "the tokenizer of this model fails") from None
        yield found


def _said(error: BaseException, what: str) -> BaseException:
    """The `UserError` for what the library raised, or `error` itself when it is none of its own."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return UserError(f"{what}: {' '.join(str(error).split())}")
    return error
