"""What was verified and laid out once is neither verified nor laid out again, and whatever changed since is noticed."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax.search.index import Description, Document, derived, exact, faiss, rerank, store, verified
from mrl_jax.search.index import exact as exact_index
from mrl_jax.system.errors import UserError

WIDTH, DIMS = 16, (4, 8, 16)
COUNT = 300


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(count, WIDTH)) / np.arange(1, WIDTH + 1) ** 0.5
    return np.asarray(z / np.linalg.norm(z, axis=1, keepdims=True), np.float32)


QUERIES = unit_vectors(5, 1)


def module_of(kind: str):
    return exact if kind == "exact" else faiss


def build(folder: Path, kind: str = "exact", seed: int = 0) -> Path:
    index = module_of(kind).create(folder, Description(WIDTH, DIMS, 8, "model", "run", kind))
    index.add([Document(f"id {i}", f"text {i}") for i in range(COUNT)], unit_vectors(COUNT, seed))
    index.close()
    return folder


def answers(folder: Path, kind: str = "exact") -> list[np.ndarray]:
    """The rows that every search of an index finds, by a process that has just opened it."""
    index = module_of(kind).open_(folder)
    try:
        if kind != "exact":
            return [rerank(index, QUERIES, 5, 20).rows]
        found = [rerank(index, QUERIES, 5, 20), index.search(QUERIES, 5, [(4, 50)])]
        found += [index.search(QUERIES, 5, None, dim) for dim in (None, 8, 4)]
        return [results.rows for results in found]
    finally:
        index.close()


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("read or made again")


KINDS = ("exact", "faiss-flat", "faiss-hnsw")


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_opening_verifies_and_lays_out_nothing(kind: str, tmp_path: Path, monkeypatch) -> None:
    folder = build(tmp_path / "index", kind)
    first = answers(folder, kind)
    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "verify", refuse)
        patch.setattr(exact_index, "lay_out", refuse)
        patch.setattr(faiss, "find_distinct", refuse)
        patch.setattr("mrl_jax.search.index.saved_layout._crc", refuse)
        sha256 = hashlib.sha256
        patch.setattr(hashlib, "sha256", lambda content: sha256(content) if len(content) < 1000 else refuse())
        for a, b in zip(first, answers(folder, kind), strict=True):
            np.testing.assert_array_equal(a, b)
    index = module_of(kind).open_(folder, write=True)
    index.delete(["id 3"])
    index.close()
    assert not any((rows == 3).any() for rows in answers(folder, kind))
    assert not [path for path in folder.iterdir() if path.name.endswith(("-1.layout", "-1.index"))]


def flip(path: Path, at: int) -> None:
    """Change a bit, and leave size, inode and the time of the last change of the content as they were."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_after_a_verification_is_found(kind: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "index", kind)
    answers(folder, kind)
    flip(folder / "vectors.f32", 1234)
    for _ in range(2):  # what was found damaged is not taken as intact the next time
        with pytest.raises(UserError, match=r"vectors\.f32 is damaged in rows 0 to 300; rebuild the index"):
            answers(folder, kind)
    flip(folder / "vectors.f32", 1234)
    answers(folder, kind)
    at = (folder / "documents.sqlite").read_bytes().index(b"text 177")
    flip(folder / "documents.sqlite", at)
    with pytest.raises(UserError, match=r"documents\.sqlite is damaged: document 'id 177' is not what was written"):
        answers(folder, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_derived_file_is_made_again(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = build(tmp_path / "index", kind)
    first = answers(folder, kind)
    files = [path for path in folder.iterdir() if path.suffix in (".layout", ".index")]
    assert len(files) == (4 if kind == "exact" else 1)
    for path in files:
        flip(path, path.stat().st_size // 2)
    for a, b in zip(first, answers(folder, kind), strict=True):
        np.testing.assert_array_equal(a, b)
    said = capsys.readouterr().err
    assert said.count("is damaged or of an earlier version; it is made again") == len(files)
    answers(folder, kind)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_verified_once_and_keeps_what_is_derived(kind: str, tmp_path: Path, monkeypatch) -> None:
    folder = build(tmp_path / "index", kind)
    first = answers(folder, kind)
    copy = shutil.copytree(folder, tmp_path / "copy")  # with the times of the originals
    verifications = []
    verify = store.Store.verify
    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "verify", lambda self: (verifications.append(1), verify(self))[1])
        patch.setattr(exact_index, "lay_out", refuse)
        patch.setattr(faiss, "find_distinct", refuse)
        for _ in range(2):
            for a, b in zip(first, answers(copy, kind), strict=True):
                np.testing.assert_array_equal(a, b)
    assert len(verifications) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_is_replaced_by_another_of_the_same_version_is_not_searched_by_the_old_layout(
    kind: str, tmp_path: Path
) -> None:
    folder, other = build(tmp_path / "index", kind), build(tmp_path / "other", kind, seed=9)
    old, new = answers(folder, kind), answers(other, kind)
    assert any((a != b).any() for a, b in zip(old, new, strict=True))
    for name in store.FILES:
        shutil.copy2(other / name, folder / name)
    for a, b in zip(new, answers(folder, kind), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_build_leaves_a_verified_index_and_a_resumed_one_of_unknown_content_does_not(tmp_path: Path) -> None:
    index = exact.create(tmp_path / "index", Description(WIDTH, DIMS, 8, "model", "run"))
    index.add([Document("a", "b")], unit_vectors(1))
    index.prepare()
    index.close()
    assert verified.is_verified(tmp_path / "index", store.FILES)
    (tmp_path / "index" / verified.NAME).unlink()
    index = exact.open_(tmp_path / "index", write=True)
    index.add([Document("c", "d")], unit_vectors(1, 1))
    index.prepare()
    index.close()
    assert not verified.is_verified(tmp_path / "index", store.FILES)


def test_a_folder_that_cannot_be_written_is_searched_all_the_same(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = build(tmp_path / "index")
    wanted = answers(shutil.copytree(folder, tmp_path / "copy"))

    def full(path: Path, content: object) -> None:
        raise UserError(f"no space left for {path}")

    monkeypatch.setattr(derived.files, "write", full)
    for a, b in zip(wanted, answers(folder), strict=True):
        np.testing.assert_array_equal(a, b)
    assert capsys.readouterr().err.count("was not saved: no space left") == 4
    assert {path.name for path in folder.iterdir()} <= {".lock", *store.FILES}


def test_a_file_that_changes_while_it_is_verified_is_not_taken_as_intact(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    before = verified.settled(tmp_path, ["file"])
    path.write_bytes(b"after!")
    verified.record(tmp_path, before)
    assert not verified.is_verified(tmp_path, ["file"])
    verified.record(tmp_path, verified.settled(tmp_path, ["file"]))
    assert verified.is_verified(tmp_path, ["file"])
    assert not verified.is_verified(tmp_path, ["file", "none"])


def test_no_write_after_settled_leaves_the_identity_as_it_was(tmp_path: Path) -> None:
    """Also where it follows at once: the clock of files has ticked."""
    path = tmp_path / "file"
    for i in range(10):
        path.write_bytes(b"%d" % i)
        before = verified.settled(tmp_path, ["file"])
        path.write_bytes(b"x")
        assert verified.identities(tmp_path, ["file"]) != before


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    folder = build(tmp_path_factory.mktemp("laid out") / "index")
    return folder, answers(folder)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_content_of_a_derived_file_changes_an_answer(laid_out, data) -> None:
    folder, wanted = laid_out
    path = data.draw(st.sampled_from(sorted([*folder.glob("*.layout"), folder / verified.NAME])))
    content = path.read_bytes()
    start = data.draw(st.integers(0, min(400, len(content))))
    stop = data.draw(st.integers(start, len(content)))
    path.write_bytes(content[:start] + data.draw(st.binary(max_size=60)) + content[stop:])
    for a, b in zip(wanted, answers(folder), strict=True):
        np.testing.assert_array_equal(a, b)
