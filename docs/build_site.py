"""The site: `make site` writes its pages into build/site/docs and builds them with zensical into build/site/html.

Its sources are the pages of this folder. A page for each method is cut out of algorithms.md, with the keys that the method
reads and the families that it has results on; a page for each room of the package has the docstrings.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from mbrl_lightning.config import available
from mbrl_lightning.config.files import method, reads_of
from mbrl_lightning.config.schema import EVERY, FIELDS, Config, get

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PACKAGE = ROOT / "mbrl_lightning"
PAGES = {
    "Start": "index.md",
    "Using it": "using.md",
    "Play": "play.md",
    "Export": "export.md",
    "Recorded data": "recorded.md",
    "Task families": "families.md",
    "Errors": "errors.md",
    "Speed": "benchmarks.md",
}
CSS = ".md-typeset table:not([class]) code { white-space: nowrap; }\n"  # names are not broken in the middle
SETTINGS = """[project]
site_name = "mbrl_lightning"
site_description = "Model-based meta-reinforcement learning on TorchRL and Lightning"
docs_dir = "docs"
extra_css = ["extra.css"]
site_dir = "html"
nav = [
{nav}
]

[project.plugins.mkdocstrings.handlers.python]
paths = ["{root}"]

[project.plugins.mkdocstrings.handlers.python.options]
docstring_style = "google"
show_source = false
show_signature_annotations = true
separate_signature = true
show_root_heading = true
"""


def sections(text: str) -> dict[str, str]:
    """The parts of a page by their headings of the second level, the part before the first under ``""``."""
    first, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return {"": first} | {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def methods_of(heading: str) -> list[str]:
    """The algorithms that a heading names."""
    return [name for name in re.findall(r"`(?:algorithm=)?(\w+)`", heading) if name in available("algorithm")]


def keys_of(algorithm: str) -> str:
    """A table of the keys that an algorithm reads beside those that every run reads, with its values."""
    own: dict[str, object] = {}
    for tree in method(algorithm, None, []).values():
        for section, values in tree.items():
            if section != "reads":
                own |= {f"{section}.{name}": value for name, value in values.items()}
    read = reads_of(algorithm) - EVERY
    rows = [
        f"| `{key}` | `{own.get(key, get(Config(), key))}` | {FIELDS[key].metadata['help']} |"
        for key in FIELDS
        if key in read
    ]
    return "\n".join(["| key | value | |", "|---|---|---|", *rows])


def results_of(algorithm: str) -> str:
    """Links to the families on which an algorithm has committed results."""
    found = sorted(path.parent.name for path in (ROOT / "results").glob(f"*/{algorithm}") if path.is_dir())
    links = [f"[{name}](results/{name}.md)" for name in found if (DOCS / "results" / f"{name}.md").is_file()]
    return ", ".join(links) or "none committed yet"


def method_pages() -> dict[str, str]:
    """Name of a file to its text, for every section of algorithms.md that is about methods."""
    pages = {}
    for heading, body in sections((DOCS / "algorithms.md").read_text()).items():
        names = methods_of(heading)
        tables = [f"## Keys of `{name}`\n\n{keys_of(name)}\n\nResults: {results_of(name)}." for name in names]
        if names:
            title = re.sub(r" \(`algorithm=.*", "", heading)
            pages[f"method_{names[0]}.md"] = "\n\n".join([f"# {title}\n{body.strip()}", *tables]) + "\n"
    return pages


def api_pages() -> dict[str, str]:
    """Name of a file to its text, for every room of the package."""
    pages = {"api_package.md": "# The package\n\n::: mbrl_lightning\n"}
    for room in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        files = [path.relative_to(ROOT).with_suffix("") for path in sorted(room.rglob("*.py"))]
        names = [".".join(path.parts).removesuffix(".__init__") for path in files if path.stem != "__main__"]
        pages[f"api_{room.name}.md"] = f"# {room.name}\n\n" + "\n".join(f"::: {name}\n" for name in names)
    return pages


def write(target: Path) -> None:
    """All sources of the site into a new folder, and the settings that name them."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(DOCS, target / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    methods, api = method_pages(), api_pages()
    for name, text in (methods | api).items():
        (target / "docs" / name).write_text(text)
    for page in (target / "docs").rglob("*.md"):
        page.write_text(page.read_text().replace("](../README.md", "](index.md"))

    def entries(pages: dict[str, str]) -> str:
        return ", ".join(f'{{ "{title}" = "{name}" }}' for title, name in pages.items())

    titled = {text.partition("\n")[0].removeprefix("# "): name for name, text in methods.items()}
    results = {path.stem: f"results/{path.name}" for path in sorted((DOCS / "results").glob("*.md"))}
    nav = [f'    {{ "{title}" = "{name}" }},' for title, name in PAGES.items()]
    nav.insert(4, f'    {{ "Methods" = [{entries({"All, with what they share": "algorithms.md"} | titled)}] }},')
    front = {"Front page": results.pop("README")}
    nav.insert(6, f'    {{ "Results" = [{entries(front | results)}] }},')
    nav.append(f'    {{ "API" = [{entries({name[4:-3]: name for name in api})}] }},')
    (target / "docs" / "extra.css").write_text(CSS)
    (target / "zensical.toml").write_text(SETTINGS.format(nav="\n".join(nav), root=ROOT))


def main() -> int:
    """Write and build; the status of zensical, which takes every warning for an error."""
    target = ROOT / "build" / "site"
    write(target)
    zensical = shutil.which("zensical", path=str(Path(sys.executable).parent)) or shutil.which("zensical")
    if zensical is None:
        print(f"the pages are in {target}/docs; to build them: pip install 'mbrl_lightning[docs]'")
        return 1
    return subprocess.run([zensical, "build", "--strict", "--clean"], cwd=target, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
