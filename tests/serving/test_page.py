"""The page in a browser, as a person uses it."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import d2net
from d2net import D2Net
from d2net.features import Features
from d2net.serving.shown_map import ShownMap

from ..tiny import make_tiny_model
from .served import SIZE, Served, photo, serving
from .test_shown_map import query, root, shown  # noqa: F401 (root is a fixture)

sync_api = pytest.importorskip("playwright.sync_api", reason="wants playwright")
expect = sync_api.expect
expect.set_options(timeout=120_000)  # machines may be busy

FIRST, SECOND = photo(), photo(216, 208)
DESKTOP, PHONE = (1280, 900), (390, 844)

Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open a page at a size; at the end nothing must have gone wrong or been asked elsewhere."""
    contexts, wrong = [], []

    def open_page(served: Served, size: tuple[int, int] = DESKTOP, **options: Any) -> Any:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, **options)
        context.set_default_timeout(120_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: "Content Security" in line.text and wrong.append(line.text))
        page.on("request", lambda r: r.url.startswith(served.address) or wrong.append(r.url))
        page.goto(served.address)
        expect(page.locator("#about")).to_contain_text("nothing is stored")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture(scope="module")
def model() -> D2Net:
    return make_tiny_model()


@pytest.fixture(scope="module")
def served(model: D2Net) -> Iterator[Served]:
    with serving(model) as served:
        yield served


# Counts what is put on the graphics card anew: the next photo shall not add to what is there.
COUNT = """
() => {
  window.made = 0;
  for (const name of ["createBuffer", "createProgram", "createVertexArray"]) {
    const before = gl[name];
    gl[name] = (...given) => { made += 1; return before.apply(gl, given); };
  }
}"""


def choose(page: Any, which: str, content: bytes, name: str = "photo.png") -> None:
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    page.set_input_files(f"#file-{which}-photo", file)


def expect_inliers(page: Any, number: int) -> None:
    expect(page.locator("#match .result")).to_contain_text(f": {number:,} verified of ")


def match_two(page: Any, expected: int) -> None:
    choose(page, "first", FIRST, "one.png")
    choose(page, "second", SECOND, "two.png")
    expect_inliers(page, expected)


def expected(model: D2Net, number: int | None = None, **arguments: Any) -> tuple[Features, Any]:
    pixels = [d2net.read_image(io.BytesIO(content)) for content in (FIRST, SECOND)]
    a, b = (model.extract(one).best(number) for one in pixels)
    return a, d2net.match(a, b, verify="fundamental", **arguments).verified()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_two_photos_are_matched_and_sliders_change_it(
    served: Served, model: D2Net, open_page: Open, size: tuple[int, int]
) -> None:
    page = open_page(served, size)
    match_two(page, len(expected(model)[1]))
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    expect(page.locator("#number-value")).to_have_text("all")
    page.locator("#number").fill("0")
    expect(page.locator("#number-value")).to_have_text("50")
    expect_inliers(page, len(expected(model, 50)[1]))
    page.locator("#threshold").fill("0.5")
    expect(page.locator("#automatic")).not_to_be_checked()
    inliers = len(expected(model, 50, threshold=0.5)[1])
    expect_inliers(page, inliers)
    page.locator("#automatic").check()
    expect(page.locator("#threshold-value")).to_have_text("5.5 px")


def test_every_preset_can_be_chosen_with_the_keyboard(served: Served, open_page: Open) -> None:
    page = open_page(served)
    choose(page, "first", FIRST)
    choose(page, "second", SECOND)
    page.locator("input[value=default]").focus()
    counts = set()
    for preset in ("deep", "original"):
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"input[value={preset}]")).to_be_checked()
        expect(page.locator("#match .slot").first).to_contain_text("keypoints", use_inner_text=True)
        expect(page.locator("#match .result strong")).to_be_visible()
        counts.add(page.locator("#match .slot figcaption").first.inner_text())
    assert len(counts) == 2


def test_a_match_shows_its_partner_under_the_pointer_and_by_keys(
    served: Served, model: D2Net, open_page: Open
) -> None:
    page = open_page(served)
    a, matches = expected(model)
    match_two(page, len(matches))
    card = page.locator("#match .card")
    expect(card).to_be_hidden()
    image = page.locator("#match img").first
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    x, y = a.keypoints[matches.indices[len(matches) // 2, 0]].tolist()
    scale = box["width"] / SIZE[0]
    page.mouse.move(box["x"] + (x + 0.5) * scale, box["y"] + (y + 0.5) * scale)
    expect(card).to_be_visible()
    expect(card).to_contain_text("verified · similarity")
    page.mouse.move(2, 2)
    expect(card).to_be_hidden()
    page.locator("#match .stage").focus()
    page.keyboard.press("ArrowRight")
    expect(card).to_contain_text(f"match 1 of {len(matches)}")
    page.keyboard.press("ArrowLeft")
    expect(card).to_contain_text(f"match {len(matches)} of {len(matches)}")
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def test_a_match_shows_its_partner_when_it_is_tapped(
    served: Served, model: D2Net, open_page: Open
) -> None:
    page = open_page(served, PHONE, has_touch=True)
    match_two(page, len(expected(model)[1]))
    page.locator("#match img").first.tap()
    expect(page.locator("#match .card")).to_contain_text("verified")


def test_photos_can_be_dropped_and_wrong_files_leave_what_was_there(
    served: Served, open_page: Open
) -> None:
    page = open_page(served)
    slot = page.locator("#match .slot").first
    drop = """([figure, bytes, name]) => {
        const carried = new DataTransfer();
        carried.items.add(new File([new Uint8Array(bytes)], name));
        figure.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true }));
    }"""
    page.evaluate(drop, [slot.element_handle(), list(FIRST), "dropped.png"])
    expect(slot).to_contain_text("dropped.png")
    expect(slot).to_contain_text("keypoints")
    page.evaluate(drop, [slot.element_handle(), list(b"text"), "notes.txt"])
    expect(slot.get_by_role("alert")).to_contain_text("notes.txt: Cannot read the photo: it is not")
    expect(slot.locator("figcaption")).to_contain_text("dropped.png")
    page.evaluate(
        "(figure) => { const carried = new DataTransfer();"
        "carried.items.add(new File([new Uint8Array(33 * 2 ** 20)], 'large.png'));"
        "figure.dispatchEvent(new DragEvent('drop', { dataTransfer: carried })); }",
        slot.element_handle(),
    )
    expect(slot.get_by_role("alert")).to_contain_text("large.png has 33 MB")


def test_while_keypoints_are_found_that_is_reported(open_page: Open) -> None:
    go = threading.Event()

    class Slow(D2Net):
        def extract(self, *arguments: Any, **keywords: Any) -> Features:
            assert go.wait(20)
            return super().extract(*arguments, **keywords)

    model = make_tiny_model()
    model.__class__ = Slow
    with serving(model) as served:
        page = open_page(served)
        choose(page, "first", FIRST)
        slot = page.locator("#match .slot").first
        expect(slot.locator(".busy")).to_contain_text("finding keypoints … 1 s")
        expect(slot).to_have_attribute("aria-busy", "true")
        go.set()
        expect(slot.locator(".busy")).to_have_count(0)
        expect(page.locator("#match .result")).to_have_text("Choose the other photo.")


def test_a_photo_that_the_server_has_forgotten_is_sent_again(
    served: Served, model: D2Net, open_page: Open
) -> None:
    page = open_page(served)
    match_two(page, len(expected(model)[1]))
    for image in page.locator("#match img").all():
        served.ask(image.get_attribute("src").removesuffix("/picture"), "DELETE")
    page.locator("#number").fill("0")
    expect_inliers(page, len(expected(model, 50)[1]))


def test_who_leaves_the_page_leaves_no_photo(served: Served, open_page: Open) -> None:
    page = open_page(served)
    choose(page, "first", FIRST)
    image = page.locator("#match img").first
    expect(image).to_be_visible()
    path = image.get_attribute("src")
    assert served.ask(path).status == 200
    page.reload()
    expect(page.locator("#match img").first).to_be_hidden()
    assert served.ask(path).status == 410


def test_a_server_that_has_ended_is_reported(model: D2Net, open_page: Open) -> None:
    with serving(model) as served:
        page = open_page(served)
    choose(page, "first", FIRST)
    alert = page.locator("#match").get_by_role("alert")
    expect(alert).to_contain_text("Is d2net serve still running?")


def test_it_is_dark_where_that_is_wanted(served: Served, open_page: Open) -> None:
    greys = []
    for scheme in ("light", "dark"):
        page = open_page(served, color_scheme=scheme)
        shot = Image.open(io.BytesIO(page.screenshot())).convert("L")
        greys.append(shot.getpixel((5, 5)))
    assert greys[0] > 240
    assert greys[1] < 40


def test_a_map_that_was_made_again_is_drawn_again(
    root: Path,  # noqa: F811
    open_page: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(make_tiny_model(), shown(root / "map")) as served:
        page = open_page(served, DESKTOP)
        choose(page, "your", query(0))
        expect(page.locator("#localize .result")).to_contain_text("Localized")
        again = {"name": "made again", "photos": 7, "points": 10}
        monkeypatch.setattr(ShownMap, "about", lambda _: again)
        with page.expect_request("**/map"):
            choose(page, "your", query(0))
        expect(page.frame_locator("#map").locator("#card")).to_contain_text("your photo")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_photo_is_localized_in_the_map(
    root: Path,  # noqa: F811
    open_page: Open,
    size: tuple[int, int],
) -> None:
    with serving(make_tiny_model(), shown(root / "map")) as served:
        page = open_page(served, size)
        expect(page.locator("#localize .result")).to_contain_text("has 6 photos")
        choose(page, "your", query(0))
        expect(page.locator("#localize .result")).to_contain_text("Localized")
        expect(page.locator("#localize .slot").nth(1)).to_contain_text("matches")
        expect(page.locator("#facts")).to_contain_text("estimated")
        frame = page.frame_locator("#map")
        expect(frame.locator("#card")).to_contain_text("your photo")
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        (inner,) = (child for child in page.frames if child.url.endswith("/map"))
        inner.evaluate(COUNT)
        choose(page, "your", query(1))
        expect(page.locator("#localize .result")).to_contain_text("Lost")
        choose(page, "your", query(0))
        expect(frame.locator("#card")).to_contain_text("your photo")
        assert inner.evaluate("made") == 0
        page.get_by_role("radio", name="Match two photos").check()
        expect(page.locator("#localize")).to_be_hidden()
        expect(page.locator("#match")).to_be_visible()
