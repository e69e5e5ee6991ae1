"""Pictures in an index: built from folders and tables, found by words and by pictures, and shown by the service."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mrl_jax
from mrl_jax import search
from mrl_jax.search import pictures
from mrl_jax.search.index import open_index
from tests.image_text_files import encoded, jsonl

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.fixture(scope="module")
def index(towers: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the pictures of the test, with their captions."""
    place = str(tmp_path_factory.mktemp("pictures") / "index")
    assert search.main(["build", str(towers.run), str(towers.folder / "test.jsonl"), "--index", place]) == 0
    return place


def shown(capsys: pytest.CaptureFixture, *words: str) -> list[str]:
    """The ids that a query prints."""
    capsys.readouterr()
    assert search.main(["query", *words]) == 0
    return [line.split()[2] for line in capsys.readouterr().out.splitlines() if line[:3].strip().isdigit()]


def test_pictures_are_found_by_words_and_by_pictures(
    towers: SimpleNamespace, index: str, capsys: pytest.CaptureFixture
) -> None:
    model, rows = mrl_jax.load(towers.run), (towers.folder / "test.jsonl").read_text().splitlines()
    names = [json.loads(row)["image"] for row in rows]
    documents = model.encode([towers.folder / name for name in names])
    wanted = {}
    for query in ("a red square", towers.folder / names[2]):
        order = np.argsort(-(documents @ model.encode([query])[0]), kind="stable")[:4]
        wanted[query] = [names[i] for i in order]
        assert shown(capsys, index, str(query), "--k", "4") == wanted[query]
    words, picture = wanted
    assert shown(capsys, index, words, "--image", str(picture), "--k", "4") == [*wanted[words], *wanted[picture]]
    assert search.main(["query", index, str(picture), "--k", "1"]) == 0
    assert "a blue square 0; blue test" in capsys.readouterr().out  # the captions are the text


def test_a_folder_is_the_same_pictures_by_other_ids_and_a_build_goes_on(
    towers: SimpleNamespace, index: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, place = towers.folder / "pictures", str(tmp_path / "index")
    (folder / "notes.txt").write_text("no picture")
    command = ["build", str(towers.run), str(folder), "--index", place]
    assert search.main(command) == 0
    assert "32 documents, 32 added now, 0 were there" in capsys.readouterr().out
    with_captions, with_paths = open_index(index), open_index(place)
    handles = [one.handles(["test-red-1.png", "pictures/test-red-1.png"]) for one in (with_captions, with_paths)]
    vectors = [
        one.vectors(np.array([*found.values()]))
        for one, found in zip((with_captions, with_paths), handles, strict=True)
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert with_paths.find(["test-red-1.png"])["test-red-1.png"].text == "test-red-1.png"
    with_captions.close()
    with_paths.close()
    before = encoded((220, 10, 0))
    (folder / "test-new.png").write_bytes(before)
    for more, said in (((), "1 added now, 32 were there"), (("--replace",), "33 added now, 0 were there")):
        assert search.main([*command, *more]) == 0
        assert said in capsys.readouterr().out
    (folder / "test-new.png").unlink()
    assert search.main(["build", str(towers.run), str(towers.folder / "test.jsonl"), "--index", place]) == 2
    assert f"was built of the pictures below {folder}" in capsys.readouterr().err


@pytest.mark.slow
def test_plans_and_benchmarks_take_captions_or_pictures_as_queries(
    towers: SimpleNamespace, index: str, capsys: pytest.CaptureFixture
) -> None:
    rows = [json.loads(row) for row in (towers.folder / "test.jsonl").read_text().splitlines()]
    file = jsonl(towers.folder / "asked.jsonl", [{"image": row["image"]} for row in rows])
    assert search.main(["bench", index, "--queries", str(towers.folder / "test.jsonl"), "--k", "3"]) == 0
    assert search.main(["bench", index, "--queries", file, "--k", "3"]) == 0
    printed = capsys.readouterr()
    assert "exact      1.0000" in printed.out
    assert "12 of 12 queries have the id of a document" in printed.err  # a picture is not its own answer
    assert search.main(["plan", index, "--queries", file, "--k", "3", "--recall", "0.5", "--delta", "0.4"]) == 0


def test_a_picture_has_the_id_of_the_index_however_its_folder_is_reached(tmp_path: Path) -> None:
    root = (tmp_path / "pictures").resolve()
    root.mkdir()
    for name in ("a.png", "..b.png"):
        (root / name).write_bytes(encoded((1, 2, 3)))
    (root / "link.png").symlink_to(root / "a.png")
    (tmp_path / "reached").symlink_to(root)
    for folder in (root, tmp_path / "reached", root / ".." / "pictures"):
        for name in ("a.png", "..b.png", "link.png"):
            assert pictures.id_of(str(root), folder / name) == name
    assert pictures.id_of(str(root), tmp_path / "a.png") is None


@pytest.mark.parametrize("words", ["~nobody-here says so in a.png", "a word " * 60 + ".png"])
def test_words_that_end_as_a_picture_are_words_where_no_file_can_have_their_name(
    towers: SimpleNamespace, words: str
) -> None:
    assert pictures.queries_of(mrl_jax.load(towers.run), [words], []) == [words]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("build {run} {tmp} --index x", "has no pictures in it; their names end in .jpg"),
        (
            "build {run} {tmp}/typo.jsonl --index x",
            "has neither image, the path of a picture, nor _id and text; it has",
        ),
        ("build {run} {tmp}/gone.jsonl --index x", "2 of 2 images cannot be decoded, more than 10%"),
        ("build {run} {tmp}/held.parquet --index x", "holds the pictures themselves; a column of their paths"),
        ("query {index} heart.png", "heart.png: there is no such file; a picture is needed"),
        ("query {index}", "nothing to search for is given: a text, or --image FILE"),
        ("bench {index} --queries {tmp}/typo.jsonl", "line 1: text or image is missing or not a string"),
        ("mine {run} {tmp}/gone.jsonl --out {tmp}/m.jsonl", "has the columns image, text; allowed are anchor"),
        ("serve {index} --pictures {tmp}/none", "there is no such folder"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    towers: SimpleNamespace, index: str, words: str, said: str, tmp_path: Path,
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "given"
    folder.mkdir()
    jsonl(folder / "typo.jsonl", [{"imge": "a.png", "txt": "x"}])
    jsonl(folder / "gone.jsonl", [{"image": f"{i}.png", "text": "x"} for i in range(2)])
    pq.write_table(pa.table({"image": [encoded((1, 2, 3))]}), folder / "held.parquet")
    command = words.format(run=towers.run, index=index, tmp=folder).split()
    assert search.main(command) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "x").exists()


# ---- the service -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(towers: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Of a service that may be written to, with documents whose files lie elsewhere, are no pictures, or are gone."""
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    from mrl_jax.search.service.answers import Answers
    from mrl_jax.search.service.app import Metrics, Service
    from mrl_jax.search.service.options import Limits
    from mrl_jax.search.service.worker import Worker

    folder = tmp_path_factory.mktemp("shown")
    (folder / "secret.png").write_bytes(encoded((1, 2, 3)))
    root = folder / "root"
    root.mkdir()
    for name in ("red.png", "gone.png", "script.png"):
        (root / name).write_bytes(encoded((220, 30, 30), (1000, 500)))
    (root / "link.png").symlink_to(folder / "secret.png")
    jsonl(
        root / "rows.jsonl", [{"image": n} for n in ("red.png", "gone.png", "script.png", "link.png", "../secret.png")]
    )
    assert search.main(["build", str(towers.run), str(root / "rows.jsonl"), "--index", str(folder / "index")]) == 0
    (root / "gone.png").unlink()
    (root / "script.png").write_bytes(SVG)
    worker = Worker(lambda: Answers(str(folder / "index"), write=True, batch_size=2))
    service = Service(worker.start(), worker, Metrics(), Limits(), None)
    worker.submit("compile", None, []).result()
    yield TestClient(service.app, base_url="http://localhost", raise_server_exceptions=False)
    worker.stop()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_a_picture_is_sent_and_what_is_near_comes_back(client: object, towers: SimpleNamespace) -> None:
    model, file = mrl_jax.load(towers.run), encoded((30, 200, 40), (40, 30))
    z = model.encode([Image.open(io.BytesIO(file))], 4)[0]
    answer = client.post("/embed", json={"images": [base64_of(file)], "dim": 4}).json()
    np.testing.assert_allclose(answer["vectors"][0], z, atol=1e-6)
    (root, *_) = [Path(client.get("/health").json()["pictures"])]
    found = client.post("/search", json={"images": [base64_of(file)], "k": 5, "dim": 4}).json()["results"][0]["hits"]
    score = {hit["id"]: hit["score"] for hit in found}
    assert score["red.png"] == pytest.approx(float(model.encode([root / "red.png"], 4)[0] @ z), abs=1e-5)
    assert client.post("/search", json={"texts": ["a red square"], "k": 5}).json()["results"][0]["unknown"] is False


def test_pictures_are_shown_small_and_as_jpeg(client: object) -> None:
    answer = client.get("/picture", params={"id": "red.png", "side": 100})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert answer.headers["x-content-type-options"] == "nosniff"
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.format, picture.size) == ("JPEG", (100, 50))
    assert max(abs(a - b) for a, b in zip(picture.getpixel((50, 25)), (220, 30, 30), strict=True)) < 4


@pytest.mark.parametrize(
    ("id_", "status", "said"),
    [
        ("../secret.png", 404, "lies outside the folder of the index and is not shown"),  # though the index lists it
        ("link.png", 404, "lies outside the folder"),
        ("gone.png", 404, "is not there any more"),
        ("script.png", 404, "it is no image in the formats JPEG, PNG"),
        ("rows.jsonl", 404, "there is no document 'rows.jsonl'"),
        ("/etc/passwd", 404, "there is no document"),
        ("", 400, "id is empty"),
    ],
)
def test_no_other_file_is_shown(client: object, id_: str, status: int, said: str) -> None:
    answer = client.get("/picture", params={"id": id_})
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"images": ["no base64!"]}, 400, "images[0] is not base64"),
        ({"images": [base64_of(SVG)]}, 400, "images[0]: it is no image in the formats JPEG, PNG, GIF, BMP, WEBP, TIFF"),
        ({"images": [base64_of(encoded((1, 2, 3))[:45])]}, 400, "images[0]: "),
        ({"images": ["QUJD"] * 17}, 400, "images has 17 entries; 1…16 are allowed"),
        ({"images": ["QUJD"], "texts": ["x"]}, 400, "a search takes texts, images or vectors, and one of them"),
        ({"images": ["A" * (5 << 20)]}, 413, "at most 4,194,304 are allowed"),
    ],
)
def test_pictures_that_cannot_be_read_are_refused(client: object, body: dict, status: int, said: str) -> None:
    answer = client.post("/search", json=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_a_picture_of_too_many_pixels_is_not_decoded(client: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrl_jax.search.service import pictures

    monkeypatch.setattr(pictures, "MAX_QUERY_PIXELS", 1000)
    answer = client.post("/search", json={"images": [base64_of(encoded((1, 2, 3), (40, 30)))]})
    assert "it has 40 × 30 pixels; at most 1,000 are read" in answer.json()["error"]["message"]


def test_pictures_are_deleted_but_not_added_over_http(client: object) -> None:
    answer = client.put("/documents", json={"documents": [{"id": "../secret.png", "text": "x"}]})
    assert answer.status_code == 403
    assert "are pictures, which `search build` adds" in answer.json()["error"]["message"]
    drawn = client.get("/map").json()
    assert "red.png" in drawn["ids"]
    assert client.request("DELETE", "/documents", json={"ids": ["red.png"]}).json()["deleted"] == 1
    assert client.get("/picture", params={"id": "red.png"}).status_code == 404


@pytest.mark.slow
def test_a_classifier_of_pictures_takes_pictures_alone_in_the_command_and_the_service(
    classifier: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    from mrl_jax.search.service.answers import Answers
    from mrl_jax.search.service.app import Metrics, Service
    from mrl_jax.search.service.options import Limits
    from mrl_jax.search.service.worker import Worker

    place = str(tmp_path / "index")
    assert search.main(["build", str(classifier.run), str(classifier.folder / "test"), "--index", place]) == 0
    assert shown(capsys, place, str(classifier.folder / "test" / "red" / "5.png"), "--k", "2")[0] == "red/5.png"
    assert search.main(["query", place, "red things"]) == 2
    said = "red things: there is no such file, and the model of this index reads no words; a picture is needed"
    assert said in capsys.readouterr().err
    worker = Worker(lambda: Answers(place, batch_size=1))
    service = Service(worker.start(), worker, Metrics(), Limits(), None)
    worker.submit("compile", None, []).result()
    client = TestClient(service.app, base_url="http://localhost", raise_server_exceptions=False)
    path = classifier.folder / "test" / "blue" / "4.png"
    answer = client.post("/classify", json={"images": [base64_of(path.read_bytes())], "top": 4}).json()["results"][0]
    names, p = mrl_jax.load(classifier.run).predict([path])
    assert answer["classes"][0]["class"] == names[0]
    assert answer["classes"][0]["probability"] == pytest.approx(p[0].max(), abs=1e-5)
    assert 'unknown key "texts"' in client.post("/search", json={"texts": ["x"]}).json()["error"]["message"]
    assert 'type="search" id="text" aria-label="Search for" placeholder="search for …" autocomplete="off" hidden' in (
        client.get("/").text
    )
    assert "/v1/embeddings" not in client.get("/openapi.json").json()["paths"]
    assert client.get("/docs").status_code == 200
    worker.stop()
