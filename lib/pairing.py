"""One text for two tokenizers: blocks in which two models are compared where they have read exactly the same.

Two models that read a text from the same character on have read the same prefix wherever a token of each ends at the
same character. Correlating only those positions pairs any two models exactly, with no averaging over words (not in the
papers, whose models share a tokenizer):

    pair = paired_blocks(documents, (tokenizer_a, tokenizer_b), (256, 1_024), n_positions=100_000)
    a = capture_features(model_a, saes_a, pair.a, batch_blocks=32)
    b = capture_features(model_b, saes_b, pair.b, batch_blocks=32)
    to_b, to_a = max_pairwise_correlations(a, b)

Intervals by documents and the shifted null take either side's blocks: both have the same rows and documents.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int64
from numpy import ndarray
from tokenizers import Encoding, Tokenizer

from lib import corpus
from lib.corpus import Blocks

log = logging.getLogger("workbook.pairing")
LOW_SHARE = 0.5  # a comparison of fewer of a model's tokens is a comparison of a part of the text
AT_ONCE = 256  # documents that a tokenizer is given at a time
STRIDE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that the places of one document are all different


class Reading(NamedTuple):
    """How a tokenizer reads one document."""

    ids: Int[ndarray, " tokens"]
    ends: Int[ndarray, " tokens"]
    """How many characters of the document have been read after each token; -1 if it ends inside of a character."""
    places: Int64[ndarray, " tokens_and_1"]
    """A number for what has been read, before the first token and after each: two readings of one document have read
    the same where their places are the same."""


class PairedBlocks(NamedTuple):
    """Blocks of one text for two models: row r of both holds the same piece of the same document.

    The k-th position that counts in `a` and the k-th in `b` end at the same place, and their digests are the same.
    """

    a: Blocks
    b: Blocks
    shares: tuple[float, float]
    """Share of each model's tokens that are paired, over the documents that were read; NaN where they have none."""


def read(tokenizer, documents: Iterable[str]) -> Iterator[Reading]:
    """Every document as a transformers tokenizer reads it, without BOS, with the characters where its tokens end.

    Ends are those of the original text, whatever the tokenizer makes of it (an added space, a composed character).
    Raises ValueError for a tokenizer that does not tell where in the text its tokens are.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell where in the text its tokens are, so it cannot be paired with "
            f"another: load the model's fast tokenizer, which needs its tokenizer.json."
        )
    bare = _bare(tokenizer)
    documents = iter(documents)
    while texts := list(itertools.islice(documents, AT_ONCE)):
        encodings = bare.encode_batch(texts, add_special_tokens=False)
        yield from map(_reading, texts, encodings)


def _bare(tokenizer) -> Tokenizer:
    """A copy that cuts nothing off and moves no offsets: the post-processors of byte-level BPE trim spaces off them."""
    bare = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bare.encode_special_tokens = tokenizer.split_special_tokens  # not part of the string
    bare.post_processor = None
    bare.no_truncation()
    bare.no_padding()
    return bare


def _reading(text: str, encoding: Encoding) -> Reading:
    starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T.copy()
    following = np.append(starts, len(text))[1:]
    # Characters between two tokens were composed into the first (NFC leaves their offsets out) or dropped: either way
    # they have been read with it. White space is no part of it, or words would never end where another tokenizer's do.
    for k in np.flatnonzero(following > ends):
        ends[k] += len(text[ends[k] : following[k]].rstrip())
    # Tokens that share a character, as its bytes do, are all said to lie at all of it: the last one completes it.
    whole = (following >= ends) & (np.append(ends, len(text) + 1)[1:] > ends)
    places = np.empty(len(ends) + 1, np.uint64)
    places[0] = _hash(text.encode())
    places[1:] = places[0] + ends.astype(np.uint64) * STRIDE
    for k in np.flatnonzero(~whole):  # inside of a character: the same only after the same tokens
        places[k + 1] = _hash(places[k].tobytes() + encoding.tokens[k].encode())
    return Reading(np.array(encoding.ids, np.int64), np.where(whole, ends, -1), places.view(np.int64))


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def paired_blocks(
    documents: Iterable[str], tokenizers: tuple, context_lengths: tuple[int, int], *, n_positions: int | None = None
) -> PairedBlocks:
    """Blocks of documents for two models, each with its transformers tokenizer and the length of its context.

    A document is cut, as rarely as it can be, at places where a token of both ends, so that each piece fits into both
    contexts and both models read it from its beginning. Where none is within reach, the text up to the next one is
    left out. With one tokenizer on both sides, the blocks are those of `corpus.cut`.

    They hold `n_positions` counted positions (None: all of the text); no more documents are read than that takes, but
    for a few hundred. Warns where less than half of a model's tokens are paired. Raises ValueError for a tokenizer
    without offsets, or without BOS and EOS.
    """
    sides = [_Side(tokenizer, length) for tokenizer, length in zip(tokenizers, context_lengths, strict=True)]
    copies = itertools.tee(documents)
    readings = zip(*(read(*given) for given in zip(tokenizers, copies, strict=True)), strict=True)
    for number, both in enumerate(readings):
        shared = _shared(*(reading.places[1:] for reading in both))
        paired = shared[:, np.logical_and(*(s.is_text(r.ids[at]) for s, r, at in zip(sides, both, shared)))]
        pieces = _pieces(shared + 1, [side.room for side in sides])
        for side, reading, at, own in zip(sides, both, paired, np.moveaxis(pieces, -1, 0)):
            side.add(number, reading, at, own)
        if n_positions is not None and sides[0].n_paired >= n_positions:
            break
    for which, side in zip(("first", "second"), sides):
        if side.share < LOW_SHARE:
            log.warning(
                "Only %.0f %% of the %s tokenizer's tokens end where a token of the other does: the models are "
                "compared on these alone.", 100 * side.share, which,
            )  # fmt: skip
    a, b = (side.blocks() if n_positions is None else side.blocks().take(n_positions) for side in sides)
    return PairedBlocks(a, b, tuple(side.share for side in sides))


def _shared(a: Int64[ndarray, " a"], b: Int64[ndarray, " b"]) -> Int[ndarray, "2 shared"]:
    """Tokens of either that end at the same place, in order."""
    _, *tokens = np.intersect1d(a, b, return_indices=True)
    return np.sort(tokens, axis=1)


def _pieces(ends: Int[ndarray, "2 shared"], rooms: list[int]) -> Int[ndarray, "pieces 2 2"]:
    """Beginning and end of every piece, in tokens of either model; `ends` are the shared places at which it may end."""
    pieces, start, done = [], np.zeros(2, np.int64), 0
    while done < ends.shape[1]:
        within = min(int(np.searchsorted(ends[k], start[k] + rooms[k], "right")) for k in range(2))
        stop = ends[:, max(within - 1, done)]
        if within > done:
            pieces.append((start, stop))
        start, done = stop, max(within, done + 1)
    return np.array(pieces, np.int64).reshape(-1, 2, 2)


class _Side:
    """Blocks of one of the two models in the making."""

    def __init__(self, tokenizer, context_length: int) -> None:
        self.bos, self.pad, self.special = corpus.special_ids(tokenizer)
        self.context_length, self.room = context_length, context_length - 1
        self.ids, self.counts, self.places, self.document = [], [], [], []
        self.n_paired = self.n_text = 0

    @property
    def share(self) -> float:
        return self.n_paired / self.n_text if self.n_text else math.nan

    def is_text(self, ids: Int[ndarray, " n"]) -> Bool[ndarray, " n"]:
        return ~np.isin(ids, list(self.special))

    def add(
        self, document: int, reading: Reading, paired: Int[ndarray, " paired"], pieces: Int[ndarray, "pieces 2"]
    ) -> None:
        """Add a document's pieces, of whose tokens those in `paired` count."""
        self.n_text += int(self.is_text(reading.ids).sum())
        counts = np.isin(np.arange(len(reading.ids)), paired)
        for start, stop in pieces:
            self.ids.append(reading.ids[start:stop].tolist())
            self.counts.append(counts[start:stop])
            self.places.append(reading.places[start : stop + 1])
            self.document.append(document)
            self.n_paired += int(counts[start:stop].sum())

    def blocks(self) -> Blocks:
        blocks = corpus.blocks_of(self.ids, self.context_length, self.bos, self.pad, self.special)
        mask, places = np.zeros_like(blocks.mask), np.zeros(blocks.mask.shape, np.int64)
        for row, (counts, at) in enumerate(zip(self.counts, self.places, strict=True)):
            mask[row, 1 : len(at)] = counts
            places[row, : len(at)] = at
        return replace(blocks, mask=mask, document=np.array(self.document, np.int32), places=places)
