"""Links between the texts of the repository lead somewhere."""

import re

import nbformat
import pandas as pd
import pytest

from lib.workbook.profiles import HOME

FOLDERS = ("lib", "data", "figures", "tests")
PAGES = [HOME / "README.md", HOME / "figures" / "rehearsal" / "README.md"]
PAGES += [HOME / folder / "README.md" for folder in FOLDERS] + sorted((HOME / "notebooks").glob("*.md"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES} | {
    path: "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
    for path in sorted((HOME / "notebooks").glob("*.ipynb"))
}
LINK = re.compile(r"\]\(([^)\s]+)\)")


def broken_links(text, folder):
    """Links to files that are not there, or to headings that a page does not have."""
    broken = []
    for link in LINK.findall(re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)):
        file, _, heading = link.partition("#")
        target = (folder / file).resolve() if file else None
        if re.match(r"[a-z]+:", link):
            continue  # another site
        if target and not target.exists() or heading and target and heading not in headings(target.read_text("utf-8")):
            broken.append(link)
    return broken


def headings(text):
    """Names under which a forge's web page can link to the headings."""
    found = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("path", list(TEXTS), ids=lambda path: path.relative_to(HOME).as_posix())
def test_links_resolve(path):
    assert broken_links(TEXTS[path], path.parent) == []


def test_the_front_page_is_short_and_leads_to_every_other():
    front = TEXTS[HOME / "README.md"]
    assert len(front.encode()) <= 8192
    assert [folder for folder in (*FOLDERS, "notebooks") if f"({folder}/README.md)" not in front] == []


def test_the_front_page_s_rows_are_the_scorecard_s():
    card = pd.read_csv(HOME / "figures" / "mini" / "table_scorecard.csv").set_index("item")
    table = (
        TEXTS[HOME / "README.md"].split("| item | paper | ours | verdict |\n|---|---|---|---|\n")[1].split("\n\n")[0]
    )
    rows = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in table.splitlines()]
    assert len(rows) == 6
    for item, *shown in rows:
        assert shown == list(card.loc[item, ["paper", "ours", "verdict"]])


def test_the_pages_for_teaching_have_pictures_and_every_notebook():
    assert len(re.findall(r"!\[[^\]]+\]\(", TEXTS[HOME / "notebooks" / "background.md"])) >= 4
    plan = TEXTS[HOME / "notebooks" / "README.md"]
    assert all(f"{number:02}_" in plan for number in range(11))


@pytest.mark.parametrize(
    "link, broken",
    [
        ("README.md", False),
        ("gone.md", True),
        ("README.md#layout", False),
        ("README.md#gone", True),
        ("https://a.b/gone", False),
    ],
)
def test_broken_links_are_found(link, broken):
    assert broken_links(f"[x]({link})", HOME) == ([link] if broken else [])
