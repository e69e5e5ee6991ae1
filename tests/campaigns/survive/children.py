"""Forked children that are killed, starved and misled: what the campaigns do to commands of mrl_jax.

The parent imports everything once and never touches JAX' backend, so that a child costs a fork instead of five seconds
of imports, and is otherwise the command that a user starts. Each child leads a process group of its own.
"""

import errno
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mrl_jax.system import console

# What changes files, by the events that Python announces before it acts.
CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
LABEL, PATH = 96, 200

Trap = Callable[[int], None]  # called with the number of each change, before it happens


class Ended(NamedTuple):
    """How a child ended."""

    status: int  # negative: the signal that killed it
    said: str  # its output
    seconds: float
    changes: int  # of files below the root
    step: int  # the training step that it had reached …
    label: str  # … of these members
    last: str  # the file that it changed last

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("error: ")]

    @property
    def one_sentence(self) -> bool:
        """Whether it ended as a mistake of the user does: status 2, one sentence, no traceback."""
        return self.status == 2 and len(self.errors) == 1 and "Traceback" not in self.said


class Child:
    """A forked process that runs `work` and ends with the status that it returns."""

    def __init__(
        self, work: Callable[[], int | None], root: Path, trap: Trap | None = None, before: Callable[[], None] = int
    ) -> None:
        self._shared = mmap.mmap(-1, 4096)
        self._output = Path(f"{root}.{time.time_ns()}.log")  # beside the root, which may be full
        self._output.touch()
        self._started = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run(work, root.resolve(), trap, before)

    def _run(self, work: Callable[[], int | None], root: Path, trap: Trap | None, before: Callable[[], None]) -> None:
        status = 1
        try:
            os.setsid()
            handle = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8")
            sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
            _count_steps(self._shared)
            _count_changes(self._shared, root, trap)
            before()
            status = work() or 0
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, seconds: float | None = None, limit: float = 300) -> Ended:
        """Let it run to its end, or kill −9 its whole group after `seconds`. Past `limit` it counts as hanging."""
        until = self._started + (limit if seconds is None else seconds)
        ended = 0
        while not ended and time.monotonic() < until:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            time.sleep(0.002)
        if not ended:
            os.killpg(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            if seconds is None:
                raise RuntimeError(f"a child hung for {limit} s: {self._output.read_text()[-2000:]}")
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started
        said = self._output.read_text(encoding="utf-8", errors="replace")
        self._output.unlink()
        changes, step = struct.unpack_from("QQ", self._shared)
        label, last = (self._shared[at : at + size].rstrip(b"\0").decode() for at, size in ((16, LABEL), (112, PATH)))
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, said, time.monotonic() - self._started, changes, step, label, last)


def _count_steps(shared: mmap.mmap) -> None:
    """Note each training step where the parent sees it, also when this process is killed."""

    class Counting(console.tqdm):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._kind, self._count = options.get("unit"), 0
            if self._kind == "step":
                shared[16 : 16 + LABEL] = str(options.get("desc")).split()[-1].encode()[:LABEL].ljust(LABEL, b"\0")
                struct.pack_into("Q", shared, 8, 0)

        def update(self, n: float | None = 1) -> Any:
            if self._kind == "step":
                self._count += 1
                struct.pack_into("Q", shared, 8, getattr(self, "initial", 0) + self._count)
            return super().update(n)

    console.tqdm = Counting


def _count_changes(shared: mmap.mmap, root: Path, trap: Trap | None) -> None:
    """Count the changes below `root` and call the trap before each."""
    count, below = 0, str(root) + os.sep

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in CHANGES or not isinstance(args[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITING):
            return
        path = os.fsdecode(args[1] if event == "os.symlink" else args[0])
        if not os.path.isabs(path):
            handles = (
                [x for x in args[1:] if isinstance(x, int) and x >= 0] if event in ("os.remove", "os.rmdir") else []
            )
            base = os.readlink(f"/proc/self/fd/{handles[0]}") if handles else os.getcwd()
            path = os.path.join(base, path)
        if not path.startswith(below):
            return
        count += 1
        struct.pack_into("Q", shared, 0, count)
        shared[112 : 112 + PATH] = path.removeprefix(below).encode()[-PATH:].ljust(PATH, b"\0")
        if trap is not None:
            trap(count)

    sys.addaudithook(hook)


# ---- traps -----------------------------------------------------------------------------------------------------------


def kill_at(number: int) -> Trap:
    """Kill −9 this process before its n-th change."""

    def trap(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return trap


def refuse_from(number: int, code: int, once: bool) -> Trap:
    """The system refuses the n-th change and, unless `once`, every later one."""

    def trap(count: int) -> None:
        if count == number or (count > number and not once):
            raise OSError(code, os.strerror(code))

    return trap


def jumping_clock(seed: int, jump: float) -> Callable[[], None]:
    """Clocks that are set back or forward by up to `jump` seconds now and then, the monotonic one too."""

    def patch() -> None:
        rng = random.Random(seed)
        real, steady, formatted = time.time, time.monotonic, time.strftime
        offset = 0.0

        def shift() -> float:
            nonlocal offset
            if rng.random() < 0.02:
                offset = rng.uniform(-jump, jump)
            return offset

        time.time = lambda: real() + shift()
        time.monotonic = lambda: steady() + shift()
        time.strftime = lambda form, when=None: formatted(form, when or time.localtime(time.time()))

    return patch


def stopped_clock(at: float) -> Callable[[], None]:
    """A clock that says the same second for ever."""

    def patch() -> None:
        formatted = time.strftime
        time.time = lambda: at
        time.strftime = lambda form, when=None: formatted(form, when or time.localtime(at))

    return patch


def flipped(content: bytes, rng: random.Random) -> bytes:
    """One bit changed."""
    at, bit = rng.randrange(len(content)), rng.randrange(8)
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    """The end missing."""
    return content[: rng.randrange(len(content))]


def in_child(work: Callable[[], Any], root: Path) -> Any:
    """What `work` returns, as JSON, computed in a child. Raises RuntimeError with its output when it fails."""
    answer = Path(f"{root}.{time.time_ns()}.json")

    def run() -> None:
        answer.write_text(json.dumps(work()))

    ended = Child(run, root).wait()
    if ended.status:
        raise RuntimeError(f"status {ended.status}: {ended.said[-2000:]}")
    content = json.loads(answer.read_text())
    answer.unlink()
    return content


CODES = {name: getattr(errno, name) for name in ("ENOSPC", "EROFS", "EIO")}
