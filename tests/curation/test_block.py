import pytest

from curation import block
from curation.block import parse_blocks, parse_shards, unfinished
from curation.errors import ConfigError
from tests.curation.conftest import World


@pytest.mark.parametrize(
    ("text", "numbers"), [(None, None), (" ", None), ("3", [3]), ("0-3,7", [0, 1, 2, 3, 7]), ("2, 1", [2, 1])]
)
def test_shards(text: str | None, numbers: list[int] | None) -> None:
    assert parse_shards(text) == numbers


@pytest.mark.parametrize("text", ["x", "3-1", "1-", "-1", "0-5000", "1;2"])
def test_bad_shards_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="shards"):
        parse_shards(text)


def test_blocks_are_numbers_within_the_dump() -> None:
    assert parse_blocks(None, 2001) == [0, 1, 2]
    assert parse_blocks("0,2", 2001) == [0, 2]
    with pytest.raises(ConfigError, match=r"blocks: 3 .* 0 to 2"):
        parse_blocks("1-3", 2001)


def test_a_block_is_unfinished_until_the_last_table_of_each_shard_stands(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _ = world.recipe()
    monkeypatch.setattr(block, "BLOCK_SHARDS", 1)
    assert unfinished(world.store, recipe, "crawl") == [0, 1]
    world.run(recipe, shard=0)
    assert unfinished(world.store, recipe, "crawl") == [1]
