"""Where a user's images are: files below a folder, or Parquet files with a column of encoded images.

Both are `images.ImageFiles`. Every image is decoded once before anything is learnt from them, so that a run does not
end after hours at one that is damaged; `without_broken` leaves those out, names them, and remembers them in the cache.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax.data import disk_cache
from mrl_jax.data.readers.images import ImageFiles, broken
from mrl_jax.data.readers.records import PARQUET_ERRORS
from mrl_jax.system.console import say
from mrl_jax.system.errors import UserError, printable

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
MAX_IMAGE_BYTES = 1 << 30  # of one encoded image: more is no image
MAX_ENCODED_BYTES = 8 << 30  # of the images of Parquet files, which are held in memory as they are stored
MAX_BROKEN = 0.1  # share of images that are left out before it is an error
NAMED = 3  # images that a message names
CHECK_VERSION = "1"  # of what counts as damaged


@dataclass(frozen=True)
class FilesBelow:
    """Files of a folder, by their paths in it."""

    root: Path
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        return printable(str(self.root / self.paths[row]))

    def read(self, row: int) -> bytes:
        try:
            with (self.root / self.paths[row]).open("rb") as file:
                content = file.read(MAX_IMAGE_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise UserError(f"it cannot be read ({getattr(error, 'strerror', None) or error})") from None
        if len(content) > MAX_IMAGE_BYTES:
            raise UserError(f"it has more than {MAX_IMAGE_BYTES:,} bytes")
        return content

    @property
    def digest(self) -> str:
        """Of names, sizes and times of change: a file with other content has others."""
        found = hashlib.sha256(str(self.root.absolute()).encode(errors="surrogateescape"))
        for path in self.paths:
            known = None
            with contextlib.suppress(OSError, ValueError):
                status = (self.root / path).stat()
                known = status.st_size, status.st_mtime_ns
            found.update(f"{path}\0{known}\0".encode(errors="surrogateescape"))
        return found.hexdigest()


@dataclass(frozen=True)
class ParquetImages:
    """The encoded images of Parquet files, in memory."""

    files: tuple[Path, ...]
    first: tuple[int, ...]  # number of the first row of each file
    encoded: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.encoded)

    def name(self, row: int) -> str:
        file = int(np.searchsorted(self.first, row, side="right")) - 1
        return printable(f"{self.files[file]}, row {row - self.first[file] + 1}")

    def read(self, row: int) -> bytes:
        return self.encoded[row]

    @property
    def digest(self) -> str:
        """Of the content."""
        found = hashlib.sha256()
        for image in self.encoded:
            found.update(hashlib.sha256(image).digest())
        return found.hexdigest()


def files_below(root: Path, folder: str = "") -> Iterator[str]:
    """The paths of all images below `root`/`folder`, relative to `root`, in alphabetical order. Other files, and names
    that begin with a dot, are passed over; links are followed."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(root / folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that holds it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield str((Path(place) / name).relative_to(root))


def parquet_images(key: str, files: Sequence[Path], label: str | None) -> tuple[ParquetImages, list[Any], list[str]]:
    """The column `image` of Parquet files, bytes or {bytes, path} as on the Hugging Face hub, and a column of labels.

    Returns:
        The images, the labels (none without `label`), and the names of the classes that the labels count, where the
        files have them.

    Raises:
        UserError: a file that cannot be read, without these columns, with images that are not in it, or too large.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded: list[bytes] = []
    labels: list[Any] = []
    names: list[str] = []
    first, total = [], 0
    for path in files:
        first.append(len(encoded))
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                for column in filter(None, ("image", label)):
                    if column not in schema.names:
                        raise UserError(f"{path} has no column {column}; its columns are {', '.join(schema.names)}")
                names = names or _class_names(schema, label)
                for batch in file.iter_batches(256, columns=[*filter(None, ("image", label))]):
                    total += batch.nbytes
                    if total > MAX_ENCODED_BYTES:
                        raise UserError(
                            f"{key}: the images take more than {MAX_ENCODED_BYTES:,} bytes, more than fit in memory; "
                            "write them as files, a folder for each class"
                        )
                    for image in batch["image"].to_pylist():
                        encoded.append(_bytes(path, len(encoded) - first[-1], image))
                    labels += batch[label].to_pylist() if label else []
        except (pa.ArrowException, *PARQUET_ERRORS) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path} is not a readable Parquet file ({reason})") from error
    return ParquetImages(tuple(files), tuple(first), encoded), labels, names


def _bytes(path: Path, row: int, image: Any) -> bytes:
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        raise UserError(f"{path}, row {row + 1}: image is not allowed; the bytes of an image, or a struct with them")
    return content


def _class_names(schema: Any, label: str | None) -> list[str]:
    """The names of the classes, in the notes that the package datasets leaves in a file."""
    try:
        notes = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = notes["info"]["features"][label]["names"]
        return [name for name in names if isinstance(name, str)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def without_broken(key: str, name: str, files: Any, cache_dir: str | None) -> np.ndarray:
    """The rows of the images that can be decoded, int32; says how many cannot, and which are the first of them.

    Raises:
        UserError: most of the images are of no use, more than `MAX_BROKEN`.
    """
    place = disk_cache.folder(cache_dir, "images", files.digest, CHECK_VERSION)

    def build(partial: Path) -> None:
        (partial / "broken.json").write_text(json.dumps(broken(files)), encoding="utf-8")

    disk_cache.build_once(place, build)
    try:
        found = {int(row): str(why) for row, why in json.loads((place / "broken.json").read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{place} cannot be read ({error}); delete it, and the images are checked again") from error
    if found:
        report_broken(key, name, files, found)
    return np.setdiff1d(np.arange(len(files), dtype=np.int32), np.array([*found], np.int32))


def report_broken(key: str, name: str, files: ImageFiles, found: dict[int, str]) -> None:
    """Say which images are left out, or raise `UserError` where they are too many."""
    first = "; ".join(f"{files.name(row)}: {why}" for row, why in sorted(found.items())[:NAMED])
    more = "; …" if len(found) > NAMED else ""
    problem = f"{key}={name}: {len(found):,} of {len(files):,} images cannot be decoded"
    if len(found) > MAX_BROKEN * len(files) and len(found) > 1:
        raise UserError(f"{problem}, more than {MAX_BROKEN:.0%} ({first}{more})")
    say(f"{problem} and {'is' if len(found) == 1 else 'are'} left out ({first}{more})")
