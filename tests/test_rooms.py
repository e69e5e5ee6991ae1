"""The layout that docs/design.md describes: rooms import from lower layers only, and no file is long."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mrl_jax"
DESIGN = PACKAGE.parent / "docs" / "design.md"
MAX_LINES = 400
DOORS = {"evaluate/__main__.py": "zero_shot"}  # a command that has the name of a room of a lower layer
NAMES_OF_BEFORE = {"__init__", "contrastive"}  # only pass on what others define


def layers() -> dict[str, int]:
    """Room → layer, from the table of rooms."""
    found, layer = {}, 0
    for cells in re.findall(r"^\| *(\d*) *\| (`[^|]*`) \|", DESIGN.read_text(encoding="utf-8"), re.MULTILINE):
        layer = int(cells[0] or layer)
        found |= {name.rstrip("/"): layer for name in re.findall(r"`([a-z_]+/?)`", cells[1])}
    return found


def imported_rooms(path: Path) -> Iterator[str]:
    """The rooms that a module imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mrl_jax":
            parts = (node.module or "").split(".")[1:]
            yield from parts[:1] or (alias.name for alias in node.names)


def room_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return DOORS.get(inside.as_posix(), inside.parts[0].removesuffix(".py"))


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) not in NAMES_OF_BEFORE)


def test_every_room_stands_in_the_table() -> None:
    assert {room_of(path) for path in MODULES} == layers().keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_from_its_own_room_and_lower_layers_only(path: Path) -> None:
    room, layer = room_of(path), layers()
    for other in imported_rooms(path):
        assert other == room or layer[other] < layer[room], f"{room} (layer {layer[room]}) imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
