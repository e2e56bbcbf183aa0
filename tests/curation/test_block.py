import pytest

from curation.block import parse_shards
from curation.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "numbers"), [(None, None), (" ", None), ("3", [3]), ("0-3,7", [0, 1, 2, 3, 7]), ("2, 1", [2, 1])]
)
def test_shards(text: str | None, numbers: list[int] | None) -> None:
    assert parse_shards(text) == numbers


@pytest.mark.parametrize("text", ["x", "3-1", "1-", "-1", "0-5000", "1;2"])
def test_bad_shards_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="shards"):
        parse_shards(text)
