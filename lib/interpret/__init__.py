"""What a feature fires on, and how complex it is."""

from lib._lazy import lazily

__getattr__, __all__ = lazily(
    __name__,
    {
        "snippets": ["Snippet", "describe", "token_activations", "top_places", "vocabulary"],
    },
)
