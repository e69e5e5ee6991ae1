"""How an image of any size becomes the pixels that an encoder reads: resize, crop the centre, uint8 [h, w, c].

    exact       resize to height × width, whatever the proportions
    shortest    resize so that the shorter side has so many pixels
    cover       resize so that the image just covers height × width

Then the centre is cropped. Mean and standard deviation are the encoder's: it gets uint8, of which augmentation on the
device makes other images. A rule is what `preprocessor_config.json` of a folder says, and gives the pixels of the image
processors of transformers on Pillow, number by number; those on torchvision interpolate a little differently.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from mrl_jax.data.readers.images import (
    NEEDS_SIZE,
    Geometry,
    StoredImages,
    cover,
    read_image,
    upright_rgb,
    without_ends,
)
from mrl_jax.system import files
from mrl_jax.system.errors import UserError
from mrl_jax.text.tokenizers import Arrays, Passthrough

FILE = "images.json"
How = Literal["exact", "shortest", "cover", "none"]
BILINEAR = int(Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class ImageRule:
    """Images → `image` uint8 [n, height, width, channels]. A preprocessor, see `tokenizers.Preprocessor`."""

    how: How
    size: tuple[int, int]  # height and width; of `shortest` the side, twice
    crop: tuple[int, int]  # height and width of the result; black where an image is smaller
    resample: int  # Pillow's number of the filter
    channels: int  # 1: grey; 3: RGB

    vocabulary = 0
    tokenizer = None
    kind = "image"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one example."""
        return *self.crop, self.channels

    @property
    def least(self) -> tuple[int, int] | None:
        """Height and width that suffice of a large JPEG; None where each pixel has to be that of transformers."""
        return self.size if self.how == "cover" else None

    @property
    def keeps(self) -> bool:
        """Whether an image of `shape` stays as it is."""
        return self.how == "none" or (self.how != "shortest" and self.size == self.crop)

    def __call__(self, raw: Any) -> Arrays:
        """`image` of n images: an array uint8 [n, h, w, c], or a list of arrays, Pillow's images, encoded files (bytes)
        and paths. What is on disk is read when a batch needs it."""
        if isinstance(raw, StoredImages):
            return {"image": raw.prepared(self)}
        if isinstance(raw, Prepared):
            return {"image": raw.pixels}
        if self.keeps and isinstance(raw, np.ndarray) and raw.shape[1:] == self.shape:
            return {"image": raw}
        if isinstance(raw, np.ndarray | list | tuple):
            return {"image": Listed(raw, self, np.arange(len(raw)))}
        if (first := np.asarray(raw[np.arange(1)])).shape[1:] == self.shape and self.keeps:
            return {"image": raw}
        raise UserError(f"images have the shape {first.shape[1:]}; this encoder reads {self.shape}")

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """One image, uint8 of `shape`."""
        mode = "L" if self.channels == 1 else "RGB"
        picture = picture if picture.mode == mode else picture.convert(mode)
        if self.how == "cover":
            return cover(picture, Geometry(*self.shape))
        if self.how == "shortest":
            picture = without_ends(picture, self.size[0] / min(picture.size))
        if (wanted := self._resized(picture.width, picture.height)) != picture.size:
            picture = picture.resize(wanted, Image.Resampling(self.resample))
        height, width = self.crop
        if picture.size != (width, height):  # half a pixel more is left out, or black, on the right and below
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        return np.asarray(picture).reshape(self.shape)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.how == "none":
            return width, height
        if self.how == "exact":
            return self.size[1], self.size[0]
        side, short = self.size[0], min(width, height)
        return (side, int(side * height / short)) if width == short else (int(side * width / short), side)

    def save(self, directory: Path) -> None:
        files.write(directory / FILE, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "ImageRule":
        """Read what `save` wrote. Raises `UserError` for a missing or damaged file."""
        path = directory / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            sides = [int(side) for key in ("size", "crop") for side in content[key]]
            height, width, crop_height, crop_width = sides
            resample = int(Image.Resampling(content["resample"]))
            rule = cls(content["how"], (height, width), (crop_height, crop_width), resample, int(content["channels"]))
            if rule.how not in get_args(How) or min(sides) < 1 or rule.channels not in (1, 3):
                raise ValueError("a value is out of range")
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path} cannot be read: {error}; it says how images are prepared") from None
        return rule


def rule_of(preprocessor: Any) -> ImageRule | None:
    """How a model prepares pictures, which its preprocessor or that of its image tower says; None where it reads none,
    or arrays alone."""
    rule = getattr(preprocessor, "image", preprocessor)
    return rule if isinstance(rule, ImageRule) else None


@dataclass(frozen=True)
class Prepared:
    """Images that the rule of a model has prepared already, `ImageRule.prepare`: to embed them is all that is left."""

    pixels: np.ndarray  # uint8 [n, height, width, channels]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.pixels[rows])

    def subset(self, rows: np.ndarray) -> "Prepared":
        """A view of these rows."""
        return Prepared(self.pixels[rows])


class Listed:
    """Images that are at hand one by one, prepared when a batch needs them: `images[rows]` is uint8 [n, *shape]."""

    def __init__(self, items: Sequence[Any] | np.ndarray, rule: ImageRule, rows: np.ndarray) -> None:
        self.items, self.rule, self.rows = items, rule, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        pictures = [self.rule.prepare(as_image(self.items[row], row)) for row in self.rows[rows].tolist()]
        return np.stack(pictures) if pictures else np.zeros((0, *self.rule.shape), np.uint8)

    def subset(self, rows: np.ndarray) -> "Listed":
        """A view of these rows."""
        return Listed(self.items, self.rule, self.rows[rows])


def as_image(item: Any, row: int) -> Image.Image:
    """An image as Pillow's. Raises `UserError`, naming the row, for what is none."""
    try:
        if isinstance(item, Image.Image):
            return upright_rgb(item)
        if isinstance(item, str | Path):
            return read_image(Path(item).expanduser().read_bytes())
        if isinstance(item, bytes):
            return read_image(item)
        if isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim in (2, 3):
            return upright_rgb(Image.fromarray(item[:, :, 0] if item.ndim == 3 and item.shape[2] == 1 else item))
    except (OSError, UserError, ValueError, TypeError) as error:
        name = f" ({item})" if isinstance(item, str | Path) else ""
        raise UserError(f"image {row} (from 0){name}: {getattr(error, 'strerror', None) or error}") from None
    raise UserError(
        f"image {row} (from 0) is {type(item).__name__}; a path, the bytes of a file, a Pillow image or an array uint8 "
        "[h, w, c] is needed"
    )


def shape_of(images: Any) -> tuple[int, ...] | None:
    """Height, width and channels of the images of a split; None where they differ."""
    if isinstance(images, StoredImages):
        return images.shape
    return tuple(np.asarray(images[np.arange(1)]).shape[1:])


def of_data(images: Any, image_size: int | None = None) -> ImageRule:
    """The rule that leaves the images of a split as they are, and brings others to their size; of images of different
    sizes, the one that covers a square of `image_size`. Raises `UserError` where that is not given."""
    shape = shape_of(images)
    if shape is None:
        if image_size is None:
            raise UserError(NEEDS_SIZE)
        shape = (image_size, image_size, 3)
    height, width, channels = shape
    return ImageRule("cover", (height, width), (height, width), BILINEAR, channels)


def fit(kind: str, images: Any) -> ImageRule:
    """The rule of an encoder that reads images of any size as they are."""
    del kind  # image
    return of_data(images)


def load_or_pass(config: Any, directory: Path, kind: str) -> ImageRule | Passthrough:
    """The rule that was saved with a run; runs of before had none, and read arrays as they are."""
    del config
    return ImageRule.load(directory) if (directory / FILE).exists() else Passthrough(kind)
