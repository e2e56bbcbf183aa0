import io
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_state
from skimage import data

from curation.errors import BadShardError, ConfigError
from curation.models.clip import load_clip
from curation.recipe import load_recipe
from curation.stages.score import ClipChoice, Score

PICTURES = [data.chelsea(), data.coffee(), data.rocket()]
TEXTS = ["a cat looks at the camera", "eine Tasse Kaffee", "a rocket on its way", "12345", "a dog runs"]
PARTITIONS = ["en", "multi", "en", "nolang", "en"]


def stored(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).resize((300, 256)).save(file, "JPEG", quality=95)
    return file.getvalue()


def batch(n: int = 5, order: list[int] | None = None) -> pa.RecordBatch:
    rows = order if order is not None else list(range(n))
    return pa.RecordBatch.from_pydict(
        {
            "image": pa.array([stored(PICTURES[row % 3]) for row in rows], pa.binary()),
            "text": pa.array([TEXTS[row % 5] for row in rows], pa.string()),
            "partition": pa.array([PARTITIONS[row % 5] for row in rows], pa.string()),
        }
    )


def scored(stage: Score, *batches: pa.RecordBatch) -> pa.Table:
    answers = list(stage(iter(batches), Counter()))
    assert [answer.num_rows for answer in answers] == [one.num_rows for one in batches]
    return pa.Table.from_batches(answers)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ClipChoice:
    """A vision transformer without training: fast, and as sensitive to a wrong row as any."""
    weights = tmp_path_factory.mktemp("vit") / "weights.safetensors"
    save_state(open_clip.create_model("ViT-S-32-alt", load_weights=False).state_dict(), weights)
    return ClipChoice(model="ViT-S-32-alt", pretrained=str(weights), space="mine")


def one_model(small: ClipChoice, **settings: object) -> Score:
    return Score(device="cpu", english=small, multilingual=small, **settings)


def vectors(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), np.float32)


def test_each_partition_is_measured_by_its_model() -> None:
    from curation.images.stored import decode_stored

    stage, tally = Score(device="cpu"), Counter[str]()
    (answer,) = stage(iter([batch()]), tally)
    assert answer.schema == stage.produces
    assert answer.schema.field("img_emb").type == pa.list_(pa.float16(), 384)
    assert tally == {"scored_english": 3, "scored_multilingual": 2}
    for row, name in enumerate(["embedded", "embedded-multi", "embedded", "embedded-multi", "embedded"]):
        clip = load_clip(name, device="cpu")
        image = clip.embed_images([decode_stored(stored(PICTURES[row % 3]))])[0]
        text = clip.embed_texts([TEXTS[row]])[0]
        assert answer.column("similarity")[row].as_py() == pytest.approx(float(image @ text), abs=1e-5)
        np.testing.assert_allclose(answer.column("img_emb")[row].as_py(), image, atol=1e-3)
        np.testing.assert_allclose(answer.column("txt_emb")[row].as_py(), text, atol=1e-3)
    assert stage.models.keys() == {"clip_english", "clip_multilingual"}


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_scores_do_not_depend_on_batches_or_order(batch_size: int, small: ClipChoice) -> None:
    """Within 1e-5 in float32; embeddings within one step of float16 beside that."""
    whole = scored(one_model(small), batch(12))
    order = np.random.default_rng(0).permutation(12).tolist()
    stage = one_model(small, batch_size=batch_size, decode_threads=3)
    other = scored(stage, batch(order=order[:5]), batch(order=order[5:6]), batch(order=order[6:])).take(
        np.argsort(order)
    )
    np.testing.assert_allclose(other["similarity"].to_numpy(), whole["similarity"].to_numpy(), atol=1e-5)
    for name in ("img_emb", "txt_emb"):
        np.testing.assert_allclose(vectors(other[name]), vectors(whole[name]), atol=3e-4)


def test_the_same_batches_give_the_same_bytes(small: ClipChoice) -> None:
    assert scored(one_model(small), batch(12)).equals(scored(one_model(small), batch(12)))


def test_no_rows(small: ClipChoice) -> None:
    assert scored(one_model(small), batch(0)).num_rows == 0
    assert list(one_model(small)(iter([]), Counter())) == []


def test_a_damaged_table_is_a_bad_shard(small: ClipChoice) -> None:
    broken = batch().set_column(0, "image", pa.array([b"no picture"] * 5, pa.binary()))
    with pytest.raises(BadShardError, match="does not decode"):
        scored(one_model(small), broken)


def test_what_fails_upstream_is_raised_here(small: ClipChoice) -> None:
    def failing():
        yield batch()
        raise BadShardError("the table ends early")

    with pytest.raises(BadShardError, match="ends early"):
        list(one_model(small)(failing(), Counter()))


def test_leaving_early_stops_the_reader(small: ClipChoice) -> None:
    stage = one_model(small)
    endless = (batch(2) for _ in iter(int, 1))
    answers = stage(endless, Counter())
    assert next(answers).num_rows == 2
    answers.close()
    with pytest.raises(StopIteration):
        next(answers)


def head_file(path: Path, dim: int = 384, **said: str) -> tuple[str, np.ndarray]:
    weight = np.random.default_rng(3).normal(size=(1, dim)).astype(np.float32)
    save_file({"weight": weight, "bias": np.array([5.0], np.float32)}, path, said)
    return str(path), weight[0]


def test_heads_read_the_image_embedding(tmp_path: Path, small: ClipChoice) -> None:
    file, weight = head_file(tmp_path / "h.safetensors", dim=256, space="mine", output="identity")
    own, _ = head_file(tmp_path / "own.safetensors", dim=256, space="mine", output="sigmoid")
    heads = {
        "aesthetic": {"file": file, "space": "mine"},
        "head_mine": {"file": own, "space": "mine", "scale": "0..1"},
    }
    stage = one_model(small, heads=heads)
    answer = scored(stage, batch())
    expected = vectors(answer["img_emb"]) @ weight + 5
    np.testing.assert_allclose(answer["aesthetic"].to_numpy(), expected, atol=0.02)  # of a norm-16 head on float16
    np.testing.assert_allclose(answer["head_mine"].to_numpy(), 1 / (1 + np.exp(-expected)), atol=0.01)
    assert answer.schema.field("aesthetic").metadata == {b"unit": b"about 1..10", b"space": b"mine"}
    assert answer.schema.field("head_mine").metadata == {b"unit": b"0..1", b"space": b"mine"}
    assert stage.models["aesthetic"].startswith("aesthetic@")


def test_a_head_of_another_space_stops_the_recipe() -> None:
    head = {"file": "sa_0_4_vit_l_14_linear.pth", "space": "ViT-L-14/openai"}
    with pytest.raises(ValidationError, match=r"english gives those of embedded: choose a head of that space"):
        Score(heads={"aesthetic": head})
    with pytest.raises(ConfigError, match=r"heads\.aesthetic was trained on embeddings of ViT-L-14/openai"):
        load_recipe("demo", {"stages.score.heads": {"aesthetic": head}})
    large = ClipChoice(model="ViT-L-14-quickgelu", pretrained="openai")
    assert Score(heads={"aesthetic": head}, head_model=large).heads
    assert Score(heads={"aesthetic": head}, english=large, multilingual=large).heads
    with pytest.raises(ConfigError, match=r"stages\.score\.heads\.esthetic"):
        load_recipe("demo", {"stages.score.heads": {"esthetic": head}})


def test_a_gate_needs_its_head() -> None:
    gate = {"gates.aesthetic_low": {"column": "aesthetic", "at_least": 5}}
    with pytest.raises(ConfigError, match=r"name its head in stages\.score\.heads\.aesthetic"):
        load_recipe("demo", gate)
    head = {"stages.score.heads": {"aesthetic": {"file": "x.pth", "space": "embedded"}}}
    assert load_recipe("demo", gate | head).gates


def test_a_head_of_another_width_stops_before_work(tmp_path: Path) -> None:
    file, _ = head_file(tmp_path / "h.safetensors", dim=512, space="embedded", output="identity")
    with pytest.raises(ConfigError, match=r"takes embeddings of 512 numbers, those of embedded have 384"):
        Score(heads={"aesthetic": {"file": file, "space": "embedded"}}).check()


def test_heads_of_another_model_than_similaritys(tmp_path: Path, small: ClipChoice) -> None:
    """A second image tower with its own geometry feeds the heads; similarity stays."""
    file, _ = head_file(tmp_path / "h.safetensors", space="embedded", output="identity")
    heads = {"aesthetic": {"file": file, "space": "embedded"}}
    answer = scored(one_model(small, heads=heads, head_model=ClipChoice()), batch(3))
    direct = scored(Score(device="cpu", multilingual=ClipChoice(), heads=heads), batch(3))
    np.testing.assert_allclose(answer["aesthetic"].to_numpy(), direct["aesthetic"].to_numpy(), atol=1e-3)
    np.testing.assert_allclose(
        answer["similarity"].to_numpy(), scored(one_model(small), batch(3))["similarity"].to_numpy(), atol=1e-6
    )


def test_models_of_two_widths_share_a_column(small: ClipChoice) -> None:
    answer = scored(Score(device="cpu", english=small), batch(2))
    assert answer.schema.field("img_emb").type == pa.list_(pa.float16(), 384)
    found = vectors(answer["img_emb"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    assert not found[0, 256:].any()
    assert found[1, 256:].any()


def test_embeddings_survive_parquet_with_rows_left_out(tmp_path: Path, small: ClipChoice) -> None:
    answer = scored(one_model(small), batch())
    column = answer["img_emb"].combine_chunks().take(pa.array([0, None, 3], pa.int64()))
    pq.write_table(pa.table({"img_emb": column}), tmp_path / "e.parquet", compression="zstd")
    back = pq.read_table(tmp_path / "e.parquet")["img_emb"]
    assert back.type == pa.list_(pa.float16(), 256)
    assert back.to_pylist() == column.to_pylist()
    assert back.null_count == 1
