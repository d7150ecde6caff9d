"""A report as one page that needs nothing else: tables that sort, curves, films, all inside the file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mbrl_lightning.report.tables import Table

MOST = 20_000_000  # bytes of a film that is put into the page; a larger one is named
KINDS = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}
STYLE = """
:root { color-scheme: light dark; --line: #8884; --mark: #0072B2; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.6rem; } h2 { border-top: 1px solid var(--line); font-size: 1.3rem; margin-top: 2.5rem; padding-top: 1rem; }
nav a { margin-right: 1rem; } a { color: var(--mark); }
.wide { overflow-x: auto; margin: 1.2rem 0; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { font-weight: 600; padding: .3rem 0; text-align: left; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: left; white-space: nowrap; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--mark); }
th[aria-sort=ascending] button::after { content: " \\25B2"; } th[aria-sort=descending] button::after { content: " \\25BC"; }
tbody tr:hover { background: #8881; } .note { font-size: .85rem; opacity: .75; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); }
figure { background: #fff; color: #333; border: 1px solid var(--line); border-radius: 6px; margin: 0; padding: .5rem; }
figure img, figure video { display: block; width: 100%; } figcaption { font-size: .85rem; }
"""
SCRIPT = """
const key = cell => {
  const number = cell.textContent.trim().match(/^-?[\\d,]*\\.?\\d+(e[+-]?\\d+)?/i);
  return number ? parseFloat(number[0].replaceAll(",", "")) : cell.textContent.trim();
};
for (const table of document.querySelectorAll("table"))
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.parentElement, up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].map(row => [key(row.cells[column]), row]);
    const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
    rows.sort(([a], [b]) => up || typeof a !== typeof b ? order(a, b) : order(b, a));
    body.append(...rows.map(([, row]) => row));
  }));
"""


def page(sections: Sequence[tuple[str, Sequence[Table], Sequence[Path]]], films: Sequence[Path]) -> str:
    """The page: for each env its name, tables and pictures, and below them films; a picture or film is read from its file."""
    body = [_section(*section) for section in sections]
    if films:
        body.append(f'<h2 id="films">films</h2>\n<div class="pictures">{"".join(map(_film, films))}</div>')
    names = [name for name, _, _ in sections] + ["films"] * bool(films)
    links = "".join(f'<a href="#{escape(name, quote=True)}">{escape(name)}</a>' for name in names)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Report</title>',
            f"<style>{STYLE}</style>\n<h1>Report</h1>\n<nav>{links}</nav>",
            *body,
            f"<script>{SCRIPT}</script>\n</html>\n",
        ]
    )


def _section(name: str, tables: Sequence[Table], pictures: Sequence[Path]) -> str:
    shown = "".join(_figure(f'<img alt="{escape(path.stem)}" src="{_data(path)}">', path.stem) for path in pictures)
    head = f'<h2 id="{escape(name, quote=True)}">{escape(name)}</h2>'
    return "\n".join([head, *map(_table, tables), f'<div class="pictures">{shown}</div>'])


def _table(table: Table) -> str:
    header, *rows = table.filled()
    heads = "".join(f'<th scope="col"><button>{escape(cell)}</button></th>' for cell in header)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    notes = f'<p class="note">{escape(" ".join(table.notes))}</p>' if table.notes else ""
    caption = f"<caption>{escape(table.title)}</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr>{heads}</tr></thead>\n<tbody>{lines}</tbody></table>{notes}</div>'


def _film(path: Path) -> str:
    name = str(Path(*path.parts[-4:]))
    if path.stat().st_size > MOST:
        return _figure("", f"{name} ({path.stat().st_size / 1e6:.0f} MB: too large for this page)")
    tag = "img alt" if path.suffix == ".gif" else "video controls loop muted playsinline"
    return _figure(f'<{tag} src="{_data(path)}">' + "</video>" * (path.suffix == ".mp4"), name)


def _figure(inside: str, caption: str) -> str:
    return f"<figure>{inside}<figcaption>{escape(caption)}</figcaption></figure>"


def _data(path: Path) -> str:
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
