"""The report of the committed results, built into a folder of the tests' own and read by a real headless browser."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.workbook import rendering, report, scorecard
from lib.workbook.notebooks import find_notebooks
from lib.workbook.profiles import HOME, get_profile

EVIL = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
PAGES = ("explorer.html", "lan_umap.html", "state_animation.html")  # that notebooks write
WIDTHS, SCHEMES = (360, 1440), ("light", "dark")

OUTSIDE = """
const scrolls = e => e && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
const wide = document.documentElement.clientWidth, found = [];
for (const e of document.body.querySelectorAll("*")) {
  const box = e.getBoundingClientRect(), hides = ["hidden", "clip"].includes(getComputedStyle(e).overflowX);
  if (box.width && (box.right > wide + 1 || box.left < -1) && !scrolls(e)) found.push(e.outerHTML.slice(0, 80));
  if (hides && e.scrollWidth > e.clientWidth + 1) found.push(e.outerHTML.slice(0, 80));
}
return [document.documentElement.scrollWidth - wide, found.slice(0, 5)];
"""
FAINT = """
const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = c => { const [r, g, b] = c.slice(0, 3).map(linear);
                     return .2126 * r + .7152 * g + .0722 * b; };
const behind = e => { const c = parse(getComputedStyle(e).backgroundColor);
                      return c[3] ? c : e.parentElement ? behind(e.parentElement) : [255, 255, 255]; };
const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !e.getClientRects().length) continue;
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
  if ((a + .05) / (b + .05) < 4.5) found.push(walk.currentNode.data.trim().slice(0, 40));
}
return found.slice(0, 5);
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The report of the committed figures, tables and notebooks of the mini profile."""
    folder = tmp_path_factory.mktemp("report") / "mini"
    shutil.copytree(
        HOME / "figures" / "mini",
        folder,
        ignore=lambda _, names: [n for n in names if not n.endswith((".png", ".csv"))],
    )
    for name in PAGES:
        (folder / name).write_text("<!doctype html><title>a page of its own</title>")
    report.build(get_profile("mini", figures=folder.parent))
    return folder


@pytest.fixture
def small(tmp_path):
    """A workbook of one notebook, made from its outputs, that nobody should trust."""
    (tmp_path / "notebooks").mkdir()
    profile = get_profile("smoke", cache_dir=tmp_path / "cache", figures=tmp_path / "figures")

    def write(cells):
        nbformat.write(
            new_notebook(cells=[new_markdown_cell("# Small"), *cells]), tmp_path / "notebooks" / "01_small.ipynb"
        )

    write([new_code_cell('profile = "smoke"', execution_count=1)])
    return SimpleNamespace(profile=profile, notebooks=tmp_path / "notebooks", out=profile.figures_dir, write=write)


def pages(site):
    return [site / "index.html", *sorted((site / "notebooks").glob("*.html"))]


def soup(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def open_page(browser, path, width=1440, scheme="light"):
    """Load a page, forgetting what the logs hold; folded parts are unfolded."""
    show(browser, width, scheme)
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")


def show(browser, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


@pytest.fixture
def screen(browser):
    """The browser, which gets its own size and colours back."""
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def requests_of(browser):
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]


def test_the_index_holds_everything(site):
    page = soup(site / "index.html")
    top = page.select("header .top img")
    assert [image["src"] for image in top] == [f"{name}.png" for name in report.TOP]
    shown = [[row["id"] for row in table.select("tbody tr[id]")] for table in page.select("#scorecard table")]
    findings = [item.id for item in scorecard.items() if item.kind == scorecard.FINDING]
    assert sorted(shown[0]) == sorted(findings) and len(shown) == 2
    assert sorted(sum(shown, [])) == sorted(item.id for item in scorecard.items())
    assert scorecard.headline(scorecard.card(get_profile("mini"))) in page.select_one(".lead").get_text()
    shown = {element["id"] for element in page.select("#outputs figure")}
    assert shown == {path.stem for path in site.iterdir() if path.is_file()} - {"index"}
    captions = [element.get_text(" ", strip=True) for element in page.select("#outputs figcaption, #outputs summary")]
    assert len(captions) == len(shown) and min(map(len, captions)) > 20
    assert not page.find("h3", string="Others")


def test_every_notebook_is_a_page_with_the_way_on_and_back(site):
    names = [path.stem for path in find_notebooks(HOME / "notebooks")]
    assert [path.stem for path in pages(site)[1:]] == names
    for number, name in enumerate(names):
        page = soup(site / "notebooks" / f"{name}.html")
        for rel, other in (("prev", names[number - 1] if number else None), ("next", (names + [None])[number + 1])):
            found = {link["href"] for link in page.find_all("a", rel=rel)}
            assert found == ({f"{other}.html"} if other else set())


def test_every_notebook_leads_to_its_rows_of_the_scorecard(site):
    places = {item.id: scorecard.place_of(item).notebook for item in scorecard.items()}
    for path in pages(site)[1:]:
        links = soup(path).select("#on-the-scorecard a")
        wanted = [f"../index.html#{name}" for name, notebook in places.items() if notebook == path.stem]
        assert [link["href"] for link in links] == wanted


def test_pictures_keep_their_alternative_texts(small):
    picture = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
    outputs = [
        new_output("display_data", {"image/png": picture}, metadata=about)
        for about in ({"image/png": {"alt": "A caption."}}, {})
    ]
    small.write([new_code_cell('profile = "smoke"', outputs=outputs, execution_count=1)])
    report.build(small.profile, small.notebooks)
    images = soup(small.out / "notebooks" / "01_small.html").select("img")
    assert [image["alt"] for image in images] == ["A caption.", "a figure"]


def test_no_link_is_broken(site):
    ids = {path: {element["id"] for element in soup(path).find_all(id=True)} for path in pages(site)}
    broken = []
    for path in pages(site):
        for element in soup(path).find_all(["a", "img"]):
            address = element.get("href") or element.get("src") or ""
            parts = urlsplit(address)
            if parts.scheme in ("http", "https", "data"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = {parts.fragment, unquote(parts.fragment)} & ids.get(target, set())  # a browser tries both
            if not target.exists() or (parts.fragment and target.suffix == ".html" and not known):
                broken.append((path.name, address))
    assert broken == []


def test_formulas_are_drawn_by_the_browser_itself(site, screen):
    drawn = [formula.get_text() for path in pages(site) for formula in soup(path).select(".math")]
    assert len(drawn) > 50 and [formula for formula in drawn if "\\" in formula] == []  # what it cannot convert stays
    open_page(screen, site / "notebooks" / "01_three_architectures.html")
    heights = screen.execute_script(
        "return [...document.querySelectorAll('mfrac')].map(e => e.getBoundingClientRect().height)"
    )
    assert heights and min(heights) > 20  # a fraction that is not laid out is as high as a line


def test_pages_at_both_widths_and_in_both_colours(site, screen):
    for path in pages(site):
        open_page(screen, path)
        assert screen.get_log("browser") == [], path.name
        assert [url for url in requests_of(screen) if not url.startswith(("file:", "data:", "about:"))] == [], path.name
        images = screen.execute_script(
            "return [...document.images].map(i => [i.naturalWidth, i.alt, i.src.slice(0, 80)])"
        )
        assert [image for image in images if not image[0] or not image[1]] == [], path.name
        for width in WIDTHS:
            show(screen, width, "light")
            assert screen.execute_script(OUTSIDE) == [0, []], (path.name, width)
        for scheme in SCHEMES:
            show(screen, 1440, scheme)
            assert screen.execute_script(FAINT) == [], (path.name, scheme)


def test_the_checks_can_fail(screen, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<meta name=viewport content='width=device-width'><p style='width:600px'>wide</p>"
                    "<p style='overflow:hidden;width:3em;white-space:nowrap'>cut off here</p>"
                    "<p style='color:#bbb'>faint</p><img src='missing.png'>"
                    "<img src='http://127.0.0.1:9/x.png'>")  # fmt: skip
    open_page(screen, page, width=360)
    beyond, found = screen.execute_script(OUTSIDE)
    assert beyond > 0 and len(found) == 2 and screen.execute_script(FAINT) == ["faint"]
    assert screen.get_log("browser") != [] and any(url.startswith("http:") for url in requests_of(screen))


def test_text_stays_text_and_nothing_runs_or_is_fetched(small, screen):
    table = new_output(
        "execute_result",
        {"text/html": f"<table><tr><td>{EVIL}</td></tr></table>", "text/plain": "x"},
        execution_count=2,
    )
    cells = [
        new_markdown_cell(
            f"{EVIL}\n\n[a](javascript:window.pwned=1) ![far](https://example.org/x.png) $\\undefined{{x$"
        ),
        new_code_cell('profile = "smoke"', outputs=[new_output("stream", name="stdout", text=EVIL)], execution_count=1),
        new_code_cell("1", outputs=[table, new_output("stream", name="stderr", text="noise")], execution_count=2),
    ]
    small.write(cells)
    small.out.mkdir(parents=True)
    pd.DataFrame({EVIL: [EVIL]}).to_csv(small.out / "table_evil.csv", index=False)
    index = report.build(small.profile, small.notebooks)
    for path, shown in ((index, 2), (small.out / "notebooks" / "01_small.html", 1)):
        open_page(screen, path)
        assert screen.execute_script("return [window.pwned === undefined, document.scripts.length]") == [True, 0]
        assert screen.get_log("browser") == []
        assert [url for url in requests_of(screen) if not url.startswith(("file:", "data:", "about:"))] == []
        assert path.read_text().count("&lt;script&gt;window.pwned = 1&lt;/script&gt;") == shown
    assert "noise" not in path.read_text() and "random weights" in index.read_text()


def test_a_line_that_was_printed_in_pieces_is_one_line(small):
    pieces = [new_output("stream", name="stdout", text=text) for text in ("agrees to 1e-5:", " True\nnext", " line\n")]
    small.write([new_code_cell('profile = "smoke"', outputs=pieces, execution_count=1)])
    report.build(small.profile, small.notebooks)
    shown = [
        element.get_text() for element in soup(small.out / "notebooks" / "01_small.html").select(".output_stream pre")
    ]
    assert shown == ["agrees to 1e-5: True\nnext line\n"]


def test_what_was_not_run_is_said_to_be_missing(small):
    small.write([new_code_cell('profile = "mini"')])
    page = soup(report.build(small.profile, small.notebooks))
    assert (
        not (small.out / "notebooks").exists()
        and page.select("#outputs figure") == []
        and page.select(".top img") == []
    )
    assert "01 Small (not run in this profile)" in " ".join(page.select_one(".pages").get_text(" ", strip=True).split())
    verdicts = {row["id"]: row.select_one("strong").get_text() for row in page.select("#scorecard tbody tr[id]")}
    assert verdicts["w-3a-mamba"] == "… not run" and page.select("#scorecard td a") == []


def test_links_of_a_notebook_hold_in_the_report(tmp_path):
    source, folder = tmp_path / "notebooks", tmp_path / "figures" / "mini" / "notebooks"
    source.mkdir()
    (source / "README.md").write_text("x")
    relink = lambda address: rendering._relink(address, source, folder, {"03_x"})  # noqa: E731
    assert relink("03_x.ipynb#A-heading") == "03_x.html#A-heading"
    assert relink("README.md#a-heading") == "../../../notebooks/README.md#a-heading"
    assert relink("04_y.ipynb") is None and relink("//example.org/x") is None and relink("JavaScript:x") is None
    assert relink("https://arxiv.org/abs/2410.06672") == "https://arxiv.org/abs/2410.06672"


def test_a_formula_that_cannot_be_converted_is_shown_as_it_is():
    assert rendering.mathml("a < b", "inline").count("<math") == 1
    assert rendering.mathml(r"<a^", "inline") == "<code>&lt;a^</code>"


def test_files_without_captions_are_shown_all_the_same(small):
    small.out.mkdir(parents=True)
    pd.DataFrame({"a": range(20)}).to_csv(small.out / "table_new.csv", index=False)
    page = soup(report.build(small.profile, small.notebooks))
    assert "12 of 20 rows" in page.select_one("#table_new").get_text() and Path(small.out / "index.html").exists()
