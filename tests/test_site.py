"""The site: a page for each method, with its keys, and a build that takes every warning for an error."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from mbrl_lightning.config import available

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The script, and the folder that it wrote."""
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    target = tmp_path_factory.mktemp("site") / "site"
    script.write(target)
    return script, target


def test_every_method_has_one_page_with_its_keys_and_results(site):
    script, _ = site
    pages = script.method_pages()
    told = [name for text in pages.values() for name in re.findall(r"^## Keys of `(\w+)`$", text, re.MULTILINE)]
    assert sorted(told) == available("algorithm")
    assert "| `l2a.past` | `16` |" in pages["method_grbal.md"]
    assert "[famle_reacher](results/famle_reacher.md)" in pages["method_famle.md"]


def test_the_menu_names_pages_that_are_there_and_all_of_them(site):
    _, target = site
    menu = str(tomllib.loads((target / "zensical.toml").read_text())["project"]["nav"])
    named = set(re.findall(r"[\w/]+\.md", menu))
    there = {str(page.relative_to(target / "docs")) for page in (target / "docs").rglob("*.md")}
    assert there - named <= {"benchmarks_gpu.md"}
    assert named <= there


def test_no_page_links_to_what_is_not_on_the_site(site):
    for page in (docs := site[1] / "docs").rglob("*.md"):  # a strict build does not look at links out of it
        links = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
        missing = [link for link in links if not (page.parent / link).resolve().exists()]
        assert not missing, f"{page.relative_to(docs)}: {missing}"


def test_the_site_builds_without_a_warning(site):
    if shutil.which("zensical") is None:
        pytest.skip("pip install 'mbrl_lightning[docs]'")
    built = subprocess.run(["zensical", "build", "--strict"], cwd=site[1], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "Amortized Policy" in (site[1] / "html" / "method_gssm_aps" / "index.html").read_text()
