"""Put an SAE of each type into a folder, with inputs and what they make of them; the standard one is mini's.

    python -m tests.interop.write_sae FOLDER

`open_with_sae_lens.py` reads the folder in an environment that has SAELens.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from lib.sae import SAE, sae_type
from lib.workbook import artifacts
from lib.workbook.profiles import get_profile


@torch.no_grad()
def write(folder: Path) -> None:
    """For each type a folder: files sae/ (a SAELens folder) and expected.safetensors (x, f, x_hat)."""
    profile = get_profile("mini")
    trained = artifacts.trained_saes(profile.mamba, profile)[0][-1]
    for sae in (trained, *others(trained)):
        place = folder / sae.architecture
        sae.save(place / "sae")
        x = torch.randn(64, sae.d_model, generator=torch.Generator().manual_seed(0))
        save_file({"x": x, "f": sae.encode(x), "x_hat": sae(x)}, place / "expected.safetensors")


def others(trained: SAE) -> Iterator[SAE]:
    """SAEs of the other types with the weights of a trained one, and thresholds that are not all the same."""
    for architecture, settings in (("topk", {"k": 8}), ("jumprelu", {})):
        sae = sae_type(architecture)(trained.d_model, trained.d_sae, trained.info, **settings)
        sae.load_state_dict(trained.state_dict(), strict=False)
        if architecture == "jumprelu":
            sae.threshold[:] = torch.linspace(0, 0.5, sae.d_sae)
        yield sae


if __name__ == "__main__":
    write(Path(sys.argv[1]))
