"""The service's page in a real browser, on a desktop and on a phone, with documents that try to break out of it."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium_page, until

from mrl_jax import search

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")
from mrl_jax.search.service.answers import Answers  # noqa: E402
from mrl_jax.search.service.app import Metrics, Service  # noqa: E402
from mrl_jax.search.service.options import Limits  # noqa: E402
from mrl_jax.search.service.worker import Worker  # noqa: E402

TOKEN = "correct-horse"
HOSTILE = (
    'hockey1 hockey2 <img src=x onerror="document.documentElement.dataset.ran=1"></script><script>ran()</script>\u202e'
)


@pytest.fixture(scope="module")
def address(trained: Path, texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a service with hostile documents, which wants a token."""
    folder = tmp_path_factory.mktemp("page")
    lines = [json.loads(line) for line in texts["train"].read_text().splitlines()]
    documents = [{"_id": f"d{i}", "text": line["text"]} for i, line in enumerate(lines)]
    documents += [{"_id": f"<b onclick=ran()>{i}", "text": f"{HOSTILE} {i}"} for i in range(5)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    words = [str(trained), str(folder / "corpus.jsonl"), "--index", str(folder / "index"), "--prefix", "8"]
    assert search.main(["build", *words]) == 0
    worker = Worker(lambda: Answers(str(folder / "index")))
    service = Service(worker.start(), worker, Metrics(), Limits(), TOKEN)
    server = uvicorn.Server(uvicorn.Config(service.app, log_level="error", lifespan="off", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()
    worker.stop()


@pytest.fixture(scope="module")
def opened(address: str) -> Iterator[Any]:
    """The page, its token given, with what it said and asked for since."""
    with chromium_page() as page:
        view = page.view
        view.goto(address)
        view.fill("#token", "wrong-horse-1")
        view.click("#token-form button")
        until(view, "document.querySelector('#about').textContent === 'this service wants its token'")
        view.fill("#token", TOKEN)
        view.click("#token-form button")
        until(view, "document.querySelector('#map-note').textContent.includes('documents by the two')")
        yield page


def look_for(view: Any, text: str) -> None:
    """Search, and wait for the answer at both dims."""
    view.evaluate("document.querySelector('#overlap').textContent = ''")
    view.fill("#text", text)
    view.press("#text", "Enter")
    asked = f"document.querySelector('#overlap').dataset.query === {json.dumps(text)}"
    until(view, f"{asked} && document.querySelector('#overlap').textContent.startsWith('overlap@')")


def ids(view: Any, side: int) -> list[str]:
    return view.locator(f"#hits-{side} .id").all_text_contents()


def test_results_stand_side_by_side_with_their_overlap_and_times(opened: Any) -> None:
    view = opened.view
    look_for(view, "orbit1 orbit2")
    assert [view.locator(f"#shown-{side}").text_content() for side in (0, 1)] == ["8", "16"]
    left, right = ids(view, 0), ids(view, 1)
    assert len(left) == len(right) == 10
    both = len({*left} & {*right})
    assert view.locator("#overlap").text_content().startswith(f"overlap@10: {both} of 10 are found at 8 and at 16 dims")
    assert view.locator("#hits-0 li.both").count() == view.locator("#hits-1 li.both").count() == both
    for side in (0, 1):
        assert view.locator(f"#time-{side}").text_content().endswith(" ms")


def test_a_slider_searches_and_draws_again(opened: Any) -> None:
    view = opened.view
    look_for(view, "garden1 garden2")
    view.locator("#dim-0").fill("0")
    until(view, "document.querySelector('#overlap').textContent.includes('at 4 and at 16')")
    until(view, "document.querySelector('#map-note').textContent.includes('at 4 dims')")
    assert view.locator("#map-dim").text_content() == "4"
    view.locator("#dim-0").fill("1")
    until(view, "document.querySelector('#map-note').textContent.includes('at 8 dims')")


def test_hostile_documents_are_shown_and_do_not_run(opened: Any) -> None:
    view = opened.view
    look_for(view, "hockey1 hockey2 img src onerror document documentelement dataset ran script")
    shown = view.locator("#hits-1 p").all_text_contents()
    assert any(text.startswith(HOSTILE) for text in shown)
    assert any(id_.startswith("<b onclick=ran()>") for id_ in ids(view, 1))
    assert view.evaluate("document.documentElement.dataset.ran") is None
    assert view.locator("main img, main b, main script").count() == 0
    # Even markup that got in would not run.
    view.evaluate("document.body.insertAdjacentHTML('beforeend', '<b onclick=\"document.title = 1\">x</b>')")
    view.evaluate("document.body.lastElementChild.click()")
    assert view.title() == "Search by prefix"
    view.evaluate("document.body.lastElementChild.remove()")
    assert "Content Security Policy" in opened.said.pop()


def test_a_document_on_the_map_is_read_by_pointing_at_it(opened: Any) -> None:
    view = opened.view
    painted = "[...document.querySelector('#map').getContext('2d').getImageData(0, 0, 2000, 900).data].some(x => x)"
    assert view.evaluate(painted)
    view.locator("#map").scroll_into_view_if_needed()
    box = view.locator("#map").bounding_box()
    x, y = view.evaluate("(() => { const {width, height} = document.querySelector('#map').getBoundingClientRect();"
                         " return place(0, width, height); })()")  # fmt: skip
    view.mouse.move(box["x"] + x, box["y"] + y)
    assert view.locator("#point").text_content() in view.evaluate("points.texts")
    assert view.locator("#legend li").count() == view.evaluate("points.central.length") > 1


def test_nothing_is_wider_than_a_phone(opened: Any) -> None:
    view = opened.view
    look_for(view, "hockey1 hockey2 script")
    view.set_viewport_size({"width": 390, "height": 844})
    until(view, "document.documentElement.scrollWidth <= 390")
    left, right = (view.locator(f"#hits-{side}").bounding_box() for side in (0, 1))
    assert right["y"] > left["y"] + left["height"] - 1  # one below the other
    view.set_viewport_size({"width": 1200, "height": 900})
    left, right = (view.locator(f"#hits-{side}").bounding_box() for side in (0, 1))
    assert right["x"] > left["x"] + left["width"] - 1


def test_the_page_asks_this_service_only_and_says_nothing(opened: Any, address: str) -> None:
    assert all(url.startswith((address, "data:")) for url in opened.asked)
    assert not [text for text in opened.said if "401" not in text]  # of the wrong token
    opened.view.goto(f"{address}docs")
    assert "POST /search" in opened.view.locator("h2").all_text_contents()
    opened.view.set_viewport_size({"width": 390, "height": 844})
    until(opened.view, "document.documentElement.scrollWidth <= 390")
