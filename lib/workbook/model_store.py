"""The models that profiles name: where each lies, and loaded with the tokenizer that cuts the profile's text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lib import models
from lib.models import devices, recipes, tokenizer_identity
from lib.models.hub import ModelNotFound
from lib.workbook import origins, texts
from lib.workbook.profiles import LeftOut, Profile, ProfileError
from lib.workbook.store import Store

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def load(name: str, profile: Profile) -> TransformerBridge:
    """A model by its name in data/models, a folder, or a hub id, on the profile's device; see `lib.models.load`.

    Its tokenizer is the one that cuts the text. Raises `ProfileError` where its own is another, and `ModelNotFound`,
    in one sentence, if there is no such model or it is no sound one.
    """
    with models.quietly():
        folder, tokenizer = folder_of(name, profile), texts.load_tokenizer(profile)
    model = models.load(folder, device_of(profile), tokenizer, name)
    require_tokenizer(name, profile)
    return model


def device_of(profile: Profile) -> str:
    """cpu or cuda. Raises `ProfileError` for a GPU that is not there."""
    try:
        return devices.resolve(profile.device)
    except ValueError as error:
        raise ProfileError(str(error)) from None


def folder_of(name: str | None, profile: Profile) -> str:
    """Where the safetensors of a model are: data/models, a random checkpoint built on the spot, or the hub's cache.

    Raises `ModelNotFound`, in one sentence that says what to do, if it is nowhere, and `LeftOut` for no name.
    """
    if name is None:
        raise LeftOut(f"{profile.left_out()}.")
    if has_random_weights(name, profile):
        return str(_random_folder(name, profile))
    for folder in (recipes.MODELS / name, Path(name)):
        if folder.is_dir() and (folder == Path(name) or (folder / "config.json").exists()):
            return str(origins.safe_folder(folder, profile))
    if not is_available(name):
        raise ModelNotFound(f"{name} has not been trained yet: run python -m lib.zoo {name}.")
    return str(origins.model_folder(name, profile))


def hub_names(profile: Profile) -> list[str]:
    """The profile's models that come from the hub."""
    if profile.models == "random":
        return []
    here = lambda name: (recipes.MODELS / name).is_dir() or Path(name).is_dir()  # noqa: E731
    return [name for name in profile.circuit_models if name not in recipes.RECIPES and not here(name)]


def has_random_weights(name: str, profile: Profile) -> bool:
    """Whether a model is built on the spot; it was trained on no text, so any tokenizer is as good as another."""
    return name.startswith("smoke-") or profile.models == "random"


def is_available(name: str) -> bool:
    """False only for a model of the zoo that has not been trained; the hub is not asked."""
    return name not in recipes.RECIPES or name.startswith("smoke-") or (recipes.MODELS / name / "config.json").exists()


def require_tokenizer(name: str, profile: Profile) -> None:
    """Raise `ProfileError`, in one sentence that names both, where a model's own tokenizer does not cut the text.

    Raises `ModelNotFound` where the model, or the Transformer whose tokenizer it is, is nowhere.
    """
    if has_random_weights(name, profile):
        return
    cutter = texts.tokenizer_folder(profile)
    label = "data/models/tokenizer" if cutter == texts.TOKENIZER else f"the tokenizer of {profile.pythia}"
    try:
        tokenizer_identity.require_same(name, Path(folder_of(name, profile)), cutter, label)
    except tokenizer_identity.TokenizerError as error:
        raise ProfileError(str(error)) from None


def _random_folder(name: str, profile: Profile) -> Path:
    recipe = recipes.recipe_of(name)
    if recipe is None:
        known = ", ".join([*recipes.RECIPES, *recipes.CONFIGURATIONS])
        raise ModelNotFound(f"no configuration of {name} is known to build it with random weights; known are {known}.")
    build = partial(recipes.random_checkpoint, name)
    return Store(profile.cache_dir).get(Path(name).name, {"recipe": vars(recipe)}, build)
