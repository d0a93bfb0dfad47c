"""The figures: one look for all, one function a figure."""

from lib._lazy import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "picking": ["pick"],
        "depth": [
            "fig_depth_lines",
            "fig_depth_map",
            "fig_depth_starts",
            "fig_layer_map",
        ],
        "saes": [
            "fig_abilities",
            "fig_one_token",
            "fig_retraining",
            "fig_sae_quality",
            "fig_sae_trade_off",
            "fig_sae_training",
        ],
        "similarity": [
            "fig_between_models",
            "fig_controls",
            "fig_density_by_layer",
            "fig_forward_and_reverse",
            "fig_hierarchy",
            "fig_mppc_density",
            "fig_mppc_difference",
            "fig_nulls",
            "fig_sae_seeds",
            "fig_sensitivity",
            "fig_share_above",
            "fig_three_panels",
        ],
        "style": [
            "ink",
            "model_colour",
            "plt",
            "signed",
            "use_theme",
        ],
    },
)
