"""Two names and one of them again (notebook 08) on a profile's models, kept as artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import pandas as pd

from lib.circuits import abilities, ioi
from lib.workbook import model_store, texts
from lib.workbook.artifacts import kept, model_fields
from lib.workbook.profiles import Profile

ENOUGH, DOES_IOI = 64, 0.7
"""A model does IOI if it prefers IO in this share of sentences, of which there are at least so many."""
TASKS = ("IOI", "two names")


def template_of(task: str) -> str:
    """What a task's prompts are made of: an IOI sentence that no training text had, or `ioi.TWO_NAMES`."""
    return ioi.unseen_template(texts.sentence_parts()) if task == "IOI" else ioi.TWO_NAMES


def prompts_for(task: str, tokenizer, profile: Profile) -> ioi.NamePrompts:
    """The profile's prompts of one task."""
    names = texts.sentence_parts()["names"] if task == "IOI" else ioi.IDENTIFIERS
    return ioi.name_prompts(template_of(task), tokenizer, profile.seed, profile.circuit_samples, names)


def task_table(names: Sequence[str], profile: Profile) -> pd.DataFrame:
    """What several models do with the names: a row per task and model. Kept.

    Columns: those of `ioi.task_quality`, on prompts of one form; and for IOI `unseen_share`, the share of sentences of
    other forms and pairs than any in training in which the logit of IO is above that of S, and their number `unseen_n`.
    """

    def measure(task: str, name: str) -> dict[str, float]:
        model = model_store.load(name, profile)
        quality = ioi.task_quality(model, prompts_for(task, model.tokenizer, profile))
        if task == "IOI":
            device = model_store.device_of(profile)
            drawn = ioi.with_one_token_names(texts.unseen_sentences(2 * ENOUGH), model.tokenizer)
            share = abilities.ioi(lambda tokens: model(tokens.to(device)), model.tokenizer, drawn)
            quality |= {"unseen_share": share, "unseen_n": len(drawn)}
        return quality

    rows = {
        row: kept("names", _fields(*row, profile), partial(measure, *row), "quality.json", profile)
        for row in product(TASKS, names)
    }
    return pd.DataFrame(rows).T.rename_axis(["task", "model"])


def task_done(quality: pd.DataFrame, name: str) -> str:
    """The task that Fig. 13 is drawn on: IOI if the model does it (`task_table`), else the two names."""
    row = quality.loc[("IOI", name)]
    return "IOI" if row["unseen_n"] >= ENOUGH and row["unseen_share"] >= DOES_IOI else "two names"


def input_effects(name: str, task: str, profile: Profile) -> pd.DataFrame:
    """`ioi.input_effects` of a Mamba on one task's prompts, as `ioi.effects_table`; kept."""

    def measure() -> pd.DataFrame:
        model = model_store.load(name, profile)
        prompts = prompts_for(task, model.tokenizer, profile)
        return ioi.effects_table(ioi.input_effects(model, prompts), prompts.words)

    return kept("name_effects", _fields(task, name, profile), measure, "effects.parquet", profile)


def _fields(task: str, name: str, profile: Profile) -> dict[str, Any]:
    prompts = {"template": template_of(task), "samples": profile.circuit_samples, "seed": profile.seed}
    return prompts | {"parts": texts.sentence_parts(), "identifiers": ioi.IDENTIFIERS} | model_fields(name, profile)
