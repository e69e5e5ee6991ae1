"""The service's page of pictures in a real browser: shown, found by words and by a picture that is uploaded."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser import chromium_page, until
from PIL import Image

from mrl_jax import search
from tests.image_text_files import COLOURS, encoded, jsonl

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")
from mrl_jax.search.service.answers import Answers  # noqa: E402
from mrl_jax.search.service.app import Metrics, Service  # noqa: E402
from mrl_jax.search.service.options import Limits  # noqa: E402
from mrl_jax.search.service.worker import Worker  # noqa: E402

TOKEN = "correct-horse"
HOSTILE = '"><img src=x onerror=document.title=1>.png'
CAPTION = "</script><script>document.title=1</script>"


@pytest.fixture(scope="module")
def opened(towers: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of a service that wants a token, with pictures of hostile names and one that is gone."""
    folder: Path = tmp_path_factory.mktemp("page")
    rows = []
    for i, (name, rgb) in enumerate([*COLOURS.items(), (HOSTILE, (200, 200, 0)), ("gone", (9, 9, 9))]):
        path = name if name.endswith(".png") else f"{name}.png"
        (folder / path).write_bytes(encoded(rgb, (60, 40 + i)))
        rows.append({"image": path, "text": CAPTION if name == HOSTILE else f"a {name} square"})
    corpus, place = jsonl(folder / "rows.jsonl", rows), str(folder / "index")
    assert search.main(["build", str(towers.run), corpus, "--index", place]) == 0
    (folder / "gone.png").unlink()
    worker = Worker(lambda: Answers(place, batch_size=1))
    service = Service(worker.start(), worker, Metrics(), Limits(max_body=200_000), TOKEN)
    server = uvicorn.Server(uvicorn.Config(service.app, log_level="error", lifespan="off", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with chromium_page() as page:
            page.view.goto(address)
            page.view.fill("#token", TOKEN)
            page.view.click("#token-form button")
            until(page.view, "document.querySelector('#map-note').textContent.includes('documents by the two')")
            page.folder, page.address = folder, address
            yield page
        server.should_exit = True
        thread.join()
    worker.stop()


def asked(view: Any, what: str) -> None:
    until(view, f"document.querySelector('#overlap').dataset.query === {json.dumps(what)}")


def test_pictures_are_shown_beside_what_they_are_called_whatever_that_is(opened: Any) -> None:
    view = opened.view
    view.fill("#text", "a red square")
    view.press("#text", "Enter")
    asked(view, "a red square")
    loaded = "[...document.querySelectorAll('#hits-1 img')].filter(x => x.naturalWidth === 60).length"
    until(view, f"{loaded} === 5")  # 60 pixels wide as they are; of the sixth the file is gone
    assert view.locator("#hits-0 li").count() == view.locator("#hits-1 li").count() == 6
    assert HOSTILE in view.locator("#hits-1 .id").all_text_contents()
    assert CAPTION in view.locator("#hits-1 p").all_text_contents()
    assert "framed in blue" in view.locator("#overlap").text_content()
    title = "document.querySelector(\"#hits-1 img[alt='a gone square']\").title"  # its answer may be the last one
    until(view, f"{title} === 'the file of this picture is not there any more, or cannot be read'")
    assert view.title() == "Search by prefix"
    assert view.locator("main script").count() == 0


def test_a_picture_is_searched_for_and_forgotten_for_words(opened: Any, tmp_path: Path) -> None:
    view = opened.view
    view.set_input_files("#file", str(opened.folder / "blue.png"))
    asked(view, "blue.png")
    assert view.locator("#chosen img").is_visible()
    first = view.locator("#hits-1 li").first
    assert first.locator(".id").text_content() == "blue.png"
    assert float(first.locator(".score").text_content()) == pytest.approx(1, abs=1e-3)
    view.locator("#dim-1").fill("0")  # the slider searches for the picture again
    until(view, "document.querySelector('#overlap').textContent.includes('at 4 and at 4 dims')")
    view.locator("#dim-1").fill("1")
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "big.png")  # 360 kB, more than a request may have here
    view.set_input_files("#file", str(tmp_path / "big.png"))
    asked(view, "big.png")  # made smaller by the page
    small = tmp_path / "drawing.svg"
    small.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    view.set_input_files("#file", str(small))
    until(view, "document.querySelector('#said').textContent.startsWith('images[0]: it is no image in the formats')")
    view.fill("#text", "green")
    view.press("#text", "Enter")
    asked(view, "green")
    assert not view.locator("#chosen").is_visible()
    assert view.locator("#said").text_content() == ""
    assert all(url.startswith((opened.address, "data:", "blob:")) for url in opened.asked)
    assert not [text for text in opened.said if "404" not in text and "400" not in text]  # of the gone one, and the SVG
