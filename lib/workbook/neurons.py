"""MPPC between neurons of a profile's models (W §4.3.1), kept as artifacts."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lib import corpus, models
from lib.mppc import uncertainty
from lib.mppc.neurons import matched, neuron_activations
from lib.mppc.uncertainty import Resampled
from lib.workbook import model_store, texts
from lib.workbook.artifacts import matched_layers, model_fields
from lib.workbook.profiles import Profile
from lib.workbook.store import Store

DIRECTIONS = ("a_to_b", "b_to_a")


def neuron_mppc(a: str, b: str, profile: Profile) -> dict[str, tuple[pd.DataFrame, pd.DataFrame, Resampled]]:
    """For a → b and b → a: MPPC of neurons, its null, and the MPPC in resamples of the documents.

    Frames have the columns layer, index, mppc, match_layer, match_index.
    """
    fields = {"a": model_fields(a, profile), "b": model_fields(b, profile)}
    fields |= {"layers": profile.layers, "neuron_tokens": profile.neuron_tokens} | uncertainty.constants()
    folder = Store(profile.cache_dir).get("neurons", fields, partial(_compare, a, b, profile), version=2)
    return {
        direction: (
            pd.read_parquet(folder / f"{direction}.parquet"),
            pd.read_parquet(folder / f"{direction}_null.parquet"),
            np.load(folder / f"{direction}.npy", mmap_mode="r"),
        )
        for direction in DIRECTIONS
    }


def _compare(a: str, b: str, profile: Profile, folder: Path) -> None:
    blocks = texts.load_blocks(profile, "held_out", profile.neuron_tokens)  # both models read these
    group = uncertainty.document_groups(blocks, profile.seed)
    places = {folder / "a": a, folder / "b": b}
    x, y = (_activations(name, blocks, profile, place) for place, name in places.items())
    found = matched(x, y, group, profile.seed, model_store.device_of(profile))
    for direction, (frame, null, resampled) in zip(DIRECTIONS, found, strict=True):
        frame.to_parquet(folder / f"{direction}.parquet", index=False)
        null.to_parquet(folder / f"{direction}_null.parquet", index=False)
        np.save(folder / f"{direction}.npy", resampled)
    del x, y, found
    for place in places:  # gigabytes that nobody asks for again
        shutil.rmtree(place)


def _activations(name: str, blocks: corpus.Blocks, profile: Profile, folder: Path) -> list[np.memmap]:
    folder.mkdir(exist_ok=True)
    model = model_store.load(name, profile)
    layers = matched_layers(models.n_layers(model), profile)
    return neuron_activations(model, blocks, layers, folder, profile.batch_blocks)
