"""What a feature fires on, and how complex it is (W §5)."""

from lib._lazy import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "snippets": ["Snippet", "TopPlaces", "describe", "token_activations", "top_places", "vocabulary"],
        "judges": ["Example", "Judge", "RuleJudge", "Score", "agreement", "examples_of", "read_labels"],
        "chat_judge": ["ChatJudge", "JudgeUnavailable"],
        "complexity": [
            "boundary",
            "case_studies",
            "correlations",
            "drawn_below",
            "scored",
            "stratified_features",
            "unreadable",
        ],
    },
)
