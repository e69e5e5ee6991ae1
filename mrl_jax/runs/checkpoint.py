"""Checkpoints that are whole or absent: Orbax arrays, a manifest of SHA-256 sums, one atomic rename.

    <directory>/step-00000120/manifest.json      the step, what the caller wants to know, a hash of every file and a sum
    <directory>/step-00000120/arrays/…           the pytree, written by Orbax

A killed process leaves either the folder under its final name or a `.partial` one that the next save removes; a file
that changed afterwards is noticed by its hash, named, and never loaded.
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

from mrl_jax.errors import UserError
from mrl_jax.files import cannot_write_error, sha256_of

KEEP = 2  # checkpoints of a directory: the newest, and the one before in case the newest is damaged later

ATTEMPTS = 3  # at arrays that Orbax says it had no time to write


def save(directory: Path, step: int, tree: Any, meta: dict[str, Any], keep: int = KEEP) -> Path:
    """Write `tree` as the checkpoint of `step` and remove all but the newest `keep`.

    Raises `UserError` when the disk is full or cannot be written; the checkpoints before stay as they are.
    """
    directory = directory.absolute()
    final = directory / f"step-{step:08d}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_partial(directory)
        partial = _with_arrays(final, tree)
        files = {str(p.relative_to(partial)): sha256_of(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        manifest = partial / "manifest.json"
        content = {"step": step, "meta": meta, "arrays": _shapes(tree), "files": files}
        manifest.write_text(json.dumps(content | {"sha256": _sum(content)}, indent=1), encoding="utf-8")
        for path in (*map(partial.joinpath, files), manifest):
            _sync(path)
        _remove(final)
        os.replace(partial, final)
        _sync(directory)
    except Exception as error:  # Orbax wraps a full disk in errors of several types
        raise cannot_write_error(final, error) from error
    finally:
        _remove_partial(directory)
    for old in saved_steps(directory)[:-keep]:
        with suppress(OSError):
            _remove(directory / f"step-{old:08d}")
    return final


def _with_arrays(final: Path, tree: Any) -> Path:
    """A partial folder of the checkpoint `final`, with its arrays.

    Orbax takes its timeouts from the clock of the day, so one that is set forward meanwhile ends them: try again, in
    another folder, as writes that are under way may still put files into the first.
    """
    for attempt in range(1, ATTEMPTS + 1):
        partial = final.with_name(f".{final.name}.{attempt}.partial")
        partial.mkdir()
        try:
            with _quiet(), _checkpointer() as checkpointer:
                checkpointer.save(partial / "arrays", tree)
                checkpointer.wait_until_finished()
            break
        except TimeoutError:
            if attempt == ATTEMPTS:
                raise
    return partial


def _remove_partial(directory: Path) -> None:
    """What saves that did not end well have left; a folder that is still written to goes with the next save."""
    for leftover in directory.glob(".step-*.partial*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Take a checkpoint's name away before its files, so that a killed process leaves none half removed."""
    if checkpoint.exists():
        hidden = checkpoint.with_name(f".{checkpoint.name}.old.partial")
        os.replace(checkpoint, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def saved_steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint under its final name, ascending."""
    names = (path.name.removeprefix("step-") for path in directory.glob("step-*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def load(directory: Path, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """The tree and the `meta` of one checkpoint, every file verified against its hash first.

    `like` is a pytree of arrays or shapes (with shardings) that says what is expected. Raises `UserError` naming the
    file that is missing, damaged or of another shape.
    """
    path = directory.absolute() / f"step-{step:08d}"
    manifest = path / "manifest.json"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        files, meta, arrays = dict(content["files"]), content["meta"], dict(content["arrays"])
        intact = content.keys() == {"step", "meta", "arrays", "files"}  # as written before there was a sum
        intact = intact or content.pop("sha256") == _sum(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"checkpoint {path} is damaged: manifest.json is missing or cannot be read") from None
    if not intact:
        raise UserError(f"checkpoint {path} is damaged: manifest.json does not have the SHA-256 sum that it records")
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"manifest.json"}
    for name, expected in files.items():
        file = path / name
        if name not in found:
            raise UserError(f"checkpoint {path} is damaged: {name} is missing")
        if sha256_of(file) != expected:
            raise UserError(f"checkpoint {path} is damaged: {name} does not have the SHA-256 sum that was recorded")
    for name in sorted(found - files.keys()):
        raise UserError(f"checkpoint {path} is damaged: {name} is there, but not in its manifest")
    expected = _shapes(like)
    if arrays != expected:
        key = next(k for k in {**expected, **arrays} if arrays.get(k) != expected.get(k))
        raise UserError(
            f"checkpoint {path} holds other arrays than this configuration expects: {key} is "
            f"{arrays.get(key, 'absent')}, not {expected.get(key, 'absent')}"
        )
    try:
        with _quiet(), _checkpointer() as checkpointer:
            return checkpointer.restore(path / "arrays", jax.tree.map(ocp.utils.to_shape_dtype_struct, like)), meta
    except Exception as error:  # hashes say that files are as they were written, not by whom: Orbax may find anything
        raise UserError(f"checkpoint {path} cannot be read: {str(error).strip() or type(error).__name__}") from error


def _shapes(tree: Any) -> dict[str, str]:
    """`dtype[shape]` of every leaf by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _checkpointer() -> Any:
    """Orbax's, for this process alone: by default all processes of a run would have to take part."""
    if not jax.distributed.is_initialized():
        return ocp.StandardCheckpointer()
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax from logging the traceback of an error that it also raises, and that we put into words.

    Writes that are under way then fail as well, or report to an event loop that is closed, each with a traceback of its
    own, sooner or later: so after an error these stay quiet.
    """
    logger, tasks, unraisable = logging.getLogger("absl"), logging.getLogger("asyncio"), sys.unraisablehook
    level = logger.level

    def is_not_late(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return not ("exception was never retrieved" in said and "orbax" in said)

    logger.setLevel(logging.CRITICAL)
    tasks.addFilter(is_not_late)
    sys.unraisablehook = lambda said: None if str(said.exc_value) == "Event loop is closed" else unraisable(said)
    try:
        yield
        tasks.removeFilter(is_not_late)
        sys.unraisablehook = unraisable
    finally:
        logger.setLevel(level)


def _sum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
