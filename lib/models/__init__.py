"""Language models of several architectures with one vocabulary for their parts: loading, activations, neurons."""

from lib._lazy import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "loading": ["ARCHITECTURES", "architecture", "device_of", "fast_dtype", "folder_of", "has_random_weights", "held_out_loss", "hub_names", "induction_accuracy", "induction_gap", "is_available", "load", "n_layers", "neurons", "quality", "repeated_tokens", "require_tokenizer", "resid_post", "unknown_family"],
        "hub": ["ModelNotFound"],
    },
)
