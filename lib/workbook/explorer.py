"""The explorer of a run: which features of a profile's models stand on the page (`lib.plots.explorer`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lib.interpret.snippets import TopPlaces, vocabulary
from lib.plots.explorer import Shown, page_of, scores_of, wanted_rows
from lib.workbook import artifacts, comparisons, texts
from lib.workbook.judged_features import places_of
from lib.workbook.profiles import Profile
from lib.workbook.store import atomic_write

PAIRS = {"mamba": "mamba", "rwkv": "rwkv", "other": "model_seed"}  # the page's name → the comparison with Pythia


def write(profile: Profile, places: Sequence[TopPlaces], mamba_places: Sequence[TopPlaces] | None) -> Path:
    """Write figures/<profile>/explorer.html: all features, or at scale a sample of Pythia's and their matches."""
    known = comparisons.comparisons(profile)
    pairs = {page: known[short] for page, short in PAIRS.items() if short in known}
    names = {"pythia": profile.pythia} | {page: pair.b for page, pair in pairs.items()}
    frames = {page: artifacts.mppc(pair.a, pair.b, profile) for page, pair in pairs.items()}
    given = {"pythia": places, "mamba": mamba_places}
    all_places = {page: given.get(page) or places_of(name, profile) for page, name in names.items()}
    words = vocabulary(texts.load_tokenizer(profile))
    wanted = wanted_rows(frames, profile.seed)
    shown = []
    for page, name in names.items():
        to = {other: pair[0] for other, pair in frames.items()} if page == "pythia" else {"pythia": frames[page][1]}
        keep = wanted[page]
        matches = {other: frame[keep].reset_index(drop=True) for other, frame in to.items()}
        features = next(iter(to.values()))[["layer", "index"]].to_numpy()[keep]
        by_layer = dict(enumerate(all_places[page]))
        shown.append(Shown(page, name, by_layer, features, matches, scores_of(by_layer, features, words), words))
    profile.figures_dir.mkdir(parents=True, exist_ok=True)
    target = profile.figures_dir / "explorer.html"
    atomic_write(target, page_of(shown, profile.name, profile.meaningful).encode())
    return target
