"""Check that SAELens reads SAEs of every type as the workbook does; needs sae-lens and nothing of the workbook.

python tests/interop/open_with_sae_lens.py FOLDER     (a folder that write_sae.py wrote)
"""

import sys
from pathlib import Path

import torch
from sae_lens import SAE
from safetensors.torch import load_file

for folder in sorted(Path(sys.argv[1]).iterdir()):
    expected = load_file(folder / "expected.safetensors")
    sae = SAE.load_from_disk(str(folder / "sae"))
    with torch.no_grad():
        f = sae.encode(expected["x"])
        torch.testing.assert_close(f, expected["f"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae.decode(f), expected["x_hat"], rtol=1e-5, atol=1e-5)
    assert expected["f"].count_nonzero() > 0, "the SAE is silent: nothing was compared"
    assert sae.cfg.architecture() == folder.name, sae.cfg
    assert sae.cfg.metadata.hook_name.endswith("hook_out"), sae.cfg.metadata
    about = f"{sae.cfg.metadata.model_name} {sae.cfg.metadata.hook_name}, {folder.name}"
    print(f"SAELens reads {about}: same features, same reconstruction")
