"""Induction circuits by path patching (W §6)."""

from lib._lazy import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "abilities": ["abilities_of", "association", "costs", "induction_gap", "repeat_accuracy"],
        "prompts": ["InductionPrompts", "induction_prompts"],
        "effects": [
            "conv_input_effects",
            "final_state_effects",
            "head_effects",
            "head_to_head_effects",
            "mixer_input_effects",
            "paper_tables",
            "ssm_input_effects",
        ],
        "induction": [
            "architecture_of",
            "head_frame",
            "path_frame",
            "prompts_by_distance",
            "shift_frame",
            "taken_in_frame",
            "vocabulary_of",
        ],
        "heads": ["hidden_attention", "patterns"],
        "maps": ["circuit_map", "pair_similarities"],
    },
)
