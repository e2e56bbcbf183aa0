"""Caps, balance and splits of a version, on a crawl of several hosts."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from curation.block import plan
from curation.cli import app
from curation.errors import BadShardError, ConfigError
from curation.pipeline import saved_recipe
from curation.publish import selection
from curation.publish.collect import collect
from curation.publish.parts import read_plan
from curation.publish.selection import left_out, select_version, weigh_shard
from curation.publish.verify import read_manifest, verify
from curation.publish.version import export_shard, finish_release, plan_release
from curation.recipe import Recipe, load_recipe
from curation.reports.life import lives
from curation.runner import run_stage
from curation.takedown import take_down
from curation.tombstones import targets_of
from tests.curation.conftest import PICTURES, World, jpeg

HOSTS = 9
SAMPLES = {host: 9 if host == 0 else 3 for host in range(HOSTS)}  # in each of two shards
SOURCES = {"crawl": [0, 1]}
THINGS = ["dog", "dog", "cat"]
CONCEPTS = "dog\ncat\naxolotl\n"


@pytest.fixture
def hosts(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    rng = np.random.default_rng(0)
    for shard in range(2):
        with (world.crawl / f"{shard:05d}.warc.gz").open("wb") as out:
            writer = WARCWriter(out, gzip=True)
            for host, n in SAMPLES.items():
                links = []
                for k in range(n):
                    path = f"/{shard}-{host}-{k}.jpg"
                    if (host, k) != (8, 0):  # host 8 shows a picture of host 7's
                        noise = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                        monkeypatch.setitem(PICTURES, path, jpeg(noise.repeat(10, 0).repeat(10, 1)))
                    else:
                        monkeypatch.setitem(PICTURES, path, PICTURES[f"/{shard}-7-0.jpg"])
                    thing = THINGS[k % 3] if (shard, host, k) != (1, 5, 2) else "newt"
                    links.append(f'<img src="{path}" alt="Picture {shard} {host} {k}, the side of a {thing}.">')
                headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
                body = io.BytesIO(f"<html><body>{''.join(links)}</body></html>".encode())
                writer.write_record(
                    writer.create_warc_record(f"http://h{host}.test/", "response", payload=body, http_headers=headers)
                )
    (tmp_path / "concepts.txt").write_text(CONCEPTS)
    return world


def planned(world: World, publish: dict) -> tuple[Recipe, str]:
    settings = {"stages.download.connect_to": world.connect_to, **{f"publish.{k}": v for k, v in publish.items()}}
    loaded = load_recipe(str(world.recipe_file), settings)
    recipe = saved_recipe(world.store, plan(world.store, loaded, "crawl", str(world.crawl)).recipe_key)
    for shard in SOURCES["crawl"]:
        for stage in recipe.stage_names:
            run_stage(world.store, recipe, "crawl", shard, stage)
    return recipe, plan_release(world.store, recipe, SOURCES)


def published(world: World, publish: dict) -> tuple[Recipe, dict, pa.Table]:
    recipe, version = planned(world, publish)
    select_version(world.store, recipe, version)
    for shard in SOURCES["crawl"]:
        export_shard(world.store, recipe, version, "crawl", shard)
    finish_release(world.store, recipe, version)
    assert verify(world.store, recipe.name, version) == []
    return recipe, read_manifest(world.store, recipe.name, version), version_table(world, recipe.name, version)


def version_table(world: World, name: str, version: str) -> pa.Table:
    files = read_manifest(world.store, name, version)["files"]
    root = Path(world.store.root)
    return pa.concat_tables([pq.read_table(root / f["key"]) for f in files if "/metadata/" in f["key"]])


def by_host(table: pa.Table) -> Counter[str]:
    return Counter(url.split("/")[2] for url in table["url"].to_pylist())


def test_caps_balance_and_splits_choose_and_conserve(hosts: World, tmp_path: Path) -> None:
    store = hosts.store
    _, manifest, table = published(hosts, {"max_per_domain": 4})
    assert manifest["counts"] == {"kept": 9 * 4, "domain_cap": 14 + 8 * 2}
    assert set(by_host(table).values()) == {4}
    assert "4 samples" not in (card := store.read_bytes(f"datasets/small/{manifest['version']}/card.html").decode())
    assert "30 samples that every gate let through had more company of their host" in card

    balance = {"concepts": {"*": [str(tmp_path / "concepts.txt")]}, "threshold": 15}
    recipe, manifest, table = published(hosts, {"balance": balance, "max_domain_share": 0.09})
    told = manifest["selection"]["lists"]["*"]
    assert manifest["selection"]["cap"] == {"per_domain": 5, "domains_over": 9}
    assert (told["concepts"], told["concepts_named"], told["threshold"]) == (3, 2, 15)
    assert told["samples"] == manifest["counts"]["kept"] + manifest["counts"]["balanced_out"] == 45
    assert sum(manifest["counts"].values()) == 66
    assert told["kept"] == manifest["samples"] == table.num_rows
    things = Counter(text.rpartition(" ")[2] for text in table["text"].to_pylist())
    assert set(things) == {"dog.", "cat."}  # a newt is no concept
    tail = pq.read_table(Path(store.root) / f"datasets/small/{manifest['version']}/balance.parquet").to_pylist()
    assert {row["concept"]: row["kept"] for row in tail} == {"dog": things["dog."], "cat": things["cat."], "axolotl": 0}
    assert things["cat."] == tail[1]["candidates"] <= 15  # no draw takes from the tail
    assert things["dog."] < tail[0]["candidates"]

    # what publish leaves out is told by `why`, until the version is gone for good
    out = left_out(store, recipe, manifest["version"], "crawl", 0)
    gone = next(sample for sample, reason in out.items() if reason == "balanced_out")
    (life,) = lives(store, recipe, "crawl", [0], gone)
    kept_elsewhere = life.outcome == "kept"
    assert f"balanced_out in small/{manifest['version']}" in life.because
    assert kept_elsewhere == bool(life.versions)
    assert not [key for key in collect(store).condemned if "selection" in key]

    told = json.loads(CliRunner().invoke(app, ["balance", "small", "--store", store.root, "--json"]).stdout)
    assert told["lists"]["*"]["absent"] == 1
    assert told["lists"]["*"]["rarest"]["cat"]["lacks"] == 15 - tail[1]["candidates"]
    for purpose, concepts in (("crawl", {"axolotl", "cat"}), ("caption", {"cat"})):
        arguments = ["balance", "small", "--store", store.root, "--spend", "30", "--for", purpose]
        done = CliRunner().invoke(app, [*arguments, "--json"])
        rows = json.loads(done.stdout)
        lacking = {row["concept"] for row in rows}
        assert lacking <= concepts
        assert sum(row["slots"] for row in rows) == (30 if lacking else 0)
        assert done.stdout == CliRunner().invoke(app, [*arguments, "--json"]).stdout
        if purpose == "caption":
            ids = set(table["sample_id"].to_pylist())
            assert all(sample["sample_id"] in ids for row in rows for sample in row["samples"])
    receipt = take_down(store, targets_of([("sample_id", table["sample_id"][0].as_py())]))
    cleaned = receipt["versions"][f"small/{manifest['version']}"].partition("/")[2]
    assert verify(store, "small", cleaned) == []


def test_parts_share_no_host_and_no_picture_and_make_up_the_whole(
    hosts: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, manifest, table = published(hosts, {"splits": {"val": 0.25, "test": 0.25}, "max_per_domain": 6})
    done = json.loads(
        CliRunner().invoke(app, ["publish", "small", "--dump", "crawl", "--store", hosts.store.root, "--json"]).stdout
    )
    assert (done["version"], set(done["held_out"])) == (manifest["version"], {"small-val", "small-test"})
    parts = {"train": table} | {
        part: version_table(hosts, f"small-{part}", done["held_out"][f"small-{part}"]) for part in ("val", "test")
    }
    for part, table in parts.items():
        name = "small" if part == "train" else f"small-{part}"
        manifest = read_manifest(hosts.store, name, "latest")
        if part != "train":
            evalset = pq.read_table(
                Path(hosts.store.root) / hosts.store.read_bytes(f"evalsets/{name}/current").decode()
            )
            assert evalset.num_rows == table.num_rows
        assert manifest["counts"]["kept"] + manifest["counts"]["held_out"] == 54
        assert manifest["selection"]["splits"]["samples"][part] == table.num_rows > 0
    everything = pa.concat_tables(parts.values())
    assert everything.num_rows == len(set(everything["sample_id"].to_pylist())) == 54
    for column in (lambda table: set(by_host(table)), lambda table: set(table["sha256"].to_pylist())):
        seen = [column(table) for table in parts.values()]
        assert sum(map(len, seen)) == len(set.union(*seen))
    selecting_again_changes_nothing(hosts)
    groups_and_large_domains_are_taken_in_portions(hosts, monkeypatch)
    recipe, version = planned(hosts, {"splits": {"val": 0.001, "test": 0.0}})
    with pytest.raises(ConfigError, match=r"publish\.splits\.val: no sample would be in it"):
        select_version(hosts.store, recipe, version)


def selecting_again_changes_nothing(hosts: World) -> None:
    recipe, version = planned(hosts, {"max_per_domain": 2})
    with pytest.raises(BadShardError, match="not selected yet"):
        export_shard(hosts.store, recipe, version, "crawl", 0)
    assert weigh_shard(hosts.store, recipe, version, "crawl", 0) == 33
    first = select_version(hosts.store, recipe, version)
    prefix = f"datasets/small/{version}/selection/"
    before = {entry.key: hosts.store.read_bytes(entry.key) for entry in hosts.store.entries(prefix)}
    assert select_version(hosts.store, recipe, version) == first
    assert {entry.key: hosts.store.read_bytes(entry.key) for entry in hosts.store.entries(prefix)} == before
    assert read_plan(hosts.store, "small", version).sources == SOURCES


def groups_and_large_domains_are_taken_in_portions(hosts: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, version = planned(hosts, {"max_per_domain": 2, "splits": {"val": 0.3, "test": 0.3}})
    places = [selection._Row("crawl", shard) for shard in (0, 1)]
    for place in places:
        weigh_shard(hosts.store, recipe, version, *place)
    weighed = selection._Weighed(hosts.store, recipe, version, places)
    domains, counts = weighed.domains()
    whole = weighed.cap_draws(domains, 2), np.unique(weighed.links(domains, int(counts.sum())), axis=0)
    assert len(whole[1]) == 1  # hosts 7 and 8
    monkeypatch.setattr(selection, "_ROWS_AT_ONCE", 5)
    assert (weighed.cap_draws(domains, 2) == whole[0]).all()
    assert (np.unique(weighed.links(domains, int(counts.sum())), axis=0) == whole[1]).all()
