"""Any of the three architectures as a `TransformerBridge`, with one vocabulary for their parts.

Weights are the raw Hugging Face ones: nothing folded, nothing centred. transformers' RWKV-4 halves its hidden
states every `rescale_every` blocks at inference (weights compensate), so its residual stream changes scale there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lib.corpus import Blocks, load_tokenizer
from lib.models import hub, origins, recipes, scans, tokenizer_identity
from lib.models.hub import ModelNotFound
from lib.models.safe_weights import check_file, check_values, expected_shapes
from lib.workbook.profiles import LeftOut, Profile
from lib.workbook.store import Store

ARCHITECTURES = ("gpt_neox", "mamba", "rwkv")  # transformers' names of them

Logits = Callable[[Int[Tensor, "rows context"]], Float[Tensor, "rows context vocabulary"]]


def device_of(profile: Profile) -> str:
    """cpu or cuda."""
    if profile.device != "auto":
        return profile.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_dtype(device: str) -> torch.dtype:
    """The type in which matrix products are fastest: bf16 on GPUs and on CPUs with bf16 instructions, else fp32.

    A torch told to do without AVX-512 (``ATEN_CPU_CAPABILITY=avx2``) is taken for a CPU without bf16 instructions.
    """
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    allowed = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
    return torch.bfloat16 if device != "cpu" or (has_bf16 and allowed) else torch.float32


# --------------------------------------------------------------------------------------------- loading


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
    names = dict.fromkeys(profile.model_names)
    return [name for name in names if name not in recipes.RECIPES and not any(map(Path.is_dir, (recipes.MODELS / name, Path(name))))]


def has_random_weights(name: str, profile: Profile) -> bool:
    """Whether a model is built on the spot; it was trained on no text, so any tokenizer is as good as another."""
    return name.startswith("smoke-") or profile.models == "random"


def require_tokenizer(name: str, profile: Profile) -> None:
    """Raise `TokenizerError`, in one sentence that names both, where a model's own tokenizer does not cut the text.

    Raises `ModelNotFound` where the model, or the Transformer whose tokenizer it is, is nowhere.
    """
    if not has_random_weights(name, profile):
        tokenizer_identity.require_same(name, Path(folder_of(name, profile)), profile)


def _random_folder(name: str, profile: Profile) -> Path:
    recipe = recipes.recipe_of(name)
    if recipe is None:
        known = ", ".join([*recipes.RECIPES, *recipes.CONFIGURATIONS])
        raise ModelNotFound(f"no configuration of {name} is known to build it with random weights; known are {known}.")
    build = partial(recipes.random_checkpoint, name)
    return Store(profile.cache_dir).get(Path(name).name, {"recipe": vars(recipe)}, build)


def is_available(name: str) -> bool:
    """False only for a model of the zoo that has not been trained; the hub is not asked."""
    return name not in recipes.RECIPES or name.startswith("smoke-") or (recipes.MODELS / name / "config.json").exists()


def load(name: str, profile: Profile) -> TransformerBridge:
    """A model by its name in data/models, a folder, or a hub id; float32, raw weights, in evaluation mode.

    Its tokenizer is the one that cuts the text. Raises `TokenizerError` where its own is another, and `ModelNotFound`,
    in one sentence, if there is no such model, the hub cannot be reached, or the files are not those of a sound model:
    a pickle of more than tensors, wrong shapes or sizes, NaN, code of its own.
    """
    scans.install()
    for library in ("transformers", "transformer_lens", "huggingface_hub"):  # notes on missing CUDA kernels and on loading, not faults
        logging.getLogger(library).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    folder = folder_of(name, profile)
    try:
        source = _load_checked(Path(folder)).to(device_of(profile))
        model = TransformerBridge.boot_transformers(
            folder, device=device_of(profile), dtype=torch.float32, hf_model=source, tokenizer=load_tokenizer(profile)
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelNotFound(f"cannot load {name}: {reason}") from None
    require_tokenizer(name, profile)
    model.cfg.model_name = name  # what it was asked for by, not the folder on this machine
    model.original_model.config.use_cache = False  # whole sequences only; a cache would keep Mamba off its hooks
    return model.eval()


def _load_checked(folder: Path) -> PreTrainedModel:
    """The Hugging Face model of a folder, float32, after what its files hold was compared with its config.json."""
    config = AutoConfig.from_pretrained(folder, output_attentions=True, attn_implementation="eager", trust_remote_code=False)
    if config.model_type not in ARCHITECTURES:
        raise ValueError(unknown_family(str(folder), config.model_type))
    weights = folder / hub.WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{folder} has no {hub.WEIGHTS}, nor a {hub.PICKLE}.")
    check_file(weights, expected_shapes(config), only_known=False)
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager", use_safetensors=True,
        trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
    )  # fmt: skip
    for key, shape, wanted in sorted(found["mismatched_keys"]):  # those that transformers renames
        raise ValueError(f"{weights}: {key} has shape {list(shape)}, not {list(wanted)}.")
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{weights} lacks {len(missing)} of the model's weights, {missing[0]} among them.")
    check_values(weights, dict(model.named_parameters()))
    return model


def architecture(model: TransformerBridge) -> str:
    """gpt_neox, mamba or rwkv. Raises `ValueError` for a model of another family, whose parts are not known."""
    kind = model.original_model.config.model_type
    if kind not in ARCHITECTURES:
        raise ValueError(unknown_family(model.cfg.model_name, kind))
    return kind


def unknown_family(name: str, kind: str) -> str:
    """The sentence that refuses a model of a family that is none of `ARCHITECTURES`."""
    return f"{name} is a {kind}; the workbook knows {', '.join(ARCHITECTURES)}."


# ------------------------------------------------------------------------------- one vocabulary for the parts


def resid_post(layer: int) -> str:
    """Hook of the residual stream after block `layer`, in every architecture: Float[batch, time, d_model]."""
    return f"blocks.{layer}.hook_out"


@dataclass(frozen=True)
class Neurons:
    """Where the neurons of one layer are read: hooks, and how their values give Float[batch, time, n_neurons]."""

    hooks: tuple[str, ...]
    read: Callable[[dict[str, Tensor]], Float[Tensor, "batch time n_neurons"]]


def neurons(model: TransformerBridge, layer: int) -> Neurons:
    """The neurons of a layer (W §4.3.1).

    Pythia: MLP after its activation. Mamba: SSM input after conv and SiLU, then SiLU(gate). RWKV: channel-mix
    after the squared ReLU. Raises `ValueError` for a model of another family.
    """
    return _NEURONS[architecture(model)](f"blocks.{layer}")


def _read_one(hook: str) -> Neurons:
    return Neurons((hook,), lambda cache: cache[hook])


def _mamba_neurons(block: str) -> Neurons:
    ssm_input, in_proj = f"{block}.mixer.x_proj.hook_in", f"{block}.mixer.in_proj.hook_out"

    def read(cache: dict[str, Tensor]) -> Tensor:
        gate = cache[in_proj].chunk(2, dim=-1)[1]
        return torch.cat([cache[ssm_input], F.silu(gate)], dim=-1)

    return Neurons((ssm_input, in_proj), read)


_NEURONS: dict[str, Callable[[str], Neurons]] = {
    "gpt_neox": lambda block: _read_one(f"{block}.mlp.out.hook_in"),
    "mamba": _mamba_neurons,
    "rwkv": lambda block: _read_one(f"{block}.channel_mix.out.hook_in"),
}


def n_layers(model: TransformerBridge) -> int:
    """Number of blocks."""
    return model.cfg.n_layers


# ------------------------------------------------------------------------------------------- how good is a model


def repeated_tokens(
    n_rows: int, n_tokens: int, vocabulary: int, seed: int, bos: int = 0
) -> Int[Tensor, "rows twice_and_1"]:
    """BOS, then `n_tokens` random tokens twice: the plainest test of induction."""
    rng = np.random.default_rng(seed)
    half = torch.from_numpy(rng.integers(2, vocabulary, (n_rows, n_tokens)))
    return torch.cat([torch.full((n_rows, 1), bos), half, half], dim=1)


@torch.no_grad()
def induction_accuracy(logits: Logits, tokens: Int[Tensor, "rows twice_and_1"]) -> float:
    """Share of right next tokens on the second copy of `repeated_tokens`, from position 3 of the copy on."""
    first = tokens.shape[1] // 2 + 4  # BOS, the first copy, and three tokens of the second
    guess = logits(tokens).argmax(-1)[:, first - 1 : -1].cpu()
    return float((guess == tokens[:, first:]).float().mean())


@torch.no_grad()
def induction_gap(logits: Logits, distance: int, vocabulary: int, n_rows: int = 128, seed: int = 54_321) -> float:
    """Logit of B after [A][B] … [A], minus the same with B replaced by B′; mean over prompts of random tokens.

    `distance` is the number of positions between the two A (W §6.1).
    """
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.choice(vocabulary - 2, distance + 2, replace=False) + 2 for _ in range(n_rows)])
    tokens = torch.from_numpy(rows).long()
    a, b, other = tokens[:, 0], tokens[:, 1].clone(), tokens[:, -1].clone()
    clean = torch.cat([torch.zeros(n_rows, 1, dtype=torch.long), tokens[:, :-1], a[:, None]], dim=1)
    corrupt = clean.clone()
    corrupt[:, 2] = other
    gap = (logits(clean)[:, -1] - logits(corrupt)[:, -1]).cpu()
    return float(gap.gather(1, b[:, None]).mean())


@torch.no_grad()
def held_out_loss(logits: Logits, blocks: Blocks, batch_blocks: int = 32) -> float:
    """Mean next-token cross-entropy in nats over the counted tokens of the blocks."""
    total = 0.0
    for start in tqdm(range(0, len(blocks), batch_blocks), "held-out loss", mininterval=5):
        tokens = torch.from_numpy(blocks.tokens[start : start + batch_blocks]).long()
        wanted = torch.from_numpy(blocks.mask[start : start + batch_blocks])[:, 1:]
        scores = logits(tokens)[:, :-1].cpu()
        total += float(F.cross_entropy(scores[wanted].float(), tokens[:, 1:][wanted], reduction="sum"))
    return total / blocks.n_positions


def quality(model: TransformerBridge, blocks: Blocks) -> dict[str, float]:
    """Held-out loss (nats per token), induction accuracy on 64 repeated tokens, induction gap at distance 32."""
    vocabulary = model.original_model.config.vocab_size
    device = next(model.parameters()).device
    logits = lambda tokens: model(tokens.to(device))  # noqa: E731
    repeated = repeated_tokens(64, 64, vocabulary, seed=12_345)
    return {
        "held_out_loss": round(held_out_loss(logits, blocks), 4),
        "induction_accuracy": round(induction_accuracy(logits, repeated), 4),
        "induction_gap_32": round(induction_gap(logits, 32, vocabulary), 3),
    }
