"""The paper's question of any two models: what `python -m lib.compare` makes, every stage kept in its folder.

Two models may have different tokenizers: they are compared at the positions where both have read the same
(`lib.pairing`). SAEs are the user's own, or are trained here.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from safetensors.torch import save
from tqdm import tqdm

from lib import corpus, models
from lib.documents import documents, read_text, shuffled
from lib.interpret.snippets import TopPlaces, top_places
from lib.models import activations, devices, hub, recipes
from lib.models.activations import TYPICAL_POSITIONS, typical_norms
from lib.mppc import uncertainty
from lib.mppc.capture import capture_features
from lib.mppc.directions import Direction, matched
from lib.mppc.features import SparseFeatures
from lib.mppc.files import feature_bytes, layer_file, open_features, save_features
from lib.pairing import PairedBlocks, paired_blocks
from lib.sae import SAE, SAEConfig, load, train_saes, training as sae_training
from lib.sae.folders import check_fits
from lib.workbook import artifacts, model_store, texts
from lib.workbook.plan import EFFICIENCY
from lib.workbook.profiles import Profile
from lib.workbook.store import Store, sha256_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

log = logging.getLogger("workbook.two_models")
SEEDS = (0, 1)  # of the SAEs of the first model; the second is the skyline's
DEPTHS = (0.25, 0.5, 0.75)  # relative depths of the layers that are compared, where none are named
BATCH_BLOCKS = 16  # blocks that a model reads at a time
BATCH_SIZE, MOST_BUFFERED = 256, 65_536  # tokens of a step of the SAEs, and of their shuffle buffer
MOST_TOKENS = 50_000  # positions over which a notebook compares two models


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    a: str
    b: str
    saes_a: tuple[str, ...] = ()
    saes_b: tuple[str, ...] = ()
    skyline: tuple[str, ...] = ()
    """SAEs of the first model from another seed, where `saes_a` are given."""
    text: str | None = None
    layers: tuple[int, ...] | None = None
    tokens: int = 200_000
    sae_tokens: int = 1_000_000
    context: int = 256
    device: str = "auto"
    seed: int = 0

    @property
    def has_skyline(self) -> bool:
        """Whether the first model has SAEs of two seeds."""
        return bool(self.skyline or not self.saes_a)

    @property
    def sae_config(self) -> SAEConfig:
        """How SAEs are trained where none are given."""
        # A buffer that is larger than the tokens would read a short text many times.
        buffer = max(4 * BATCH_SIZE, min(MOST_BUFFERED, self.sae_tokens))
        return SAEConfig(
            expansion=8, target_l0=32, tokens=self.sae_tokens, batch_size=BATCH_SIZE, batch_blocks=BATCH_BLOCKS,
            buffer_tokens=buffer, seed=self.seed,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------- one model


class Side:
    """One of the two models, with what is read of it."""

    def __init__(self, name: str, given: Sequence[str], request: Request, again: Sequence[str] = ()) -> None:
        self.name, self.given, self.request = name, given, request
        self.again = again
        self.label = Path(name).name if Path(name).is_dir() else name  # in figures, tables and pages

    @cached_property
    def folder(self) -> Path:
        """Where its files are. Raises `ModelNotFound`."""
        return folder_of(self.name)

    @cached_property
    def model(self) -> TransformerBridge:
        """Loaded when it is first asked for. Raises `ModelNotFound`."""
        return models.load(self.folder, devices.resolve(self.request.device), name=self.name)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """What identifies it."""
        files = {file.name: sha256_of(file) for file in (hub.weights_in(self.folder), self.folder / "config.json")}
        return {"model": self.name, "files": files}

    @property
    def origin(self) -> dict[str, Any]:
        """Where it is from: the commit of a model of the hub, and its SAEs' digests or how they were trained."""
        saes = self.digests_given if self.given else self.request.sae_config.model_dump()
        revision = self.folder.name if self.folder.parent.name == "snapshots" else None
        tokenizer = sha256_of(self.folder / "tokenizer.json") if (self.folder / "tokenizer.json").exists() else None
        return {"revision": revision, "tokenizer": tokenizer, "saes": saes}

    @cached_property
    def context(self) -> int:
        """Tokens of a block, BOS included: what was asked for, or what the model can read."""
        config = self.model.original_model.config
        lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "context_length"))
        return min([self.request.context, *(length for length in lengths if length)])

    @cached_property
    def saes_given(self) -> list[list[SAE]]:
        """The user's SAEs, and the skyline's if there are any, by layer. Raises `ValueError` where they do not fit."""
        found = [self._read(given) for given in (self.given, self.again) if given]
        layers = [[sae.info.layer for sae in saes] for saes in found]
        if layers[0] != layers[-1]:
            raise ValueError(f"the SAEs of {self.name} are for layers {layers[0]}, the skyline's for {layers[1]}.")
        return found

    def _read(self, sources: Sequence[str]) -> list[SAE]:
        device = devices.resolve(self.request.device)
        folders = [folder for source in sources for folder in _sae_folders(source)]
        saes = sorted((load(folder, device) for folder in folders), key=lambda sae: sae.info.layer)
        for sae in saes:
            check_fits(sae, self.name, self.model.cfg.d_model, models.n_layers(self.model))
        twice = [a.info.layer for a, b in itertools.pairwise(saes) if a.info.layer == b.info.layer]
        if twice:
            raise ValueError(f"two SAEs are given for layer {twice[0]} of {self.name}: give one for each layer.")
        return saes

    @cached_property
    def digests_given(self) -> list[list[str]]:
        """What identifies the user's SAEs."""
        return [[_digest(sae) for sae in saes] for saes in self.saes_given]

    @cached_property
    def layers(self) -> list[int]:
        """The layers that are compared."""
        if self.given:
            return [sae.info.layer for sae in self.saes_given[0]]
        chosen = self.request.layers
        return at_depths(models.n_layers(self.model)) if chosen is None else sorted(chosen)


def folder_of(name: str) -> Path:
    """Where a model's files are: of the mini zoo, the user's own, or the hub's cache. Raises `ModelNotFound`."""
    shipped = recipes.MODELS / name
    if (shipped / "config.json").exists():
        return shipped
    return Path(name) if Path(name).is_dir() else hub.fetch_model(name)


def at_depths(n: int) -> list[int]:
    """Of so many layers, those at a quarter, a half and three quarters of the depth."""
    return sorted({max(0, round(depth * n) - 1) for depth in DEPTHS})


def _digest(sae: SAE) -> str:
    weights = {name: value.cpu().contiguous() for name, value in sae.state_dict().items()}
    return hashlib.sha256(save(weights)).hexdigest()


def _sae_folders(given: str) -> list[str]:
    """An SAE, or a folder of several."""
    inside = [str(path.parent) for path in sorted(Path(given).rglob("cfg.json"))] if Path(given).is_dir() else []
    return inside or [given]


# ------------------------------------------------------------------------------------------- the comparison


class Comparison:
    """Two models over one text, every stage kept in a store; `source` has other documents than those of the request."""

    def __init__(self, request: Request, store: Store, source: Iterable[str] | None = None) -> None:
        if request.skyline and not request.saes_a:
            raise ValueError("skyline has the same SAEs of another seed, so it needs saes_a.")
        self.request, self.store = request, store
        self.a = Side(request.a, request.saes_a, request, request.skyline)
        self.b = Side(request.b, request.saes_b, request)
        if self.a.label == self.b.label:
            names = (request.a, request.b) if request.a != request.b else (f"{request.a} (a)", f"{request.a} (b)")
            self.a.label, self.b.label = names
        self._same_relative_depths()
        trained = 0 if request.saes_a and request.saes_b else request.sae_tokens
        if source is None and request.text:
            source = documents(request.text, request.seed)
        elif source is None:
            source = shuffled(texts.documents(), request.seed)
        self.text = read_text(source, trained, request.tokens)

    def _same_relative_depths(self) -> None:
        """Layers that were named are the first model's; the second is read at the same relative depths."""
        chosen = self.request.layers
        if chosen is None or self.b.given:
            return
        n_a, n_b = (models.n_layers(side.model) for side in (self.a, self.b))
        if wrong := [layer for layer in chosen if not 0 <= layer < n_a]:
            raise ValueError(f"{self.a.name} has no layer {wrong[0]}: its layers are 0 to {n_a - 1}.")
        self.b.layers = sorted({max(0, round((layer + 1) / n_a * n_b) - 1) for layer in chosen})

    @cached_property
    def blocks(self) -> PairedBlocks:
        """What both models read, and where they are compared. Raises `ValueError` where nothing is paired."""
        tokenizers = self.a.model.tokenizer, self.b.model.tokenizer
        contexts = self.a.context, self.b.context
        pair = paired_blocks(self.text.held_out, tokenizers, contexts, n_positions=self.request.tokens)
        n, n_documents = pair.a.n_positions, pair.a.n_documents
        if n < 1_000 or n_documents < 2:
            raise ValueError(
                f"the text is too short: it has {n} shared positions in {n_documents} documents held out for the "
                "comparison, and 1,000 in two are the least."
            )
        return pair

    def saes(self, side: Side, seed: int = 0) -> list[SAE]:
        """The side's SAEs, by layer; trained where none are given."""
        if side.given:
            return side.saes_given[seed]
        folder = self._trained(side)
        return [load(path, devices.resolve(self.request.device)) for path in sorted(folder.glob(f"seed{seed:02d}_*"))]

    def _trained(self, side: Side) -> Path:
        return self.store.get("saes", self._sae_fields(side), partial(self._train, side))

    def _seeds(self, side: Side) -> tuple[int, ...]:
        return SEEDS if side is self.a and self.request.has_skyline else SEEDS[:1]

    def _sae_fields(self, side: Side, seed: int = 0) -> dict[str, Any]:
        far = {"far": activations.FAR, "typical_positions": TYPICAL_POSITIONS}
        if side.given:
            return side.fields | far | {"saes": side.digests_given[seed]}
        config = self.request.sae_config
        made = {"layers": side.layers, "seeds": self._seeds(side), "context": side.context, "text": self.text.digest}
        return side.fields | far | {"sae": config.model_dump()} | sae_training.constants(config) | made

    def _train(self, side: Side, folder: Path) -> None:
        tokenizer = side.model.tokenizer
        ids = (tokenizer(document, add_special_tokens=False)["input_ids"] for document in self.text.train)
        blocks = corpus.cut(ids, tokenizer, side.context, n_positions=self.request.sae_tokens)
        n, wanted = blocks.n_positions, self.request.sae_tokens
        if wanted > 1.5 * n:
            log.warning("The text has %d tokens for SAEs of %s: it is read %.1f times.", n, side.name, wanted / n)
        config = self.request.sae_config
        saes, history = train_saes(
            side.model, blocks, config, self._seeds(side), side.layers, folder / "checkpoint",
            typical=typical_norms(side.model, blocks, side.layers, BATCH_BLOCKS),
        )  # fmt: skip
        for sae in saes:
            sae.save(folder / f"seed{sae.info.seed:02d}_layer{sae.info.layer:03d}")
        history.to_csv(folder / "history.csv", index=False)

    def _blocks_of(self, side: Side) -> corpus.Blocks:
        return self.blocks.a if side is self.a else self.blocks.b

    def features(self, side: Side, seed: int = 0) -> list[SparseFeatures]:
        """Feature activations at the shared positions, by layer."""
        blocks = self._blocks_of(side)

        def capture(folder: Path) -> None:
            typical = typical_norms(side.model, blocks, side.layers, BATCH_BLOCKS)
            saes = self.saes(side, seed)
            found = capture_features(side.model, saes, blocks, batch_blocks=BATCH_BLOCKS, typical=typical)
            for k, layer in enumerate(found):
                save_features(layer, layer_file(folder, k))

        fields = self._sae_fields(side, seed) | {"seed": seed, "read": blocks.digest}
        return open_features(self.store.get("features", fields, capture))

    def directions(self, skyline: bool = False) -> tuple[Direction, Direction]:
        """Matches of both models' features, with null and resamples; or of the first one's with another SAE seed's."""
        sides = (self.a, self.a if skyline else self.b)
        seed = SEEDS[1] if skyline else 0
        fields = {"a": self._sae_fields(sides[0]), "b": self._sae_fields(sides[1], seed), "seed_b": seed}
        fields |= uncertainty.constants() | {"read": self.blocks.a.digest, "seed": self.request.seed}
        folder = self.store.get("matches", fields, partial(self._match, sides, seed))
        names = [sides[0].label, f"{sides[1].label}, SAE seed {seed}" if skyline else sides[1].label]
        found = []
        for k, file in enumerate(("a_to_b", "b_to_a")):
            frame = pd.read_parquet(folder / f"{file}.parquet")
            frame["layer"] = np.array(sides[k].layers)[frame["layer"]]
            matched = np.array([*sides[1 - k].layers, -1])[frame["match_layer"]]
            frame = frame.assign(match_layer=matched, excess=frame["mppc"] - frame["null_level"])
            resampled = np.load(folder / f"{file}.npy", mmap_mode="r")
            found.append(Direction(names[k], names[1 - k], frame, resampled))
        return found[0], found[1]

    def _match(self, sides: tuple[Side, Side], seed: int, folder: Path) -> None:
        a, b = self.features(sides[0]), self.features(sides[1], seed)
        found = matched(a, b, self.blocks.a, self.request.seed, devices.resolve(self.request.device))
        for file, (frame, resampled) in zip(("a_to_b", "b_to_a"), found, strict=True):
            np.save(folder / f"{file}.npy", resampled)
            frame.to_parquet(folder / f"{file}.parquet", index=False)

    def places(self, side: Side) -> dict[int, TopPlaces]:
        """The highest places of the side's features, by layer of the model."""
        blocks = self._blocks_of(side)
        features = tqdm(self.features(side), f"highest places of {side.name}", unit="layer", mininterval=5)
        return {layer: top_places(found, blocks) for layer, found in zip(side.layers, features, strict=True)}

    def needs(self, rate: float) -> tuple[float, float, float]:
        """Coarse: seconds where a product does `rate` multiply-adds per second, bytes of memory, bytes of disk."""
        work = memory = disk = 0.0
        for side in (self.a, self.b):
            d, n = side.model.cfg.d_model, len(side.layers)
            seeds = 0 if side.given else len(self._seeds(side))
            parameters = sum(p.numel() for p in side.model.parameters())
            config = self.request.sae_config
            sae, read = 2 * d * d * config.expansion, len(self._seeds(side)) * self.request.tokens
            work += read * parameters + self.request.sae_tokens * (bool(seeds) * parameters + seeds * n * sae / 2)
            kept = feature_bytes(read, config.target_l0, d * config.expansion)
            memory = max(
                memory, 4 * (parameters + n * (config.buffer_tokens * d + 4 * max(seeds, 1) * sae)), 2 * n * kept
            )
            disk += n * (kept + 3 * 4 * seeds * sae)
        return work / (EFFICIENCY * rate), memory, disk

    def sentence(self, side: Side) -> str:
        """What a reader should know of a side's layers and SAEs: which, and how good those are that were trained."""
        layers = f"{side.label}: layers {', '.join(map(str, side.layers))}"
        if side.given:
            return f"{layers}; given SAEs."
        history = pd.read_csv(self._trained(side) / "history.csv")
        last = history[history["step"] == history["step"].max()].mean(numeric_only=True)
        return (
            f"{layers}; SAEs trained on {self.request.sae_tokens:,} tokens, at their end with {last['l0']:.0f} active "
            f"features on a token (wanted: {self.request.sae_config.target_l0:.0f}) and "
            f"{last['explained_variance']:.0%} of the variance explained."
        )

    def about(self) -> dict[str, Any]:
        """What the run was made of, for `run.json`."""
        a, b = (s.fields | {"layers": s.layers, "context": s.context} | s.origin for s in (self.a, self.b))
        paired = {side: round(share, 4) for side, share in zip("ab", self.blocks.shares, strict=True)}
        return {
            "request": asdict(self.request), "a": a, "b": b, "text": self.text.digest,
            "share of tokens paired": paired, "positions": self.blocks.a.n_positions,
        }  # fmt: skip


def of_profile(a: str, b: str, profile: Profile, saes_a: Sequence[str] = (), saes_b: Sequence[str] = ()) -> Comparison:
    """Two models at a profile's sizes, on its text and in its cache.

    A model that the profile names, and for which no SAEs are given, has those that its run trained, at three depths;
    there is a skyline if they are of two seeds, as the Transformer's are.
    """
    request = Request(
        a, b, tuple(saes_a) or _saes_of_run(a, profile), tuple(saes_b) or _saes_of_run(b, profile),
        () if saes_a else _saes_of_run(a, profile, SEEDS[1]),
        tokens=min(profile.mppc_tokens, MOST_TOKENS), sae_tokens=profile.sae_tokens, context=profile.context_length,
        device=profile.device, seed=profile.seed,
    )  # fmt: skip
    source = texts.openwebtext(profile) if profile.corpus == "openwebtext" else None
    comparison = Comparison(request, Store(profile.cache_dir), source)
    for side in (comparison.a, comparison.b):
        if side.name in profile.model_names:
            side.folder = Path(model_store.folder_of(side.name, profile))
    return comparison


def _saes_of_run(name: str, profile: Profile, which: int = 0) -> tuple[str, ...]:
    """Folders of the SAEs that a run trained of a model, at three depths; none where it trained none of that seed."""
    seeds = artifacts.seeds_of(name, profile) if name in profile.model_names else ()
    if which >= len(seeds):
        return ()
    found = sorted(artifacts.saes_folder(name, profile).glob(f"seed{seeds[which]:02d}_*"))
    kept = at_depths(len(found)) if len(found) > len(DEPTHS) else range(len(found))
    return tuple(str(found[k]) for k in kept)
