"""Language models of several families with one vocabulary for their parts: loading, activations, neurons."""

from lib._lazy import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "activations": ["ShuffleBuffer", "iterate_activations", "model_device", "resid_post", "typical_norms"],
        "devices": ["fast_dtype"],
        "families": [
            "Family",
            "Patchable",
            "family_class",
            "family_of",
            "n_layers",
            "neurons",
            "patchable",
            "register",
        ],
        "hub": ["ModelNotFound"],
        "loading": ["convert_folder", "load", "quietly"],
        "measures": ["held_out_loss", "repeated_tokens"],
    },
)
