"""Check that the workbook reads SAEs of every type and option as SAELens does.

python -m tests.interop.read_saes FOLDER     (a folder that write_with_sae_lens.py wrote)
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from lib.sae import load

folders = sorted(Path(sys.argv[1]).iterdir())
assert folders, "nothing was written"
worst = 0.0
for folder in folders:
    expected = load_file(folder / "expected.safetensors")
    sae = load(folder / "sae").requires_grad_(False)
    f = sae.encode(expected["x"])
    assert 0 < f.count_nonzero() < f.numel(), f"{folder.name} is silent, or never is: little was compared"
    for found, name in ((f, "f"), (sae.decode(f, expected["x"]), "x_hat"), (sae(expected["x"]), "x_hat")):
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-5, msg=lambda m: f"{folder.name}: {m}")
        worst = max(worst, float((found - expected[name]).abs().max()))
    assert (sae.info.layer, sae.info.model_name) == (3, "pythia-160m"), sae.info
print(f"the workbook reads {len(folders)} SAEs of SAELens: same features, same reconstructions, to {worst:.0e}")
