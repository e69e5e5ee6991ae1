"""What a person at a terminal sees: messages, progress bars, and one way for every command to end."""

import argparse
import contextlib
import io
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from mrl_jax.system import processes
from mrl_jax.system.errors import UserError, printable

LINE_SECONDS = 30.0  # between lines of progress off a terminal


@contextlib.contextmanager
def progress(total: int | None, what: str, unit: str, leave: bool = True, shown: bool = True) -> Iterator[tqdm]:
    """A progress bar on standard error, or a line every `LINE_SECONDS` where that is no terminal.

    Nothing is shown with TQDM_DISABLE=1.
    """
    off = bool(os.environ.get("TQDM_DISABLE")) or not processes.is_process0() or not shown
    hidden = {} if off or is_terminal() else {"delay": math.inf, "file": io.StringIO()}  # it only counts
    with tqdm(total=total, desc=what, unit=unit, disable=off, leave=leave, dynamic_ncols=True, **hidden) as bar:
        over = threading.Event()
        lines = threading.Thread(target=_print_lines, args=(bar, over), daemon=True)
        if hidden:  # by a thread, so that a step that takes long is no silence
            lines.start()
        try:
            yield bar
        finally:
            over.set()
            if hidden:  # a line that is being printed comes before whatever is printed next
                lines.join()


def stage(what: str) -> contextlib.AbstractContextManager[tqdm]:
    """As `progress`, for work that has no steps to count: lines off a terminal, nothing at one."""
    return progress(None, what, "", shown=not is_terminal())


def is_terminal() -> bool:
    """Whether standard error is a terminal, where bars are drawn."""
    return sys.stderr.isatty()


def _print_lines(bar: tqdm, over: threading.Event) -> None:
    started = time.monotonic()
    while not over.wait(LINE_SECONDS):
        of_all = f" of {bar.total:,}" if bar.total else ""
        done = [f"{bar.n:,}{of_all} {bar.unit}s"] if bar.total or bar.n else []
        parts = [*done, f"{time.monotonic() - started:.0f} s so far", *([bar.postfix] if bar.postfix else [])]
        print(f"{bar.desc}: {', '.join(parts)}", file=sys.stderr, flush=True)


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


def add_model(parser: argparse.ArgumentParser, untuned: bool = False) -> None:
    """The arguments that name a trained model or, with `untuned`, also pretrained weights."""
    others = "; or a model folder, minilm, mpnet or wordllama" if untuned else ""
    parser.add_argument("run", help=f"a run directory, or an experiment's folder for its latest run{others}")
    parser.add_argument("--arm", help="mrl, mrl_e, ff64, …; the run's first by default")
    parser.add_argument("--seed", type=int, default=0)


def add_parts(parser: argparse.ArgumentParser) -> None:
    """The arguments that leave out a part of the encoder."""
    parser.add_argument("--layers", type=positive, help="how many layers of the encoder to use, by default all")
    parser.add_argument("--hidden", type=positive, help="how many hidden units per layer to use, by default all")


def positive(word: str) -> int:
    """The type of an argument that is a count."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not allowed; it must be a whole number of at least 1")
    return int(word)


def share(word: str) -> float:
    """The type of an argument that is a share or a probability, neither 0 nor 1."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{word} is not allowed; it must be between 0 and 1")
    return value


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
        file = printable(str(error.filename or getattr(options, place, place)))
        print(f"error: {file}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0
