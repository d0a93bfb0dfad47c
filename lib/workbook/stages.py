"""What every stage of a run computes, moves, keeps in memory and leaves on the disk, from the profile's numbers alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lib.mppc.files import feature_bytes
from lib.mppc.uncertainty import N_GROUPS, N_RESAMPLES
from lib.workbook.artifacts import seeds_of
from lib.workbook.profiles import Profile
from lib.workbook.sizes import Shape, group_size, sae_parameters, shape_of, training_bytes
from lib.workbook.sweep import FACTORS, variants

FLOAT = 4  # bytes
L0_WITHOUT_TARGET = 64  # where λ does not follow L0, what it will be is not known: the paper's
CHUNK = 2_048  # tokens that are dense at a time in encoding and in an SAE step
CIRCUIT_PASSES = 25  # forward passes over the prompts that notebooks 07 and 08 come to; fitted to a run of mini


@dataclass(frozen=True)
class Stage:
    """One stage; sums over all of it, but `memory` is the largest at any time."""

    name: str
    kind: str
    """Stages of a kind are as fast, measured against the same model of their time."""
    flops: float = 0
    """Floating-point operations, in float32 unless the device is faster in bfloat16."""
    double_flops: float = 0
    """Floating-point operations in float64."""
    moved: float = 0
    """Bytes read and written that no cache holds."""
    multiply_adds: float = 0
    """Products of two features that fire on the same token, added up where they belong."""
    memory: float = 0
    """Bytes."""
    disk: float = 0
    """Bytes that stay in the cache folder."""
    passing: float = 0
    """Bytes that lie there until the stage is done."""

    @property
    def operations(self) -> float:
        """Floating-point operations of all kinds."""
        return self.flops + self.double_flops + 2 * self.multiply_adds


def stages(profile: Profile) -> list[Stage]:
    """All stages of a run from nothing, in their order; nothing is measured or loaded."""
    profile = profile.model_copy(update={"target_l0": l0_of(profile)})
    shapes = {name: shape_of(name, profile) for name in profile.model_names}
    found = [stage for name, shape in shapes.items() for stage in _model_stages(shape, len(seeds_of(name, profile)), profile)]
    found.append(_settings_compared(shapes[profile.pythia], profile))
    pythia = shapes[profile.pythia]
    for label, other in pairs(profile).items():
        found += _comparison(label, pythia, shapes[other], profile)
    for label, other in (("Mamba", profile.mamba), ("RWKV", profile.rwkv)):
        if other:
            found.append(_neurons(label, pythia, shapes[other], profile))
    return [*found, _circuits(list(shapes.values()), profile)]


def pairs(profile: Profile) -> dict[str, str]:
    """The comparisons of features with the Transformer's, by what it is compared with."""
    known = {"Mamba": profile.mamba, "RWKV": profile.rwkv, "model seed": profile.pythia_seed, "SAE seed": profile.pythia}
    return {label: name for label, name in known.items() if name}


def l0_of(profile: Profile) -> float:
    """Features that fire per token, as far as it is known in advance."""
    return profile.target_l0 or L0_WITHOUT_TARGET


# --------------------------------------------------------------------------------------------- one model


def forward(shape: Shape, tokens: float, profile: Profile, unembed: bool = False) -> Stage:
    """A language model reading `tokens`: two operations per weight and token, attention's products, its weights read."""
    weights = shape.n_layers * shape.block_parameters + unembed * shape.d_model * shape.vocabulary
    attention = 4 * shape.n_layers * profile.context_length * shape.d_model * (shape.architecture == "gpt_neox")
    batches = tokens / (profile.batch_blocks * profile.context_length)
    moved = FLOAT * (weights * batches + 12 * tokens * shape.n_layers * shape.d_model)
    return Stage("forward", shape.architecture, tokens * (2 * weights + attention), moved=moved)


def sae_steps(d_model: int, tokens: float, profile: Profile) -> Stage:
    """Training one SAE on `tokens`: the encoder's product, six more on active features, Adam over all weights."""
    d_sae, steps = profile.expansion * d_model, tokens / profile.sae_batch_size
    flops = 2 * d_model * (d_sae + 6 * l0_of(profile)) * tokens
    moved = FLOAT * (6 * sae_parameters(d_model, profile) * steps + 2 * d_sae * tokens)
    return Stage("SAE steps", "sae", flops, moved=moved)


def encoding(d_model: int, tokens: float, profile: Profile) -> Stage:
    """Feature activations of one SAE, dense for a moment, their non-zero entries found."""
    d_sae = profile.expansion * d_model
    return Stage("encoding", "encode", 2 * d_model * d_sae * tokens, moved=FLOAT * 4 * d_sae * tokens)


def _model_stages(shape: Shape, seeds: int, profile: Profile) -> Iterator[Stage]:
    name = shape.name.rpartition("/")[2]
    n_saes, weights = seeds * shape.sae_layers, FLOAT * shape.parameters
    one_sae = FLOAT * sae_parameters(shape.d_model, profile)
    at_once = group_size(shape.sae_layers, shape.d_model, seeds, profile)
    groups = -(-shape.sae_layers // at_once)
    share = sum(min(1, (k + 1) * at_once / shape.sae_layers) for k in range(groups))  # a pass ends at its last layer
    batch = profile.batch_blocks * profile.context_length
    captured = FLOAT * batch * shape.d_model * shape.sae_layers
    reading = forward(shape, profile.sae_tokens * share, profile)
    yield scaled(reading, 1, f"{name}: text read for its SAEs, {groups} pass{'es' * (groups > 1)}", weights + captured)
    state = at_once * training_bytes(shape.d_model, seeds, profile)
    dense = FLOAT * 6 * profile.sae_batch_size * profile.expansion * shape.d_model  # the first steps are dense
    steps = sae_steps(shape.d_model, profile.sae_tokens, profile)
    checkpoints = 2 * 3 * seeds * at_once * one_sae  # weights and Adam's moments; the last until the next is whole
    yield scaled(steps, n_saes, f"{name}: {n_saes} SAEs trained", weights + state + dense, n_saes * one_sae, checkpoints)
    passes = 1 + (seeds + 1) * shape.sae_layers
    logits = 3 * FLOAT * batch * shape.vocabulary
    checking = forward(shape, passes * profile.eval_tokens, profile, unembed=True)
    yield scaled(checking, 1, f"{name}: SAEs evaluated, {passes} passes", weights + seeds * at_once * one_sae + logits)
    yield from _capture(shape, name, seeds, profile, weights + captured)


def _capture(shape: Shape, name: str, seeds: int, profile: Profile, memory: float) -> Iterator[Stage]:
    d_sae, n_saes = profile.expansion * shape.d_model, seeds * shape.sae_layers
    disk = n_saes * feature_bytes(profile.mppc_tokens, l0_of(profile), d_sae, profile.feature_dtype)
    reading = forward(shape, seeds * profile.mppc_tokens, profile)
    yield scaled(reading, 1, f"{name}: text read for its features", memory)
    memory += shape.sae_layers * FLOAT * sae_parameters(shape.d_model, profile) + 3 * FLOAT * CHUNK * d_sae
    yield scaled(encoding(shape.d_model, profile.mppc_tokens, profile), n_saes, f"{name}: features captured", memory, disk, disk / n_saes)


def scaled(stage: Stage, times: float, name: str, memory: float = 0, disk: float = 0, passing: float = 0) -> Stage:
    """A stage repeated, under a name and with its memory and disk."""
    amounts = {field: times * getattr(stage, field) for field in ("flops", "double_flops", "moved", "multiply_adds")}
    return Stage(name, stage.kind, memory=memory, disk=disk, passing=passing, **amounts)


def _settings_compared(shape: Shape, profile: Profile) -> Stage:
    """One layer's SAEs at other settings (notebooks 02, 04): two SAE seeds of each; for targets of L0 Mamba's as well."""
    settings = {v for _, _, v in variants(profile)}
    runs = [scaled(sae_steps(shape.d_model, v.sae_tokens, v), 2, "") for v in settings]
    by_l0 = sae_steps(shape.d_model, profile.sweep_tokens, profile)
    runs.append(scaled(by_l0, (2 + bool(profile.mamba)) * len(FACTORS["target_l0"]), ""))
    flops, moved = (sum(getattr(run, field) for run in runs) for field in ("flops", "moved"))
    most = max(training_bytes(shape.d_model, 2, v) for v in settings)
    return Stage("settings of SAEs compared", "sae", flops, moved=moved, memory=FLOAT * shape.parameters + most)


# ------------------------------------------------------------------------------------------- comparisons


def correlation(a: Shape, b: Shape, tokens: float, profile: Profile) -> Stage:
    """MPPC between all layers of two models, both directions from one pass."""
    n_pairs, l0 = a.sae_layers * b.sae_layers, l0_of(profile)
    swept = FLOAT * 2 * n_pairs * profile.expansion**2 * a.d_model * b.d_model
    memory = tokens * l0 * (8 * a.sae_layers + 6)  # `max_pairwise_correlations`
    return Stage("MPPC", "mppc", moved=swept, multiply_adds=tokens * l0**2 * n_pairs, memory=memory)


def dense_multiply_adds(a: Shape, b: Shape, tokens: float, profile: Profile) -> float:
    """What both directions take if every pair of layers is one dense product."""
    return tokens * profile.expansion**2 * (a.sae_layers * a.d_model) * (b.sae_layers * b.d_model)


def _comparison(label: str, a: Shape, b: Shape, profile: Profile) -> Iterator[Stage]:
    tokens, l0 = profile.mppc_tokens, l0_of(profile)
    once = correlation(a, b, tokens, profile)
    yield scaled(once, 1, f"MPPC, Pythia and {label}, both directions", once.memory)
    stored = feature_bytes(tokens, l0, profile.expansion * b.d_model, "float32")
    yield scaled(once, 1, f"its null, {label} shifted", once.memory + stored)
    sides = [profile.expansion * shape.sae_layers * shape.d_model for shape in (a, b)]
    n_features, entries = sum(sides), tokens * l0 * (a.sae_layers + b.sae_layers)
    yield Stage(
        f"its bootstrap over documents, {label}", "bootstrap", double_flops=10 * n_features * N_GROUPS * N_RESAMPLES,
        moved=2 * 64 * entries, memory=bootstrap_bytes(max(sides)), disk=FLOAT * N_RESAMPLES * n_features,
    )  # fmt: skip


def bootstrap_bytes(n_features: int) -> int:
    """Memory of one direction's sums and of what is resampled from them."""
    return n_features * (5 * 8 * N_GROUPS + FLOAT * N_RESAMPLES)


def _neurons(label: str, a: Shape, b: Shape, profile: Profile) -> Stage:
    """Dense products in float64 between all layers' neurons, and again for the null."""
    a_all, b_all = (shape.sae_layers * shape.n_neurons for shape in (a, b))
    flops = 2 * 2 * profile.neuron_tokens * a_all * b_all
    memory = 30 * a.n_neurons * b.n_neurons + bootstrap_bytes(max(a_all, b_all))
    arrays = FLOAT * profile.neuron_tokens * (a_all + b_all)
    name = f"neurons, Pythia and {label}, and their null"
    return Stage(name, "neurons", double_flops=flops, memory=memory, disk=FLOAT * N_RESAMPLES * (a_all + b_all), passing=arrays)


def _circuits(shapes: list[Shape], profile: Profile) -> Stage:
    """Path patching and its kin (notebooks 07, 08), as so many passes over the induction prompts."""
    lengths = [distance + 3 for distance in profile.circuit_distances]
    tokens = CIRCUIT_PASSES * profile.circuit_samples * sum(lengths)
    flops = sum(forward(shape, tokens, profile).flops for shape in shapes)
    kept = 6 * FLOAT * profile.circuit_samples * max(lengths) * max(s.n_layers * s.d_model for s in shapes)
    return Stage("circuits", "circuits", flops, memory=kept + FLOAT * max(s.parameters for s in shapes))
