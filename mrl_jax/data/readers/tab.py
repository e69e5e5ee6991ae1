"""Labelled texts in the pinned artefact's .tab files: three header lines, then `label<TAB>text`, without quoting."""

from collections.abc import Iterator
from pathlib import Path

from mrl_jax.system.errors import UserError

HEADER = ["Category\tText", "d\tstring", "class\t"]


def rows(path: Path, expected: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (row number, {"text", "label"}) for TFDS; raises `UserError` unless there are `expected` rows.

    Rows with neither label nor text (one file has one) are dropped.
    """
    lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: texts may hold other line separators
    if lines[:3] != HEADER:
        raise UserError(f"{path} starts with {lines[:3]}, expected the header lines {HEADER}")
    examples = [line.split("\t", 1) for line in lines[3:] if line.strip()]
    if len(examples) != expected:
        raise UserError(f"{path} has {len(examples)} examples, expected {expected}")
    for number, (label, text) in enumerate(examples):
        yield number, {"text": text, "label": label}
