"""How the shipped text was made, and that the file holds what its NOTICE says."""

import json
import lzma
import re
from collections import Counter

from lib.workbook import texts
from lib.zoo import documentation


def test_docstrings_are_those_of_the_source(tmp_path):
    text = "A long story. " * 20
    source = f'"""{text}"""\nclass A:\n    def f(self):\n        """short"""\nasync def g():\n    """{text} more"""\n'
    (tmp_path / "a.py").write_text(source)
    assert documentation.docstrings_of_file(tmp_path / "a.py") == [text.strip(), "short", f"{text} more"]
    (tmp_path / "b.py").write_text("def broken(:")
    assert documentation.docstrings_of_file(tmp_path / "b.py") == []


def test_one_package_gives_long_distinct_documents_that_survive_the_file(tmp_path, monkeypatch):
    found = documentation.docstrings(["seaborn"])
    assert len(found) > 100 and set(found.values()) == {"seaborn"}
    assert min(map(len, found)) >= documentation.MIN_CHARACTERS
    assert found == documentation.docstrings(["seaborn"])
    documentation.write(found, tmp_path / "text.jsonl.xz")
    monkeypatch.setattr(texts, "DOCUMENTATION", tmp_path / "text.jsonl.xz")
    assert texts.documents.__wrapped__() == list(found)


def test_the_notice_names_every_package_its_version_licence_and_number_of_documents():
    notice = texts.DOCUMENTATION.with_name("NOTICE").read_text(encoding="utf-8")
    with lzma.open(texts.DOCUMENTATION, "rt", encoding="utf-8") as lines:
        found = Counter(json.loads(line)["package"] for line in lines)
    assert list(found) == list(documentation.PACKAGES)
    for package, documents in found.items():
        row = re.search(rf"^{package} +[\d.]+ +{documents}  (\S.*)$", notice, flags=re.MULTILINE)
        assert row, f"{package} has no row"
        assert re.search(rf"^{package} [\d.]+: {re.escape(row[1])}$", notice, flags=re.MULTILINE)
    assert notice.count("Copyright") > len(found)


def test_every_document_stands_once_and_is_long_enough():
    found = texts.documents()
    assert len(set(found)) == len(found) > 25_000
    assert min(map(len, found)) >= documentation.MIN_CHARACTERS
