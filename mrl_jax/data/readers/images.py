"""Images on disk as JPEG or PNG, decoded with Pillow: scaled, cropped to one size, `[h, w, c]` uint8."""

import io
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from mrl_jax.system import processes
from mrl_jax.system.errors import UserError

MAX_PIXELS = 1 << 27  # of an image, as stored or scaled up to cover the target: more is damage, or fills the memory
READ_IMAGES = 4096  # encoded images held in memory at a time


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
    interpreter lock while it decodes and resizes).
    """

    def __init__(self, records: EncodedRecords, key: str, geometry: Geometry, rows: np.ndarray) -> None:
        self.records, self.key, self.geometry, self.rows = records, key, geometry, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        wanted = self.rows[rows]
        out = np.empty((len(wanted), *self.geometry), np.uint8)

        def fill(position: int, encoded: bytes) -> None:
            try:
                out[position] = decode(encoded, self.geometry)
            except UserError as error:
                raise UserError(f"image {wanted[position]} (from 0) of its split {error}") from None

        with ThreadPoolExecutor(processes.core_count()) as pool:
            for start in range(0, len(wanted), READ_IMAGES):
                encoded = self.records.inputs(wanted[start : start + READ_IMAGES].tolist(), self.key)
                list(pool.map(fill, range(start, start + len(encoded)), encoded))
        return out

    def subset(self, rows: np.ndarray) -> "EncodedImages":
        """A view of these rows; nothing is read."""
        return EncodedImages(self.records, self.key, self.geometry, self.rows[rows])


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
    # Pillow has no error of its own for what is wrong in a file.
    except (OSError, ValueError, SyntaxError, TypeError, struct.error, zlib.error, IndexError, KeyError, MemoryError,
            EOFError, OverflowError, Image.DecompressionBombError) as error:  # fmt: skip
        raise UserError(f"is not a JPEG or PNG that can be decoded: {error}") from error
    if picture.size != size:
        scale = max(size[0] / picture.width, size[1] / picture.height)
        scaled = max(size[0], round(picture.width * scale)), max(size[1], round(picture.height * scale))
        picture = picture.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
        picture = picture.crop((left, top, left + size[0], top + size[1]))
    return np.asarray(picture).reshape(geometry)
