"""The four sizes of the workbook: every size, seed, path and model name is a field of a `Profile`.

Nothing else in the project asks which profile runs; it reads fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator

from lib.sae.config import TRAINED, SAEConfig, TrainableType

HOME = Path(__file__).resolve().parents[2]
DATA = HOME / "data"
SAE_FIELDS = ("tokens", "batch_size", "learning_rate", "warmup", "decay")  # of SAEConfig; a profile's begin with sae_
Result = TypeVar("Result")


class ProfileError(ValueError):
    """A wrong profile or setting, said in one sentence."""


class LeftOut(ProfileError):
    """Something was asked of a model that the run is made without; one sentence says which, and by which setting."""


class Pair(BaseModel, frozen=True, extra="forbid"):
    """A comparison of two models' features, or neurons."""

    a: str = Field(description="a role")
    b: str = Field(description="another role, or the same with another SAE seed")
    of: Literal["features", "neurons"] = "features"
    other_sae_seed: bool = Field(False, description="the last of the SAE seeds stands on b's side")
    label: str = Field(description="what figures and tables call it")


PARTS = {  # role → what a sentence calls its model
    "pythia": "the Transformer",
    "pythia_seed": "another seed of the Transformer",
    "mamba": "a Mamba",
    "rwkv": "an RWKV",
}
COMPARISONS = {
    "neurons": Pair(a="pythia", b="mamba", of="neurons", label="neurons, Pythia → Mamba"),
    "mamba": Pair(a="pythia", b="mamba", label="Pythia → Mamba"),
    "rwkv": Pair(a="pythia", b="rwkv", label="Pythia → RWKV"),
    "model_seed": Pair(a="pythia", b="pythia_seed", label="model seed"),
    "sae_seed": Pair(a="pythia", b="pythia", other_sae_seed=True, label="SAE seed"),
    "neurons_rwkv": Pair(a="pythia", b="rwkv", of="neurons", label="neurons, Pythia → RWKV"),
}


class Profile(BaseModel, frozen=True, extra="forbid"):
    """One size of the workbook. Immutable; `get_profile` builds one, with overrides."""

    name: str = Field(description="name of the profile; figures go to figures/<name>")
    meaningful: bool = Field(True, description="False where the models have random weights")
    models: Literal["pretrained", "random"] = Field(
        "pretrained", description="random builds each model with random weights on the spot; the text is the docstrings"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU if there is one")
    seed: int = Field(0, ge=0, description="seed of every random choice that is not an SAE's own")
    cache_dir: Annotated[Path, AfterValidator(Path.absolute)] = Field(
        description="where artifacts are kept; data/cache/<name> unless set"
    )
    figures: Annotated[Path, AfterValidator(Path.absolute)] = Field(
        HOME / "figures", description="where figures and tables go, each profile's into a folder of its own"
    )
    ray: str | None = Field(
        None, description="auto or HOST:PORT of a Ray cluster that does the work; None: this machine"
    )

    corpus: Literal["docstrings", "openwebtext"] = Field(description="which text is read")
    context_length: int = Field(ge=8, description="tokens per block, BOS included")
    blocks_per_document: int | None = Field(
        None, ge=1, description="blocks a document may fill; the paper cuts it to 1, None keeps all of it"
    )

    roles: dict[str, str | None] = Field(
        description="the models by their parts (a setting: mamba=NAME); others are compared with the first. A model is "
        "a folder in data/models or a hub id; none leaves it out"
    )
    more_models: tuple[str, ...] = Field(
        (), description="models beside those in the parts, whose abilities and circuits are measured: more seeds"
    )
    comparisons: dict[str, Pair] = Field(COMPARISONS, description="what is compared with what, by a short name")
    layers: tuple[int, ...] | None = Field(
        None, description="Transformer layers that get SAEs (None: all); deeper models take the same relative depths"
    )

    sae_type: TrainableType = Field("standard", description=f"SAE type by SAELens' name: {', '.join(TRAINED)}")
    expansion: int = Field(ge=1, description="d_sae / d_model")
    l1_coefficient: float = Field(
        2.0, gt=0, description="λ on Σ f·‖W_dec‖ for activations of mean norm sqrt(d_model)"
    )
    target_l0: float | None = Field(
        None, gt=0, description="λ follows L0 until it is this; None: λ is l1_coefficient"
    )
    sae_tokens: int = Field(ge=1, description="tokens each SAE is trained on")
    sae_batch_size: int = Field(4096, ge=1, description="tokens per SAE step")
    sae_learning_rate: float = Field(8e-4, gt=0, description="Adam's learning rate (paper, App. A)")
    sae_warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps over which λ and the rate rise")
    sae_decay: float = Field(0.2, ge=0, lt=1, description="share of the steps over which the rate falls to zero")
    sae_seeds: tuple[int, ...] = Field((0, 1), min_length=1, description="SAE seeds; the second is the skyline's")
    sae_group_layers: int | None = Field(
        None,
        ge=1,
        description="layers whose SAEs train at a time; None: as many as memory holds. Each group rereads the text",
    )
    buffer_tokens: int = Field(ge=1, description="tokens in the shuffle buffer")
    batch_blocks: int = Field(32, ge=1, description="blocks per forward pass of a language model")
    untrained_tokens: int = Field(ge=1, description="tokens per SAE of untrained models, the null of notebook 04")

    eval_tokens: int = Field(ge=1, description="held-out tokens for the SAEs' quality metrics")
    mppc_tokens: int = Field(ge=1, description="held-out tokens over which features are correlated")
    shard_tokens: int = Field(16_384, ge=1, description="tokens after which captured features survive a kill")
    feature_dtype: Literal["float32", "float16"] = Field(
        "float32", description="how captured features are stored; float16 takes a third less disk"
    )
    neuron_tokens: int = Field(ge=1, description="held-out tokens over which neurons are correlated")

    circuit_samples: int = Field(128, ge=2, description="induction prompts per distance (paper, App. G)")
    circuit_distances: tuple[int, ...] = Field(
        (8, 16, 32, 64, 128), min_length=1, description="positions between the two A of a prompt (paper, App. G)"
    )

    judge_model: str | None = Field(
        None, description="language model that judges features (App. E); None: the offline rule-based stand-in"
    )
    judge_features: int = Field(600, ge=1, description="features judged, spread over layers and MPPC")
    judge_concurrency: int = Field(8, ge=1, description="requests to the language model at a time")

    @field_validator("roles")
    @classmethod
    def _has_the_first(cls, roles: dict[str, str | None]) -> dict[str, str | None]:
        first, *others = roles
        if roles[first] is None:
            raise ValueError(f"every comparison starts from {PARTS[first]}; only {', '.join(others)} can be none")
        return roles

    @model_validator(mode="after")
    def _comparisons_fit(self) -> Profile:
        for name, pair in self.comparisons.items():
            if unknown := {pair.a, pair.b} - set(self.roles):
                known = ", ".join(self.roles)
                raise ValueError(f"the comparison {name} names {unknown.pop()}, which is no role of {known}")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Profile:
        if self.buffer_tokens < 4 * self.sae_batch_size:
            raise ValueError(
                f"buffer_tokens={self.buffer_tokens} holds less than four of sae_batch_size={self.sae_batch_size}"
            )
        return self

    def __getattr__(self, name: str) -> Any:
        """`profile.mamba` is the name of the model in that role, or None."""
        roles = self.__dict__.get("roles", {})
        return roles[name] if name in roles else super().__getattr__(name)

    def __hash__(self) -> int:
        """Of all settings: equal profiles have equal ones."""
        return hash(self.model_dump_json())

    def changed(self, **settings: Any) -> Profile:
        """A copy with other settings, which are not checked again; a role takes the name of its model."""
        named = {role: settings.pop(role) for role in self.roles if role in settings}
        return self.model_copy(update={"roles": self.roles | named} | settings)

    def settings(self) -> dict[str, Any]:
        """All settings by name, with a role for the name of its model."""
        return self.model_dump(exclude={"roles", "comparisons"}) | self.roles

    @property
    def model_names(self) -> tuple[str, ...]:
        """All models that there are; a name stands twice where a setting gives two roles the same."""
        return tuple(filter(None, self.roles.values()))

    @property
    def circuit_models(self) -> tuple[str, ...]:
        """Each model once whose abilities and circuits are measured; a run that lacks a part has no more models."""
        return tuple(dict.fromkeys(self.model_names + (() if self.without else self.more_models)))

    @property
    def sae_config(self) -> SAEConfig:
        """How SAEs are trained."""
        named = {field: getattr(self, f"sae_{field}") for field in SAE_FIELDS}
        same = {field: getattr(self, field) for field in SAEConfig.model_fields.keys() & type(self).model_fields.keys()}
        return SAEConfig(architecture=self.sae_type, **named, **same)

    @property
    def without(self) -> tuple[str, ...]:
        """Roles that are none: what needs such a model is left out of the run."""
        return tuple(role for role, model in self.roles.items() if model is None)

    def lacking(self, needs: str) -> tuple[str, ...]:
        """The roles for want of which something is left out; none if nothing is wanting.

        `needs` names what it needs: "mamba, rwkv" both, "mamba or rwkv" one of them, "" none. Raises `ValueError` for
        a role that cannot be none.
        """
        groups = [[role.strip() for role in group.split(" or ")] for group in needs.split(",") if needs]
        others = list(self.roles)[1:]
        if unknown := {role for group in groups for role in group} - set(others):
            raise ValueError(f"{unknown.pop()!r} is no model that can be left out; these are {', '.join(others)}.")
        return tuple(role for group in groups if set(group) <= set(self.without) for role in group)

    def left_out(self, roles: Sequence[str] | None = None) -> str:
        """The sentence that says what is left out for want of some models; by default of all that the run lacks."""
        roles = self.without if roles is None else roles
        named = " and without ".join(f"{PARTS[role]} ({role}=none)" for role in roles)
        return f"left out: this run was made without {named}"

    def given(self, needs: str, make: Callable[[], Result]) -> Result | str:
        """What `make()` gives, or where a model that it needs (as for `lacking`) is none, "left out (mamba=none)"."""
        roles = self.lacking(needs)
        return f"left out ({', '.join(f'{role}=none' for role in roles)})" if roles else make()

    @property
    def figures_dir(self) -> Path:
        """Folder of this profile's figures and tables; those of random weights, or without a model, lie apart."""
        return self.figures / "-without-".join([_folder(self.name, self.models), *self.without])


def _folder(name: str, models: str) -> str:
    return name if models == "pretrained" else f"{name}-{models}"


RANDOM_MODELS = dict(meaningful=False, corpus="docstrings")  # text that needs no network, unless another is asked for


_LAPTOP = dict(
    corpus="openwebtext",
    context_length=1024,
    blocks_per_document=1,
    roles=dict(
        pythia="EleutherAI/pythia-160m",
        pythia_seed="EleutherAI/pythia-160m-seed1",
        mamba="state-spaces/mamba-130m-hf",
        rwkv="RWKV/rwkv-4-169m-pile",
    ),
)

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": dict(
        meaningful=False,
        corpus="docstrings",
        context_length=32,
        roles=dict(pythia="smoke-pythia", pythia_seed="smoke-pythia-seed1", mamba="smoke-mamba", rwkv="smoke-rwkv"),
        more_models=("smoke-mamba-seed1",),
        expansion=4,
        target_l0=16,
        sae_tokens=16_384,
        untrained_tokens=2_048,
        sae_batch_size=128,
        buffer_tokens=4_096,
        eval_tokens=2_048,
        mppc_tokens=4_096,
        neuron_tokens=2_048,
        circuit_samples=4,
        circuit_distances=(8, 16),
        judge_features=40,
    ),
    "mini": dict(
        corpus="docstrings",
        context_length=256,
        roles=dict(pythia="mini-pythia", pythia_seed="mini-pythia-seed1", mamba="mini-mamba", rwkv="mini-rwkv"),
        more_models=("mini-pythia-half", "mini-mamba-seed1", "mini-rwkv-seed1"),
        expansion=16,
        target_l0=16,
        sae_tokens=2_000_000,
        untrained_tokens=125_000,
        sae_batch_size=128,
        sae_learning_rate=1.6e-3,
        buffer_tokens=65_536,
        batch_blocks=16,
        eval_tokens=50_000,
        mppc_tokens=200_000,
        neuron_tokens=30_000,
    ),
    "laptop": dict(
        **_LAPTOP,
        layers=(2, 5, 8),
        expansion=8,
        target_l0=32,
        sae_tokens=4_000_000,
        untrained_tokens=500_000,
        sae_batch_size=512,
        buffer_tokens=65_536,
        batch_blocks=4,
        eval_tokens=50_000,
        mppc_tokens=200_000,
        neuron_tokens=30_000,
    ),
    "paper": dict(
        **_LAPTOP,
        expansion=32,
        target_l0=64,
        sae_tokens=300_000_000,
        untrained_tokens=5_000_000,
        buffer_tokens=500_000,
        batch_blocks=16,
        eval_tokens=200_000,
        mppc_tokens=1_000_000,
        neuron_tokens=100_000,
    ),
}


def get_profile(name: str = "mini", overrides: dict[str, Any] | str | None = None, **more: Any) -> Profile:
    """Build a profile by name, with single fields overridden.

    `overrides` is a dict or, as on a command line, ``"field=value,field=value"``.

    Raises `ProfileError` with one sentence for an unknown profile, an unknown field or a bad value.
    """
    if name not in PROFILES:
        raise ProfileError(f"unknown profile {name!r}; the profiles are {', '.join(PROFILES)}.")
    settings = {**parse_overrides(overrides), **more}
    roles = PROFILES[name]["roles"]
    known = [*roles, *(field for field in Profile.model_fields if field not in ("name", "roles", "comparisons"))]
    for field in settings:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ProfileError(f"unknown setting {field!r}{hint}; the settings are {', '.join(known)}.")
    models = settings.get("models", "pretrained")
    named = {role: settings.pop(role) for role in roles if role in settings}
    settings = {"roles": roles | named} | (RANDOM_MODELS if models == "random" else {}) | settings
    cache_dir = DATA / "cache" / _folder(name, models)
    try:
        return Profile.model_validate({"cache_dir": cache_dir, **PROFILES[name], **settings, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        field, *inside = map(str, first["loc"] or ["settings"])
        where = field if field != "roles" else (inside or list(roles))[0]  # as it was typed
        reason = first["msg"].removeprefix("Value error, ")  # pydantic's words before ours
        raise ProfileError(f"bad value for {where} in profile {name!r}: {reason}.") from None


def parse_overrides(overrides: dict[str, Any] | str | None) -> dict[str, Any]:
    """Turn ``"a=1,b=2"`` (or a dict, or nothing) into a dict of settings; comma-free lists are written ``2+5+8``."""
    if not overrides:
        return {}
    if isinstance(overrides, dict):
        return {field: _as_tuple(field, value) for field, value in overrides.items()}
    pairs = [part.partition("=") for part in overrides.split(",")]
    for field, equals, _ in pairs:
        if not equals:
            raise ProfileError(f"a setting is written field=value, not {field!r}.")
    return {field.strip(): _as_tuple(field.strip(), value.strip()) for field, _, value in pairs}


def _as_tuple(field: str, value: Any) -> Any:
    """Fields that hold several values are written 2+5+8; ``none`` stands for None, or for no more models."""
    if not isinstance(value, str):
        return value
    if value.lower() == "none":
        return () if field == "more_models" else None
    several = ("layers", "sae_seeds", "circuit_distances", "more_models")
    return tuple(value.split("+")) if value and field in several else value
