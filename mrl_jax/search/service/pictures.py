"""Pictures over HTTP: those of a request become pixels, and those of the index are shown, as small JPEGs.

Both are decoded by the reader of training data (`readers.images.read_image`), within limits of their own: a file of a
few kilobytes may have a hundred million pixels. What is shown is drawn anew from the pixels, so that nothing of a file
but these reaches a browser: no SVG, no script that calls itself a picture, no notes of where it was taken.
"""

import base64
import binascii
import io
from pathlib import Path

import numpy as np

from mrl_jax.data.readers.images import read_image
from mrl_jax.encoders.image_rules import ImageRule
from mrl_jax.system.errors import UserError

MAX_PICTURES = 16  # of a request
MAX_QUERY_PIXELS = 1 << 25  # of a picture in a request: about 100 MB when it is decoded
MAX_SHOWN_BYTES = 1 << 26  # of a file that is shown
SIDE, MAX_SIDE = 256, 1024  # pixels of the longer side of what is shown
QUALITY = 90  # of its JPEG
THREADS = 2  # that decode at a time, so that they cannot take all memory or cores


def decode(number: int, encoded: str, rule: ImageRule) -> np.ndarray:
    """A picture of a request as the model reads it, uint8 of `rule.shape`.

    Raises `UserError` for what is not the base64 of a picture within the limits.
    """
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"images[{number}] is not base64: {error}") from None
    try:
        return rule.prepare(read_image(content, rule.least, MAX_QUERY_PIXELS))
    except UserError as error:
        raise UserError(f"images[{number}]: {error}") from None


def shown(root: str, id_: str, side: int) -> bytes:
    """The JPEG of a document that is a picture, its longer side `side` pixels at most.

    Raises `UserError` for a file that is gone, damaged or too large, or that lies elsewhere than below `root`, by its
    name or by a link.
    """
    folder = Path(root).resolve()
    try:
        path = (folder / id_).resolve(strict=True)
        inside = path.is_relative_to(folder)
        if inside and not path.is_file():
            raise FileNotFoundError
        if inside and path.stat().st_size > MAX_SHOWN_BYTES:
            raise UserError(f"this picture has more than {MAX_SHOWN_BYTES:,} bytes and is not shown")
        content = path.read_bytes() if inside else b""
    except (OSError, ValueError, RuntimeError):  # the last two: names that no file can have, links in a circle
        raise UserError("the file of this picture is not there any more, or cannot be read") from None
    if not inside:
        raise UserError("the file of this picture lies outside the folder of the index and is not shown")
    picture = read_image(content, (side, side))
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()
