"""Atomic, verified checkpoints: Orbax arrays, a manifest of SHA-256 sums, one rename at the end.

    <directory>/step-00000120/manifest.json      step, the caller's metadata, a hash per file and one of the manifest
    <directory>/step-00000120/arrays/…           the pytree, written by Orbax

A killed process leaves either a complete folder under its final name or a `.partial` one that the next save removes. A
file that changed afterwards fails its hash: the error names it, and nothing is loaded.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mrl_jax.system import processes
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import cannot_write_error, sha256_of

CHECKPOINTS_KEPT = 2  # per directory: the newest, and the one before in case the newest gets damaged

MAX_WRITE_ATTEMPTS = 3  # per checkpoint, after timeouts of Orbax


def save(directory: Path, step: int, tree: Any, meta: dict[str, Any], keep: int = CHECKPOINTS_KEPT) -> Path:
    """Write `tree` as the checkpoint of `step`, then remove all checkpoints but the newest `keep`.

    Args:
        directory: of all checkpoints of one training state.
        step: number of steps done.
        tree: pytree of arrays.
        meta: what JSON can hold; `load` returns it.
        keep: number of checkpoints to keep.

    Returns:
        The folder of the checkpoint.

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are left intact.
    """
    directory = directory.absolute()
    final = directory / f"step-{step:08d}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_partial(directory)
        partial = _write_arrays(final, tree)
        files = {str(p.relative_to(partial)): sha256_of(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        manifest = partial / "manifest.json"
        content = {"step": step, "meta": meta, "arrays": _shapes(tree), "files": files}
        manifest.write_text(json.dumps(content | {"sha256": _checksum(content)}, indent=1), encoding="utf-8")
        for path in (*map(partial.joinpath, files), manifest):
            _flush_to_disk(path)
        _remove(final)
        os.replace(partial, final)
        _flush_to_disk(directory)
    except Exception as error:  # Orbax reports a full disk by errors of several types
        raise cannot_write_error(final, error) from error
    finally:
        _remove_partial(directory)
    for old in saved_steps(directory)[:-keep]:
        with suppress(OSError):
            _remove(directory / f"step-{old:08d}")
    return final


def _write_arrays(final: Path, tree: Any) -> Path:
    """Write the arrays of checkpoint `final` into a partial folder and return that.

    Orbax measures its timeouts by the wall clock, so they expire if the clock is set forward meanwhile. Each retry uses
    a new folder, as writes still in progress may put files into the previous one.
    """
    for attempt in range(1, MAX_WRITE_ATTEMPTS + 1):
        partial = final.with_name(f".{final.name}.{attempt}.partial")
        partial.mkdir()
        try:
            with _silence_orbax(), _checkpointer() as checkpointer:
                checkpointer.save(partial / "arrays", tree)
                checkpointer.wait_until_finished()
            break
        except TimeoutError:
            if attempt == MAX_WRITE_ATTEMPTS:
                raise
    return partial


def _remove_partial(directory: Path) -> None:
    """Delete what failed saves have left; a folder that is still being written to is deleted by the next save."""
    for leftover in directory.glob(".step-*.partial*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Rename a checkpoint before deleting its files, so that a killed process leaves none half deleted."""
    if checkpoint.exists():
        hidden = checkpoint.with_name(f".{checkpoint.name}.old.partial")
        os.replace(checkpoint, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def saved_steps(directory: Path) -> list[int]:
    """The steps that have a complete checkpoint, ascending."""
    names = (path.name.removeprefix("step-") for path in directory.glob("step-*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def load(directory: Path, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """Read one checkpoint, after verifying every file against its hash.

    Args:
        directory: as for `save`.
        step: one of `saved_steps(directory)`.
        like: pytree of arrays or shapes (with shardings), as expected in the checkpoint.

    Returns:
        The pytree of arrays, and the `meta` given to `save`.

    Raises:
        UserError: names the file that is missing or damaged, or the array whose shape or type is not as expected.
    """
    path = directory.absolute() / f"step-{step:08d}"
    manifest = path / "manifest.json"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        files, meta, arrays = dict(content["files"]), content["meta"], dict(content["arrays"])
        intact = content.keys() == {
            "step",
            "meta",
            "arrays",
            "files",
        }  # written by a version without a hash of the manifest
        intact = intact or content.pop("sha256") == _checksum(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"checkpoint {path} is damaged: manifest.json is missing or cannot be read") from None
    if not intact:
        raise UserError(f"checkpoint {path} is damaged: manifest.json does not have the SHA-256 sum that it records")
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"manifest.json"}
    for name, expected in files.items():
        file = path / name
        if name not in present:
            raise UserError(f"checkpoint {path} is damaged: {name} is missing")
        if sha256_of(file) != expected:
            raise UserError(f"checkpoint {path} is damaged: {name} does not have the SHA-256 sum that was recorded")
    for name in sorted(present - files.keys()):
        raise UserError(f"checkpoint {path} is damaged: {name} is there, but not in its manifest")
    expected = _shapes(like)
    if arrays != expected:
        key = next(k for k in {**expected, **arrays} if arrays.get(k) != expected.get(k))
        raise UserError(
            f"checkpoint {path} holds other arrays than this configuration expects: {key} is "
            f"{arrays.get(key, 'absent')}, not {expected.get(key, 'absent')}"
        )
    try:
        with _silence_orbax(), _checkpointer() as checkpointer:
            return checkpointer.restore(path / "arrays", jax.tree.map(ocp.utils.to_shape_dtype_struct, like)), meta
    except Exception as error:  # hashes do not prove who wrote a file: Orbax may meet any content
        raise UserError(f"checkpoint {path} cannot be read: {str(error).strip() or type(error).__name__}") from error


def _shapes(tree: Any) -> dict[str, str]:
    """`dtype[shape]` of every leaf, by its path in the pytree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _checkpointer() -> Any:
    """An Orbax checkpointer for this process alone: by default all processes of a run would have to take part."""
    if not jax.distributed.is_initialized():
        return ocp.StandardCheckpointer()
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


@contextmanager
def _silence_orbax() -> Iterator[None]:
    """Keep Orbax from logging tracebacks of errors that it also raises and that we report as one sentence.

    After an error, writes still in progress fail as well or report to a closed event loop, each with its own traceback,
    at some later time. So the filters for these stay in place after an error.
    """
    logger, tasks, unraisable = logging.getLogger("absl"), logging.getLogger("asyncio"), sys.unraisablehook
    level = logger.level

    def is_not_late(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not ("exception was never retrieved" in message and "orbax" in message)

    logger.setLevel(logging.CRITICAL)
    tasks.addFilter(is_not_late)
    sys.unraisablehook = lambda event: None if str(event.exc_value) == "Event loop is closed" else unraisable(event)
    try:
        yield
        tasks.removeFilter(is_not_late)
        sys.unraisablehook = unraisable
    finally:
        logger.setLevel(level)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_states(states: Path) -> None:
    """Remove the training states of a group, which are only ever needed to finish it, and its folder if nothing else is
    in it."""
    if processes.is_process0():
        for _ in range(2):  # a disk that refuses once would leave them for good
            shutil.rmtree(states, ignore_errors=True)
        with suppress(OSError):
            states.parent.rmdir()  # members of the comparison have folders of their own
