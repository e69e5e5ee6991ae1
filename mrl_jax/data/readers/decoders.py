"""Worker processes that decode images: `data.workers`.

Threads of one process decode side by side as long as Pillow works, but take turns at everything else (0.1 to 0.3 ms of
the 3 to 4 ms of a picture), so beyond some ten cores they wait for each other, and for the thread that trains.
Processes do not. Each worker reads from its standard input and answers on its standard output:

    request   length of the function, length of the image, 8 bytes each; the function, pickled; the encoded image
    answer    0 or 1, length, 9 bytes in all; the pixels, or with 1 the message of a `UserError`

A thread of this process belongs to each worker. It reads encoded images, and puts the answer where the batch has its
place for it, without a copy between, so batches are the same for any number of workers. A worker ends with its standard
input, also where this process is killed.
"""

import contextlib
import fcntl
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import IO, Any

import numpy as np

from mrl_jax.system.errors import UserError

PIPE_BYTES = 1 << 20
IMAGES_PER_TURN = 8  # that a thread reads together; few, as a batch waits for its last turn
REQUEST, ANSWER = struct.Struct("<QQ"), struct.Struct("<BQ")
COMMAND = "import sys; sys.path[:] = {path!r}; from mrl_jax.data.readers import decoders; decoders.serve()"

Decode = Callable[[bytes], np.ndarray]  # of a module, or a partial of one: workers import it by its name


class Decoders:
    """So many worker processes, which start when they are needed first."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()  # several batches may ask for the first images

    def _start(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                command = [sys.executable, "-c", COMMAND.format(path=sys.path)]
                pipe = subprocess.PIPE
                # In a session of their own, as Ctrl-C is for this process, which has a checkpoint to save.
                started = [
                    subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, start_new_session=True)
                    for _ in range(self.workers)
                ]
                for worker in started:
                    _widen(worker.stdin, worker.stdout)
                    self._free.put(worker)
                weakref.finalize(self, _stop, started)
                self._threads = ThreadPoolExecutor(self.workers, "decode")
            return self._threads

    def fill(
        self,
        out: np.ndarray,
        rows: np.ndarray,
        read: Callable[[Sequence[int]], Sequence[bytes]],
        decode: Decode,
        name: Callable[[int], str],
    ) -> None:
        """Decode images into `out`.

        Args:
            out: uint8 [n, h, w, c], contiguous.
            rows: int [n].
            read: gives the encoded images of a few of the rows; is called by several threads.
            decode: gives the pixels [h, w, c] of one.
            name: what stands before the message of `decode` for the image of a row.

        Raises:
            UserError: of `read` or `decode`; a worker has ended.
        """
        function, threads = pickle.dumps(decode), self._start()

        def turn(start: int) -> None:
            worker = self._free.get()
            try:
                encoded = read(rows[start : start + IMAGES_PER_TURN].tolist())
                for position, image in enumerate(encoded, start):
                    if problem := _ask(worker, function, image, out[position]):
                        raise UserError(name(int(rows[position])) + problem)
            finally:
                self._free.put(worker)

        list(threads.map(turn, range(0, len(rows), IMAGES_PER_TURN)))


def of_workers(workers: int | None) -> Decoders | None:
    """The worker processes that `data.workers` asks for; None: the threads of this process decode."""
    return None if workers is None else Decoders(workers)


def _ask(worker: "subprocess.Popen[bytes]", function: bytes, image: bytes, out: np.ndarray) -> str:
    """Have one image decoded into `out`; returns the message where it cannot be."""
    try:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for part in (REQUEST.pack(len(function), len(image)), function, image):
            _write(worker.stdin, part)
        failed, size = ANSWER.unpack(_read(worker.stdout, bytearray(ANSWER.size)))
        content = _read(worker.stdout, bytearray(size) if failed else memoryview(out).cast("B"))
    except (OSError, EOFError) as error:
        reason = f"status {worker.wait()}" if isinstance(error, EOFError | BrokenPipeError) else str(error)
        raise UserError(f"a process that decodes images has ended ({reason}); data.workers=null needs none") from error
    return bytes(content).decode() if failed else ""


def _widen(*pipes: IO[bytes] | None) -> None:
    """Let a pipe hold a whole image, which spares both sides from waiting for each other; on Linux."""
    for pipe in pipes:
        with contextlib.suppress(OSError, AttributeError):
            if pipe is not None:
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _write(stream: IO[bytes], content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


def _read(stream: IO[bytes], into: Any) -> Any:
    """Fill a buffer; raises EOFError where there is too little."""
    rest = memoryview(into)
    while rest:
        count = os.readv(stream.fileno(), [rest])
        if not count:
            raise EOFError
        rest = rest[count:]
    return into


def _stop(workers: "Sequence[subprocess.Popen[bytes]]") -> None:
    for worker in workers:
        for stream in (worker.stdin, worker.stdout):
            if stream is not None:
                stream.close()
    for worker in workers:
        worker.wait()


# ---- in the worker ---------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the process that started this one decides
        signal.signal(number, signal.SIG_IGN)
    requests, answers = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # so that nothing that prints ends up among the pixels
    function_of = lru_cache(8)(pickle.loads)
    try:
        while True:
            sizes = REQUEST.unpack(_read(requests, bytearray(REQUEST.size)))
            function, image = (bytes(_read(requests, bytearray(size))) for size in sizes)
            try:
                content, failed = np.ascontiguousarray(function_of(function)(image)).tobytes(), 0
            except UserError as error:
                content, failed = str(error).encode(), 1
            _write(answers, ANSWER.pack(failed, len(content)))
            _write(answers, content)
    except (EOFError, BrokenPipeError):
        pass
