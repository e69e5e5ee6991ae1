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
    """A progress bar on standard error; hidden if that is no terminal, or with TQDM_DISABLE=1."""
    off = bool(os.environ.get("TQDM_DISABLE")) or not processes.is_process0() or (None if shown else True)
    return tqdm(total=total, desc=what, unit=unit, disable=off, leave=leave, dynamic_ncols=True)


def say(text: str) -> None:
    """Print a message on standard error, from process 0 only."""
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
    """Run a command and return its exit status. Every user error becomes one sentence on standard error.

    Args:
        parser: parses the arguments and reports mistakes in them.
        act: does the work, given the parsed options.
        arguments: of the command; None for those of the process.
        interrupted: message after Ctrl-C.
        place: name of the option whose value a file system error is reported for when the error names no file.

    Returns:
        0: done; 2: invalid command or files; 130: interrupted; 141: the reader of the output has closed it.
    """
    replace_unencodable()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stopped:  # argparse has printed the reason
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
