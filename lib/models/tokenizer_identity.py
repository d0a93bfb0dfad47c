"""Whether a model was trained with the tokenizer that cuts the text: token ids mean nothing to it otherwise.

What makes another tokenizer is another vocabulary (a token that one of them lacks or that has another id) or other
merges, as the `tokenizers` library reads them; that library also reads older files. Names, the order of entries,
padding, truncation, decoders and what is put around a text do not count. Where two tokenizers agree on these and still
cut some texts in other ways, by a token added after the training (a run of spaces, a chat's `assistant`), a normalizer
or a pre-tokenizer, the model knows every id that it is given, so it is read, and that is said.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

log = logging.getLogger("workbook.tokenizers")

FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
"""What a tokenizer is read from; of several, the first."""


class TokenizerError(ValueError):
    """A model's tokenizer is not the one that cuts the text, or cannot be read."""


def require_same(name: str, folder: Path, cutter_folder: Path, label: str) -> None:
    """Raise `TokenizerError`, in one sentence that names both, where the model's own tokenizer does not cut the text.

    `name` and `folder` are the model's; the tokenizer in `cutter_folder`, called `label`, cuts the text. A folder
    without a tokenizer is taken at its word, which is said once through the log, if the vocabulary of its
    configuration has room for the text's ids.
    """
    own, cutter = _files(folder), _files(cutter_folder)
    if [path.name for path, _ in cutter] != ["tokenizer.json"]:
        raise TokenizerError(
            f"the text is to be cut by {label}, which has no tokenizer.json: choose a model that has one."
        )
    if not own and (folder / "vocab.json").exists():
        raise TokenizerError(
            f"the text is cut by {label}, with which the tokenizer of {name} cannot be compared: {folder} has its "
            f"vocab.json and no merges.txt, so put that beside it."
        )
    if not own:
        room = json.loads((folder / "config.json").read_text())["vocab_size"]
        _allow_without(name, room, label, _read(cutter).get_vocab_size())
    elif [digest for _, digest in own] != [digest for _, digest in cutter]:
        _compare(name, label, own, cutter)


@functools.cache
def _allow_without(name: str, room: int, label: str, n_tokens: int) -> None:
    if room < n_tokens:
        raise TokenizerError(
            f"the text is cut by {label}, which has {n_tokens} tokens, and {name} brings no tokenizer and knows {room} "
            f"tokens: choose a model that was trained with the first."
        )
    log.warning("%s brings no tokenizer: it is taken to have been trained with %s, which cuts the text.", name, label)


@functools.cache
def _compare(name: str, label: str, own: Files, cutter: Files) -> None:
    a, b = _read(own), _read(cutter)
    if found := difference(a, b):
        raise TokenizerError(
            f"the text is cut by {label}, and the tokenizer of {name} is another ({found}): two tokenizers cannot be "
            f"paired yet, so choose a model that was trained with the first."
        )
    if found := deviation(a, b):
        log.warning(
            "The text is cut by %s; the tokenizer of %s has its vocabulary and merges but would cut some texts in "
            "other ways (%s).", label, name, found,
        )  # fmt: skip


def difference(a: Tokenizer, b: Tokenizer) -> str | None:
    """What makes them two tokenizers, in a few words: vocabulary or merges. None where they share both."""
    own, other = (tokenizer.get_vocab(with_added_tokens=True) for tokenizer in (a, b))
    learnt = {*a.get_vocab(with_added_tokens=False), *b.get_vocab(with_added_tokens=False)}
    lacking = {token for token in learnt if token not in own or token not in other}
    moved = {token for token in own.keys() & other.keys() if own[token] != other[token]}
    tokens_of = {index: token for token, index in other.items()}
    moved |= {token for token, index in own.items() if tokens_of.get(index, token) != token}
    if found := lacking | moved:
        return f"tokens that only one of them has, or with other ids: {len(found)}, {min(found)!r} among them"
    merges = [json.loads(tokenizer.to_str())["model"].get("merges") for tokenizer in (a, b)]
    return "they differ in their merges" if merges[0] != merges[1] else None


def deviation(a: Tokenizer, b: Tokenizer) -> str | None:
    """What else two tokenizers of one vocabulary differ in that can change how a text is cut, in a few words.

    None where they differ in nothing of the kind.
    """
    own, other = _behaviour(a), _behaviour(b)
    return next((f"they differ in their {part}" for part in own if own[part] != other[part]), None)


def _behaviour(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the cutting depends on; `trim_offsets` changes only which characters a token is said to come from."""
    parts = json.loads(tokenizer.to_str(), object_hook=lambda d: {k: v for k, v in d.items() if k != "trim_offsets"})
    model = {key: value or None for key, value in parts["model"].items() if key not in ("vocab", "merges")}
    if set(ByteLevel.alphabet()) <= tokenizer.get_vocab().keys():  # then nothing is unknown
        model = {key: value for key, value in model.items() if key not in ("unk_token", "fuse_unk")}
    strips = ("single_word", "lstrip", "rstrip")
    return {
        "added tokens": {token["content"]: [token[key] for key in strips] for token in parts["added_tokens"]},
        "normalizer": parts["normalizer"],
        "pre-tokenizer": parts["pre_tokenizer"],
        "model": model,
    }


Files = tuple[tuple[Path, str], ...]
"""Files with their digests."""


def _files(folder: Path) -> Files:
    """What the folder's tokenizer is read from; nothing where it has none."""
    complete = (names for names in FILES if all((folder / name).is_file() for name in names))
    paths = [folder / name for name in next(complete, ())]
    return tuple((path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths)


@functools.cache
def _read(files: Files) -> Tokenizer:
    from transformers import AutoTokenizer

    path = files[0][0]
    try:
        if path.name == "tokenizer.json":
            return Tokenizer.from_file(str(path))
        return AutoTokenizer.from_pretrained(path.parent, trust_remote_code=False).backend_tokenizer
    except Exception as error:  # the library knows no narrower one
        reason = str(error).strip().splitlines()[0]
        raise TokenizerError(f"the tokenizer {path} cannot be read: {reason}.") from None
