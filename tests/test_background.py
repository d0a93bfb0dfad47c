"""Work ahead of time keeps its order, stays one item ahead, and hands on errors."""

import pytest

from lib.mppc.background import ahead


def test_one_item_is_made_while_the_one_before_is_in_use():
    made = []

    def items():
        for k in range(5):
            made.append(k)
            yield k

    seen = []
    for k in ahead(items()):
        seen.append(k)
        assert len(made) <= k + 2
    assert seen == made == [*range(5)]


def test_an_error_comes_where_its_item_would():
    def items():
        yield 1
        raise ValueError("no second item")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no second item"):
        next(found)
