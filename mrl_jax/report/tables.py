"""The parts of a report, whatever its format: sentences, tables and figures under a heading.

A table is a grid of plain text; each format escapes it, since names of classes and runs may contain anything.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mrl_jax.evaluate import metrics
from mrl_jax.report.figures import Figure


class Table(NamedTuple):
    """Plain text throughout. `name` is the LaTeX label, `caption` says what the cells are."""

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    heading: str
    sentences: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[Figure] = ()


def some(name: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Table]:
    """A table, if it has rows."""
    return [Table(name, caption, header, rows)] if rows else []


def title(metric: str) -> str:
    """What a metric is called in a sentence."""
    return metrics.title(metric).removesuffix(", top-1 accuracy")


def of_variant(variant: str | None) -> str:
    """The end of a caption, where runs differ."""
    return "" if variant is None else f"; {variant}"


def dash(variant: str | None) -> str:
    """The end of a table's name, where runs differ."""
    return "" if variant is None else f"-{variant}"
