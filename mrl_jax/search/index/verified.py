"""Which files of an index were verified, so that a content is read through once and not by every command.

`verified.json` has, for each file, its inode, size and times as they were when its content was found intact. A file
that is as it was then is taken as intact. Whatever is written to it changes the time of its last change, which no
program can set; a file that was copied, restored or replaced has another inode or time, and is verified again. Damage
that leaves the times alone, as that of a disk, is found by what is read later (each document has a checksum) or by
`verify`, which never looks at this file.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from mrl_jax.system import files
from mrl_jax.system.errors import UserError

NAME = "verified.json"
# Times of files are those of a clock that ticks every few milliseconds: what is written within one tick after a file
# was looked at would leave its times as they are.
TICK_SECONDS = 0.05

Identities = dict[str, tuple[int, ...] | None]


def identities(folder: Path, names: Sequence[str]) -> Identities:
    """What tells the content of each file from any other; None for one that is not there."""
    return {name: files.identity_of(folder / name) for name in names}


def settled(folder: Path, names: Sequence[str]) -> Identities:
    """As `identities`, but waits until what is written to the files from now on has a later time."""
    found = identities(folder, names)
    changed = max((times[-1] for times in found.values() if times), default=0) / 1e9
    time.sleep(min(max(0.0, changed + TICK_SECONDS - time.time()), TICK_SECONDS))
    return identities(folder, names)


def is_verified(folder: Path, names: Sequence[str]) -> bool:
    """Whether all these files are there, as they were when they were last verified."""
    stored, now = _read(folder), identities(folder, names)
    return all(now[name] is not None and stored.get(name) == now[name] for name in names)


def record(folder: Path, verified: Identities) -> None:
    """Remember that these files are intact, unless they have changed since `settled` returned `verified`.

    Where the folder cannot be written, the next command verifies again.
    """
    if identities(folder, list(verified)) != verified or None in verified.values():
        return
    kept = {name: times for name, times in _read(folder).items() if files.identity_of(folder / name) == times}
    with contextlib.suppress(UserError, OSError):
        files.write(folder / NAME, json.dumps(kept | verified) + "\n")


def _read(folder: Path) -> dict[str, tuple[int, ...]]:
    """What is stored; nothing where that is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        content = json.loads((folder / NAME).read_text())
        return {name: tuple(map(int, times)) for name, times in content.items() if Path(name).name == name}
    return {}
