"""What a person at a terminal sees: messages, progress bars, and one way for every command to end."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from tqdm import tqdm

from mrl_jax import processes
from mrl_jax.errors import UserError


def progress(total: int | None, what: str, unit: str, leave: bool = True, shown: bool = True) -> tqdm:
    """A progress bar on standard error; none where that is no terminal, or with TQDM_DISABLE=1."""
    off = bool(os.environ.get("TQDM_DISABLE")) or not processes.is_process0() or (None if shown else True)
    return tqdm(total=total, desc=what, unit=unit, disable=off, leave=leave, dynamic_ncols=True)


def say(text: str) -> None:
    """A message on standard error, once for all processes of a run."""
    if processes.is_process0():
        print(text, file=sys.stderr)


def replace_unencodable() -> None:
    """Print `?` for a character that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def drop_output() -> None:
    """Let nothing that is still buffered fail: the reader of standard output is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(
    parser: argparse.ArgumentParser,
    act: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None,
    *,
    interrupted: str = "interrupted",
    place: str = "",
) -> int:
    """Run a command and return its exit status: every mistake of a user ends in one sentence on standard error.

    Args:
        parser: reads `arguments` (None: those of the process); it says itself what is wrong with them.
        act: does the work, with the options that were read.
        interrupted: what to say after Ctrl-C.
        place: the option that names what to blame for an error of the file system that names no file.

    Returns:
        0 done, 2 a mistake in the command or the files, 130 interrupted, 141 where the output's reader is gone.
    """
    replace_unencodable()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stopped:  # argparse has said why
        return int(stopped.code or 0)
    try:
        act(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except BrokenPipeError:  # `… | head`: nobody reads what is left
        drop_output()
        return 141
    except OSError as error:
        print(f"error: {error.filename or getattr(options, place, place)}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0
