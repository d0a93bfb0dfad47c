"""What comes from the Hugging Face hub: looked for in its cache, else fetched. Never code.

`data/reference/hub.csv` says what is known of each repository. What it gives in full is demanded: a revision of 40
hexadecimal digits is the one that is fetched, a sha256 of 64 the only one that is taken. What it gives in part, the
first digits of a revision, or the first and last of a sha256, is compared, and a difference is said.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from huggingface_hub import HfApi, constants, file_download
from huggingface_hub.errors import HTTPError, RemoteEntryNotFoundError, RevisionNotFoundError

log = logging.getLogger("workbook.hub")

OPENWEBTEXT = "Skylion007/openwebtext"
DATA = Path(__file__).resolve().parents[2] / "data"
FACTS, SHIPPED = DATA / "reference" / "hub.csv", DATA / "models"
WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
CONVERTER, CONVERSION = "SFconvertbot", "Adding `safetensors` variant of this model"  # the hub's bot, its pull requests
CACHE = Path(constants.HF_HUB_CACHE)  # HF_HOME moves it
NEEDED = ("config.json", WEIGHTS)
WANTED = ["*.json", "*.safetensors", "merges.txt"]
MEGABYTES_PER_SECOND = 20  # to say how long a download may take
UNREACHABLE = (OSError, HTTPError)


class ModelNotFound(OSError):
    """A model is neither in data/models nor in the hub's cache, and cannot be fetched; or it is no sound model."""


class TextNotFound(OSError):
    """OpenWebText is not in the hub's cache, and the hub cannot be reached."""


def command(repository: str, files: Sequence[str] = ()) -> str:
    """What puts a repository, or these files of it, into the hub's cache: of OpenWebText the first ten of eighty."""
    revision = f" --revision {pinned}" if (pinned := revision_of(repository)) else ""
    if files:
        return f"hf download {shlex.join([repository, *files])}{revision}"
    if repository == OPENWEBTEXT:
        return f'hf download {repository} --repo-type dataset{revision} --include "plain_text/train-0000*"'
    half = _snapshot(repository, "model")  # fetched without weights: they are a pickle
    pickled = known(repository, "weights") == PICKLE or bool(half and half.is_dir() and not weights_in(half))
    weights = PICKLE if pickled else "*.safetensors"
    return f'hf download {repository}{revision} --include "*.json" --include "{weights}"'


def how_to_get(repository: str, files: Sequence[str] = ()) -> str:
    """What to do, and type, to have a repository, or these files of it, in the hub's cache."""
    return f"with a network, run `{command(repository, files)}`; without, copy {CACHE} from a computer where that ran"


def weights_in(folder: Path) -> Path | None:
    """A folder's weights: the safetensors or, where there are none, the pickle."""
    return next((folder / file for file in (WEIGHTS, PICKLE) if (folder / file).exists()), None)


def is_pickled(folder: Path) -> bool:
    """Whether a model's weights are a pickle only."""
    return weights_in(folder) == folder / PICKLE and (folder / "config.json").exists()


def beside_weights(folder: Path) -> list[Path]:
    """A folder's configuration and tokenizer files."""
    return sorted([*folder.glob("*.json"), *folder.glob("merges.txt")])


def cached_model(name: str, needed: tuple[str, ...] = NEEDED, revision: str | None = None) -> Path | None:
    """Folder in the hub's cache that has all `needed` files of a model, or None; a pickle does for the safetensors.

    It is the revision given, else hub.csv's, else that of the main branch when it was fetched.
    """
    folder = _snapshot(name, "model", revision)
    return folder if folder and _has(folder, needed) else None


def cached_text(revision: str | None = None) -> list[Path]:
    """OpenWebText's parquet files of a revision in the hub's cache, in order; none if it was never downloaded."""
    folder = _snapshot(OPENWEBTEXT, "dataset", revision)
    files = (path for path in folder.glob("plain_text/*.parquet") if path.exists()) if folder else ()
    return sorted(files, key=lambda path: path.name)


def fetch_model(name: str, needed: tuple[str, ...] = NEEDED, revision: str | None = None) -> Path:
    """Folder of a model of the hub with its `needed` files, fetched if the cache does not have them.

    Where the revision has no safetensors, it is that of a pull request by the hub's own bot that adds them to just
    this revision or, if there is none, the one with the pickle. The folder's name is the commit.
    Raises `ModelNotFound`, with the command that gets it, where it is not there and the hub cannot be reached.
    """
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ModelNotFound(f"cannot load {name}: there is no such folder.")
    if found := cached_model(name, needed, revision):
        return found
    _require_no_mini_model(name)
    log.warning("%s", announcement(name))
    fetch = functools.partial(HfApi().snapshot_download, name, cache_dir=CACHE)
    with _failures_said(name, revision):
        folder = Path(fetch(revision=revision or revision_of(name), allow_patterns=WANTED))
        if WEIGHTS in needed and not (folder / WEIGHTS).exists():
            if conversion := _conversion(name, folder.name):
                folder = Path(fetch(revision=conversion, allow_patterns=WANTED))
            else:
                fetch(revision=folder.name, allow_patterns=[PICKLE])
    if missing := [file for file in needed if not _has(folder, (file,))]:
        or_pickle = f", nor a {PICKLE}" if WEIGHTS in missing else ""
        raise ModelNotFound(
            f"{name} has no {', '.join(missing)} on the hub{or_pickle}; weights in several files are not read."
        )
    return folder


def fetch_files(name: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Folder with just these files of a repository, at their places in it, fetched if the cache does not have them.

    The folder's name is the commit, the same for all files. Raises `ModelNotFound` as `fetch_model` does.
    """
    if found := cached_model(name, tuple(files), revision):
        return found
    log.warning("%s", announcement(name))
    commit = revision or revision_of(name)
    snapshots = _repository(name, "model") / "snapshots"
    with _failures_said(name, revision, files):
        for file in files:
            try:
                found = Path(HfApi().hf_hub_download(name, file, cache_dir=CACHE, revision=commit))
            except RemoteEntryNotFoundError:
                raise ModelNotFound(f"cannot load {name}: it has no {file} on the hub; correct the path.") from None
            commit = found.relative_to(snapshots).parts[0]
    return snapshots / commit


def _require_no_mini_model(name: str) -> None:
    """Raise `ModelNotFound` for what is, or was meant as, the name of a mini model: the hub has none of them."""
    shipped = sorted(folder.name for folder in SHIPPED.glob("mini-*"))
    if name in shipped:
        raise ModelNotFound(f"cannot load {name}: the model that is shipped is the folder {SHIPPED / name}.")
    if "/" not in name and (near := difflib.get_close_matches(name, shipped, n=1, cutoff=0.8)):
        raise ModelNotFound(f"cannot load {name}: did you mean {near[0]!r}? The mini models are {', '.join(shipped)}.")


@contextmanager
def _failures_said(name: str, revision: str | None, files: Sequence[str] = ()) -> Iterator[None]:
    """Turn what a download can raise into a `ModelNotFound` of one sentence."""
    try:
        yield
    except ModelNotFound:
        raise
    except RevisionNotFoundError:
        raise ModelNotFound(
            f"cannot load {name}: the hub has no revision {revision or revision_of(name)} of it; correct or empty its "
            f"line in {FACTS}, or run with --fresh if the cache began with a revision that is gone."
        ) from None
    except (*UNREACHABLE, ValueError) as error:
        raise ModelNotFound(
            f"cannot load {name}: no folder of this name, not in the hub's cache, and {_why(error)}; "
            f"{how_to_get(name, files)}."
        ) from None


def _conversion(name: str, commit: str) -> str | None:
    """Commit of an open pull request in which the hub's bot, and nobody else, adds safetensors to just this commit.

    Pull requests of others may hold other weights. transformers asks a Space for a conversion where there is none, and
    sends it the user's token; this asks nothing of anybody.
    """
    api = HfApi()
    asked_for = dict(author=CONVERTER, discussion_type="pull_request", discussion_status="open")
    try:
        for request in api.get_repo_discussions(name, **asked_for):
            if (request.author, request.title, request.is_pull_request) == (CONVERTER, CONVERSION, True):
                commits = api.list_repo_commits(name, revision=request.git_reference)
                if len(commits) > 1 and commits[0].authors == [CONVERTER] and commits[1].commit_id == commit:
                    return commits[0].commit_id
    except UNREACHABLE as error:  # a repository may have its discussions closed: then the pickle does
        log.info("No pull request of %s could be looked at: %s", name, error)
    return None


def text_revision() -> str:
    """The commit of OpenWebText that is read: hub.csv's, that of the files in the cache, or the main branch's now.

    Raises `TextNotFound`, with the command that gets it, where the text can be neither read nor streamed.
    """
    require_text()
    if pinned := revision_of(OPENWEBTEXT):
        return pinned
    if files := cached_text():
        return files[0].parents[1].name
    return HfApi().dataset_info(OPENWEBTEXT, timeout=10).sha


def text_files(revision: str) -> list[str]:
    """Where OpenWebText's parquet files of a revision are: in the cache, if there are any, else on the hub."""
    require_text(revision)
    if files := cached_text(revision):
        return list(map(str, files))
    names = sorted(HfApi().list_repo_files(OPENWEBTEXT, repo_type="dataset", revision=revision))
    files = [name for name in names if re.fullmatch(r"plain_text/[^/]+\.parquet", name)]
    if not files:
        raise TextNotFound(f"{OPENWEBTEXT} has no plain_text/*.parquet at its revision {revision}.")
    return [f"hf://datasets/{OPENWEBTEXT}@{revision}/{name}" for name in files]


def require_text(revision: str | None = None) -> None:
    """Raise `TextNotFound`, with the command that gets it, where OpenWebText can be neither read nor streamed."""
    if not cached_text(revision) and (why := unreachable()):
        at = f" at revision {revision}, with which this cache began," if revision and cached_text() else ""
        lacking = f"the text {OPENWEBTEXT}{at} is not in the hub's cache"
        raise TextNotFound(f"{lacking}, and {why}; {how_to_get(OPENWEBTEXT)}.")


def unreachable() -> str | None:
    """Why the hub does not answer, in a few words, or None where it does."""
    try:
        HfApi().dataset_info(OPENWEBTEXT, timeout=10)
    except UNREACHABLE as error:
        return _why(error)
    return None


def announcement(name: str) -> str:
    """What downloading a model will take, in one sentence; the size of an unknown model is not guessed."""
    size = facts().gigabytes_at_most.get(name, 0)
    existing = next(folder for folder in (CACHE, *CACHE.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free / 1e9
    how_long = f"in all {size:.1f} GB, {size * 1000 / MEGABYTES_PER_SECOND:.0f} s at {MEGABYTES_PER_SECOND} MB/s"
    size_and_time = f" ({size:.2f} GB at most), {how_long}" if size else ""
    return f"Downloading {name}{size_and_time}, into {CACHE}, which has {free:.0f} GB free."


@functools.cache
def facts() -> pd.DataFrame:
    """What is known of each repository, by its name: the rows of hub.csv; "" where unknown. Gigabytes are numbers."""
    table = pd.read_csv(FACTS, index_col="repository", dtype=str, keep_default_na=False)
    return table.astype({"gigabytes_at_most": float})


def known(repository: str, what: str) -> str:
    """One column of `facts`, "" for a repository that is not there."""
    return facts()[what].get(repository, "").strip()


def revision_of(repository: str) -> str | None:
    """The revision that hub.csv gives in full: that one is fetched.

    Raises `ModelNotFound` where what it gives is none of git's.
    """
    revision = known(repository, "revision")
    if not re.fullmatch("[0-9a-f]{0,40}", revision):
        raise ModelNotFound(
            f"{FACTS}: {revision!r} is no revision of {repository}; give the 40 hexadecimal digits of a commit."
        )
    return revision if len(revision) == 40 else None


def compare_revision(repository: str, revision: str) -> None:
    """Say it where a commit does not begin with the digits that hub.csv has of it."""
    if not revision.startswith(known(repository, "revision")):
        log.warning(
            "%s is at revision %s, and the one that is known begins with %s: it may hold something else, so that "
            "results differ.",
            repository, revision, known(repository, "revision"),
        )  # fmt: skip


def compare_weights(repository: str, weights: Path, sha256: str) -> None:
    """Say it where the weights are not those that hub.csv knows; `ModelNotFound` where it gives the sha256 in full.

    Only weights of the file's name in hub.csv are compared: a conversion's digest is another.
    """
    size, digest = known(repository, "bytes"), known(repository, "sha256")
    first, _, last = digest.partition("...")
    same = size in ("", str(weights.stat().st_size)) and sha256.startswith(first) and sha256.endswith(last)
    if same or weights.name != known(repository, "weights"):
        return
    n_bytes = weights.stat().st_size
    differ = f"the {weights.name} of {repository} has {n_bytes:,} bytes and sha256 {sha256}, not those of {FACTS}"
    if len(digest) == 64:
        raise ModelNotFound(f"{differ}: download it again, or correct that line.")
    log.warning("%s; it is read, with the same checks, and results may differ.", differ)


def _has(folder: Path, needed: tuple[str, ...]) -> bool:
    return all(weights_in(folder) if file == WEIGHTS else (folder / file).exists() for file in needed)


def _snapshot(name: str, kind: str, revision: str | None = None) -> Path | None:
    """Where the hub's cache has a revision: the one given, the known one or, if none begins so, the main branch's."""
    repository = _repository(name, kind)
    if revision := revision or revision_of(name):
        return repository / "snapshots" / revision
    begins = known(name, "revision")
    if begins and (found := sorted((repository / "snapshots").glob(f"{begins}*"))):
        return found[0]
    main = repository / "refs" / "main"
    return repository / "snapshots" / main.read_text().strip() if main.is_file() else None


def _repository(name: str, kind: str) -> Path:
    return CACHE / file_download.repo_folder_name(repo_id=name, repo_type=kind)


def _why(error: Exception) -> str:
    if constants.HF_HUB_OFFLINE:
        return "the hub is not asked (HF_HUB_OFFLINE is set)"
    lines = str(error).strip().splitlines()
    return f"the hub says: {lines[0].rstrip('.')}" if lines else f"the hub cannot be reached ({type(error).__name__})"
