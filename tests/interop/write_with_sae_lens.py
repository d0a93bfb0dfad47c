"""Let SAELens write SAEs of every type, option and layout, and what it makes of them; needs nothing of the workbook.

    python tests/interop/write_with_sae_lens.py FOLDER

`read_saes.py` reads the folder with the workbook. Weights and inputs are random.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file

D_MODEL, D_SAE, SCALE = 32, 256, 0.37
NORMALISATIONS = ("none", "constant_norm_rescale", "layer_norm")
TYPES = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 8}),
    "topk-rescaled": (TopKSAE, TopKSAEConfig, {"k": 8, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
}
BATCHTOPK = BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
X = 2 * torch.randn(64, D_MODEL, generator=torch.Generator().manual_seed(1)) + 0.5


def made(cls: type[SAE], config: type, **options: object) -> SAE:
    """An SAE whose every parameter is random."""
    metadata = SAEMetadata(model_name="pythia-160m", hook_name="blocks.3.hook_resid_post")
    sae = cls(config(d_in=D_MODEL, d_sae=D_SAE, metadata=metadata, **options))
    random = torch.Generator().manual_seed(0)
    for name, value in sorted(sae.named_parameters()):
        drawn = torch.randn(value.shape, generator=random) / (D_MODEL**0.5 if value.ndim == 2 else 3)
        value.data = drawn.abs() * 3 if name == "threshold" else drawn
    return sae


def as_before_6(folder: Path) -> None:
    """Rewrite cfg.json as versions 3 to 5 had it: flat, TopK a function of standard SAEs."""
    cfg = json.loads((folder / "cfg.json").read_text())
    metadata = cfg.pop("metadata")
    k = cfg.pop("k", None)
    cfg |= {"model_name": metadata["model_name"], "hook_name": metadata["hook_name"], "hook_layer": 3}
    cfg |= {"hook_head_index": None, "finetuning_scaling_factor": False, "activation_fn_str": "topk" if k else "relu"}
    cfg |= {"activation_fn_kwargs": {"k": k} if k else {}, "context_size": 128, "dataset_path": "", "prepend_bos": True}
    cfg["architecture"] = "standard" if k else cfg["architecture"]
    (folder / "cfg.json").write_text(json.dumps(cfg))


def write(folder: Path) -> Iterator[tuple[str, SAE]]:
    """Write each SAE into its folder; yield its name and, as SAELens reads it, what is to be compared with."""
    for name, (cls, config, own) in TYPES.items():
        for centred in (False, True):
            options = own | {"apply_b_dec_to_input": centred}
            of_this = f"{name}{'-centred' if centred else ''}"
            for normalised in NORMALISATIONS:
                at = folder / f"{of_this}-{normalised}" / "sae"
                made(cls, config, normalize_activations=normalised, **options).save_model(at)
                yield at.parent.name, SAE.load_from_disk(at)
                if name != "topk-rescaled":  # there was no such option
                    at = folder / f"{of_this}-{normalised}-before-6" / "sae"
                    made(cls, config, normalize_activations=normalised, **options).save_model(at)
                    as_before_6(at)
                    yield at.parent.name, SAE.load_from_disk(at)
            at = folder / f"{of_this}-expected_average_only_in" / "sae"
            sae = made(cls, config, normalize_activations="expected_average_only_in", **options)
            sae.save_model(at)
            (at / "activation_scaler.json").write_text(json.dumps({"scaling_factor": SCALE}))
            sae.fold_activation_norm_scaling_factor(SCALE)  # as it does with the SAEs of its list
            yield at.parent.name, sae
    for rescaled in (False, True):
        for normalised in ("none", "expected_average_only_in"):
            options = {"k": 8, "rescale_acts_by_decoder_norm": rescaled, "normalize_activations": normalised}
            sae = made(*BATCHTOPK, **options)
            sae.topk_threshold.fill_(0.9)
            name = f"batchtopk{'-rescaled' if rescaled else ''}-{normalised}"
            checkpoint = folder / f"{name}-checkpoint" / "sae"
            sae.save_model(checkpoint)
            if normalised != "none":
                (checkpoint / "activation_scaler.json").write_text(json.dumps({"scaling_factor": SCALE}))
                sae.fold_activation_norm_scaling_factor(SCALE)
            at = folder / name / "sae"
            sae.save_inference_model(at)
            for place in (at, checkpoint):
                yield place.parent.name, SAE.load_from_disk(at)


if __name__ == "__main__":
    n = 0
    for n, (name, sae) in enumerate(write(Path(sys.argv[1])), 1):
        with torch.no_grad():
            f = sae.encode(X)
            expected = {"x": X, "f": f, "x_hat": sae.decode(f)}
        save_file(expected, Path(sys.argv[1]) / name / "expected.safetensors")
    print(f"SAELens wrote {n} SAEs")
