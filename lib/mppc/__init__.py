"""Maximum pairwise Pearson correlation of features (W §3.2), its nulls and its intervals."""

from lib._lazy import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "correlation": [
            "MaxCorrelation",
            "max_pairwise_correlation",
            "max_pairwise_correlations",
            "dense_max_pairwise_correlations",
        ],
        "features": ["SparseFeatures"],
    },
)
