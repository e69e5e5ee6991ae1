"""What runs and variants are called: as short as tells them apart."""

from collections.abc import Sequence
from pathlib import Path

MAX_VARIANT_CHARACTERS = 24


def short(names: Sequence[str]) -> list[str]:
    """Names of variants for labels: without a `key=` that all of them begin with, long ones abridged in the middle."""
    keys = {name.partition("=")[:2] for name in names}
    values = (
        [name.partition("=")[2] for name in names] if len(keys) == 1 and "" not in next(iter(keys)) else list(names)
    )
    abridged = [v if len(v) <= MAX_VARIANT_CHARACTERS else f"{v[:12]}…{v[-8:]}" for v in values]
    return abridged if len(set(abridged)) == len(names) and all(abridged) else list(names)


def run_names(directories: Sequence[Path]) -> dict[Path, str]:
    """Each run's folder name, with as many folders above it as tell all runs apart."""
    depth = 1
    while len({directory.parts[-depth:] for directory in directories}) < len(directories):
        depth += 1
    return {directory: "/".join(directory.parts[-depth:]) for directory in directories}
