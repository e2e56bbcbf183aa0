from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import ConfigError
from curation.evalsets import EVALSET, SPACE_KEY
from curation.stages.leakage import Leakage
from curation.text.ngrams import ngrams


def put(folder: Path, name: str, *items: dict[str, Any], space: str = "") -> str:
    path = folder / name / "0123.parquet"
    path.parent.mkdir()
    rows = [{"ngrams": ngrams(item.get("text", "")), **item, "phash": look(item.get("phash"))} for item in items]
    pq.write_table(pa.Table.from_pylist(rows, schema=EVALSET.with_metadata({SPACE_KEY: space.encode()})), path)
    return str(path)


def look(bits: str | None) -> str | None:
    """Bits turned over in a pattern of 32, as many as a photograph has: distances stay, and no look is too plain."""
    return bits and f"{int(bits, 16) ^ 0x5555555555555555:016x}"


def sha(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def hits(stage: Leakage, *rows: dict[str, Any], batch_rows: int = 2) -> list[tuple[Any, ...]]:
    defaults = {"sha256": sha("none"), "phash": "f" * 16, "phash_spread": 50.0, "text": ""}
    made = [{**defaults, **row, "phash": look(row.get("phash", "f" * 16))} for row in rows]
    full = [{name: row[name] for name in stage.consumes.names} for row in made]
    batches = pa.Table.from_pylist(full, schema=stage.consumes).to_batches(max_chunksize=batch_rows)
    answers = list(stage(iter(batches), Counter()))
    assert [answer.num_rows for answer in answers] == [batch.num_rows for batch in batches]
    assert all(answer.schema == stage.produces for answer in answers)
    return [tuple(row.values()) for answer in answers for row in answer.to_pylist()]


NOTHING = (None, None, None, None)


def test_names_set_and_item_by_bytes_and_by_look(tmp_path: Path) -> None:
    coco = put(
        tmp_path, "coco",
        {"item": "a.jpg", "sha256": sha("a"), "phash": "00000000000000ff", "phash_spread": 60.0},
        {"item": "flat.png", "sha256": sha("b"), "phash": "8000000000000000", "phash_spread": 0.1},
    )  # fmt: skip
    other = put(tmp_path, "other", {"item": "z", "sha256": sha("z"), "phash": "00000000000000fe", "phash_spread": 60.0})
    rows = [
        {"sha256": sha("a")},
        {"phash": "00000000000000fc"},
        {"phash": "00000000000000f0"},
        {"phash": "8000000000000000", "phash_spread": 0.1},
        {"sha256": sha("b"), "phash_spread": 0.1},
    ]
    found = hits(Leakage(evalsets=(coco, other), phash_radius=2), *rows)
    assert found == [
        ("sha256", "coco", "a.jpg", 0.0), ("phash", "other", "z", 1.0), NOTHING, NOTHING,
        ("sha256", "coco", "flat.png", 0.0),
    ]  # fmt: skip


def test_stripes_are_compared_by_bytes_only(tmp_path: Path) -> None:
    stripes = look("8080000080000080")  # of a flag, as it stands
    path = put(tmp_path, "flags", {"item": "nl.png", "sha256": sha("a"), "phash": stripes, "phash_spread": 88.4})
    rows = [{"phash": stripes, "phash_spread": 80.0}, {"phash": stripes, "sha256": sha("a")}]
    assert hits(Leakage(evalsets=(path,)), *rows) == [NOTHING, ("sha256", "flags", "nl.png", 0.0)]


def test_no_sets_no_hits() -> None:
    assert hits(Leakage(), {}) == [NOTHING]
    assert list(Leakage()(iter([]), Counter())) == []


def test_a_caption_that_holds_an_items_text(tmp_path: Path) -> None:
    question = "What colour are the eyes of the cat that looks at us?"
    path = put(tmp_path, "vqa", {"item": "q1", "text": question}, {"item": "q2", "text": "How many cats are there?"})
    stage = Leakage(evalsets=(path,))
    rows = [
        {"text": f"Quiz: {question.upper()} Green."},
        {"text": "how many cats are there"},
        {"text": "how many cats are there in the garden"},
        {"text": "the eyes of the cat"},
    ]
    found = hits(stage, *rows)
    assert [row[:3] for row in found] == [("text", "vqa", "q1"), ("text", "vqa", "q2"), NOTHING[:3], NOTHING[:3]]
    assert found[0][3] == pytest.approx(2 / 7)  # of the caption's seven runs of eight words, five are the item's
    assert hits(Leakage(evalsets=(path,), text=False), {}) == [NOTHING]


def test_embeddings_by_cosine_and_only_in_their_own_space(tmp_path: Path) -> None:
    vectors = np.eye(4, dtype=np.float16)
    items = [{"item": str(at), "embedding": vector.tolist()} for at, vector in enumerate(vectors[:3])]
    path = put(tmp_path, "set", {"item": "text only", "text": "no picture"}, *items, space="ViT-B-32/openai")
    stage = Leakage(evalsets=(path,), embedding_cosine=0.9, embedding_space="ViT-B-32/openai")
    near = np.array([0.1, 1, 0, 0]) / np.sqrt(1.01)
    found = hits(stage, {"img_emb": near.tolist()}, {"img_emb": vectors[3].tolist()}, {"img_emb": None})
    assert found[0][:3] == ("embedding", "set", "1")
    assert found[0][3] == pytest.approx(1 - 1 / np.sqrt(1.01), abs=1e-3)
    assert found[1:] == [NOTHING, NOTHING]
    with pytest.raises(ConfigError, match=r"embedding_space is 'embedded', evaluation set set .*ViT-B-32/openai"):
        hits(Leakage(evalsets=(path,), embedding_cosine=0.9), {"img_emb": near.tolist()})
    with pytest.raises(ConfigError, match="have 2 numbers"):
        hits(stage, {"img_emb": [1.0, 0.0]})


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_descriptor_of_the_users_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tests.curation.test_evalsets import CAT, COFFEE

    class Colours(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)

    file = tmp_path / "descriptor.pt"
    torch.jit.trace(Colours(), torch.zeros(2, 3, 64, 64)).save(str(file))
    settings = {
        "embedding_cosine": 0.98,
        "descriptor": str(file),
        "descriptor_side_px": 64,
        "embedding_space": "colours",
    }
    embedding = Leakage(**settings).describe([CAT])[0].astype(np.float16).tolist()
    path = put(tmp_path, "set", {"item": "cat", "embedding": embedding}, space="colours")
    found = hits(Leakage(evalsets=(path,), **settings), {"image": CAT}, {"image": COFFEE}, {"image": CAT})
    assert [row[:3] for row in found] == [("embedding", "set", "cat"), NOTHING[:3], ("embedding", "set", "cat")]
    with pytest.raises(ValueError, match="give embedding_cosine too"):
        Leakage(descriptor=str(file))
    (tmp_path / "bad.pt").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="no TorchScript file"):
        Leakage(descriptor=str(tmp_path / "bad.pt"), embedding_cosine=0.5).describe([CAT])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 255), st.booleans()), min_size=1, max_size=10),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.booleans()), min_size=1, max_size=10),
    st.integers(0, 3),
)
@settings(max_examples=50)
def test_the_nearest_item_is_named_like_by_comparing_all(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[tuple[int, int, bool]],
    samples: list[tuple[int, int, bool]],
    radius: int,
) -> None:
    def row(of: tuple[int, int, bool]) -> dict[str, Any]:
        return {"sha256": sha(str(of[0])), "phash": f"{of[1]:016x}", "phash_spread": 50.0 if of[2] else 0.0}

    folder = tmp_path_factory.mktemp("sets")
    path = put(folder, "set", *({"item": str(at), **row(item)} for at, item in enumerate(items)))
    found = hits(Leakage(evalsets=(path,), phash_radius=radius), *map(row, samples), batch_rows=3)
    for (name, look, textured), hit in zip(samples, found, strict=True):
        same = [at for at, item in enumerate(items) if item[0] == name]
        near = [((look ^ item[1]).bit_count(), at) for at, item in enumerate(items) if item[2] and textured]
        if same:
            assert hit == ("sha256", "set", str(same[0]), 0.0)
        elif near and (best := min(near))[0] <= radius:
            assert (hit[0], hit[3]) == ("phash", best[0])
            assert items[int(hit[2])][1] == items[best[1]][1]
        else:
            assert hit == NOTHING
