"""Which revision of each repository of the hub a run reads, fixed and recorded when it is first fetched.

A record is an artifact of the cache folder (`hub-…`), so that all notebooks of a run, and later runs, read the same
revision, whatever becomes of the hub's main branch. Weights that the hub has as a pickle only lie beside the record as
safetensors; nothing is written into the hub's own cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lib import models
from lib.models import hub
from lib.models.hub import PICKLE, WEIGHTS
from lib.workbook.profiles import Profile
from lib.workbook.store import Store, content_key, sha256_of

RECORD = "origin.json"


def model_folder(name: str, profile: Profile) -> Path:
    """Folder of a hub model's safetensors, configuration and tokenizer at its recorded revision; fetched if need be.

    Raises `ModelNotFound`, in one sentence, where it cannot be had, or is a pickle of something else than this model.
    """
    folder = Store(profile.cache_dir).get("hub", _fields(name), partial(_record_model, name))
    if (folder / WEIGHTS).exists():
        return folder
    return hub.fetch_model(name, revision=json.loads((folder / RECORD).read_text())["revision"])


def safe_folder(folder: Path, profile: Profile) -> Path:
    """A folder of a user's own or, where its weights are a pickle, an artifact with the same as safetensors."""
    if not hub.is_pickled(folder):
        return folder
    files = [folder / PICKLE, *hub.beside_weights(folder)]
    fields = {"folder": folder.name, "files": {path.name: sha256_of(path) for path in files}}
    return Store(profile.cache_dir).get("weights", fields, partial(models.convert_folder, str(folder), folder))


def text_revision(profile: Profile) -> str:
    """The recorded revision of OpenWebText.

    Raises `TextNotFound` where there is no record and the hub does not answer.
    """
    folder = Store(profile.cache_dir).get("hub", _fields(hub.OPENWEBTEXT), _record_text)
    return json.loads((folder / RECORD).read_text())["revision"]


def recorded(repository: str, profile: Profile) -> dict[str, Any] | None:
    """The record of a repository, None if it has not been fetched; asks nothing of the hub."""
    path = profile.cache_dir / f"hub-{content_key(_fields(repository), version=1)}" / RECORD
    return json.loads(path.read_text()) if path.exists() else None


def is_here(name: str, profile: Profile) -> bool:
    """Whether a hub's model can be read without asking the hub."""
    record = recorded(name, profile)
    if record and "converted" in record:
        return True
    return hub.cached_model(name, revision=record and record["revision"]) is not None


def cached_text(profile: Profile) -> list[Path]:
    """OpenWebText's files in the hub's cache that this run would read: of the recorded revision, if there is one."""
    record = recorded(hub.OPENWEBTEXT, profile)
    return hub.cached_text(record and record["revision"])


def describe(repository: str, profile: Profile) -> str:
    """Revision and digests of a repository that has been fetched, to be shown; "" for any other."""
    record = recorded(repository, profile) or {}
    parts = [f"revision {record['revision']}"] if record else []
    if "file" in record:
        parts.append(f"{record['file']} with sha256 {record['sha256']}")
    if "converted" in record:
        parts.append(f"read as safetensors with sha256 {record['converted']}")
    return ", ".join(parts)


def lines(profile: Profile) -> Iterator[str]:
    """A line for each repository of the hub that this run's models and text come from."""
    text = [hub.OPENWEBTEXT] if profile.corpus == "openwebtext" else []
    for repository in dict.fromkeys([*profile.circuit_models, *text]):
        if about := describe(repository, profile):
            yield f"{repository}, {about}"


def _fields(repository: str) -> dict[str, str]:
    return {"repository": repository} | {what: hub.known(repository, what) for what in ("revision", "sha256")}


def _record_model(name: str, target: Path) -> None:
    folder = hub.fetch_model(name)
    weights = hub.weights_in(folder)
    digest = sha256_of(weights)
    hub.compare_revision(name, folder.name)
    hub.compare_weights(name, weights, digest)
    record = {"repository": name, "revision": folder.name}
    record |= {"file": weights.name, "bytes": weights.stat().st_size, "sha256": digest}
    if weights.name == PICKLE:
        models.convert_folder(name, folder, target)
        record["converted"] = sha256_of(target / WEIGHTS)
    _write(record, target)


def _record_text(target: Path) -> None:
    revision = hub.text_revision()
    hub.compare_revision(hub.OPENWEBTEXT, revision)
    _write({"repository": hub.OPENWEBTEXT, "revision": revision}, target)


def _write(record: dict[str, Any], target: Path) -> None:
    (target / RECORD).write_text(json.dumps(record, indent=1) + "\n")
