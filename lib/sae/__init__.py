"""Sparse autoencoders: what they are, how they are trained, how good they are."""

from lib._lazy import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "autoencoder": ["SparseAutoencoder", "SaeInfo", "evaluate_saes"],
        "training": ["train_saes"],
    },
)
