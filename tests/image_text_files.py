"""Tiny pictures of one colour with captions, as the files that `data=image_text` reads."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}


def encoded(rgb: tuple[int, ...], size: tuple[int, int] = (12, 8)) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, tuple(int(x) for x in rgb)).save(buffer, "PNG")
    return buffer.getvalue()


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def table(root: Path, split: str, count: int) -> str:
    """A file with `count` pictures of each colour, every one of a shade of its own, with two captions in a list."""
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        for name, rgb in COLOURS.items():
            shade = np.clip(np.array(rgb) + (1 + i) * (7 if split == "train" else 5), 0, 255)
            shade[2] = (3 * i + len(split)) % 256
            image = f"pictures/{split}-{name}-{i}.png"
            (root / image).write_bytes(encoded(tuple(shade)))
            rows.append({"image": image, "text": [f"a {name} square {i}", f"{name} {split}"]})
    return jsonl(root / f"{split}.jsonl", rows)
