"""Text → blocks of token ids with a mask of the positions that count, the same for every model.

Two corpora behind one interface: the documentation of Python packages that the workbook ships (smoke, mini) and
OpenWebText, streamed (laptop, paper).
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int, Integer
from numpy import ndarray
from tqdm import tqdm

from lib.models import hub, origins
from lib.workbook.profiles import DATA, Profile
from lib.workbook.store import Store, sha256_of

log = logging.getLogger("workbook.corpus")

HELD_OUT = 10  # one document in ten is held out, chosen by its hash
BOS, PAD = "<|endoftext|>", "<|padding|>"  # BOS is EOS too, as in GPT-NeoX's tokenizer
VOCABULARY = 4096
DOCUMENTATION = DATA / "corpus" / "documentation.jsonl.xz"
TOKENIZER = DATA / "models" / "tokenizer"

ARRAYS = ("tokens", "mask", "document")  # of `Blocks`, in this order

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Blocks:
    """Token blocks of one text, one document or piece of a document per row.

    tokens: ids, BOS first, padded at the end. mask: True where a position counts (not BOS, EOS or padding).
    document: running number of the document a block comes from.
    """

    tokens: Integer[ndarray, "blocks context"]
    mask: Bool[ndarray, "blocks context"]
    document: Int[ndarray, " blocks"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Int[ndarray, " rows"]) -> Blocks:
        """Some of the blocks."""
        return Blocks(self.tokens[rows], self.mask[rows], self.document[rows])

    @property
    def n_positions(self) -> int:
        """How many positions count."""
        return int(self.mask.sum())

    @functools.cached_property
    def digest(self) -> str:
        """Of the tokens and of the positions that count: models read the same where it is the same."""
        arrays = (np.array(self.tokens.shape), self.tokens, self.mask)
        return hashlib.sha256(b"".join(np.ascontiguousarray(array, np.int64) for array in arrays)).hexdigest()

    def take(self, n_positions: int) -> Blocks:
        """The first blocks that together hold `n_positions` counted positions, or all if there are fewer."""
        enough = int(np.searchsorted(np.cumsum(self.mask.sum(1)), n_positions)) + 1
        return self[:enough]


# ------------------------------------------------------------------------------------------ documentation


@functools.cache
def documents() -> list[str]:
    """The shipped text, 28 million characters: documentation of thirteen packages (`data/corpus/NOTICE`), in order."""
    with lzma.open(DOCUMENTATION, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def split_of(text: str) -> Split:
    """A document's split depends on its own text alone, so other documents cannot move it."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") % HELD_OUT == 0 else "train"


# --------------------------------------------------------------------------------------------- tokens


def train_tokenizer(texts: Iterable[str], folder: Path = TOKENIZER) -> None:
    """Train the byte-level BPE of `VOCABULARY` entries and write it in Hugging Face format."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=2, special_tokens=[BOS, PAD])
    PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=BOS, eos_token=BOS, unk_token=BOS, pad_token=PAD
    ).save_pretrained(folder)


def text_fields(profile: Profile) -> dict[str, Any]:
    """What identifies the text that a profile reads: its digest or revision, its tokenizer's digest, how it is divided."""
    shipped = profile.corpus == "docstrings"
    text = sha256_of(DOCUMENTATION) if shipped else f"{hub.OPENWEBTEXT}@{origins.text_revision(profile)}"
    tokenizer = sha256_of(tokenizer_folder(profile) / "tokenizer.json")
    cut = {field: getattr(profile, field) for field in ("corpus", "context_length", "blocks_per_document", "seed")}
    return cut | {"text": text, "tokenizer": tokenizer, "held_out": HELD_OUT}


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


def tokenizer_name(profile: Profile) -> str:
    """What that tokenizer is called."""
    return "data/models/tokenizer" if profile.corpus == "docstrings" else f"the tokenizer of {profile.pythia}"


def blocks_of(
    documents: Iterable[list[int]], context_length: int, bos: int, pad: int, special: set[int],
    blocks_per_document: int | None = None,
) -> Blocks:
    """Cut each document (token ids without BOS) into blocks of `context_length` that start with BOS."""
    rows, owner = [], []
    room = context_length - 1
    for number, ids in enumerate(documents):
        pieces = [ids[start : start + room] for start in range(0, len(ids), room)][:blocks_per_document]
        rows += pieces
        owner += [number] * len(pieces)
    tokens = np.full((len(rows), context_length), pad, np.int32)
    tokens[:, 0] = bos
    mask = np.zeros(tokens.shape, bool)
    for row, piece in enumerate(rows):
        tokens[row, 1 : len(piece) + 1] = piece
        mask[row, 1 : len(piece) + 1] = True
    mask &= ~np.isin(tokens, list(special))
    return Blocks(tokens, mask, np.array(owner, np.int32))


def _tokenize_documents(tokenizer_file: Path, folder: Path) -> None:
    from tokenizers import Tokenizer

    texts = documents()
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    for split in ("train", "held_out"):
        ids = [e.ids for e in tokenizer.encode_batch([t for t in texts if split_of(t) == split])]
        np.save(folder / f"{split}_lengths.npy", np.array([len(i) for i in ids], np.int32))
        np.save(folder / f"{split}_tokens.npy", np.concatenate([np.array(i, np.uint16) for i in ids]))


def document_tokens(profile: Profile, split: Split, tokenizer: Path = TOKENIZER) -> list[Integer[ndarray, " n"]]:
    """Token ids of every document of the shipped text, without BOS; cached. `tokenizer` is a folder."""
    file = tokenizer / "tokenizer.json"
    key = {"text": sha256_of(DOCUMENTATION), "tokenizer": sha256_of(file), "held_out": HELD_OUT}
    folder = Store(profile.cache_dir).get("corpus", key, functools.partial(_tokenize_documents, file))
    lengths = np.load(folder / f"{split}_lengths.npy")
    return np.split(np.load(folder / f"{split}_tokens.npy"), np.cumsum(lengths)[:-1])


def _openwebtext(profile: Profile, split: Split) -> Iterator[list[int]]:
    """OpenWebText's documents as token ids; one in ten, by its hash, is held out.

    Read from the hub's cache if files of it are there, else streamed: the parquet files by their paths, at the recorded
    revision. Raises `TextNotFound` where neither can be.
    """
    from datasets import load_dataset

    files = hub.text_files(origins.text_revision(profile))
    tokenizer = load_tokenizer(profile)
    for row in load_dataset("parquet", data_files=files, columns=["text"], split="train", streaming=True):
        if split_of(row["text"]) == split:
            yield tokenizer(row["text"], add_special_tokens=False)["input_ids"]


def _openwebtext_blocks(profile: Profile, split: Split, n_positions: int | None) -> Blocks:
    """OpenWebText's first blocks, kept, so that the text is read once."""
    key = {field: value for field, value in text_fields(profile).items() if field != "seed"}  # it is read as it comes
    key |= {"split": split, "n_positions": n_positions}

    def build(folder: Path) -> None:
        documents = tqdm(_openwebtext(profile, split), f"reading OpenWebText, {split}", unit="document", mininterval=5)
        blocks = cut(documents, n_positions, profile)
        if n_positions and blocks.n_positions < n_positions:
            log.warning("The text ends after %s of %s tokens: download more of its files.", blocks.n_positions, n_positions)
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(blocks, name))

    folder = Store(profile.cache_dir).get("text", key, build)
    return Blocks(*(np.load(folder / f"{name}.npy") for name in ARRAYS))


def load_blocks(profile: Profile, split: Split, n_positions: int | None = None) -> Blocks:
    """Blocks of the profile's corpus that hold `n_positions` counted positions (None: all of the text).

    Documents come in an order shuffled by the profile's seed (docstrings) or as streamed (OpenWebText).
    """
    if profile.corpus == "openwebtext":
        return _openwebtext_blocks(profile, split, n_positions)
    documents = document_tokens(profile, split)
    order = np.random.default_rng(profile.seed).permutation(len(documents))
    return cut((documents[i] for i in order), n_positions, profile)


def cut(
    documents: Iterable[list[int]], n_positions: int | None, profile: Profile, tokenizer_folder: Path | None = None
) -> Blocks:
    """Blocks of documents, given as token ids, that hold `n_positions` counted positions."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder) if tokenizer_folder else load_tokenizer(profile)
    bos = tokenizer.bos_token_id
    pad = bos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    sizes = dict(context_length=profile.context_length, bos=bos, pad=pad, special={bos, pad, tokenizer.eos_token_id})
    wanted = _enough(documents, n_positions, profile)
    blocks = blocks_of(wanted, blocks_per_document=profile.blocks_per_document, **sizes)
    return blocks if n_positions is None else blocks.take(n_positions)


def _enough(documents: Iterable, n_positions: int | None, profile: Profile) -> Iterator:
    """Stop reading documents once the blocks made of them hold enough positions."""
    longest = None if profile.blocks_per_document is None else profile.blocks_per_document * (profile.context_length - 1)
    seen = 0
    for ids in documents:
        yield ids
        seen += len(ids) if longest is None else min(len(ids), longest)
        if n_positions is not None and seen >= n_positions * 1.01:
            return
