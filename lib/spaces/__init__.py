"""Spaces of features compared: SVCCA, RSA, Procrustes, semantic subspaces (Lan et al.)."""

from lib._lazy import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "similarity": [
            "linear_cka",
            "neighbour_overlap",
            "one_to_one",
            "procrustes_similarity",
            "rsa",
            "rsa_test",
            "soft_matching",
            "svcca",
            "svcca_test",
        ],
        "semantic": ["FeatureSpace", "layer_scores", "matched_pairs", "subspace_scores"],
        "concepts": ["concept_tokens", "is_word"],
    },
)
