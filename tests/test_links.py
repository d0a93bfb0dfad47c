"""Links between the texts of the repository lead somewhere."""

import re
from urllib.parse import unquote

import nbformat
import pytest

from lib.workbook import scorecard
from lib.workbook.profiles import HOME, get_profile

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
        if re.match(r"[a-z]+:", link):
            continue  # another site
        target = (folder / file).resolve() if file else None
        if target and not target.exists() or heading and unquote(heading) not in headings(text, target):
            broken.append(link)
    return broken


def headings(text, target=None):
    """Names under which the headings of a text, or of the page `target`, can be linked to.

    A notebook's are Jupyter's, which keep capitals and signs; a page's are a forge's.
    """
    if target:
        text = TEXTS.get(target) or target.read_text("utf-8")
    found = re.findall(r"^#+ (.*)$", text, re.M)
    if target and target.suffix == ".ipynb":
        return {heading.replace("`", "").replace(" ", "-") for heading in found}
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("path", list(TEXTS), ids=lambda path: path.relative_to(HOME).as_posix())
def test_links_resolve(path):
    assert broken_links(TEXTS[path], path.parent) == []


def test_the_front_page_is_short_and_leads_to_every_other():
    front = TEXTS[HOME / "README.md"]
    assert len(front.encode()) <= 8192
    assert [folder for folder in (*FOLDERS, "notebooks") if f"({folder}/README.md)" not in front] == []


def test_the_front_page_s_numbers_are_the_scorecard_s():
    """They are read from the committed tables; where one has changed, this says what has to be written."""
    card = scorecard.card(get_profile("mini"))
    front = TEXTS[HOME / "README.md"]
    wanted = [scorecard.headline(card, paper) for paper in ("both", "W", "L")]
    assert [sentence for sentence in wanted if sentence not in front] == []
    table = front.split("| item | paper | ours | verdict |\n|---|---|---|---|\n")[1].split("\n\n")[0]
    rows = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in table.splitlines()]
    assert len(rows) == 6
    shown = card.set_index("item")[["paper", "ours", "verdict"]]
    assert rows == [(item, *shown.loc[item]) for item, *_ in rows]


def test_less_than_half_of_the_front_page_is_about_running_it():
    sections = re.split(r"^## ", TEXTS[HOME / "README.md"], flags=re.M)
    running = [text for text in sections if text.startswith(("Two commands", "Sizes", "Layout"))]
    assert len(running) == 3 and 2 * len("".join(running)) < len("".join(sections))


def test_the_pages_for_teaching_have_pictures_and_every_notebook():
    assert len(re.findall(r"!\[[^\]]+\]\(", TEXTS[HOME / "notebooks" / "background.md"])) >= 4
    plan = TEXTS[HOME / "notebooks" / "README.md"]
    assert all(f"{number:02}_" in plan for number in range(12))


@pytest.mark.parametrize(
    "link, broken",
    [
        ("README.md", False),
        ("gone.md", True),
        ("README.md#layout", False),
        ("README.md#gone", True),
        ("https://a.b/gone", False),
        ("#a-heading", False),
        ("#gone", True),
        ("notebooks/03_feature_similarity.ipynb#All-pairs,-exactly", False),
        ("notebooks/03_feature_similarity.ipynb#all-pairs-exactly", True),
    ],
)
def test_broken_links_are_found(link, broken):
    assert broken_links(f"# A heading\n[x]({link})", HOME) == ([link] if broken else [])


def ways(names, number):
    """The last line of a notebook: the one before it, all of them, the scorecard, the glossary, the one after it."""
    beside = [f"[{name.replace('_', ' ')}]({name}.ipynb)" for name in names]
    beside.append("[after the papers](after_the_papers.md)")
    pages = ["[all notebooks](README.md)", "[scorecard](99_scorecard.ipynb)", "[glossary](glossary.md)"]
    before = [f"← {beside[number - 1]}"] if number else []
    return " · ".join([*before, *pages, f"{beside[number + 1]} →"])


def test_every_notebook_ends_with_the_ways_to_the_others():
    notebooks = [path for path in TEXTS if path.suffix == ".ipynb"]
    for number, path in enumerate(notebooks):
        last = nbformat.read(path, 4).cells[-1]
        assert (last.id, last.source) == ("ways", ways([path.stem for path in notebooks], number))


def test_the_glossary_is_in_alphabetical_order():
    terms = re.findall(r"^### (.*)$", TEXTS[HOME / "notebooks" / "glossary.md"], re.M)
    assert len(terms) > 60 and terms == sorted(terms, key=lambda term: re.sub(r"\W", "", term.lower()))
