"""The page of a report: all that is measured is on it, it asks for nothing else, and a click sorts."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from mbrl_lightning.report import films_of
from mbrl_lightning.report.page import MOST, page
from mbrl_lightning.report.tables import Table

TABLE = Table("half <cheetah>", ["algorithm", "mean +- sd", "note"], [], ["sd: between seeds"])
TABLE.rows += [
    ["a & b", "1,200 +- 3", "x"],
    ["<script>alert(1)</script>", "-30.5 [-40, 1]", ""],
    ["c", "-", "y"],
    ["d", "9e2", ""],
]


def made(tmp_path, films=()):
    picture = tmp_path / "curve.png"
    picture.write_bytes(b"\x89PNG")
    return page([("half_cheetah", [TABLE], [picture])], films)


def test_all_is_inside_and_nothing_that_a_run_is_called_becomes_code(tmp_path):
    film = tmp_path / "policy.mp4"
    film.write_bytes(b"film")
    text = made(tmp_path, [film])
    assert "&lt;script&gt;alert(1)" in text
    assert text.count("<script>") == 1
    assert "half &lt;cheetah&gt;" in text
    assert "sd: between seeds" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 4
    assert all(source.startswith(("data:image/png;base64,", "data:video/mp4;base64,", "#")) for source in sources)
    assert not re.search(r"https?://", text)


def test_a_film_is_shown_once_and_one_that_is_too_large_is_named(tmp_path):
    for name in ("policy.gif", "policy.mp4", "other.gif"):
        (tmp_path / "videos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(b"film")
    assert [film.name for film in films_of([tmp_path])] == ["other.gif", "policy.mp4"]
    (tmp_path / "results.csv").touch()
    assert films_of([tmp_path / "results.csv"]) == films_of([tmp_path])
    with open(tmp_path / "large.mp4", "wb") as file:
        file.truncate(MOST + 1)
    assert "large.mp4 (20 MB: too large for this page)" in made(tmp_path, [tmp_path / "large.mp4"])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser")
def test_a_click_on_a_heading_sorts_by_its_numbers_in_a_browser(tmp_path):
    click = "<script>document.querySelectorAll('th button')[1].click();{again}</script></html>"
    orders = []
    for again in ("", "document.querySelectorAll('th button')[1].click()"):
        path = tmp_path / "page.html"
        path.write_text(made(tmp_path).replace("</html>", click.format(again=again)))
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
        )
        words = ["chromium", *options, path.as_uri()]
        seen = subprocess.run(words, capture_output=True, text=True, timeout=100, check=True).stdout
        orders.append(re.findall(r"<tr><td>(.*?)</td>", seen))
        assert seen.count("aria-sort") == 1 + 3 + 2  # the heading's own, in the style (2) and in the script
    ascending = ["&lt;script&gt;alert(1)&lt;/script&gt;", "d", "a &amp; b", "c"]
    assert orders == [ascending, [*ascending[2::-1], "c"]]
