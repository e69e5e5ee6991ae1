"""Emoji as pictures with captions: a folder for `data=image_text`, from two Debian packages.

    python experiments/image_text/make_data.py FOLDER

FOLDER gets pictures/1f34e.png, … and train.jsonl, validation.jsonl and test.jsonl, whose rows have an image and texts:
the name of the emoji, and its keywords. The pictures are the bitmaps of Noto Color Emoji (SIL Open Font Licence 1.1) on
white, names and keywords those of Unicode CLDR 41 in English (Unicode licence, DFS-2016). Emoji of several code points
(flags, families, tones of skin) are left out: a concept is one picture. Of 20 concepts, by a hash of the code point, 14
are for training, 2 for validation, 4 for the test.
"""

import hashlib
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mrl_jax.data.readers.artefacts import Artefact, fetch

FONT = Artefact(
    package="fonts-noto-color-emoji",
    version="2.042-0+deb12u1",
    sha256="a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
    members=("usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",),
    kind="deb",
)
NAMES = Artefact(
    package="unicode-cldr-core",
    version="41-0.1",
    sha256="35d30d5d3bee4d8244e95236259c4c2a0db06e21bad696515751fcfeee4d0260",
    members=("usr/share/unicode/cldr/common/annotations/en.xml",),
    kind="deb",
)
BITMAP = 109, (136, 128)  # the one size of the font, in points, and the width and height of its bitmaps in pixels
PARTS = {"test": range(4), "validation": range(4, 6), "train": range(6, 20)}  # of 20 concepts


def annotations(path: Path) -> dict[str, tuple[str, str]]:
    """Name and keywords of every character that has both and is one code point."""
    names: dict[str, str] = {}
    keywords: dict[str, str] = {}
    for entry in ElementTree.parse(path).getroot().iter("annotation"):
        kept, words = (names, entry.text or "") if entry.get("type") == "tts" else (keywords, entry.text or "")
        kept[entry.attrib["cp"]] = ", ".join(word.strip() for word in words.split("|"))
    return {cp: (name, keywords[cp]) for cp, name in names.items() if len(cp) == 1 and cp in keywords}


def picture(character: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The bitmap of a character on white; None where the font has none."""
    canvas = Image.new("RGBA", BITMAP[1], (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((0, 0), character, font=font, embedded_color=True)
    if canvas.getbbox(alpha_only=True) is None:
        return None
    white = Image.new("RGBA", canvas.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, canvas).convert("RGB")


def part_of(character: str) -> str:
    """The split of a concept."""
    share = int(hashlib.sha256(f"{ord(character):x}".encode()).hexdigest(), 16) % 20
    return next(part for part, shares in PARTS.items() if share in shares)


def write(folder: Path) -> None:
    """Write pictures and tables, in order of code points."""
    font = ImageFont.truetype(str(fetch(FONT) / FONT.members[0]), BITMAP[0])
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {part: [] for part in PARTS}
    known = annotations(fetch(NAMES) / NAMES.members[0])
    for character in sorted(known, key=ord):
        if (drawn := picture(character, font)) is None:
            continue
        path = f"pictures/{ord(character):x}.png"
        drawn.save(folder / path)
        row = {"image": path, "text": list(dict.fromkeys(known[character]))}
        lines[part_of(character)].append(json.dumps(row, ensure_ascii=False) + "\n")
    for part, rows in lines.items():
        (folder / f"{part}.jsonl").write_text("".join(rows), encoding="utf-8")
    print(", ".join(f"{len(rows):,} {part}" for part, rows in lines.items()), "pictures")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    write(Path(sys.argv[1]).expanduser())
