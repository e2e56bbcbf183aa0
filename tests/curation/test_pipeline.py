import functools
import hashlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from curation.errors import ConfigError
from curation.pipeline import fingerprint, judged_fingerprint, localise, pin, save_recipe, saved_recipe, upstream
from curation.recipe import Recipe, load_recipe
from curation.stages.safety import Safety
from curation.store import Store

BASE = {"stages.leakage.evalsets": []}


def stages_that_change(overrides: dict) -> set[str]:
    before, after = load_recipe("demo", BASE), load_recipe("demo", BASE | overrides)
    changed = {name for name in before.stage_names if fingerprint(before, name) != fingerprint(after, name)}
    return changed | ({"published"} if judged_fingerprint(before) != judged_fingerprint(after) else set())


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ({}, set()),
        ({"name": "other", "description": "other"}, set()),
        ({"stages.score.batch_size": 7}, set()),
        ({"gates.leak_phash.none_of": ["text"]}, {"published"}),
        ({"stages.leakage.phash_radius": 2}, {"leakage", "published"}),
        ({"gates.known_hash.if_null": "drop"}, {"caption", "leakage", "published"}),
        (
            {"gates.too_small.at_least": 100},
            {"score", "dedup", "safety", "caption", "leakage", "published"},
        ),
    ],
)
def test_a_change_renews_what_depends_on_it_and_nothing_else(overrides: dict, changed: set[str]) -> None:
    assert stages_that_change(overrides) == changed


def test_order_of_gates_matters() -> None:
    recipe = load_recipe("demo", BASE)
    turned = recipe.model_copy(update={"gates": dict(reversed(recipe.gates.items()))})
    assert fingerprint(recipe, "download") != fingerprint(turned, "download")


def test_upstream_skips_stages_that_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nstages: {safety: {}, leakage: {}}\n")
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    assert [upstream(recipe, name) for name in recipe.stage_names] == [None, "extract", "download", "safety"]
    with pytest.raises(ConfigError, match="has no stage 'score'"):
        upstream(recipe, "score")


def test_pin_names_lists_by_content(tmp_path: Path) -> None:
    store, listed = Store(tmp_path / "store"), tmp_path / "known.txt"
    listed.write_text("ab" * 32)
    recipe = load_recipe("demo", BASE | {"stages.safety.known_hashes": str(listed)})
    pinned = pin(recipe, store)
    listed.write_text("cd" * 32)
    settings = localise(pinned, "safety", store)
    assert isinstance(settings, Safety)
    assert Path(settings.known_hashes).read_text() == "ab" * 32
    assert fingerprint(pin(recipe, store), "safety") != fingerprint(pinned, "safety")
    assert pin(pinned, store) == pinned
    assert saved_recipe(store, save_recipe(pinned, store)) == pinned


def test_pin_refuses_what_is_absent(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ConfigError, match=r"stages\.safety\.known_hashes: .*absent\.txt can't be read"):
        pin(load_recipe("demo", BASE | {"stages.safety.known_hashes": str(tmp_path / "absent.txt")}), store)
    with pytest.raises(ConfigError, match=r"stages\.leakage\.evalsets: no evaluation set 'coco'.*index-evalset coco"):
        pin(load_recipe("demo", {"stages.leakage.evalsets": ["coco"]}), store)


def test_heads_are_pinned_from_a_url_and_from_a_file(tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "sac+logos.pth").write_bytes(b"weights")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(served))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    store = Store(tmp_path / "store")

    def with_head(file: str) -> Recipe:
        head = {"file": file, "space": "embedded", "hidden": "identity", "output": "identity"}
        return load_recipe("demo", {"stages.score.heads": {"aesthetic": head}, "stages.leakage.evalsets": []})

    try:
        pinned = pin(with_head(f"{address}/sac%2Blogos.pth?raw=true"), store)
        with pytest.raises(ConfigError, match=r"stages\.score\.heads\.aesthetic\.file: .*404"):
            pin(with_head(f"{address}/absent.pth"), store)
    finally:
        server.shutdown()
        server.server_close()
    key = f"lists/{hashlib.sha256(b'weights').hexdigest()}.pth"
    assert pinned.stages.score
    assert pinned.stages.score.heads["aesthetic"].file == key
    assert pin(pinned, store) == pinned  # what is pinned stays
    assert pin(with_head(str(served / "sac+logos.pth")), store) == pinned  # wherever the same bytes come from
    local = localise(pinned, "score", store)
    assert Path(local.heads["aesthetic"].file).read_bytes() == b"weights"  # type: ignore[attr-defined]
