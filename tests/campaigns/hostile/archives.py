"""Readers of archives that data is fetched in, and of pictures."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from mrl_jax.data.readers import artefacts, images
from mrl_jax.data.sources import fashion_mnist
from mrl_jax.system.errors import UserError

from .samples import Reader

MEMBERS = {"toy/a.txt": b"first\n" * 50, "toy/b.bin": bytes(range(256))}


def archives() -> Reader:
    def tar(mode: str) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as file:  # type: ignore[call-overload]
            for name, content in MEMBERS.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
        return out.getvalue()

    def make(folder: Path) -> list[str]:
        with zipfile.ZipFile(folder / "toy.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, content in MEMBERS.items():
                wheel.writestr(name, content)
        (folder / "toy.tar.gz").write_bytes(tar("w:gz"))
        package = b"!<arch>\n"
        for name, content in (("debian-binary", b"2.0"), ("data.tar.xz", tar("w:xz"))):
            head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
            package += head.encode() + content + b"\n" * (len(content) % 2)
        (folder / "toy.deb").write_bytes(package)
        return ["toy.whl", "toy.tar.gz", "toy.deb"]

    def read(folder: Path) -> object:
        said, answers = None, []
        for name, kind in (("toy.whl", "wheel"), ("toy.tar.gz", "sdist"), ("toy.deb", "deb")):
            toy = artefacts.Artefact("toy", "1", "0" * 64, tuple(MEMBERS), kind)  # type: ignore[arg-type]
            try:
                answers.append(artefacts.unpack_members(folder / name, toy, folder / "unpacked"))
            except UserError as error:
                said = error
        if said:
            raise said
        return answers

    return Reader(make, read)


def pictures() -> Reader:

    def make(folder: Path) -> list[str]:
        rng = np.random.default_rng(0)
        picture = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        names = [f"a.{suffix}" for suffix in ("png", "jpeg", "gif", "bmp", "tiff")]
        for name in names:
            picture.save(folder / name)
        picture.convert("P").save(folder / "b.png")
        return [*names, "b.png"]

    def read(folder: Path) -> object:
        geometry, said = images.Geometry(4, 4, 3), None
        for path in sorted(folder.iterdir()):
            try:
                assert images.decode(path.read_bytes(), geometry).shape == geometry
            except UserError as error:
                said = error if path.suffix in (".png", ".jpeg") else said
        if said:
            raise said
        return None

    return Reader(make, read)


def idx() -> Reader:

    def make(folder: Path) -> list[str]:
        (folder / "a.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(6)])))
        return ["a.gz"]

    return Reader(make, lambda folder: fashion_mnist.read_idx(folder / "a.gz"))
