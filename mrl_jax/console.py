"""What a person at a terminal sees: messages, progress bars, and one way for every command to end."""

import io
import os
import sys

from tqdm import tqdm

from mrl_jax import processes


def progress(total: int | None, what: str, unit: str, leave: bool = True, shown: bool = True) -> tqdm:
    """A progress bar on standard error; none where that is no terminal, or with TQDM_DISABLE=1."""
    off = bool(os.environ.get("TQDM_DISABLE")) or not processes.is_process0() or (None if shown else True)
    return tqdm(total=total, desc=what, unit=unit, disable=off, leave=leave, dynamic_ncols=True)


def say(text: str) -> None:
    """A message on standard error; several processes say it once."""
    if processes.is_process0():
        print(text, file=sys.stderr)


def forgiving_output() -> None:
    """Print `?` for a sign that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
