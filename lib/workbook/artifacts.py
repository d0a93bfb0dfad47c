"""The main job's stages, each kept as an artifact: what models can do; trained SAEs → feature activations → MPPC.

Every function loads its result if it is there and makes it if not, so that any notebook runs on its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib import models
from lib.circuits import abilities_of
from lib.corpus import Blocks
from lib.mppc import uncertainty
from lib.mppc.capture import capture_features
from lib.mppc.controls import by_match_layer
from lib.mppc.correlation import MaxCorrelation, max_pairwise_correlations, merge_tiles
from lib.mppc.features import SparseFeatures, firing_rates, require_same_text
from lib.mppc.files import is_whole, join_shards, layer_file, open_features, open_layer, save_features, shard_file
from lib.mppc.neurons import matched, neuron_activations
from lib.mppc.uncertainty import Resampled, document_groups, null_offset, resampled
from lib.sae import SAE, evaluate_saes, load, train_saes, training as sae_training
from lib.workbook import model_store, texts
from lib.workbook.profiles import Profile
from lib.workbook.sizes import config_of, group_size, matched_layers
from lib.workbook.store import Store, atomic_write, sha256_of
from lib.workbook.workers import Workers, split, workers_of

Directions = tuple[MaxCorrelation, MaxCorrelation]
Layers = Sequence[int]
WAYS = ("a_to_b", "b_to_a")  # the directions of two models, as files call them
FORMS = {  # ending of a file → how its value is written, and read
    ".parquet": (lambda frame, path: frame.to_parquet(path, index=False), pd.read_parquet),
    ".csv": (lambda frame, path: frame.to_csv(path, index=False), pd.read_csv),
    ".npy": (lambda array, path: np.save(path, array), np.load),
    ".json": (lambda value, path: path.write_text(json.dumps(value)), lambda path: json.loads(path.read_text())),
}


def kept(kind: str, fields: dict[str, Any], make: Callable[[], Any], file: str, profile: Profile) -> Any:
    """What `make()` gives, kept in the profile's cache as an artifact of one file, whose ending says its form."""
    write, read = FORMS[Path(file).suffix]
    return read(Store(profile.cache_dir).get(kind, fields, lambda folder: write(make(), folder / file)) / file)


def seeds_of(name: str, profile: Profile) -> tuple[int, ...]:
    """SAE seeds of a model: all of the profile's for the Transformer (the skyline's), the first for the others."""
    return profile.sae_seeds if name == profile.pythia else profile.sae_seeds[:1]


def model_fields(name: str, profile: Profile) -> dict[str, Any]:
    """What identifies a model and the text that it reads: digests of weights, configuration, text and tokenizer."""
    folder = Path(model_store.folder_of(name, profile))
    digests = {"weights": sha256_of(folder / "model.safetensors"), "config": sha256_of(folder / "config.json")}
    return {"model": name} | digests | texts.text_fields(profile)


def sae_fields(name: str, profile: Profile) -> dict[str, Any]:
    """What a model's trained SAEs depend on: the key of everything that is made of them."""
    config = profile.sae_config
    made = {"layers": profile.layers, "seeds": seeds_of(name, profile), "eval_tokens": profile.eval_tokens}
    return model_fields(name, profile) | {"sae": config.model_dump()} | sae_training.constants(config) | made


def model_abilities(name: str, profile: Profile) -> dict[str, float]:
    """What a model can do, on `eval_tokens` of held-out text and on fresh prompts: `circuits.abilities_of`, kept."""
    fields = model_fields(name, profile) | {"eval_tokens": profile.eval_tokens}

    def measure() -> dict[str, float]:
        model, held_out = model_store.load(name, profile), texts.load_blocks(profile, "held_out", profile.eval_tokens)
        logits = lambda tokens: model(tokens.to(model_store.device_of(profile)))  # noqa: E731
        return abilities_of(logits, model.tokenizer, held_out, texts.unseen_sentences(256))

    return kept("model_abilities", fields, measure, "abilities.json", profile)


# ------------------------------------------------------------------------------------------------- SAEs


def trained_saes(name: str, profile: Profile, seed: int | None = None) -> tuple[list[SAE], pd.DataFrame]:
    """A model's SAEs (of one SAE seed, or all), by seed and layer, with their metrics in `info`, and the history."""
    folder = saes_folder(name, profile)
    return _load_saes(folder, profile, seed), pd.read_csv(folder / "history.csv")


def saes_folder(name: str, profile: Profile) -> Path:
    """Where `trained_saes` reads them."""
    return Store(profile.cache_dir).get("saes", sae_fields(name, profile), partial(_train, name, profile))


def _load_saes(folder: Path, profile: Profile, seed: int | None) -> list[SAE]:
    which = "seed*" if seed is None else f"seed{seed:02d}_*"
    return [load(path, model_store.device_of(profile)) for path in sorted(folder.glob(which))]


def _train(name: str, profile: Profile, folder: Path) -> None:
    workers = workers_of(profile)
    # A text smaller than the tokens wanted is read again; a larger one only as far as needed.
    text = texts.load_blocks(profile, "train", profile.sae_tokens)
    held_out = texts.load_blocks(profile, "held_out", profile.eval_tokens)
    chosen = folder / "checkpoint" / "groups.json"  # a run that goes on may find another amount of memory free
    if not chosen.exists():
        atomic_write(chosen, json.dumps(_layer_groups(name, profile, workers)))
    groups = json.loads(chosen.read_text())
    pieces = {f"layers {g[0]} to {g[-1]}": (name, g, text, held_out, profile, folder) for g in groups}
    parts = workers.each(train_layers, pieces, f"SAEs of {name}")
    history = pd.concat(map(pd.read_csv, parts)).sort_values(["step", "seed", "layer"])
    history.to_csv(folder / "history.csv", index=False)


def _layer_groups(name: str, profile: Profile, workers: Workers) -> list[list[int]]:
    """Layers whose SAEs are trained at a time: what a worker's memory holds, and something for every worker."""
    config = config_of(name, profile)
    layers = matched_layers(config.num_hidden_layers, profile)
    sizes = (config.num_hidden_layers, config.hidden_size, len(seeds_of(name, profile)), profile)
    [largest] = workers.each(group_size, {"memory": sizes}, f"SAEs of {name}")
    return split(layers, max(-(-len(layers) // largest), workers.count))


def train_layers(
    name: str, layers: Sequence[int], text: Blocks, held_out: Blocks, profile: Profile, folder: Path
) -> Path:
    """Train, evaluate and save the SAEs of some of a model's layers, all SAE seeds; returns the file of their history.

    The SAEs are those of a training of all layers. What is there already is not made again.
    """
    place = folder / "checkpoint" / f"from_layer{layers[0]:02d}"
    history_file = place / "history.csv"
    if not history_file.exists():
        model = model_store.load(name, profile)
        saes, history = train_saes(model, text, profile.sae_config, seeds_of(name, profile), layers, place / "training")
        evaluate_saes(model, saes, held_out, profile.batch_blocks)
        for sae in saes:
            sae.save(folder / f"seed{sae.info.seed:02d}_layer{sae.info.layer:02d}")
        atomic_write(history_file, history.to_csv(index=False))
        shutil.rmtree(place / "training", ignore_errors=True)
    return history_file


def sae_quality(saes: list[SAE]) -> pd.DataFrame:
    """A row per SAE: model, layer, seed, L0, explained variance, cross-entropy recovered, dead share."""
    columns = ["l0", "explained_variance", "ce_recovered", "dead"]
    places = [{"model": sae.info.model_name, "layer": sae.info.layer, "seed": sae.info.seed} for sae in saes]
    return pd.DataFrame(places).join(pd.DataFrame([sae.info.metrics for sae in saes])[columns])


# ------------------------------------------------------------------------------------------- features and MPPC


def features(name: str, profile: Profile, seed: int | None = None) -> list[SparseFeatures]:
    """Feature activations of a model's SAEs of one SAE seed (default: the first) over the held-out text."""
    return open_features(features_folder(name, profile, seed))


def features_folder(name: str, profile: Profile, seed: int | None = None) -> Path:
    """Where `features` reads them."""
    seed = profile.sae_seeds[0] if seed is None else seed
    fields = sae_fields(name, profile) | capture_fields(profile) | {"seed_read": seed}
    build = partial(_encode, name, profile, seed)
    return Store(profile.cache_dir).get("features", fields, build, version=4)


def capture_fields(profile: Profile) -> dict[str, Any]:
    """What captured features depend on beside the SAEs; not on the shards, which change no byte."""
    return {"mppc_tokens": profile.mppc_tokens, "feature_dtype": profile.feature_dtype}


def capture_shards(blocks: Blocks, profile: Profile) -> list[Blocks]:
    """The text of each shard: whole forward passes, so that the activations do not depend on the size of the shards."""
    step = profile.batch_blocks * max(1, profile.shard_tokens // (profile.batch_blocks * profile.context_length))
    return [blocks[start : start + step] for start in range(0, len(blocks), step)]


def _encode(name: str, profile: Profile, seed: int, folder: Path) -> None:
    workers = workers_of(profile)
    saes = saes_folder(name, profile)
    text = texts.load_blocks(profile, "held_out", profile.mppc_tokens)
    runs = split(list(enumerate(capture_shards(text, profile))), workers.pieces)
    pieces = {f"shards {run[0][0]} to {run[-1][0]}": (name, profile, saes, seed, run, folder) for run in runs}
    for _ in workers.each(capture, pieces, f"features of {name}"):
        pass
    for layer in sorted((folder / "checkpoint").glob("layer_*")):
        join_shards(layer, folder / f"{layer.name}.safetensors", text.digest)


def capture(
    name: str, profile: Profile, saes_folder: Path, seed: int, shards: Sequence[tuple[int, Blocks]], folder: Path
) -> None:
    """Write feature activations of some shards, given with their numbers, unless their files are there and whole."""
    saes = _load_saes(saes_folder, profile, seed)
    layers = [k for k in range(len(saes)) if not is_whole(layer_file(folder, k))]  # the others' shards are joined
    files = {number: [shard_file(folder / "checkpoint", k, number) for k in layers] for number, _ in shards}
    missing = [(number, blocks) for number, blocks in shards if not all(map(is_whole, files[number]))]
    if not missing:
        return
    model = model_store.load(name, profile)
    options = dict(batch_blocks=profile.batch_blocks, dtype=profile.feature_dtype)
    done = len(shards) - len(missing)
    for number, blocks in tqdm(missing, f"features of {name}", len(shards), initial=done, mininterval=5):
        captured = capture_features(model, [saes[k] for k in layers], blocks, **options)
        for layer, file in zip(captured, files[number], strict=True):
            save_features(layer, file)


def mppc(
    a: str, b: str, profile: Profile, seed_b: int | None = None, null: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """MPPC of model `a` with model `b`, and of `b` with `a`: one row per feature.

    Columns: layer, index, firing_rate, mppc, match_layer, match_index; layers are positions among the layers that
    have SAEs. `seed_b` takes another SAE seed of `b`. With `null`, b's tokens are shifted against a's at random.
    """
    fields = pair_fields(a, b, profile, seed_b) | {"null": null}
    folder = Store(profile.cache_dir).get("mppc", fields, partial(_correlate, a, b, profile, seed_b, null))
    return pd.read_parquet(folder / "a_to_b.parquet"), pd.read_parquet(folder / "b_to_a.parquet")


def mppc_by_match_layer(a: str, b: str, profile: Profile, seed_b: int | None = None) -> np.ndarray:
    """MPPC of every feature of model `a` with each layer of model `b` alone: an array [features, layers of b]."""

    def measure() -> np.ndarray:
        sides = features(a, profile), features(b, profile, seed_b)
        return by_match_layer(*sides, device=model_store.device_of(profile))

    return kept("by_match_layer", pair_fields(a, b, profile, seed_b), measure, "values.npy", profile)


def pair_fields(a: str, b: str, profile: Profile, seed_b: int | None) -> dict[str, Any]:
    """What everything that is made of two models' captured features depends on."""
    fields = {"a": sae_fields(a, profile), "b": sae_fields(b, profile), "seed_b": seed_b}
    return fields | capture_fields(profile)


def _correlate(a: str, b: str, profile: Profile, seed_b: int | None, null: bool, folder: Path) -> None:
    folders = features_folder(a, profile), features_folder(b, profile, seed_b)
    features_a, features_b = map(open_features, folders)
    shift = null_offset(features_b[0].n_tokens, profile.seed) if null else 0
    directions = correlate_in_tiles(folders, shift, profile, f"MPPC of {a} and {b}")
    for way, result, own in zip(WAYS, directions, (features_a, features_b), strict=True):
        frame = result.to_frame()
        frame.insert(2, "firing_rate", firing_rates(own))
        frame.to_parquet(folder / f"{way}.parquet", index=False)


def correlate_in_tiles(folders: tuple[Path, Path], shift: int, profile: Profile, what: str) -> Directions:
    """MPPC between two models' captured features, the second model's shifted by `shift` tokens."""
    workers = workers_of(profile)
    sizes_a, sizes_b = ([layer.d_sae for layer in open_features(folder)] for folder in folders)
    columns = split(range(len(sizes_b)), workers.pieces)
    rows = split(range(len(sizes_a)), -(-workers.pieces // len(columns)))
    places = list(product(rows, columns))
    pieces = {f"layers {a[0]} to {a[-1]} with {b[0]} to {b[-1]}": (folders, (a, b), shift, profile) for a, b in places}
    tiles = workers.each(_correlate_tile, pieces, what)
    return merge_tiles(zip(places, tiles, strict=True), sizes_a, sizes_b)


def _correlate_tile(
    folders: tuple[Path, Path], layers: tuple[Layers, Layers], shift: int, profile: Profile
) -> Directions:
    a, b = ([open_layer(layer_file(folder, k)) for k in some] for folder, some in zip(folders, layers))
    return max_pairwise_correlations(a, b, shift=shift, device=model_store.device_of(profile))


def resampled_mppc(a: str, b: str, profile: Profile, seed_b: int | None = None) -> tuple[Resampled, Resampled]:
    """Both directions' MPPC in resamples of the documents, with the matches of the whole text (`lib.mppc.uncertainty`).

    They stay on the disk: memory is taken by the parts that are read.
    """
    fields = pair_fields(a, b, profile, seed_b) | uncertainty.constants()
    folder = Store(profile.cache_dir).get("resampled", fields, partial(_resample, a, b, profile, seed_b))
    to_b, to_a = (np.load(folder / f"{way}.npy", mmap_mode="r") for way in WAYS)
    return to_b, to_a


def _resample(a: str, b: str, profile: Profile, seed_b: int | None, folder: Path) -> None:
    own, other = features(a, profile), features(b, profile, seed_b)
    text = texts.load_blocks(profile, "held_out", profile.mppc_tokens)
    require_same_text(own[0].text, other[0].text, text.digest)
    group = document_groups(text, profile.seed)
    to_b, to_a = mppc(a, b, profile, seed_b)
    for way, sides, matches in zip(WAYS, ((own, other), (other, own)), (to_b, to_a), strict=True):
        np.save(folder / f"{way}.npy", resampled(*sides, matches, group, profile.seed))


# ------------------------------------------------------------------------------------------- neurons


def neuron_mppc(a: str, b: str, profile: Profile) -> list[tuple[pd.DataFrame, pd.DataFrame, Resampled]]:
    """For a → b and b → a: MPPC of neurons (W §4.3.1), its null, and the MPPC in resamples of the documents.

    Frames have the columns layer, index, mppc, match_layer, match_index.
    """
    fields = {"a": model_fields(a, profile), "b": model_fields(b, profile)}
    fields |= {"layers": profile.layers, "neuron_tokens": profile.neuron_tokens} | uncertainty.constants()
    folder = Store(profile.cache_dir).get("neurons", fields, partial(_match_neurons, a, b, profile), version=2)
    return [
        (
            pd.read_parquet(folder / f"{way}.parquet"),
            pd.read_parquet(folder / f"{way}_null.parquet"),
            np.load(folder / f"{way}.npy", mmap_mode="r"),
        )
        for way in WAYS
    ]


def _match_neurons(a: str, b: str, profile: Profile, folder: Path) -> None:
    blocks = texts.load_blocks(profile, "held_out", profile.neuron_tokens)  # both models read these
    group = document_groups(blocks, profile.seed)
    places = {folder / "a": a, folder / "b": b}
    x, y = (_neuron_activations(name, blocks, profile, place) for place, name in places.items())
    found = matched(x, y, group, profile.seed, model_store.device_of(profile))
    for way, (frame, null, drawn) in zip(WAYS, found, strict=True):
        frame.to_parquet(folder / f"{way}.parquet", index=False)
        null.to_parquet(folder / f"{way}_null.parquet", index=False)
        np.save(folder / f"{way}.npy", drawn)
    del x, y, found
    for place in places:  # gigabytes that nobody asks for again
        shutil.rmtree(place)


def _neuron_activations(name: str, blocks: Blocks, profile: Profile, folder: Path) -> list[np.memmap]:
    folder.mkdir(exist_ok=True)
    model = model_store.load(name, profile)
    layers = matched_layers(models.n_layers(model), profile)
    return neuron_activations(model, blocks, layers, folder, profile.batch_blocks)
