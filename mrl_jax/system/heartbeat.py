"""Detect that another process is gone, early enough to end this one with a sentence.

Collective operations fail at once when a peer is gone; local computation does not notice. JAX detects it only after its
heartbeat timeout (half of it, by measurement) and aborts the process with a stack trace. So a thread of every process
increments a counter in JAX's key-value store, which process 0 serves, and ends its process when another counter has not
changed for too long; JAX's own timeout is set longer. If process 0 itself is gone, JAX aborts at once, and only a
handler of SIGABRT can print the reason.
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

from jax._src.distributed import (
    global_state,
)  # the store has no public name, nor do process numbers before a backend exists

BEATS_KEY = "mrl_jax/beats"  # folder of the counters in the store
LEFT_WORD = "left"  # in place of a count: this process has ended on purpose
JAX_TIMEOUT_FACTOR = 3  # ratio of JAX's heartbeat timeout to ours
LOST_PEER_STATUS = 75  # exit status, as after SIGTERM: the same command, started again, continues

_has_left = threading.Event()
_last_answer = 0.0  # when process 0 last answered, in seconds of the monotonic clock
_handlers: list[Any] = []  # C functions, referenced here so that they are not garbage-collected


def start(seconds: float) -> None:
    """Watch the other processes; one whose counter stands still for `seconds` counts as gone."""
    thread = threading.Thread(target=_watch, args=(seconds, min(5.0, seconds / 10)), daemon=True)
    atexit.register(leave)  # runs before JAX's own exit handler, which waits for the others
    thread.start()
    if global_state.process_id:
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda signum: _on_abort(seconds))
        _handlers.append(handler)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)  # Python's own handlers run too late


def leave() -> None:
    """Tell the other processes that this one ends on purpose."""
    if not _has_left.is_set():
        _has_left.set()
        try:
            _publish(LEFT_WORD)
        except Exception:  # process 0 is gone, or never was
            return


def end(sentence: str, status: int) -> NoReturn:
    """Print a sentence and end this process, from any thread, even while other threads are blocked."""
    print(sentence, file=sys.stderr, flush=True)
    os._exit(status)


def _store() -> Any:
    return global_state.client


def _publish(word: str) -> None:
    """Store a count, or `LEFT_WORD`, for this process."""
    _store().key_value_set(f"{BEATS_KEY}/{global_state.process_id}", word, allow_overwrite=True)


def _watch(timeout: float, interval: float) -> None:
    """Count up every `interval` seconds; end the process when another one has not counted for `timeout` seconds."""
    global _last_answer
    _last_answer, beat = time.monotonic(), 0
    changed = {str(number): ("", _last_answer) for number in range(global_state.num_processes)}
    while not _has_left.wait(interval):
        beat += 1
        try:
            _publish(str(beat))
            words = _store().key_value_dir_get(BEATS_KEY)
        except Exception:  # process 0 did not answer; if it is gone, JAX aborts
            continue
        now = _last_answer = time.monotonic()
        for key, word in words:
            number = key.rpartition("/")[2]
            if changed[number][0] != word:
                changed[number] = word, now
        for number, (word, since) in changed.items():
            if word != LEFT_WORD and now - since > timeout and not _has_left.is_set():
                end(_lost_message(number), LOST_PEER_STATUS)


def _lost_message(number: str) -> str:
    return (
        f"error: process {number} of {global_state.num_processes} is gone or silent, so process "
        f"{global_state.process_id} stops; continue with the same command and resume=true in all of them"
    )


def _on_abort(timeout: float) -> None:
    """End with a sentence if process 0 is gone or silent; otherwise return, and the abort continues."""
    host, _, port = str(global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        gone = time.monotonic() - _last_answer > timeout
    except (OSError, ValueError):
        gone = True
    if gone:
        end(_lost_message("0"), LOST_PEER_STATUS)
