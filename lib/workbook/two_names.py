"""Two names and one of them again (notebook 08) on a profile's models, kept as artifacts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from lib.circuits import ioi
from lib.workbook import model_store
from lib.workbook.artifacts import model_fields
from lib.workbook.profiles import Profile
from lib.workbook.store import Store


def prompts_for(template: str, tokenizer, profile: Profile) -> ioi.NamePrompts:
    """The profile's prompts of one template."""
    return ioi.name_prompts(template, tokenizer, profile.seed, profile.circuit_samples)


def task_table(template: str, names: Sequence[str], profile: Profile) -> pd.DataFrame:
    """`ioi.task_quality` of several models on one template: a row for each. Kept."""

    def measure(name: str, folder: Path) -> None:
        model = model_store.load(name, profile)
        quality = ioi.task_quality(model, prompts_for(template, model.tokenizer, profile))
        (folder / "quality.json").write_text(json.dumps(quality))

    store = Store(profile.cache_dir)
    folders = {name: store.get("names", _fields(template, name, profile), partial(measure, name)) for name in names}
    rows = [json.loads((folder / "quality.json").read_text()) for folder in folders.values()]
    return pd.DataFrame(rows, index=pd.Index(list(folders), name="model"))


def input_effects(name: str, template: str, profile: Profile) -> pd.DataFrame:
    """`ioi.input_effects` of a Mamba on one template, as `ioi.effects_table`; kept."""

    def measure(folder: Path) -> None:
        model = model_store.load(name, profile)
        prompts = prompts_for(template, model.tokenizer, profile)
        table = ioi.effects_table(ioi.input_effects(model, prompts), prompts.words)
        table.to_parquet(folder / "effects.parquet", index=False)

    folder = Store(profile.cache_dir).get("name_effects", _fields(template, name, profile), measure)
    return pd.read_parquet(folder / "effects.parquet")


def _fields(template: str, name: str, profile: Profile) -> dict[str, Any]:
    prompts = {"template": template, "samples": profile.circuit_samples, "seed": profile.seed}
    return prompts | {"names": ioi.NAMES, "identifiers": ioi.IDENTIFIERS} | model_fields(name, profile)
