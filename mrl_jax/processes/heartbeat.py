"""Notice that another process is gone while this one works by itself, in time to end with a sentence.

Work that is shared fails at once when a process at the other end is gone. Work of one's own does not, and JAX tells
only after its heartbeat timeout (half of it, by measurement), by aborting the process with a stack trace. So a thread
of every process counts up in JAX' key-value store, which process 0 serves, and ends the process when some count has
stood still for too long; JAX is given more time. When process 0 itself is gone JAX aborts at once, and nothing but a
handler of the abort can say why.
"""

import atexit
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from jax._src.distributed import global_state  # the store has no public name; nor do numbers before a backend is made

BEATS = "mrl_jax/beats"
LEFT = "left"  # in place of a count: gone, but not missing
LATER = 3  # times as long JAX waits
LOST = 75  # exit status, as for SIGTERM: the same command, started again, continues

_leaving = threading.Event()
_answered = 0.0  # when process 0 last did
_handlers: list[Any] = []  # C functions, kept from being collected


def start(seconds: float) -> None:
    """Watch the other processes, of which each has to give a sign of life within `seconds`."""
    thread = threading.Thread(target=_watch, args=(seconds, min(5.0, seconds / 10)), daemon=True)
    atexit.register(leave)  # before JAX, whose own runs later, waits for the others
    thread.start()
    if global_state.process_id:
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda signum: _aborted(seconds))
        _handlers.append(handler)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)  # Python's own handlers run too late


def leave() -> None:
    """Tell the others that this process ends on purpose."""
    if not _leaving.is_set():
        _leaving.set()
        try:
            _say(LEFT)
        except Exception:  # process 0 is gone, or never was
            return


def end(sentence: str, status: int) -> NoReturn:
    """End this process from whatever thread, whatever it waits for."""
    print(sentence, file=sys.stderr, flush=True)
    os._exit(status)


def _store() -> Any:
    return global_state.client


def _say(word: str) -> None:
    _store().key_value_set(f"{BEATS}/{global_state.process_id}", word, allow_overwrite=True)


def _watch(silence: float, interval: float) -> None:
    global _answered
    _answered, beat = time.monotonic(), 0
    changed = {str(number): ("", _answered) for number in range(global_state.num_processes)}
    while not _leaving.wait(interval):
        beat += 1
        try:
            _say(str(beat))
            found = _store().key_value_dir_get(BEATS)
        except Exception:  # a glitch, or the end, which JAX notices
            continue
        now = _answered = time.monotonic()
        for key, word in found:
            number = key.rpartition("/")[2]
            if changed[number][0] != word:
                changed[number] = word, now
        for number, (word, since) in changed.items():
            if word != LEFT and now - since > silence and not _leaving.is_set():
                end(_sentence(number), LOST)


def _sentence(number: str) -> str:
    return (
        f"error: process {number} of {global_state.num_processes} is gone or silent, so process "
        f"{global_state.process_id} stops; continue with the same command and resume=true in all of them"
    )


def _aborted(silence: float) -> None:
    """Why JAX aborts, if process 0 is gone or silent; else the abort goes on."""
    host, _, port = str(global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        gone = time.monotonic() - _answered > silence
    except (OSError, ValueError):
        gone = True
    if gone:
        end(_sentence("0"), LOST)
