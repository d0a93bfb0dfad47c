"""Sizes that are known before anything runs: the models' shapes, and how much memory SAE training takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib import models
from lib.models import recipes
from lib.models.machine import free_memory
from lib.workbook import model_store
from lib.workbook.profiles import Profile, ProfileError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROOM = 0.7  # share of the free memory that the SAEs in training may fill


@dataclass(frozen=True)
class Shape:
    """Numbers of a model."""

    name: str
    n_layers: int
    sae_layers: int
    """Layers that get SAEs."""
    d_model: int
    n_neurons: int
    """Per layer, as `models.neurons` reads them."""
    block_parameters: int
    """Of one block."""
    parameters: int
    """Of all, embeddings included."""
    vocabulary: int


def shape_of(name: str, profile: Profile) -> Shape:
    """A model's shape by its configuration; no weights are loaded, and the hub is asked only for unknown models.

    Raises `ProfileError` where the profile names layers that the Transformer lacks.
    """
    config = config_of(name, profile)
    n_layers, d_model, kind = config.num_hidden_layers, config.hidden_size, config.model_type
    block, total = recipes.parameter_counts(type(config), config.to_json_string())
    return Shape(
        name, n_layers, len(matched_layers(n_layers, profile)), d_model,
        models.family_class(kind, name).n_neurons(config), block, total, config.vocab_size,
    )  # fmt: skip


def config_of(name: str, profile: Profile) -> PretrainedConfig:
    """The Hugging Face configuration of a model; see `model_store.folder_of` for names.

    Raises `ModelNotFound` where there is none, or one of an unknown family.
    """
    from transformers import AutoConfig

    recipe = recipes.recipe_of(name)
    if recipe:
        return recipes.config_of(recipe)
    try:
        config = AutoConfig.from_pretrained(model_store.folder_of(name, profile))
    except (OSError, ValueError) as error:
        raise models.ModelNotFound(f"cannot find the configuration of {name}: {str(error).splitlines()[0]}") from None
    try:
        models.family_class(config.model_type, name)
    except ValueError as error:
        raise models.ModelNotFound(str(error)) from None
    return config


def matched_layers(n: int, profile: Profile) -> list[int]:
    """Layers with SAEs in a model of `n`: `profile.layers` counts in the Transformer's, others take its depths."""
    if profile.layers is None:
        return list(range(n))
    of_transformer = config_of(profile.pythia, profile).num_hidden_layers
    wrong = [layer for layer in profile.layers if not 0 <= layer < of_transformer]
    if wrong:
        raise ProfileError(f"layers names {wrong[0]}, but {profile.pythia} has layers 0 to {of_transformer - 1}.")
    return [round((layer + 1) * n / of_transformer) - 1 for layer in profile.layers]


def training_bytes(d_model: int, n_seeds: int, profile: Profile) -> int:
    """Memory that the training of one more layer takes: weights, gradients, two moments, its share of the buffer."""
    return 4 * (4 * n_seeds * sae_parameters(d_model, profile) + profile.buffer_tokens * d_model)


def sae_parameters(d_model: int, profile: Profile) -> int:
    """Of one SAE: both matrices and both biases."""
    d_sae = profile.expansion * d_model
    return 2 * d_model * d_sae + d_sae + d_model


def group_size(n_layers: int, d_model: int, n_seeds: int, profile: Profile) -> int:
    """How many layers' SAEs are trained at a time: `sae_group_layers`, or as many as the free memory holds."""
    room = int(ROOM * free_memory(model_store.device_of(profile)) / training_bytes(d_model, n_seeds, profile))
    return min(n_layers, profile.sae_group_layers or max(1, room))
