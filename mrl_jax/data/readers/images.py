"""Images on disk, decoded with Pillow: scaled, cropped to one size, `[h, w, c]` uint8.

`decode` reads those of TFDS, JPEG or PNG, in the number of channels that they have there. `read_image` reads those of a
user, of more formats, and makes upright RGB of everything: grey, palettes, CMYK, 16 bits, transparency (on white, as
transformers does), the first frame of a film.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mrl_jax.data.readers.decoders import Decoders
from mrl_jax.system import console, processes
from mrl_jax.system.errors import UserError

MAX_PIXELS = 1 << 27  # of an image, as stored or scaled up to cover the target: more is damage, or fills the memory
KEPT_RATIO = 16  # of the sides of a picture too long for that, whose ends are left out
READ_IMAGES = 4096  # encoded images held in memory at a time
MAX_DECODED_BYTES = 2 << 30  # of the decoded images of a split; a larger one stays on disk
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # of a user's images: some of Pillow's others start programs
NEEDS_SIZE = "the images have different sizes; give data.image_size, e.g. 224"
# Pillow has no error of its own for what is wrong in a file.
BROKEN = (
    OSError, ValueError, SyntaxError, TypeError, struct.error, zlib.error, IndexError, KeyError, MemoryError, EOFError,
    OverflowError, AttributeError, RuntimeError, Image.DecompressionBombError,
)  # fmt: skip


class Geometry(NamedTuple):
    """Size of the decoded images."""

    height: int
    width: int
    channels: int


def target_geometry(shape: tuple[int | None, ...], image_size: int | None, name: str | None) -> Geometry:
    """Size to decode to: `image_size` squared, or the stored size if that is the same for all images.

    Args:
        shape: stored height, width and channels, None where images differ.
        image_size: `data.image_size`.
        name: `data.name`, for the error message.

    Raises:
        UserError: for an `image_size` below 1, or if it is None and images differ in size.
    """
    height, width, channels = shape
    if image_size is not None:
        if image_size < 1:
            raise UserError(f"data.image_size={image_size} must be at least 1")
        height = width = image_size
    if height is None or width is None:
        raise UserError(f"data.name={name} has images of different sizes; give data.image_size, e.g. 224")
    return Geometry(height, width, 1 if channels == 1 else 3)


class EncodedRecords(Protocol):
    """Records with random access, one field of which is an encoded image."""

    def inputs(self, rows: Sequence[int], key: str) -> list[bytes]:
        """The field `key` of these rows."""
        ...


class EncodedImages:
    """Images on disk, decoded on demand: `images[rows]` is uint8 `[len(rows), height, width, channels]`.

    A batch costs one read of its records and one Pillow decode per image on a pool of threads (Pillow releases the
    interpreter lock while it decodes and resizes) or, where there are some, in worker processes.
    """

    def __init__(
        self,
        records: EncodedRecords,
        key: str,
        geometry: Geometry,
        rows: np.ndarray,
        decoders: Decoders | None = None,
    ) -> None:
        self.records, self.key, self.geometry, self.rows = records, key, geometry, rows
        self.decoders = decoders

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        wanted = self.rows[rows]
        out = np.empty((len(wanted), *self.geometry), np.uint8)

        def name(row: int) -> str:
            return f"image {row} (from 0) of its split "

        def fill(position: int, encoded: bytes) -> None:
            try:
                out[position] = decode(encoded, self.geometry)
            except UserError as error:
                raise UserError(f"{name(wanted[position])}{error}") from None

        if self.decoders is not None:
            to_pixels = partial(decode, geometry=self.geometry)
            self.decoders.fill(out, wanted, lambda part: self.records.inputs(part, self.key), to_pixels, name)
            return out
        with ThreadPoolExecutor(processes.core_count()) as pool:
            for start in range(0, len(wanted), READ_IMAGES):
                encoded = self.records.inputs(wanted[start : start + READ_IMAGES].tolist(), self.key)
                list(pool.map(fill, range(start, start + len(encoded)), encoded))
        return out

    def subset(self, rows: np.ndarray) -> "EncodedImages":
        """A view of these rows; nothing is read."""
        return EncodedImages(self.records, self.key, self.geometry, self.rows[rows], self.decoders)


def decode(encoded: bytes, geometry: Geometry) -> np.ndarray:
    """Decode a JPEG or PNG: scale so that it just covers the target, then crop the centre. uint8 [h, w, c].

    Raises `UserError` for anything else: some of Pillow's other formats start programs.
    """
    mode = "L" if geometry.channels == 1 else "RGB"
    size = (geometry.width, geometry.height)
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            scale = max(size[0] / image.width, size[1] / image.height, 1)
            if image.width * image.height * scale**2 > MAX_PIXELS:
                raise ValueError(f"it has {image.width} × {image.height} pixels")
            image.draft(mode, size)  # a JPEG far larger than the target is decoded at 1/2, 1/4 or 1/8 of its size
            picture: Image.Image = image.convert(mode)
    except UnidentifiedImageError:  # whose text is an address in memory
        raise UserError("is not a JPEG or PNG that can be decoded") from None
    except BROKEN as error:
        raise UserError(f"is not a JPEG or PNG that can be decoded: {error}") from error
    return cover(picture, geometry)


def without_ends(picture: Image.Image, scale: float) -> Image.Image:
    """The picture, or its middle where all of it would take more than `MAX_PIXELS` once it is scaled: rules keep no
    more than a middle part, and of a line of pixels, a file of some kilobytes, the whole would fill the memory."""
    if picture.width * picture.height * scale**2 <= MAX_PIXELS:
        return picture
    most = KEPT_RATIO * min(picture.size)
    left, top = (max(0, side - most) // 2 for side in picture.size)
    return picture.crop((left, top, picture.width - left, picture.height - top))


def cover(picture: Image.Image, geometry: Geometry) -> np.ndarray:
    """Scale an image so that it just covers the target, then crop the centre. uint8 [h, w, c]."""
    size = (geometry.width, geometry.height)
    if picture.size != size:
        picture = without_ends(picture, max(size[0] / picture.width, size[1] / picture.height))
        scale = max(size[0] / picture.width, size[1] / picture.height)
        scaled = max(size[0], round(picture.width * scale)), max(size[1], round(picture.height * scale))
        picture = picture.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
        picture = picture.crop((left, top, left + size[0], top + size[1]))
    return np.asarray(picture).reshape(geometry)


# ---- images of a user ------------------------------------------------------------------------------------------------


def read_image(encoded: bytes, least: tuple[int, int] | None = None, most: int = MAX_PIXELS) -> Image.Image:
    """An image in one of `FORMATS`, upright and in RGB.

    Args:
        encoded: the content of the file.
        least: height and width that suffice. A JPEG far larger is decoded at 1/2, 1/4 or 1/8 of its size, which is
            faster, and changes the last digits of what it is scaled to.
        most: pixels that are read.

    Raises:
        UserError: anything else, a file that is damaged or cut off, or more pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is damaged, and of sizes that `MAX_PIXELS` allows
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                if image.width * image.height > most:
                    raise ValueError(f"it has {image.width} × {image.height} pixels; at most {most:,} are read")
                if least is not None and image.format == "JPEG":
                    side = max(least)  # whichever way it is turned
                    image.draft("RGB", (side, side))
                return upright_rgb(image)
    except UnidentifiedImageError:
        raise UserError(f"it is no image in the formats {', '.join(FORMATS)}") from None
    except BROKEN as error:
        raise UserError(" ".join(str(error).split()) or type(error).__name__) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """RGB, turned as its EXIF tag says, with what is transparent on white. 16 bits become 8 by leaving out the lower
    ones. Raises ValueError for grey levels of a range that is not known."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 0xFFFF:
            raise ValueError("its grey levels have more than 16 bits")
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its grey levels are floating numbers, whose range is not known")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, (255, 255, 255, 255)), seen).convert("RGB")
    return image.convert("RGB")


class Rule(Protocol):
    """How an image becomes an array, see `encoders.image_rules`."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def least(self) -> tuple[int, int] | None:
        """As for `read_image`."""
        ...

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """uint8 of `shape`."""
        ...


@dataclass(frozen=True)
class Cover:
    """The rule of `data.image_size`: scaled so that they just cover a square, the centre of which is cut out."""

    side: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.side, self.side, 3

    @property
    def least(self) -> tuple[int, int]:
        return self.side, self.side

    def prepare(self, picture: Image.Image) -> np.ndarray:
        return cover(picture, Geometry(*self.shape))


class ImageFiles(Protocol):
    """Encoded images by number, and what names each of them in a message."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes: ...

    def name(self, row: int) -> str: ...


@dataclass(frozen=True)
class StoredImages:
    """A user's images on disk, which may differ in size until there is a rule of how they are prepared.

    Once there is one, `images[rows]` is uint8 [len(rows), *shape], read and decoded on a pool of threads.
    """

    files: ImageFiles
    rows: np.ndarray  # int [n], of `files`
    streaming: bool | None = None  # whether they stay on disk; None: where they would take `MAX_DECODED_BYTES`
    rules: tuple[Rule, ...] = ()  # one after another
    decoders: Decoders | None = None  # None: threads of this process

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of one; None where they differ."""
        return self.rules[-1].shape if self.rules else None

    def subset(self, rows: np.ndarray) -> "StoredImages":
        """A view of these rows; nothing is read."""
        return replace(self, rows=self.rows[rows])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        wanted = self.rows[rows]
        out = np.empty((len(wanted), *self._shape()), np.uint8)
        if self.decoders is not None:
            self.decoders.fill(out, wanted, self._read, partial(apply, rules=self.rules), self._prefix)
            return out
        with ThreadPoolExecutor(processes.core_count()) as pool:
            list(pool.map(lambda i: self._fill(out, i, int(wanted[i])), range(len(wanted))))
        return out

    def _prefix(self, row: int) -> str:
        return f"{self.files.name(row)}: "

    def _read(self, rows: Sequence[int]) -> list[bytes]:
        encoded = []
        for row in rows:
            try:
                encoded.append(self.files.read(row))
            except UserError as error:
                raise UserError(f"{self._prefix(row)}{error}") from None
        return encoded

    def _shape(self) -> tuple[int, int, int]:
        if self.shape is None:
            raise UserError(NEEDS_SIZE)
        return self.shape

    def _fill(self, out: np.ndarray, position: int, row: int) -> None:
        try:
            out[position] = apply(self.files.read(row), self.rules)
        except UserError as error:
            raise UserError(f"{self._prefix(row)}{error}") from None

    def prepared(self, rule: Rule) -> Any:
        """The images by a further rule: an array where they fit in memory, else read on demand."""
        images = replace(self, rules=(*self.rules, rule))
        bytes_needed = len(self) * int(np.prod(rule.shape, dtype=np.int64))
        if bytes_needed > MAX_DECODED_BYTES if self.streaming is None else self.streaming:
            return images
        out = np.empty((len(self), *rule.shape), np.uint8)
        with console.progress(len(self), "read images", "image", leave=False) as bar:
            for _ in _on_threads(lambda i: images._fill(out, i, int(self.rows[i])), len(self)):
                bar.update(1)
        return out


def apply(encoded: bytes, rules: Sequence[Rule]) -> np.ndarray:
    """The pixels of an encoded image by one rule after another, uint8 [h, w, c]."""
    picture = read_image(encoded, rules[0].least)
    for rule in rules[:-1]:
        picture = Image.fromarray(rule.prepare(picture))
    return rules[-1].prepare(picture)


def _on_threads(work: Callable[[int], Any], count: int) -> Iterator[Any]:
    """`work(0)`, … in order, computed on a pool of threads, some thousands at a time."""
    with ThreadPoolExecutor(processes.core_count()) as pool:
        for start in range(0, count, READ_IMAGES):
            yield from pool.map(work, range(start, min(start + READ_IMAGES, count)))


def broken(files: ImageFiles) -> dict[int, str]:
    """The images that cannot be decoded, and why: each is decoded once, a JPEG at an eighth of its size."""

    def problem(row: int) -> str | None:
        try:
            read_image(files.read(row), (1, 1))
        except UserError as error:
            return str(error)
        return None

    found = {}
    with console.progress(len(files), "check images", "image", leave=False) as bar:
        for row, why in enumerate(_on_threads(problem, len(files))):
            if why is not None:
                found[row] = why
            bar.update(1)
    return found
