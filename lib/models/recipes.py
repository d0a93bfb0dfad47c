"""What models are made of: the mini zoo's sizes, training settings and folders, and the real models' configurations."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lib.corpus import VOCABULARY

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

MODELS = Path(__file__).resolve().parents[2] / "data" / "models"
TOKENIZER = MODELS / "tokenizer"


@dataclass(frozen=True)
class Recipe:
    """How one mini model is made."""

    architecture: str
    """transformers' name of the family."""
    n_layers: int
    seed: int = 0
    d_model: int = 128
    state_size: int = 16
    """Numbers in the state of each channel of a Mamba."""
    tied: bool = False
    """Whether the embeddings are the head's weights, too."""
    embedding_deviation: float | None = None
    """Standard deviation of the embeddings at the start; None: the architecture's own."""
    context_length: int = 256
    batch_rows: int = 32
    steps: int = 3_200
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    decay_share: float = 0.4
    weight_decay: float = 0.1
    muon_learning_rate: float | None = None
    """Of the layers' matrices, which Muon then trains; None: AdamW trains them like all the rest."""
    synthetic_share_start: float = 0.5
    """Of a batch's rows, repeats and recall together."""
    synthetic_share_end: float = 0.2
    longest_period: int = 128
    """Of repeats, tokens."""
    recall_share: float = 0.0
    """Of the synthetic rows; the others are repeats."""
    recall_from: float = 0.0
    """Share of the training before which there is no recall. A Mamba that copies by then keeps its circuit."""
    most_pairs: int = 40
    most_filler: float = 0.6
    """Of a recall row's draws."""
    sentence_share: float = 0.0
    """Of all rows: sentences with two names."""
    sentence_share_end: float = 0.0
    """The same, in the last third of the training."""

    @property
    def tokens(self) -> int:
        """Tokens seen in training."""
        return self.steps * self.batch_rows * self.context_length

    @property
    def settings(self) -> dict[str, Any]:
        """The model's configuration."""
        common = dict(
            vocab_size=VOCABULARY, hidden_size=self.d_model, num_hidden_layers=self.n_layers,
            bos_token_id=0, eos_token_id=0, pad_token_id=1, **({"tie_word_embeddings": True} if self.tied else {}),
        )  # fmt: skip
        return common | OWN[self.architecture](self)


OWN: dict[str, Callable[[Recipe], dict[str, Any]]] = {  # of each family, in the configuration of a small model
    "gpt_neox": lambda r: dict(
        num_attention_heads=4, intermediate_size=4 * r.d_model, rotary_pct=0.25,
        max_position_embeddings=2 * r.context_length, tie_word_embeddings=r.tied,
    ),
    "mamba": lambda r: dict(state_size=r.state_size, initializer_range=0.05, use_cache=False),
    "rwkv": lambda r: dict(context_length=2 * r.context_length, rescale_every=0, use_cache=False),
}  # fmt: skip

_ZOO = dict(
    batch_rows=16, muon_learning_rate=5e-3,
    synthetic_share_start=0.6, synthetic_share_end=0.25, recall_share=0.4, sentence_share=0.05,
    sentence_share_end=0.25,
)  # fmt: skip
_PYTHIA = partial(Recipe, "gpt_neox", n_layers=4, steps=6_000, **_ZOO)
# With Muon a Mamba associates at B itself, in its first layer; with AdamW, and recall after it has learnt to copy, one
# position later and in layer 7, as the paper's. IOI it did not learn from more sentences, so it has fewer.
_BY_ADAM = _ZOO | dict(batch_rows=32, muon_learning_rate=None, recall_share=0.75, sentence_share_end=0.05)
_MAMBA = partial(Recipe, "mamba", n_layers=8, steps=4_000, learning_rate=4e-3, recall_from=0.35, **_BY_ADAM)
# With a head of its own it has more of the text (1.37 bits per byte for 1.39), but cannot repeat one token.
_RWKV = partial(
    Recipe, "rwkv", n_layers=4, steps=6_000, learning_rate=4e-3, tied=True, embedding_deviation=0.02, **_ZOO
)

RECIPES = {
    "mini-pythia": _PYTHIA(),
    "mini-pythia-seed1": _PYTHIA(seed=1),
    "mini-pythia-half": _PYTHIA(steps=3_000),
    "mini-mamba": _MAMBA(),
    "mini-mamba-seed1": _MAMBA(seed=1),
    "mini-rwkv": _RWKV(),
    "mini-rwkv-seed1": _RWKV(seed=1),
    "deep-pythia": _PYTHIA(n_layers=6, steps=4_000),  # tried once: do more layers show a clearer ridge of depth?
    "deep-mamba": _MAMBA(n_layers=12, steps=2_000),
    "state-mamba": _MAMBA(state_size=64),  # begun once: does a larger state copy more tokens?
    "deep-rwkv": _RWKV(n_layers=8, steps=2_000),  # tried once: does it associate with more layers, or more channels?
    "wide-rwkv": _RWKV(d_model=256, steps=2_000),
    "smoke-pythia": Recipe("gpt_neox", n_layers=2, d_model=64),
    "smoke-pythia-seed1": Recipe("gpt_neox", n_layers=2, d_model=64, seed=1),
    "smoke-pythia-half": Recipe("gpt_neox", n_layers=2, d_model=64, steps=1_600, seed=2),
    "smoke-mamba": Recipe("mamba", n_layers=4, d_model=64),
    "smoke-mamba-seed1": Recipe("mamba", n_layers=4, d_model=64, seed=1),
    "smoke-rwkv": Recipe("rwkv", n_layers=2, d_model=64),
}


@dataclass(frozen=True)
class Configuration:
    """A model of the hub, for random weights: the numbers of its config.json."""

    architecture: str
    settings: dict[str, Any]
    seed: int = 0


_COMMON = dict(hidden_size=768, bos_token_id=0, eos_token_id=0)
_PYTHIA_160M = _COMMON | dict(
    vocab_size=50_304, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3_072,
    max_position_embeddings=2_048, rotary_pct=0.25, use_parallel_residual=True, tie_word_embeddings=False,
)  # fmt: skip
_MAMBA_130M = _COMMON | dict(vocab_size=50_280, num_hidden_layers=24, state_size=16, conv_kernel=4, expand=2)
_RWKV_169M = _COMMON | dict(vocab_size=50_277, num_hidden_layers=12, context_length=1_024, rescale_every=6)

CONFIGURATIONS = {
    "EleutherAI/pythia-160m": Configuration("gpt_neox", _PYTHIA_160M),
    "EleutherAI/pythia-160m-seed1": Configuration("gpt_neox", _PYTHIA_160M, seed=1),
    "state-spaces/mamba-130m-hf": Configuration("mamba", _MAMBA_130M),
    "RWKV/rwkv-4-169m-pile": Configuration("rwkv", _RWKV_169M),
}


def build(recipe: Recipe | Configuration) -> PreTrainedModel:
    """An untrained Hugging Face model of the recipe's configuration and seed."""
    torch.manual_seed(recipe.seed)
    model = _untrained(config_of(recipe))
    if deviation := getattr(recipe, "embedding_deviation", None):
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=deviation)
    return model


def _untrained(config: PretrainedConfig) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    from lib.models import hub_kernels

    hub_kernels.switch_off()  # before anything is built
    return AutoModelForCausalLM.from_config(config)


def config_of(recipe: Recipe | Configuration) -> PretrainedConfig:
    """The Hugging Face configuration of a recipe."""
    from transformers import AutoConfig

    return AutoConfig.for_model(recipe.architecture, **recipe.settings)


def export(model: PreTrainedModel, folder: Path, record: dict) -> None:
    """Write a Hugging Face folder: fp16 safetensors, tokenizer, training.json."""
    model.half().save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, folder / file)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def recipe_of(name: str) -> Recipe | Configuration | None:
    """What is known of a model of the zoo or the hub: enough to build it with random weights."""
    return RECIPES.get(name) or CONFIGURATIONS.get(name)


def random_checkpoint(name: str, folder: Path) -> None:
    """A checkpoint with random weights of the zoo's or the real model's shape, with this workbook's tokenizer."""
    recipe = recipe_of(name)
    export(build(recipe), folder, {"recipe": asdict(recipe), "trained": False})


@functools.cache
def parameter_counts(kind: type[PretrainedConfig], numbers: str) -> tuple[int, int]:
    """Parameters of one block, and of all, counted on a model without memory."""
    config = kind.from_dict(json.loads(numbers))
    with torch.device("meta"):
        named = [(name, p.numel()) for name, p in _untrained(config).named_parameters()]
    return sum(n for name, n in named if re.search(r"\.0\.", name)), sum(n for _, n in named)
