"""A model of any known family as a `TransformerBridge`, after what its files hold was checked.

Weights are the raw Hugging Face ones: nothing folded, nothing centred. transformers' RWKV-4 halves its hidden
states every `rescale_every` blocks at inference (weights compensate), so its residual stream changes scale there.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lib.models import attention, hub, scans
from lib.models.families import family_class
from lib.models.hub import PICKLE, WEIGHTS, ModelNotFound
from lib.models.safe_weights import check_file, check_values, convert_pickle, expected_shapes

log = logging.getLogger("workbook.models")

LIBRARIES = ("transformers", "transformer_lens", "huggingface_hub")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' notes on missing CUDA kernels and on loading, which are no faults, and their bars."""
    loggers = [logging.getLogger(library) for library in LIBRARIES]
    levels = [logger.level for logger in loggers]
    had_bar = transformers.utils.logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
        if had_bar:
            transformers.utils.logging.enable_progress_bar()


def load(
    name_or_folder: str | Path, device: str = "cpu", tokenizer: Any = None, name: str | None = None
) -> TransformerBridge:
    """A model from a Hugging Face folder, or from the hub by its id; float32, raw weights, in evaluation mode.

    `tokenizer` is a transformers tokenizer; without one it is the model's own. `name` is what the model is called in
    `cfg.model_name` and in errors. From the first call on, transformers' Mamba and RWKV compute with `lib.models.scans`
    and GPT-NeoX with `lib.models.attention` in the whole process, which is faster and changes results by rounding only.

    Raises `ModelNotFound`, in one sentence, if there is no such model, the hub cannot be reached, or the files are not
    those of a sound model of a known family: a pickle of more than tensors, wrong shapes or sizes, NaN, code of its
    own.
    """
    name = str(name_or_folder) if name is None else name
    folder = Path(name_or_folder)
    scans.install()
    attention.install()
    with quietly(), tempfile.TemporaryDirectory() as scratch:
        folder = folder if folder.is_dir() else hub.fetch_model(str(name_or_folder))
        own = folder
        if hub.is_pickled(folder):
            convert_folder(name, folder, Path(scratch))
            folder = Path(scratch)
        try:
            source = _load_checked(folder).to(device)
            if tokenizer is None and not any((folder / file).is_file() for file in TOKENIZER_FILES):
                raise ValueError(f"{own} has no tokenizer.json: copy the model's own there.")
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = TransformerBridge.boot_transformers(
                str(folder), device=device, dtype=torch.float32, hf_model=source, tokenizer=tokenizer
            )
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelNotFound(f"cannot load {name}: {reason}") from None
    model.cfg.model_name = name  # what it was asked for by, not the folder on this machine
    model.original_model.config.use_cache = False  # whole sequences only; a cache would keep Mamba off its hooks
    return model.eval()


def _load_checked(folder: Path) -> PreTrainedModel:
    """The Hugging Face model of a folder, float32, after what its files hold was compared with its config.json."""
    config = AutoConfig.from_pretrained(
        folder, output_attentions=True, attn_implementation="eager", trust_remote_code=False
    )
    family_class(config.model_type, str(folder))
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}, nor a {PICKLE}.")
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


# ---------------------------------------------------------------------------------------------- pickled weights


def convert_folder(name: str, folder: Path, target: Path) -> None:
    """Keep a pickle's tensors as safetensors in `target`, with the model's configuration and tokenizer beside them.

    Raises `ModelNotFound`, in one sentence, where the pickle is something else than this model's weights, and
    `OSError` where there is no room.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        convert_pickle(folder / PICKLE, target / WEIGHTS, expected_shapes(config))
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"cannot load {name}: {str(error).strip().splitlines()[0]}") from None
    except SafetensorError as error:  # the disk is full
        raise OSError(f"cannot write {target / WEIGHTS}: {error}") from None
    for path in hub.beside_weights(folder):
        shutil.copyfile(path, target / path.name)
    log.warning(
        "%s has no %s: its %s was read as tensors only, which executes nothing, and is kept as safetensors.",
        name, WEIGHTS, PICKLE,
    )  # fmt: skip
