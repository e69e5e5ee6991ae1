"""Checkpoints that are whole or absent: Orbax arrays, a manifest of SHA-256 sums, one atomic rename.

    <directory>/step-00000120/manifest.json      the step, what the caller wants to know, a hash of every file
    <directory>/step-00000120/arrays/…           the pytree, written by Orbax

A killed process leaves either the folder under its final name or a `.partial` one that the next save removes; a file
that changed afterwards is noticed by its hash, named, and never loaded.
"""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mrl_jax.errors import UserError

KEEP = 2  # checkpoints of a directory: the newest, and the one before in case the newest is damaged later


def save(directory: Path, step: int, tree: Any, meta: dict[str, Any], keep: int = KEEP) -> Path:
    """Write `tree` as the checkpoint of `step` and remove all but the newest `keep`.

    Raises `UserError` when the disk is full or cannot be written; the checkpoints before stay as they are.
    """
    directory = directory.absolute()
    final = directory / f"step-{step:08d}"
    partial = directory / f".{final.name}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(".step-*.partial*"):
            shutil.rmtree(leftover)
        partial.mkdir()
        checkpointer = ocp.StandardCheckpointer()
        checkpointer.save(partial / "arrays", tree)
        checkpointer.wait_until_finished()
        checkpointer.close()
        files = {str(p.relative_to(partial)): _sha256(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        manifest = partial / "manifest.json"
        manifest.write_text(json.dumps({"step": step, "meta": meta, "files": files}, indent=1))
        for path in (*map(partial.joinpath, files), manifest):
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        _sync(directory)
    except Exception as error:  # Orbax wraps a full disk in errors of several types
        shutil.rmtree(partial, ignore_errors=True)
        raise cannot_write(final, error) from error
    for old in steps(directory)[:-keep]:
        shutil.rmtree(directory / f"step-{old:08d}", ignore_errors=True)
    return final


def cannot_write(path: Path, error: Exception) -> Exception:
    """The `UserError` for a disk that refuses `path`, or `error` itself when it is about something else."""
    text = str(error)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in text
    if full:
        return UserError(f"no space left for {path}; what was saved before is kept: free some space, then resume=true")
    if isinstance(error, OSError):
        return UserError(f"cannot write {path}: {error.strerror or text}")
    return error


def steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint under its final name, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in directory.glob("step-*") if path.is_dir())


def load(directory: Path, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """The tree and the `meta` of one checkpoint, every file verified against its hash first.

    `like` is a pytree of arrays or shapes (with shardings) that says what is expected. Raises `UserError` naming the
    file that is missing, damaged or of another shape.
    """
    path = directory.absolute() / f"step-{step:08d}"
    manifest = path / "manifest.json"
    try:
        content = json.loads(manifest.read_text())
        files, meta = content["files"], content["meta"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"checkpoint {path} is damaged: manifest.json is missing or cannot be read") from None
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"checkpoint {path} is damaged: {name} is missing")
        if _sha256(file) != expected:
            raise UserError(f"checkpoint {path} is damaged: {name} does not have the SHA-256 sum that was recorded")
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path / "arrays", like), meta
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {path} holds other arrays than this configuration expects: {reason}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
