"""Reports: what a person reads in the terminal and on the page."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from d2net.errors import ImageError, MissingPackageError
from d2net.evaluation.homography import MMA, PROTOCOL
from d2net.evaluation.plots import curves, draw_pair
from d2net.evaluation.reconstruction import SCENE_METRICS
from d2net.evaluation.report import published_tables, terminal_tables, write_html
from d2net.evaluation.results import (
    COUNTS,
    Drawing,
    Metric,
    PairResult,
    Protocol,
    Result,
    averaged,
)

PHOTOS = Path(__file__).parent.parent / "data"
GRAF = ("graf1.jpg", "graf3.jpg")
ODD = '<script>alert(1)</script> & "quoted" [bold]'


HEADLINE = [*(MMA.metric(t) for t in (1, 3, 5, 10)), Metric("corner@3"), *COUNTS]


def pair(group: str, share: float, photos: tuple[str, str] = GRAF, matches: int = 60) -> PairResult:
    random = np.random.default_rng(round(1000 * share))
    ends = random.uniform(0, (799, 639), (2, matches, 2))
    correct = np.arange(matches) < share * matches
    figures = {f"MMA@{t}": share * t / 10 for t in range(1, 11)}
    figures |= {"corner@3": float(share > 0.5), "features": 2282.0, "matches": float(matches)}
    return PairResult(group, photos, figures, Drawing(ends[0], ends[1], correct))


def result(method: str, pairs: list[PairResult], **changes: object) -> Result:
    names = sorted({p.group for p in pairs})
    kinds = {
        "illumination": [name for name in names if name.startswith("i_")],
        "viewpoint": [name for name in names if name.startswith("v_")],
    }
    made = Result(
        protocol=PROTOCOL,
        method=method,
        folder="photos/planar",
        provenance={"weights": {"sha256": "0123abcd"}},
        settings={"seed": 7},
        pairs=pairs,
        groups=averaged(pairs, kinds),
        headline=HEADLINE,
        pair_metrics=[MMA.metric(5), *HEADLINE],
        curve=MMA,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def two_methods() -> list[Result]:
    return [
        result("first", [pair("i_dome", 0.25), pair("v_wall", 0.55)]),
        result(ODD, [pair("i_dome", 0.75), pair("v_wall", 0.35)]),
    ]


def hpatches(method: str, share: float, sequences: int = 108) -> Result:
    names = [f"{'iv'[i % 2]}_{i}" for i in range(sequences)]
    drawn = pair("", share)
    return result(method, [dataclasses.replace(drawn, group=n, drawing=None) for n in names])


def page(tmp_path: Path, results: list[Result], name: str = "page.html") -> str:
    path = tmp_path / name
    write_html(path, results, PHOTOS)
    return path.read_text(encoding="utf-8")


def printed(results: list[Result], *, colour: bool = False) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=colour)
    console.print(*terminal_tables(results))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


class _Parser(HTMLParser):
    """Tables as rows of cells, images, and the tags that were met."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.images: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._cell = tag in ("td", "th")
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def tables(text: str) -> list[str]:
    return re.findall(r"<table>.*?</table>", text, re.DOTALL)


def parsed(text: str) -> _Parser:
    parser = _Parser()
    parser.feed(text)
    return parser


# --- The terminal ----------------------------------------------------------------------------


def test_terminal_shows_the_figures_of_every_method_overall_and_by_group() -> None:
    lines = printed(two_methods()).splitlines()
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    overall = ["0.040", "0.120", "0.200", "0.400", "0.500", "2,282", "60"]
    assert ["first", *overall] in rows
    assert ["i_dome", "first", "0.025", "0.075", "0.125", "0.250"] in rows
    assert [ODD, "0.035", "0.105", "0.175", "0.350"] in rows
    assert {row[0] for row in rows} >= {"illumination", "viewpoint", "v_wall"}


def test_terminal_prints_the_better_figure_bold_but_not_the_larger_count() -> None:
    few, many = pair("wall", 0.2, matches=10), pair("wall", 0.8, matches=90)
    text = printed([result("a", [few]), result("b", [many])], colour=True)
    bold = {cell.strip() for cell in re.findall(r"\x1b\[1m([^\x1b]*)\x1b\[0m", text)}
    assert "0.240" in bold  # MMA@3 of b
    assert "0.060" not in bold
    assert "90" not in bold


def test_terminal_leaves_many_sequences_to_the_page() -> None:
    text = printed([hpatches("a", 0.5)])
    assert "viewpoint" in text
    assert "i_0" not in text


def test_smaller_errors_are_better() -> None:
    results = [
        result(
            method,
            [PairResult("wall", GRAF, {"position error": value})],
            groups={"overall": {"position error": value}},
            headline=[Metric("position error", unit="m", higher_is_better=False)],
            curve=None,
        )
        for method, value in (("a", 0.25), ("b", 2.5), ("failed", float("inf")))
    ]
    text = printed(results, colour=True)
    assert re.search(r"\x1b\[1m\s*0\.25", text)
    assert not re.search(r"\x1b\[1m\s*2\.50", text)
    assert "∞" in text
    assert "position error (m)" in text


# --- The page --------------------------------------------------------------------------------


def test_page_shows_every_figure_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = page(tmp_path, two_methods())
    found = parsed(text)
    assert found.references
    assert all(reference.startswith("data:image/") for reference in found.references)
    assert not re.search(r"url\(|@import|https?://", text)
    assert not found.tags & {"script", "link", "iframe", "object"}
    assert ["first", "0.040", "0.120", "0.200", "0.400", "0.500", "2,282", "60"] in found.rows
    by_group = {tuple(row[:3]) for row in found.rows}
    assert ("i_dome", "first", "0.025") in by_group
    assert ("", ODD, "0.035") in by_group
    assert {"illumination", "viewpoint", "v_wall"} <= {row[0] for row in found.rows}
    about = two_methods()[0].to_dict()
    for shown in ("0123abcd", "seed", str(about["machine"]), str(about["d2net"])):
        assert shown in text


def test_page_shows_names_as_they_are(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    odd = "<img src=x onerror=y>.png"
    photos.mkdir()
    Image.new("RGB", (90, 60)).save(photos / odd)
    results = [result(ODD, [pair("<b>group", 0.5, (odd, odd))], folder="<i>folder")]
    path = tmp_path / "page.html"
    write_html(path, results, photos)
    text = path.read_text(encoding="utf-8")
    for raw in ("<script", "<img src=x", "<b>group", "<i>folder"):
        assert raw not in text
    assert any(ODD in row for row in parsed(text).rows)


def test_gallery_shows_the_best_and_the_worst_pairs_once_and_small(tmp_path: Path) -> None:
    shares = [i / 20 for i in range(1, 13)]
    text = page(tmp_path, [result("a", [pair(f"s{i}", s) for i, s in enumerate(shares)])])
    counts = re.findall(r"([\d,]+) correct</b>, <b class=\"wrong\">([\d,]+) wrong", text)
    correct = [int(c) for c, _ in counts]
    assert correct == [36, 33, 30, 27, 3, 6, 9, 12]  # best first, then worst first
    images = parsed(text).images[1:]  # after the curves
    assert len(images) == 8
    for uri in images:
        assert len(uri) <= 150_000
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
            assert image.width <= 1000


def test_few_pairs_are_shown_once_and_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    results = [result("a", [pair("x", 0.2), pair("y", 0.4)])]
    text = page(tmp_path, results)
    assert len(parsed(text).images) == 1 + 2  # with the curves
    assert "Worst" not in text
    assert "By sequence" in text
    assert page(tmp_path, results, "again.html") == text


def test_page_without_drawings_or_curve_has_no_gallery_and_no_plot(tmp_path: Path) -> None:
    bare = dataclasses.replace(pair("x", 0.5), drawing=None)
    found = parsed(page(tmp_path, [result("a", [bare], curve=None)]))
    assert not found.images


def test_a_match_is_drawn_between_its_ends_in_its_colour(tmp_path: Path) -> None:
    for name, size in (("a.png", (200, 100)), ("b.png", (100, 100))):
        Image.new("RGB", size, (90, 90, 90)).save(tmp_path / name)
    drawing = Drawing(
        np.array([[20.0, 20], [20, 80]]),
        np.array([[50.0, 20], [50, 80]]),
        np.array([True, False]),
    )
    with Image.open(decoded(draw_pair(tmp_path / "a.png", tmp_path / "b.png", drawing))) as image:
        canvas = np.asarray(image.convert("RGB")).astype(int)
    scale = (canvas.shape[1] - 8) / 300  # the photos are 8 pixels apart
    top = canvas.shape[0] - 100 * scale
    for height, first, second in ((20, 2, 0), (80, 0, 2)):  # blue above, red below
        y = round(top + (height + 0.5) * scale - 0.5)
        for x in (20, canvas.shape[1] / scale - 50):
            around = canvas[y - 2 : y + 3, round((x + 0.5) * scale - 0.5)]
            assert (around[:, first] - around[:, second]).max() > 60


def decoded(uri: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(uri.partition(",")[2]))


def test_curves_have_a_panel_for_each_group_and_a_line_for_each_method() -> None:
    svg = decoded(curves(two_methods(), ["overall", "viewpoint"])).read().decode()
    for text in ("first", "viewpoint", "threshold (px)", "MMA"):
        assert f">{text}</text>" in svg
    assert ODD.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in svg


def test_an_unreadable_photo_leaves_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    missing = [result("a", [pair("x", 0.5, ("gone.png", "gone.png"))])]
    with pytest.raises(ImageError, match=r"gone\.png"):
        write_html(path, missing, PHOTOS)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "old"


def test_without_matplotlib_the_message_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r'pip install "d2net\[plot\]"'):
        write_html(tmp_path / "page.html", two_methods(), PHOTOS)


# --- Tables in a browser ---------------------------------------------------------------------

LIMITS = [f"{limit} m, {angle}°" for limit in (0.25, 0.5, 5) for angle in (2, 5)]
HEADLINES = {
    "reconstruction": SCENE_METRICS,
    "localization": [
        *(Metric(name, unit="%") for name in LIMITS),
        *(Metric("median position error", unit="m"), Metric("median rotation error", unit="°")),
        *(Metric(name) for name in ("localized", "inliers", "2D-3D matches", "features")),
    ],
}


@pytest.mark.parametrize("protocol", HEADLINES)
def test_tables_fit_on_a_narrow_screen(tmp_path: Path, browser: Any, protocol: str) -> None:
    headline = HEADLINES[protocol]
    pairs = [PairResult(g, GRAF, {m.name: 98.76 for m in headline}) for g in ("day", "night")]
    methods = ["ots:original,multiscale", "aliked:weights=aliked-n16.pth"]
    changes = {"protocol": Protocol(protocol, protocol, ""), "headline": headline, "curve": None}
    results = [result(method, pairs, **changes) for method in methods]
    write_html(tmp_path / "page.html", results, PHOTOS)
    opened = browser.new_page(viewport={"width": 1000, "height": 800})
    opened.goto((tmp_path / "page.html").as_uri())
    hidden = opened.evaluate(
        "[...document.querySelectorAll('.box')].map((box) => box.scrollWidth - box.clientWidth)"
    )
    assert len(hidden) >= 2
    assert max(hidden) <= 0


# --- Published rows --------------------------------------------------------------------------


def test_published_rows_are_shown_with_results_on_the_same_dataset(tmp_path: Path) -> None:
    whole = page(tmp_path, [dataclasses.replace(hpatches("a", 0.5), dataset="hpatches")])
    part = page(tmp_path, [hpatches("a", 0.5, sequences=20)])
    assert "Published" not in part
    assert "Published, on HPatches, 108 sequences" in whole
    published = [table for table in tables(whole) if "D2-Net MS Trained" in table]
    assert len(published) == 1
    assert ">a<" not in published[0]
    assert "0.640" in published[0]  # its MMA@5
    assert "d2-net-trained-ms.npy" in published[0]


def test_published_rows_have_figures_and_sources() -> None:
    for protocol in ("homography", "pose", "localization", "reconstruction"):
        published = published_tables(protocol)
        assert published
        for table in published:
            for row in table["rows"]:
                assert row["source"]
                assert row["figures"]
    assert published_tables("epipolar") == []


def test_published_hpatches_rows_are_those_of_the_authors() -> None:
    rows = {row["method"]: row["figures"] for row in published_tables("homography")[0]["rows"]}
    assert rows["D2-Net SS (off-the-shelf)"]["overall"]["MMA@3"] == pytest.approx(0.406, abs=5e-4)
    for figures in rows.values():
        weighted = 52 / 108 * figures["illumination"]["MMA@5"]
        weighted += 56 / 108 * figures["viewpoint"]["MMA@5"]
        assert figures["overall"]["MMA@5"] == pytest.approx(weighted, abs=1e-5)


def test_aachen_before_and_after_its_new_ground_truth_are_apart(tmp_path: Path) -> None:
    old = [
        table for table in published_tables("localization") if "before summer 2020" in table["data"]
    ]
    assert len(old) == 1
    assert {row["method"] for row in old[0]["rows"]} == {
        "Upright RootSIFT",
        "D2-Net SS (trained), as quoted",
    }
    changes = {"protocol": Protocol("localization", "", ""), "dataset": "aachen-v1.0"}
    text = page(tmp_path, [result("a", [pair("x", 0.5)], **changes)])
    with_old = [table for table in tables(text) if "Upright RootSIFT" in table]
    assert len(with_old) == 1
    assert "website entry" not in with_old[0]
    assert "hloc" not in with_old[0].lower()
