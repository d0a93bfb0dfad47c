"""Documents of one's own: read from files or from the hub, shuffled, and divided for training and for comparing."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lib.corpus import split_of
from lib.models import hub

CHARACTERS_PER_TOKEN = 6  # at most, on average: how much text is read for so many tokens
SHORTEST = 500  # characters of a piece of a text file that counts as a document
SHUFFLED = 10_000  # documents of a dataset of the hub among which the next one is drawn


def documents(text: str, seed: int) -> Iterator[str]:
    """The documents of a file of plain text or JSONL, or of a dataset of the hub, shuffled.

    A text seldom begins as it goes on, so that its first documents would not stand for it. Plain text is cut into
    documents at blank lines, each of 500 characters or more. JSONL and datasets have a column `text`; a dataset is
    streamed, and the next document drawn from the 10,000 that follow. Raises `ValueError` for a text that is not
    there, or is no text.
    """
    path = Path(text)
    if path.is_file():
        read = _from_json_lines if path.suffix in (".jsonl", ".json") else _from_plain_text
        try:
            return shuffled(list(read(path)), seed)
        except UnicodeDecodeError:
            raise ValueError(f"{path} is no text in UTF-8.") from None
    if path.suffix in (".txt", ".jsonl", ".json") or not text.count("/") == 1:
        raise ValueError(f"there is no text {text}: name a file, or a dataset of the hub as org/name.")
    return _from_hub(text, seed)


def shuffled(documents: Sequence[str], seed: int) -> Iterator[str]:
    """In an order that the seed decides."""
    return (documents[k] for k in np.random.default_rng(seed).permutation(len(documents)))


def _from_plain_text(path: Path) -> Iterator[str]:
    pieces: list[str] = []
    for piece in path.read_text(encoding="utf-8").split("\n\n"):
        pieces.append(piece)
        if sum(map(len, pieces)) >= SHORTEST:
            yield "\n\n".join(pieces)
            pieces = []
    if pieces:
        yield "\n\n".join(pieces)


def _from_json_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield str(json.loads(line)["text"])
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"line {number} of {path} is no JSON object with a `text`.") from None


def _from_hub(name: str, seed: int) -> Iterator[str]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train", streaming=True).shuffle(seed=seed, buffer_size=SHUFFLED)
        yield from (row["text"] for row in rows)
    except (*hub.UNREACHABLE, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot read the dataset {name}: {type(error).__name__}: {reason}") from None


@dataclass(frozen=True)
class Text:
    """Documents for training SAEs and, apart from them, for comparing."""

    train: list[str]
    held_out: list[str]

    @cached_property
    def digest(self) -> str:
        """Of all of it."""
        content = "\0".join(itertools.chain(self.train, ["\1"], self.held_out))
        return hashlib.sha256(content.encode()).hexdigest()


def read_text(source: Iterable[str], train_tokens: int, tokens: int) -> Text:
    """As many documents as so many tokens may take; a document's own text decides on which side it is.

    Raises `ValueError` for a text in which nothing is left for one of the sides.
    """
    wanted = {"train": train_tokens * CHARACTERS_PER_TOKEN, "held_out": tokens * CHARACTERS_PER_TOKEN}
    found: dict[str, list[str]] = {"train": [], "held_out": []}
    for document in source:
        split = split_of(document)
        if wanted[split] > 0:
            found[split].append(document)
            wanted[split] -= len(document)
        if max(wanted.values()) <= 0:
            break
    if not found["held_out"] or (train_tokens and not found["train"]):
        raise ValueError("the text is too short: it takes some dozens of documents, of which one in ten is held out.")
    return Text(found["train"], found["held_out"])
