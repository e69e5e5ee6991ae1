"""Fashion-MNIST with generated captions: a folder for `data=image_text`, and zero-shot classification by a run of it.

    python experiments/image_text/fashion_mnist.py make FOLDER
    python experiments/image_text/fashion_mnist.py classify RUN FOLDER [DIM …]

FOLDER gets pictures/train-0.png, … and train.jsonl, validation.jsonl and test.jsonl, whose rows have an image, a label
and a text by one of `TEMPLATES`, such as "a photo of a sneaker". A class is then what its prompts say: the embedding of
a class is the mean of those of all templates with its name, as in CLIP (Radford et al., 2021, arXiv:2103.00020, section
3.1.4), and a picture is of the class with the largest cosine.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mrl_jax
from mrl_jax.data import DataConfig
from mrl_jax.data.sources import fashion_mnist

NAMES = (
    "a t-shirt", "a pair of trousers", "a pullover", "a dress", "a coat", "a sandal", "a shirt", "a sneaker", "a bag",
    "an ankle boot",
)  # fmt: skip
TEMPLATES = ("a photo of {}", "a small grey picture of {}", "this is {}", "{} on black", "{}")
PARTS = {"train": ("train", 0, 10_000), "validation": ("train", 10_000, 11_000), "test": ("test", 0, 2_000)}  # rows


def caption(label: int, row: int) -> str:
    """The caption of an image; neighbours in the file have different templates."""
    return TEMPLATES[row % len(TEMPLATES)].format(NAMES[label])


def make(folder: Path, parts: dict[str, tuple[str, int, int]] = PARTS, dataset: Any = None) -> None:
    """Write pictures and tables of these rows of a data set, which is Fashion-MNIST unless one is given."""
    dataset = dataset or fashion_mnist.read(DataConfig("fashion_mnist"))
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for part, (split, start, stop) in parts.items():
        source, lines = getattr(dataset, split), []
        for row in range(start, stop):
            label, path = int(source.labels[row]), f"pictures/{part}-{row}.png"
            Image.fromarray(source.inputs[row][:, :, 0]).save(folder / path)
            line = {"image": path, "text": caption(label, row), "label": NAMES[label]}
            lines.append(json.dumps(line) + "\n")
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{part}: {len(lines):,} pictures")


def classify(run: str, folder: Path, dims: Sequence[int] = ()) -> dict[int, float]:
    """Zero-shot accuracy of a run on the test of `folder`, at these dims or else at its nesting dims."""
    model: Any = mrl_jax.load(run)
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    pictures, labels = [folder / row["image"] for row in rows], np.array([NAMES.index(row["label"]) for row in rows])
    prompts = [template.format(name) for name in NAMES for template in TEMPLATES]
    accuracies = {}
    for dim in dims or model.dims:
        images, texts = model.encode(pictures, dim=dim), model.encode(prompts, dim=dim)
        classes = texts.reshape(len(NAMES), len(TEMPLATES), -1).mean(axis=1)
        classes /= np.linalg.norm(classes, axis=1, keepdims=True)
        accuracies[dim] = float(np.mean((images @ classes.T).argmax(axis=1) == labels))
    return accuracies


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", folder]:
            make(Path(folder).expanduser())
        case ["classify", run, folder, *dims] if all(dim.isdecimal() for dim in dims):
            for dim, accuracy in classify(run, Path(folder).expanduser(), [int(dim) for dim in dims]).items():
                print(f"{dim:>4} dims: {accuracy:.1%} (chance {1 / len(NAMES):.0%})")
        case _:
            sys.exit(__doc__)
