"""One program in several processes: all run the same code, each on its part of the data, and one of them writes.

    distributed=slurm       tasks that srun started
    distributed=env         what JAX finds in the environment (Kubernetes, TPU pods, Open MPI, SLURM), or the variables
                            JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
    distributed=explicit    distributed.coordinator=host:port distributed.processes=4 distributed.process=0

Process 0 alone reads and writes the run directory and broadcasts what the others need from it, so they need no shared
file system. All decisions that depend on files or clocks are made there (`on_process0`). With a single process, every
function here is the identity.
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
from typing import Any, Literal, NoReturn, assert_never

import jax
import numpy as np
from jax.experimental import multihost_utils

from mrl_jax.system import heartbeat
from mrl_jax.system.errors import UserError, at_least

COORDINATOR_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
NOT_CONNECTED_STATUS = 2  # exit status when the processes do not find each other

# Parts of the errors that collectives raise when the process at the other end is gone, by backend.
LOST_PEER_MESSAGES = (
    "Gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "coordination service",
    "heartbeat",
)


@dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find each other."""

    mode: Literal["none", "slurm", "env", "explicit"] = "none"  # see `mrl_jax.system.processes`
    coordinator: str | None = None  # explicit: host:port at which process 0 can be reached
    processes: int | None = None  # explicit: number of processes
    process: int | None = None  # explicit: number of this process, from 0
    connect_seconds: int = at_least(120, 1)  # time limit for all processes to connect
    heartbeat_seconds: int = at_least(30, 1)  # heartbeat timeout, in seconds: a silent process counts as gone


def start(config: DistributedConfig) -> None:
    """Connect this process to the others, unless it is connected (a later job of a sweep). Raises `UserError`."""
    if config.mode == "none" or jax.distributed.is_initialized():
        return
    arguments = _arguments(config)
    message = (
        f"error: distributed={config.mode}: the processes have not found each other within "
        f"distributed.connect_seconds={config.connect_seconds}; all of them have to be started, with one coordinator "
        "that they can reach, process 0"
    )
    # Ends the process before JAX would abort it with a stack trace.
    timeout = threading.Timer(config.connect_seconds, heartbeat.end, (message, NOT_CONNECTED_STATUS))
    timeout.daemon = True
    timeout.start()
    _schedule_as_batch()
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=config.connect_seconds + 60,
            heartbeat_timeout_seconds=heartbeat.JAX_TIMEOUT_FACTOR * config.heartbeat_seconds,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        lines = str(error).strip().splitlines()
        if "backend" in str(error) and "initialized" in str(error):
            raise  # a bug: some code used a device before this call
        raise UserError(
            f"distributed={config.mode}: the processes cannot be connected ({lines[0] if lines else error}); "
            "the coordinator is process 0"
        ) from None
    finally:
        timeout.cancel()
    heartbeat.start(config.heartbeat_seconds)


def _arguments(config: DistributedConfig) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize` that name the other processes; if empty, JAX detects them."""
    match config.mode:
        case "explicit":
            return {
                "coordinator_address": config.coordinator,
                "num_processes": config.processes,
                "process_id": config.process,
                "cluster_detection_method": "deactivate",
            }
        case "slurm":
            if "SLURM_PROCID" not in os.environ:
                raise UserError("distributed=slurm: there is no SLURM_PROCID; start the processes with srun")
            return {"cluster_detection_method": "slurm"}
        case "env":
            given = [name for name in COORDINATOR_VARIABLES if name in os.environ]
            return _read_variables(given) | {"cluster_detection_method": "deactivate"} if given else {}
        case "none":
            return {}
        case _:
            assert_never(config.mode)


def _schedule_as_batch() -> None:
    """Run later threads under SCHED_BATCH so that waking threads do not preempt (Linux).

    Gloo's receiving thread is woken by incoming data while the summing thread still holds the connection's lock. If it
    preempts that thread, it polls for the lock through a whole time slice, 3 ms, in which the holder cannot run. A
    ResNet with its 35 small sums per step then ran at a quarter of its speed (`docs/scale.md`).
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with suppress(OSError):  # a sandbox may forbid it: slower, not wrong
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _read_variables(given: list[str]) -> dict[str, Any]:
    """The address and numbers in `COORDINATOR_VARIABLES`, of which `given` are set."""
    missing = [name for name in COORDINATOR_VARIABLES if name not in given]
    if missing:
        raise UserError(f"distributed=env: {', '.join(given)} is set, {', '.join(missing)} is not")
    address, *numbers = (os.environ[name] for name in COORDINATOR_VARIABLES)
    for name, text in zip(COORDINATOR_VARIABLES[1:], numbers, strict=True):
        if not text.isdecimal():
            raise UserError(f"distributed=env: {name}={text} is not allowed; it must be a non-negative integer")
    return {"coordinator_address": address, "num_processes": int(numbers[0]), "process_id": int(numbers[1])}


def count() -> int:
    """The number of processes that run this program."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def core_count() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_process0() -> bool:
    """Whether this process reads and writes the run directory."""
    return rank() == 0


def on_process0(decide: Callable[[], Any]) -> Any:
    """Call `decide()` on process 0 and return its result, which must be JSON-serialisable, in every process.

    A `UserError` that it raises is raised in every process.
    """
    if count() == 1:
        return decide()
    outcome: dict[str, Any] = {}
    if is_process0():
        try:
            outcome = {"value": decide()}
        except UserError as error:
            outcome = {"error": str(error)}
    text = json.dumps(outcome).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    content = np.zeros(length, np.uint8)
    if is_process0():
        content[:] = np.frombuffer(text, np.uint8)
    outcome = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]


def broadcast(tree: Any) -> Any:
    """The arrays of process 0, in every process; the others pass arrays of the same shapes and types."""
    return tree if count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def on_host(tree: Any) -> Any:
    """Copy a pytree of arrays, sharded over devices or not, to whole NumPy arrays. Every process has to call this."""

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(whole, tree)


def gather_rows(parts: np.ndarray, rows: np.ndarray, total: int) -> np.ndarray:
    """Gather an array whose rows are distributed over the processes.

    Args:
        parts: the rows that this process has, [n, …]; n may differ between processes.
        rows: int [n], where they belong. Each row of the result comes from one process.
        total: number of rows of the result.

    Returns:
        [total, …], the same in every process.
    """
    if count() == 1:
        whole = np.empty((total, *parts.shape[1:]), parts.dtype)
        whole[rows] = parts
        return whole
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(rows)))))

    def pad(array: np.ndarray, value: int) -> np.ndarray:
        return np.pad(array, ((0, longest - len(array)), *((0, 0),) * (array.ndim - 1)), constant_values=value)

    all_rows, all_parts = multihost_utils.process_allgather((pad(rows.astype(np.int32), -1), pad(parts, 0)))
    whole = np.empty((total, *parts.shape[1:]), parts.dtype)
    for at, values in zip(np.asarray(all_rows), np.asarray(all_parts), strict=True):
        whole[at[at >= 0]] = values[at >= 0]
    return whole


def by_rows(function: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
    """`function(array)`, for a function of independent rows: every process computes a share of the rows."""
    if count() == 1:
        return function(array)
    mine = np.arange(len(array))[rank() :: count()]
    return gather_rows(function(array[mine]), mine, len(array))


def by_items(
    function: Callable[[int], np.ndarray], items: Sequence[int], shape: Callable[[int], tuple[int, ...]]
) -> list[np.ndarray]:
    """`[function(item) for item in items]`, with each item computed by one process and returned in all.

    Items are assigned in order of size, largest first, each to the process with the fewest elements so far.

    Args:
        function: returns an array float32 of `shape(item)`.
        items: its arguments.
        shape: of the result for an item.
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
    # Where every process is a source, this is a sum; all but one of its terms are zero.
    whole = multihost_utils.broadcast_one_to_all(np.concatenate(parts), is_source=True)
    split = np.split(np.asarray(whole), np.cumsum(sizes)[:-1])
    return [part.reshape(shape(item)) for part, item in zip(split, items, strict=True)]


def check_same(what: str, value: Any) -> None:
    """Raise `UserError` in each process whose `value` differs from that of process 0."""
    if on_process0(lambda: value) != value:
        raise UserError(f"process {rank()} of {count()} has another {what} than process 0; give all of them the same")


@contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """Catch SIGINT and SIGTERM. Yields a function to call once per step, which returns the signal to stop for, or 0.

    With several processes, JAX makes all of them stop at the same step, whichever of them was signalled.
    """
    caught: list[int] = []
    previous: dict[int, Any] = {}

    def catch(number: int, frame: Any) -> None:
        caught.append(number)
        if count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX handles this signal, in place of Python
        for signum, handler in previous.items():  # a second signal acts as usual
            signal.signal(signum, handler)

    handled = (signal.SIGINT,) if count() > 1 else (signal.SIGINT, signal.SIGTERM)
    try:
        for number in handled:
            previous[number] = signal.signal(number, catch)
    except ValueError:  # not the main thread: the caller handles signals
        previous = {}
    try:
        yield lambda: (caught or [signal.SIGTERM])[0] if _agree_to_stop(bool(caught)) else 0
    finally:
        if not caught:
            for signum, handler in previous.items():
                signal.signal(signum, handler)


_sync_points = 0


def _agree_to_stop(stop: bool) -> bool:
    """Whether to stop at this call. JAX identifies calls by number, so every process has to make the same calls."""
    global _sync_points
    if count() == 1:
        return stop
    _sync_points += 1
    return bool(multihost_utils.reached_preemption_sync_point(_sync_points))


def lost_peer_message(error: Exception) -> str | None:
    """One sentence if `error` means that another process is gone, None if it is about something else."""
    if count() == 1 or not any(part in str(error) for part in LOST_PEER_MESSAGES):
        return None
    return f"another of the {count()} processes is gone, so process {rank()} stops"


def leave(status: int) -> NoReturn:
    """End this process. On failure it exits at once, without waiting for the others, which detect it."""
    sys.stdout.flush()
    sys.stderr.flush()
    if status and count() > 1:
        heartbeat.leave()
        os._exit(status)
    sys.exit(status)
