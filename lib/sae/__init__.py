"""Sparse autoencoders: their types, how they are trained, how good they are, and folders of them."""

from lib._lazy import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "config": ["SAEConfig"],
        "autoencoder": ["SAE", "SaeInfo", "register", "sae_type"],
        "folders": ["check_fits", "load"],
        "standard": ["SparseAutoencoder"],
        "training": ["train_saes"],
        "evaluation": ["evaluate_saes"],
    },
)
