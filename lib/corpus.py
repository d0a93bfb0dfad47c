"""Text → blocks of token ids with a mask of the positions that count, the same for every model.

Two corpora behind one interface: the docstrings of pinned packages (mini: every user has them after
``pip install``, nothing is downloaded or committed) and OpenWebText, streamed (laptop, paper).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray
from tqdm import tqdm

from lib import hub, origins
from lib.background import end_with_parent
from lib.profiles import DATA, Profile
from lib.store import Store

log = logging.getLogger("workbook.corpus")

PACKAGES = {  # distribution → import name; all pinned in requirements.txt, in this order
    "transformers": "transformers",
    "scipy": "scipy",
    "sympy": "sympy",
    "pandas": "pandas",
    "networkx": "networkx",
    "numpy": "numpy",
    "matplotlib": "matplotlib",
    "scikit-learn": "sklearn",
    "huggingface_hub": "huggingface_hub",
    "datasets": "datasets",
    "numba": "numba",
    "seaborn": "seaborn",
    "transformer-lens": "transformer_lens",
}
MIN_CHARACTERS = 200
HELD_OUT = 10  # one document in ten is held out, chosen by its hash
BOS, PAD = "<|endoftext|>", "<|padding|>"  # BOS is EOS too, as in GPT-NeoX's tokenizer
VOCABULARY = 4096
MANIFEST = DATA / "corpus.json"
TOKENIZER = DATA / "models" / "tokenizer"

ARRAYS = ("tokens", "mask", "document")  # of `Blocks`, in this order

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Blocks:
    """Token blocks of one text, one document or piece of a document per row.

    tokens: ids, BOS first, padded at the end. mask: True where a position counts (not BOS, EOS or padding).
    document: running number of the document a block comes from.
    """

    tokens: Int[ndarray, "blocks context"]
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

    def take(self, n_positions: int) -> Blocks:
        """The first blocks that together hold `n_positions` counted positions, or all if there are fewer."""
        enough = int(np.searchsorted(np.cumsum(self.mask.sum(1)), n_positions)) + 1
        return self[:enough]


def require_same_mask(a: Blocks, b: Blocks) -> None:
    """Correlations pair tokens by position: raise ValueError unless both models read and count the same."""
    if a.mask.shape != b.mask.shape or not (a.mask == b.mask).all() or not (a.tokens == b.tokens).all():
        raise ValueError("the two models read different tokens or count different positions: nothing can be paired.")


# ------------------------------------------------------------------------------------------ docstrings


def _docstrings_of_file(path: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    texts = [ast.get_docstring(node, clean=False) for node in nodes]
    return [inspect.cleandoc(text).strip() for text in texts if text]


def docstrings(packages: Iterable[str] = tuple(PACKAGES)) -> list[str]:
    """Docstrings of at least `MIN_CHARACTERS` in the installed packages: no duplicates, always in the same order."""
    files = []
    for package in packages:
        spec = find_spec(PACKAGES[package])
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(f"the corpus needs {package}: run pip install -r requirements.txt.")
        root = Path(spec.submodule_search_locations[0])
        paths = [path for path in root.rglob("*.py") if "tests" not in path.parts]  # slow to parse, little text
        files += sorted(paths, key=lambda path: path.relative_to(root).as_posix())
    with ProcessPoolExecutor(initializer=end_with_parent) as pool:
        found = tqdm(pool.map(_docstrings_of_file, files, chunksize=64), "reading docstrings", len(files), unit="file", mininterval=5)
        texts = (text for texts in found for text in texts if len(text) >= MIN_CHARACTERS)
        return list(dict.fromkeys(texts))


def split_of(text: str) -> Split:
    """A document's split depends on its own text alone, so other documents cannot move it."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") % HELD_OUT == 0 else "train"


def describe(texts: list[str]) -> dict:
    """What the corpus is made of: package versions, counts, digest (the content of data/corpus.json)."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    versions = {package: metadata.version(package) for package in PACKAGES}
    held_out = sum(split_of(text) == "held_out" for text in texts)
    return {
        "packages": versions,
        "documents": len(texts),
        "held_out_documents": held_out,
        "characters": sum(map(len, texts)),
        "sha256": digest,
    }


@functools.cache
def _compare_with_manifest(description: str) -> None:
    """Say once, through the log, if the text (`describe` as JSON) is not the one the mini models were trained on."""
    found, known = json.loads(description), json.loads(MANIFEST.read_text())
    if found["sha256"] == known["sha256"]:
        return
    other = [f"{p} {v} (not {known['packages'][p]})" for p, v in found["packages"].items() if v != known["packages"][p]]
    why = "; ".join(other) or "the same versions, but another build or Python"
    log.warning("The text is not the one the mini models were trained on: %s. Results will differ a little.", why)


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


def load_tokenizer(profile: Profile):
    """The tokenizer that all models of the profile share."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_tokenizer_folder(profile))


def _tokenizer_folder(profile: Profile) -> Path:
    if profile.corpus == "docstrings":
        return TOKENIZER
    places = (DATA / "models" / profile.pythia, Path(profile.pythia))
    return next((p for p in places if p.is_dir()), None) or hub.fetch_model(profile.pythia, ("tokenizer.json",))


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


def _build_docstring_tokens(folder: Path) -> None:
    from tokenizers import Tokenizer

    texts = docstrings()
    found = describe(texts)
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    for split in ("train", "held_out"):
        ids = [e.ids for e in tokenizer.encode_batch([t for t in texts if split_of(t) == split])]
        np.save(folder / f"{split}_lengths.npy", np.array([len(i) for i in ids], np.int32))
        np.save(folder / f"{split}_tokens.npy", np.concatenate([np.array(i, np.uint16) for i in ids]))
    (folder / "corpus.json").write_text(json.dumps(found))


def docstring_tokens(profile: Profile, split: Split) -> list[Int[ndarray, " n"]]:
    """Token ids of every document of the docstring corpus, without BOS; cached."""
    folder = _docstring_folder(profile)
    _compare_with_manifest((folder / "corpus.json").read_text())
    lengths = np.load(folder / f"{split}_lengths.npy")
    return np.split(np.load(folder / f"{split}_tokens.npy"), np.cumsum(lengths)[:-1])


def is_the_mini_models_text(profile: Profile) -> bool:
    """Whether the docstrings of the installed packages are those that the mini models were trained on."""
    found = json.loads((_docstring_folder(profile) / "corpus.json").read_text())
    return found["sha256"] == json.loads(MANIFEST.read_text())["sha256"]


def _docstring_folder(profile: Profile) -> Path:
    key = {
        "packages": {package: metadata.version(package) for package in PACKAGES},
        "tokenizer": hashlib.sha256((TOKENIZER / "tokenizer.json").read_bytes()).hexdigest(),
    }
    return Store(profile.cache_dir).get("corpus", key, _build_docstring_tokens)


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
    tokenizer = hashlib.sha256((_tokenizer_folder(profile) / "tokenizer.json").read_bytes()).hexdigest()
    key = {field: getattr(profile, field) for field in ("corpus", "context_length", "blocks_per_document")}
    key |= {"tokenizer": tokenizer, "split": split, "n_positions": n_positions}
    key |= {"revision": origins.text_revision(profile)}

    def build(folder: Path) -> None:
        documents = tqdm(_openwebtext(profile, split), f"reading OpenWebText, {split}", unit="document", mininterval=5)
        blocks = _cut(documents, n_positions, profile)
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
    documents = docstring_tokens(profile, split)
    order = np.random.default_rng(profile.seed).permutation(len(documents))
    return _cut((documents[i] for i in order), n_positions, profile)


def _cut(documents: Iterable[list[int]], n_positions: int | None, profile: Profile) -> Blocks:
    """Blocks of documents that hold `n_positions` counted positions."""
    tokenizer = load_tokenizer(profile)
    bos = tokenizer.bos_token_id
    pad = bos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    cut = dict(context_length=profile.context_length, bos=bos, pad=pad, special={bos, pad, tokenizer.eos_token_id})
    wanted = _enough(documents, n_positions, profile)
    blocks = blocks_of(wanted, blocks_per_document=profile.blocks_per_document, **cut)
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
