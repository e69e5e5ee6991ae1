"""Many processes, one program: all run the same code, each on its own part of the data, and one of them writes.

    distributed=slurm       tasks that srun started
    distributed=env         what JAX finds in the environment (Kubernetes, TPU pods, Open MPI, SLURM), or the variables
                            JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
    distributed=explicit    distributed.coordinator=host:port distributed.processes=4 distributed.process=0

Process 0 is the *writer*: it alone reads and writes the run directory, and what it found there is broadcast, so the
others need no common file system. Everything that is decided from files or clocks is decided there (`on_process0`).
With one process every function here is the identity.
"""

import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from mrl_jax.errors import UserError, at_least
from mrl_jax.processes import heartbeat

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
NOT_CONNECTED = 2  # exit status

# What a collective says when the process at its other end is gone; each backend has words of its own.
LOST = ("Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "coordination service", "heartbeat")


@dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find each other."""

    mode: Literal["none", "slurm", "env", "explicit"] = "none"  # how processes find each other, see distributed.py
    coordinator: str | None = None  # explicit: host:port at which process 0 can be reached
    processes: int | None = None  # explicit: how many there are
    process: int | None = None  # explicit: which of them this is, from 0
    connect_seconds: int = at_least(120, 1)  # within which all processes have to be there
    heartbeat_seconds: int = at_least(30, 1)  # a process that is silent for longer counts as gone


def start(config: DistributedConfig) -> None:
    """Connect this process to the others; again, in a later job of a sweep, it does nothing. Raises `UserError`."""
    if config.mode == "none" or jax.distributed.is_initialized():
        return
    found: dict[str, Any] = {}
    if config.mode == "explicit":
        found = {
            "coordinator_address": config.coordinator,
            "num_processes": config.processes,
            "process_id": config.process,
            "cluster_detection_method": "deactivate",
        }
    elif config.mode == "slurm":
        found = {"cluster_detection_method": "slurm"}
        if "SLURM_PROCID" not in os.environ:
            raise UserError("distributed=slurm: there is no SLURM_PROCID; start the processes with srun")
    elif given := [name for name in VARIABLES if name in os.environ]:
        found = _from_variables(given) | {"cluster_detection_method": "deactivate"}
    late = (
        f"error: distributed={config.mode}: the processes have not found each other within "
        f"distributed.connect_seconds={config.connect_seconds}; all of them have to be started, with one coordinator "
        "that they can reach, process 0"
    )
    # JAX itself would abort with a stack trace.
    giving_up = threading.Timer(config.connect_seconds, heartbeat.end, (late, NOT_CONNECTED))
    giving_up.daemon = True
    giving_up.start()
    _schedule_as_batch()
    try:
        jax.distributed.initialize(
            **found,
            initialization_timeout=config.connect_seconds + 60,
            heartbeat_timeout_seconds=heartbeat.LATER * config.heartbeat_seconds,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        said = str(error).strip().splitlines()
        if "backend" in str(error) and "initialized" in str(error):
            raise  # ours: something used a device too early
        raise UserError(
            f"distributed={config.mode}: the processes cannot be connected ({said[0] if said else error}); "
            "the coordinator is process 0"
        ) from None
    finally:
        giving_up.cancel()
    heartbeat.start(config.heartbeat_seconds)


def _schedule_as_batch() -> None:
    """Let no thread that starts from now on preempt another one by waking up (Linux).

    Gloo's thread is woken by what arrives while the thread that sums still holds the lock of the connection. On that
    core it then polls for the lock through a whole time slice, 3 ms, in which the holder cannot go on. So a ResNet with
    its 35 small sums a step ran at a quarter of its speed (`docs/scale.md`).
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with suppress(OSError):  # a sandbox may forbid it: slower, not wrong
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _from_variables(given: list[str]) -> dict[str, Any]:
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise UserError(f"distributed=env: {', '.join(given)} is set, {', '.join(missing)} is not")
    address, *numbers = (os.environ[name] for name in VARIABLES)
    for name, text in zip(VARIABLES[1:], numbers, strict=True):
        if not text.isdecimal():
            raise UserError(f"distributed=env: {name}={text} is not allowed; a whole number")
    return {"coordinator_address": address, "num_processes": int(numbers[0]), "process_id": int(numbers[1])}


def count() -> int:
    """How many processes run this program."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_process0() -> bool:
    """Whether this process reads and writes the run directory."""
    return rank() == 0


def on_process0(decide: Callable[[], Any]) -> Any:
    """What `decide()` returns in the writer, in every process: anything that JSON holds. Its `UserError` is raised in
    all of them."""
    if count() == 1:
        return decide()
    found: dict[str, Any] = {}
    if is_process0():
        try:
            found = {"value": decide()}
        except UserError as error:
            found = {"error": str(error)}
    text = json.dumps(found).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    content = np.zeros(length, np.uint8)
    if is_process0():
        content[:] = np.frombuffer(text, np.uint8)
    found = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())
    if "error" in found:
        raise UserError(found["error"])
    return found["value"]


def broadcast(tree: Any) -> Any:
    """The arrays of the writer, in every process; the others give arrays of the same shapes and types."""
    return tree if count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def on_host(tree: Any) -> Any:
    """Whole NumPy arrays of a pytree of arrays, wherever their parts are; every process has to ask."""

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(whole, tree)


def joined(parts: np.ndarray, rows: np.ndarray, total: int) -> np.ndarray:
    """[total, …] in every process, from `parts` [n, …] that belong at `rows` [n] in this one.

    Each row comes from one process; n may differ.
    """
    if count() == 1:
        whole = np.empty((total, *parts.shape[1:]), parts.dtype)
        whole[rows] = parts
        return whole
    most = int(np.max(multihost_utils.process_allgather(np.int32(len(rows)))))

    def filled(array: np.ndarray, with_: int) -> np.ndarray:
        return np.pad(array, ((0, most - len(array)), *((0, 0),) * (array.ndim - 1)), constant_values=with_)

    where, values = multihost_utils.process_allgather((filled(rows.astype(np.int32), -1), filled(parts, 0)))
    whole = np.empty((total, *parts.shape[1:]), parts.dtype)
    for at, what in zip(np.asarray(where), np.asarray(values), strict=True):
        whole[at[at >= 0]] = what[at >= 0]
    return whole


def by_rows(function: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
    """`function(array)`, for a function that treats each row by itself: every process computes a share of the rows."""
    if count() == 1:
        return function(array)
    mine = np.arange(len(array))[rank() :: count()]
    return joined(function(array[mine]), mine, len(array))


def by_items(
    function: Callable[[int], np.ndarray], items: Sequence[int], shape: Callable[[int], tuple[int, ...]]
) -> list[np.ndarray]:
    """`function(item)`, float32 of `shape(item)`, of each of `items`: every one is computed by one process.

    The largest are given out first, each to the process that has the fewest elements to compute so far.
    """
    if count() == 1 or not items:
        return [function(item) for item in items]
    sizes = [math.prod(shape(item)) for item in items]
    owners, loads = np.zeros(len(items), int), [0] * count()
    for at in sorted(range(len(items)), key=lambda at: -sizes[at]):
        owners[at] = loads.index(min(loads))
        loads[owners[at]] += sizes[at]
    parts = [
        function(item).ravel() if owner == rank() else np.zeros(size, np.float32)
        for item, owner, size in zip(items, owners, sizes, strict=True)
    ]
    # As all are sources, this is a sum, and all but one of its terms are zero.
    whole = multihost_utils.broadcast_one_to_all(np.concatenate(parts), is_source=True)
    split = np.split(np.asarray(whole), np.cumsum(sizes)[:-1])
    return [part.reshape(shape(item)) for part, item in zip(split, items, strict=True)]


def same(what: str, value: Any) -> None:
    """Raise `UserError`, in the process concerned, where `value` is not the writer's."""
    if on_process0(lambda: value) != value:
        raise UserError(f"process {rank()} of {count()} has another {what} than process 0; give all of them the same")


@contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """Note SIGINT and SIGTERM. What is yielded is asked once a step and says which signal to stop for, 0 for none.

    With several processes all of them are told to stop at the same step, whichever was signalled: JAX agrees on it.
    """
    caught: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        if count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX listens to, in place of Python
        for signum, handler in previous.items():  # a second one acts as usual
            signal.signal(signum, handler)

    noted = (signal.SIGINT,) if count() > 1 else (signal.SIGINT, signal.SIGTERM)
    try:
        for number in noted:
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs us handles signals
        previous = {}
    try:
        yield lambda: (caught or [signal.SIGTERM])[0] if _agreed(bool(caught)) else 0
    finally:
        if not caught:
            for signum, handler in previous.items():
                signal.signal(signum, handler)


_asked = 0


def _agreed(stop: bool) -> bool:
    """Whether to stop at this call. JAX numbers the calls, which every process makes alike."""
    global _asked
    if count() == 1:
        return stop
    _asked += 1
    return bool(multihost_utils.reached_preemption_sync_point(_asked))


def lost(error: Exception) -> str | None:
    """One sentence where `error` says that another process is gone, None where it is about something else."""
    if count() == 1 or not any(words in str(error) for words in LOST):
        return None
    return f"another of the {count()} processes is gone, so process {rank()} stops"


def leave(status: int) -> NoReturn:
    """End this process. After a failure nobody is waited for: the others notice, and must not be kept."""
    sys.stdout.flush()
    sys.stderr.flush()
    if status and count() > 1:
        heartbeat.leave()
        os._exit(status)
    sys.exit(status)
