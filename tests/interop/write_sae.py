"""Put a trained SAE of the mini profile into a folder, with inputs and what it makes of them.

    python -m tests.interop.write_sae FOLDER

`open_with_sae_lens.py` reads the folder in an environment that has SAELens.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from lib.workbook import artifacts
from lib.workbook.profiles import get_profile


@torch.no_grad()
def write(folder: Path) -> None:
    """Files sae/ (a SAELens folder) and expected.safetensors (x, f, x_hat)."""
    profile = get_profile("mini")
    sae = artifacts.trained_saes(profile.mamba, profile)[0][-1]
    sae.save(folder / "sae")
    x = torch.randn(64, sae.d_model, generator=torch.Generator().manual_seed(0))
    save_file({"x": x, "f": sae.encode(x), "x_hat": sae(x)}, folder / "expected.safetensors")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
