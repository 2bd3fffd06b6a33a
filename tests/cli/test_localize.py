"""The files that `d2net localize` writes. tests/mapping has what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2net.cli.localize import picture_file

from .conftest import Run


@pytest.mark.parametrize(
    ("query", "file"),
    [("a.jpg", "a.jpg"), ("day/a.png", "day/a.png"), ("a.tif", "a.tif.jpg")],
)
def test_pictures_have_the_names_of_their_queries(query: str, file: str) -> None:
    assert picture_file(Path("out"), query) == Path("out", file)


def test_queries_of_one_name_need_a_root(d2net: Run, photos: Path) -> None:
    (photos / "b").mkdir()
    (photos / "b" / "a.png").write_bytes((photos / "a.png").read_bytes())
    queries = (photos / "a.png", photos / "b" / "a.png")
    assert "give a root folder" in d2net("localize", "map", *queries).err
    assert "map is not a map" in d2net("localize", "map", *queries, "--root", photos).err
