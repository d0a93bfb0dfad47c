"""How the shipped text was made, and that the file holds what its NOTICE says."""

import json
import lzma
import re
from collections import Counter

from lib import corpus
from lib.zoo import documentation


def test_docstrings_are_those_of_the_source(tmp_path):
    text = "A long story. " * 20
    source = f'"""{text}"""\nclass A:\n    def f(self):\n        """short"""\nasync def g():\n    """{text} more"""\n'
    (tmp_path / "a.py").write_text(source)
    assert documentation.docstrings_of_file(tmp_path / "a.py") == [text.strip(), "short", f"{text} more"]
    (tmp_path / "b.py").write_text("def broken(:")
    assert documentation.docstrings_of_file(tmp_path / "b.py") == []


def test_one_package_gives_long_distinct_documents_that_survive_the_file(tmp_path, monkeypatch):
    texts = documentation.docstrings(["seaborn"])
    assert len(texts) > 100 and set(texts.values()) == {"seaborn"}
    assert min(map(len, texts)) >= documentation.MIN_CHARACTERS
    assert texts == documentation.docstrings(["seaborn"])
    documentation.write(texts, tmp_path / "text.jsonl.xz")
    monkeypatch.setattr(corpus, "DOCUMENTATION", tmp_path / "text.jsonl.xz")
    assert corpus.documents.__wrapped__() == list(texts)


def test_the_notice_names_every_package_its_version_licence_and_number_of_documents():
    notice = corpus.DOCUMENTATION.with_name("NOTICE").read_text(encoding="utf-8")
    with lzma.open(corpus.DOCUMENTATION, "rt", encoding="utf-8") as lines:
        found = Counter(json.loads(line)["package"] for line in lines)
    assert list(found) == list(documentation.PACKAGES)
    for package, documents in found.items():
        row = re.search(rf"^{package} +[\d.]+ +{documents}  (\S.*)$", notice, flags=re.MULTILINE)
        assert row, f"{package} has no row"
        assert re.search(rf"^{package} [\d.]+: {re.escape(row[1])}$", notice, flags=re.MULTILINE)
    assert notice.count("Copyright") > len(found)


def test_every_document_stands_once_and_is_long_enough():
    texts = corpus.documents()
    assert len(set(texts)) == len(texts) > 25_000
    assert min(map(len, texts)) >= documentation.MIN_CHARACTERS
