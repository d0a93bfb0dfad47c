"""What comes from the Hugging Face hub: looked for in its cache, else fetched. Never a pickle, never code."""

from __future__ import annotations

import functools
import logging
import shutil
from pathlib import Path

import pandas as pd
from huggingface_hub import HfApi, constants, file_download, snapshot_download
from huggingface_hub.errors import HTTPError

from lib.needs import GB, existing_folder
from lib.profiles import DATA, Profile

log = logging.getLogger("workbook.hub")

OPENWEBTEXT = "Skylion007/openwebtext"
FACTS = DATA / "reference" / "hub.csv"
WEIGHTS = "model.safetensors"
CACHE = Path(constants.HF_HUB_CACHE)  # HF_HOME moves it
NEEDED = ("config.json", WEIGHTS)
WANTED = ["*.json", "*.safetensors"]
MEGABYTES_PER_SECOND = 20  # to say how long a download may take
TOKENS_PER_DOCUMENT = 600  # of OpenWebText, cut to one block of 1,024 tokens; an assumption on the low side
UNREACHABLE = (OSError, HTTPError)


class ModelNotFound(OSError):
    """A model is neither in data/models nor in the hub's cache, and cannot be fetched; or it is no sound model."""


class TextNotFound(OSError):
    """OpenWebText is not in the hub's cache, and the hub cannot be reached."""


def command(repository: str) -> str:
    """What puts a repository into the hub's cache: of OpenWebText its first ten of eighty files."""
    if repository == OPENWEBTEXT:
        return f'hf download {repository} --repo-type dataset --include "*train-0000*"'
    return f'hf download {repository} --include "*.json" --include "*.safetensors"'


def how_to_get(repository: str) -> str:
    """What to do, and type, to have a repository in the hub's cache."""
    return f"with a network, run `{command(repository)}`; without, copy {CACHE} from a computer where that ran"


def cached_model(name: str, needed: tuple[str, ...] = NEEDED) -> Path | None:
    """Folder in the hub's cache of a revision of a model that has all `needed` files; the main one if it has them."""
    repository = _repository(name, "model")
    main = repository / "refs" / "main"
    folders = [repository / "snapshots" / main.read_text().strip()] if main.is_file() else []
    folders += sorted((repository / "snapshots").glob("*"))
    return next((folder for folder in folders if all((folder / file).exists() for file in needed)), None)


def cached_text() -> list[Path]:
    """OpenWebText's parquet files in the hub's cache, in order; none if it was never downloaded."""
    files = (path for path in _repository(OPENWEBTEXT, "dataset").glob("snapshots/*/**/*.parquet") if path.exists())
    return sorted({path.name: path for path in files}.values(), key=lambda path: path.name)


def fetch_model(name: str, needed: tuple[str, ...] = NEEDED) -> Path:
    """Folder of a model of the hub with its `needed` files, fetched if the cache does not have them.

    Raises `ModelNotFound`, with the command that gets it, where it is not there and the hub cannot be reached.
    """
    if found := cached_model(name, needed):
        return found
    log.warning("%s", announcement([name]))
    try:
        folder = Path(snapshot_download(name, allow_patterns=WANTED))
    except (*UNREACHABLE, ValueError) as error:
        raise ModelNotFound(
            f"cannot load {name}: no folder of this name, not in the hub's cache, and {_why(error)}; {how_to_get(name)}."
        ) from None
    if missing := [file for file in needed if not (folder / file).exists()]:
        raise ModelNotFound(
            f"{name} has no {', '.join(missing)} on the hub, and pickled weights are not opened; if a pull request of "
            f"https://huggingface.co/{name}/discussions adds safetensors, run `hf download {name} --revision refs/pr/NUMBER`."
        )
    return folder


def require_text() -> None:
    """Raise `TextNotFound`, with the command that gets it, where OpenWebText can be neither read nor streamed."""
    if not cached_text() and (why := unreachable()):
        raise TextNotFound(f"the text {OPENWEBTEXT} is not in the hub's cache, and {why}; {how_to_get(OPENWEBTEXT)}.")


def unreachable() -> str | None:
    """Why the hub does not answer, in a few words, or None where it does."""
    try:
        HfApi().dataset_info(OPENWEBTEXT, timeout=10)
    except UNREACHABLE as error:
        return _why(error)
    return None


def announcement(names: list[str]) -> str:
    """What downloading these models will take, in one sentence; sizes of unknown models are not guessed."""
    sizes = facts().reindex(names)
    free = shutil.disk_usage(existing_folder(CACHE)).free / GB
    each = ", ".join(f"{name} ({size:.2f} GB at most)" if size == size else name for name, size in sizes.items())
    seconds = sizes.sum() * 1000 / MEGABYTES_PER_SECOND
    how_long = f", in all {sizes.sum():.1f} GB, {seconds:.0f} s at {MEGABYTES_PER_SECOND} MB/s" if seconds else ""
    return f"Downloading {each}{how_long}, into {CACHE}, which has {free:.0f} GB free."


def text_gigabytes(profile: Profile) -> float:
    """Text that a run streams at most: documents it reads (nine in ten train, one is held out), uncompressed."""
    train = profile.sae_tokens + profile.sweep_tokens
    held_out = profile.eval_tokens + profile.mppc_tokens + profile.neuron_tokens
    documents = (train / 0.9 + held_out / 0.1) / TOKENS_PER_DOCUMENT
    return documents * facts()[OPENWEBTEXT] / 8_013_769


@functools.cache
def facts() -> pd.Series:
    """Gigabytes of each repository at most, by its name."""
    return pd.read_csv(FACTS, index_col="repository").gigabytes_at_most


def _repository(name: str, kind: str) -> Path:
    return CACHE / file_download.repo_folder_name(repo_id=name, repo_type=kind)


def _why(error: Exception) -> str:
    if constants.HF_HUB_OFFLINE:
        return "the hub is not asked (HF_HUB_OFFLINE is set)"
    lines = str(error).strip().splitlines()
    return f"the hub says: {lines[0].rstrip('.')}" if lines else f"the hub cannot be reached ({type(error).__name__})"
