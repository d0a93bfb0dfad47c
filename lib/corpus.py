"""Text → blocks of token ids with a mask of the positions that count, the same for every model."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Int64
from numpy import ndarray

HELD_OUT = 10  # one document in ten is held out, chosen by its hash
BOS, PAD = "<|endoftext|>", "<|padding|>"  # BOS is EOS too, as in GPT-NeoX's tokenizer
VOCABULARY = 4096

ARRAYS = ("tokens", "mask", "document")  # of `Blocks`, in this order

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Blocks:
    """Token blocks of one text, one document or piece of a document per row.

    tokens: ids, BOS first, padded at the end. mask: True where a position counts (not BOS, EOS or padding).
    document: running number of the document a block comes from. places: of blocks that are paired with those of
    another tokenizer (`lib.pairing`), a number for what of the document has been read at each position.
    """

    tokens: Int[ndarray, "blocks context"]
    mask: Bool[ndarray, "blocks context"]
    document: Int[ndarray, " blocks"]
    places: Int64[ndarray, "blocks context"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Int[ndarray, " rows"]) -> Blocks:
        """Some of the blocks."""
        places = None if self.places is None else self.places[rows]
        return Blocks(self.tokens[rows], self.mask[rows], self.document[rows], places)

    @property
    def n_positions(self) -> int:
        """How many positions count."""
        return int(self.mask.sum())

    @property
    def n_documents(self) -> int:
        """Of how many documents the blocks are."""
        return len(np.unique(self.document))

    @functools.cached_property
    def digest(self) -> str:
        """Of the tokens and of the positions that count: models read the same where it is the same.

        In paired blocks, of the places where blocks begin and where the positions that count end, not of the tokens.
        """
        arrays = (np.array(self.tokens.shape), self.tokens, self.mask)
        if self.places is not None:
            arrays = (self.mask.sum(1), self.places[:, 0], self.places[self.mask])
        return hashlib.sha256(b"".join(np.ascontiguousarray(array, np.int64) for array in arrays)).hexdigest()

    def take(self, n_positions: int) -> Blocks:
        """The first blocks that together hold `n_positions` counted positions, or all if there are fewer."""
        enough = int(np.searchsorted(np.cumsum(self.mask.sum(1)), n_positions)) + 1
        return self[:enough]


def split_of(text: str) -> Split:
    """A document's split depends on its own text alone, so other documents cannot move it."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") % HELD_OUT == 0 else "train"


def train_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Train the byte-level BPE of `VOCABULARY` entries and write it in Hugging Face format."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=2, special_tokens=[BOS, PAD])
    PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=BOS, eos_token=BOS, unk_token=BOS, pad_token=PAD
    ).save_pretrained(folder)


def blocks_of(
    documents: Iterable[list[int]],
    context_length: int,
    bos: int,
    pad: int,
    special: set[int],
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


def special_ids(tokenizer) -> tuple[int, int, set[int]]:
    """Of a transformers tokenizer: what begins a block (BOS, or EOS where there is none), padding, what never counts.

    Raises ValueError for a tokenizer that has neither BOS nor EOS.
    """
    eos = tokenizer.eos_token_id
    bos = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if bos is None:
        raise ValueError("the tokenizer has neither BOS nor EOS, so no block can begin with one: set its bos_token.")
    pad = bos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return bos, pad, {bos, pad, eos} - {None}


def cut(
    documents: Iterable[list[int]], tokenizer, context_length: int, *,
    n_positions: int | None = None, blocks_per_document: int | None = None,
) -> Blocks:  # fmt: skip
    """Blocks of documents, given as token ids of a transformers tokenizer without BOS.

    They hold `n_positions` counted positions (None: all of the text); no more documents are read than that takes.
    A document fills at most `blocks_per_document` blocks (None: as many as it needs).
    """
    bos, pad, special = special_ids(tokenizer)
    longest = None if blocks_per_document is None else blocks_per_document * (context_length - 1)
    wanted = documents if n_positions is None else _enough(documents, n_positions, longest)
    blocks = blocks_of(wanted, context_length, bos, pad, special, blocks_per_document)
    return blocks if n_positions is None else blocks.take(n_positions)


def _enough(documents: Iterable[list[int]], n_positions: int, longest: int | None) -> Iterator[list[int]]:
    """Stop reading documents once the blocks made of them hold enough positions."""
    seen = 0
    for ids in documents:
        yield ids
        seen += len(ids) if longest is None else min(len(ids), longest)
        if seen >= n_positions * 1.01:
            return
