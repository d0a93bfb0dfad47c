"""Sparse autoencoders: their types, how they are trained, how good they are, and folders of them."""

from lib._lazy import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "config": ["SAEConfig"],
        "autoencoder": ["SAE", "SaeInfo", "load", "register", "sae_type"],
        "standard": ["SparseAutoencoder"],
        "training": ["train_saes"],
        "evaluation": ["evaluate_saes"],
    },
)
