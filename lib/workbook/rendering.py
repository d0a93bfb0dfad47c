"""Executed notebooks as HTML for the report: formulas as MathML, no scripts, links that hold in the report's folder."""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import latex2mathml.converter
import nbformat
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode

FORBIDDEN = ("script", "iframe", "object", "embed", "link", "base", "form", "meta")


def mathml(latex: str, display: str) -> str:
    """A formula as MathML, which browsers draw themselves; the LaTeX source where it cannot be converted."""
    try:
        formula = latex2mathml.converter.convert(html.unescape(latex).strip(), display=display)
    except Exception:  # the converter's errors share no class
        return f"<code>{html.escape(latex)}</code>"
    return f'<span class="math {display}">{formula}</span>'


class _Renderer(IPythonRenderer):
    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")


class _Exporter(HTMLExporter):
    """nbconvert's plainest template, which loads nothing, with our renderer of Markdown."""

    def default_filters(self):
        yield from super().default_filters()
        yield "markdown2html", lambda text: MarkdownWithMath(_Renderer(escape=False, anchor_link_text="#")).render(text)


@cache
def _exporter() -> _Exporter:
    quiet = logging.getLogger("workbook.report")
    quiet.setLevel(logging.ERROR)  # it warns of pictures without alternative text, which come from the notebooks
    exporter = _Exporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True, log=quiet)
    exporter.register_preprocessor(CoalesceStreamsPreprocessor(), enabled=True)
    return exporter


def rendered(notebook: Path, source: Path, folder: Path, pages: Collection[str]) -> tuple[str, list[tuple[str, str]]]:
    """A notebook as HTML for a page in `folder`, without what it printed to stderr; and its headings (anchor, text).

    Relative links start from the folder `source`. Those to notebooks in `pages` (names) lead to their pages; links and
    pictures that the reader would not find are taken out.
    """
    soup = BeautifulSoup(converted(notebook, notebook.stat().st_mtime_ns), "html.parser")
    _clean(soup)
    _relink_all(soup, partial(_relink, source=source, folder=folder, pages=pages))
    for table in soup.find_all("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
    found = [(heading["id"], heading.get_text().removesuffix("#")) for heading in soup.select("h2[id]")]
    return str(soup), found


@cache
def converted(notebook: Path, written: int) -> str:
    """A notebook as nbconvert's HTML; `written` is when the file was. Kept: a run converts what is done on the way."""
    node = nbformat.read(notebook, as_version=4)
    if any("injected-parameters" in _tags(cell) for cell in node.cells):
        node.cells = [cell for cell in node.cells if "parameters" not in _tags(cell)]  # the defaults were overwritten
    for cell in node.cells:
        _prepare(cell)
    return _exporter().from_notebook_node(node)[0]


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _prepare(cell: NotebookNode) -> None:
    if cell.cell_type != "code":
        return
    cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    for output in cell.outputs:
        if "image/png" in output.get("data", {}):
            output.metadata.setdefault("image/png", {}).setdefault("alt", "a figure")


def _clean(soup: BeautifulSoup) -> None:
    """Take out what could run or load something; the page's content security policy forbids it once more."""
    for element in soup.find_all(FORBIDDEN):
        element.decompose()
    for element in soup.find_all(True):
        for attribute in [name for name in element.attrs if name.lower().startswith("on")]:
            del element[attribute]


def _relink_all(soup: BeautifulSoup, relink: Callable[[str], str | None]) -> None:
    for link in soup.find_all("a", href=True):
        if (address := relink(link["href"])) is None:
            link.unwrap()
        else:
            link["href"] = address
    for image in soup.find_all("img"):
        address = relink(image.get("src", ""))
        if address is None or address.startswith("http"):  # nothing is fetched
            image.replace_with(image.get("alt", ""))
        else:
            image["src"] = address


def _relink(address: str, source: Path, folder: Path, pages: Collection[str]) -> str | None:
    """The address as it must be written in a page in `folder`; None if it leads nowhere."""
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") or address.startswith(("#", "data:image/")):
        return address
    if parts.scheme or parts.netloc:
        return None
    path = Path(unquote(parts.path))
    fragment = f"#{parts.fragment}" if parts.fragment else ""
    if path.suffix == ".ipynb" and path.stem in pages:
        return f"{path.stem}.html{fragment}"
    target = source / path
    return Path(os.path.relpath(target, folder)).as_posix() + fragment if target.exists() else None
