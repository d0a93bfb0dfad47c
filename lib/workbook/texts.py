"""The texts that profiles read, as blocks of token ids; kept.

Two corpora behind one interface: the documentation of Python packages that the workbook ships (smoke, mini) and
OpenWebText, streamed (laptop, paper).
"""

from __future__ import annotations

import functools
import json
import logging
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray
from tokenizers import Tokenizer
from tqdm import tqdm

from lib import corpus
from lib.corpus import ARRAYS, HELD_OUT, Blocks, Split, split_of
from lib.models import hub
from lib.workbook import origins
from lib.workbook.profiles import DATA, Profile
from lib.workbook.store import Store, sha256_of

if TYPE_CHECKING:
    from lib.circuits.ioi import Sentence

log = logging.getLogger("workbook.corpus")

DOCUMENTATION = DATA / "corpus" / "documentation.jsonl.xz"
TOKENIZER = DATA / "models" / "tokenizer"
UNSEEN = 9_876  # seed of sentences that no training row has; rows are drawn from seeds of two numbers and more
TOKENS_PER_DOCUMENT = 600  # of OpenWebText, cut to one block of 1,024 tokens; an assumption on the low side


@functools.cache
def documents() -> list[str]:
    """The shipped text, 28 million characters: documentation of thirteen packages (`data/corpus/NOTICE`), in order."""
    with lzma.open(DOCUMENTATION, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def text_fields(profile: Profile) -> dict[str, Any]:
    """What identifies the text that a profile reads: its digest or revision, its tokenizer's, how it is divided."""
    shipped = profile.corpus == "docstrings"
    text = sha256_of(DOCUMENTATION) if shipped else f"{hub.OPENWEBTEXT}@{origins.text_revision(profile)}"
    tokenizer = sha256_of(tokenizer_folder(profile) / "tokenizer.json")
    cut = {field: getattr(profile, field) for field in ("corpus", "context_length", "blocks_per_document", "seed")}
    return cut | {"text": text, "tokenizer": tokenizer, "held_out": HELD_OUT}


@functools.cache
def sentence_parts() -> dict[str, Any]:
    """What sentences with two names are made of (`ioi.sentences`)."""
    return json.loads((DATA / "corpus" / "ioi.json").read_text(encoding="utf-8"))


def unseen_sentences(n: int) -> list[Sentence]:
    """Sentences with two names of templates and pairs that the mini models were not trained on; always the same."""
    from lib.circuits.ioi import sentences

    return sentences(sentence_parts(), n, np.random.default_rng(UNSEEN), held_out=True)


def load_tokenizer(profile: Profile):
    """The tokenizer that all models of the profile share."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder(profile))


def tokenizer_folder(profile: Profile) -> Path:
    """Where the tokenizer that cuts the profile's text lies. Raises `ModelNotFound`."""
    if profile.corpus == "docstrings":
        return TOKENIZER
    places = (DATA / "models" / profile.pythia, Path(profile.pythia))
    return next((p for p in places if p.is_dir()), None) or origins.model_folder(profile.pythia, profile)


# ------------------------------------------------------------------------------------------- documents and blocks


def load_blocks(profile: Profile, split: Split, n_positions: int) -> Blocks:
    """Blocks of the profile's corpus that hold `n_positions` counted positions, or all of a text that has fewer.

    Documents come in an order shuffled by the profile's seed (docstrings) or as streamed (OpenWebText).
    """
    if profile.corpus == "openwebtext":
        return _openwebtext_blocks(profile, split, n_positions)
    documents = document_tokens(profile, split)
    order = np.random.default_rng(profile.seed).permutation(len(documents))
    return _cut((documents[i] for i in order), n_positions, profile)


def _cut(documents: Iterable[list[int]], n_positions: int, profile: Profile) -> Blocks:
    sizes = dict(n_positions=n_positions, blocks_per_document=profile.blocks_per_document)
    return corpus.cut(documents, load_tokenizer(profile), profile.context_length, **sizes)


def _tokenize_documents(tokenizer_file: Path, folder: Path) -> None:
    texts = documents()
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    for split in ("train", "held_out"):
        ids = [e.ids for e in tokenizer.encode_batch([t for t in texts if split_of(t) == split])]
        np.save(folder / f"{split}_lengths.npy", np.array([len(i) for i in ids], np.int32))
        np.save(folder / f"{split}_tokens.npy", np.concatenate([np.array(i, np.uint16) for i in ids]))


def document_tokens(profile: Profile, split: Split) -> list[Int[ndarray, " n"]]:
    """Token ids of every document of the shipped text, without BOS; kept."""
    file = TOKENIZER / "tokenizer.json"
    key = {"text": sha256_of(DOCUMENTATION), "tokenizer": sha256_of(file), "held_out": HELD_OUT}
    folder = Store(profile.cache_dir).get("corpus", key, functools.partial(_tokenize_documents, file))
    lengths = np.load(folder / f"{split}_lengths.npy")
    return np.split(np.load(folder / f"{split}_tokens.npy"), np.cumsum(lengths)[:-1])


def openwebtext(profile: Profile) -> Iterator[str]:
    """OpenWebText's documents as they come.

    Read from the hub's cache if files of it are there, else streamed: the parquet files by their paths, at the recorded
    revision. Raises `TextNotFound` where neither can be.
    """
    from datasets import load_dataset

    files = hub.text_files(origins.text_revision(profile))
    rows = load_dataset("parquet", data_files=files, columns=["text"], split="train", streaming=True)
    yield from (row["text"] for row in rows)


def _openwebtext_blocks(profile: Profile, split: Split, n_positions: int) -> Blocks:
    """OpenWebText's first blocks, kept, so that the text is read once."""
    key = {field: value for field, value in text_fields(profile).items() if field != "seed"}  # it is read as it comes
    key |= {"split": split, "n_positions": n_positions}

    def build(folder: Path) -> None:
        tokenizer, wanted = load_tokenizer(profile), (t for t in openwebtext(profile) if split_of(t) == split)
        bar = tqdm(wanted, f"reading OpenWebText, {split}", unit="document", mininterval=5)
        ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in bar)
        blocks = _cut(ids, n_positions, profile)
        if (found := blocks.n_positions) < n_positions:
            log.warning("The text ends after %s of %s tokens: download more of its files.", found, n_positions)
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(blocks, name))

    folder = Store(profile.cache_dir).get("text", key, build)
    return Blocks(*(np.load(folder / f"{name}.npy") for name in ARRAYS))


def gigabytes_streamed(profile: Profile) -> float:
    """OpenWebText that a run streams at most: documents it reads (nine in ten train, one is held out), uncompressed."""
    train = profile.sae_tokens + profile.untrained_tokens
    held_out = profile.eval_tokens + profile.mppc_tokens + profile.neuron_tokens
    documents = (train / 0.9 + held_out / 0.1) / TOKENS_PER_DOCUMENT
    return documents * hub.facts().gigabytes_at_most[hub.OPENWEBTEXT] / 8_013_769
