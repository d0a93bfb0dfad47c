"""Word lists of semantic subspaces: the eight concepts of Lan et al. for real text, eight of its own for documentation.

The lists for real text are ours: the paper names the concepts, and words that belong to them are common knowledge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Integer
from numpy import ndarray

DOCUMENTATION = {
    "types": "int float bool str string integer integers boolean complex tuple list lists dict dtype object "
    "bytes ndarray array arrays array_like callable iterable none type types",
    "errors": "error errors raise raises raised except exception exceptions invalid warning warnings warn "
    "fail fails failed failure valueerror typeerror keyerror wrong",
    "plotting": "plot plots plt figure fig axes axis color colors colour legend label labels title marker "
    "line lines tick ticks draw drawn subplot image bar scatter histogram width height",
    "linear algebra": "matrix matrices vector vectors eigen eigenvalue eigenvalues singular diagonal inverse "
    "rank norm transpose decomposition determinant linear dot product orthogonal triangular row rows column "
    "columns",
    "graphs": "graph graphs node nodes edge edges vertex vertices tree trees path paths cycle directed "
    "degree weight weights neighbor neighbors adjacency networkx bipartite clique",
    "time": "time date dates datetime day days hour hours minute minutes second seconds month months year "
    "years week freq frequency period periods timestamp timezone",
    "files": "file files path filename directory folder read write open save load url download cache csv "
    "json disk format",
    "statistics": "mean median variance std standard deviation distribution probability random sample "
    "samples sampling normal density statistic statistics test score scores correlation estimator regression "
    "quantile",
}
GENERAL = {
    "time": "day night week month year hour minute second now soon later today tomorrow yesterday early late "
    "morning noon dawn dusk midnight decade century moment",
    "calendar": "monday tuesday wednesday thursday friday saturday sunday week weekend date calendar holiday",
    "people and roles": "man woman girl boy kid child children dad mom son sister brother friend family "
    "person people father mother president king queen doctor teacher student",
    "nature": "tree grass stone rock cliff hill dirt sand mud wind storm rain cloud sun leaf branch river "
    "lake ocean forest mountain water snow",
    "emotions": "joy hope happy sad anger angry fear love hate worry glad proud ashamed calm excited lonely afraid",
    "month names": "january february march april may june july august september october november december",
    "countries": "usa canada brazil mexico germany france italy spain uk england china india japan russia "
    "australia korea israel iran iraq syria turkey egypt",
    "biology": "gene dna rna cell cells blood brain heart bone muscle skin virus bacteria protein lung liver "
    "nerve species organism tissue",
}


def concept_tokens(
    vocabulary: Sequence[str], lists: Mapping[str, str] = GENERAL
) -> dict[str, Bool[ndarray, " vocabulary"]]:
    """Which tokens belong to each concept: those that are a word of its list but for case and spaces."""
    bare = np.array([token.strip().lower() for token in vocabulary])
    return {name: np.isin(bare, words.split()) for name, words in lists.items()}


def features_of(
    top_tokens: Integer[ndarray, "features n"], members: Bool[ndarray, " vocabulary"]
) -> Bool[ndarray, " features"]:
    """Features at least two of whose top tokens belong to a concept; −1 stands for no token."""
    known = top_tokens >= 0
    return (members[np.where(known, top_tokens, 0)] & known).sum(1) >= 2


def is_word(vocabulary: Sequence[str]) -> Bool[ndarray, " vocabulary"]:
    """Tokens that can carry a concept: with a letter or a digit; not punctuation, spaces or special tokens."""
    return np.array([any(c.isalnum() for c in token) and not token.startswith("<|") for token in vocabulary])
