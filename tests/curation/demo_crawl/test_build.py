import hashlib
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import imagehash
import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType
from PIL import Image
from warcio.archiveiterator import ArchiveIterator as WarcioIterator

from curation.demo_crawl.build import DemoCrawl, build_demo_crawl
from curation.demo_crawl.pictures import admitted_takes, phash, picture, read_regions
from curation.demo_crawl.wat import read_json
from curation.errors import ConfigError
from curation.stages.extract import Extract
from curation.verdicts import REASONS


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> DemoCrawl:
    return build_demo_crawl(tmp_path_factory.mktemp("demo") / "crawl")


@pytest.fixture(scope="module")
def truth(crawl: DemoCrawl) -> list[dict]:
    return [json.loads(line) for line in crawl.truth.read_text("utf-8").splitlines()]


def test_two_builds_are_the_same_bytes(crawl: DemoCrawl, tmp_path: Path) -> None:
    assert _digests(build_demo_crawl(tmp_path / "again").folder) == _digests(crawl.folder)


def test_a_complete_folder_is_reused_and_an_older_one_is_replaced(crawl: DemoCrawl, tmp_path: Path) -> None:
    before = crawl.truth.stat().st_mtime_ns
    assert build_demo_crawl(crawl.folder) == crawl
    assert crawl.truth.stat().st_mtime_ns == before
    old = tmp_path / "old"
    old.mkdir()
    (old / "left-over").touch()
    (old / "crawl.json").write_text('{"version": 0, "shards": 4, "seed": 0}')
    assert build_demo_crawl(old, shards=2).shards == 2
    assert not (old / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    (tmp_path / "file").touch()
    for taken in ("thesis", "file"):
        with pytest.raises(ConfigError, match="holds no demo crawl"):
            build_demo_crawl(tmp_path / taken)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chapter.tex", "file", "thesis"]


def test_pages_are_spread_evenly_and_both_readers_agree(crawl: DemoCrawl, truth: list[dict]) -> None:
    archives = sorted(crawl.archives.glob("*.warc.gz"))
    assert [path.name for path in archives] == [f"{shard:05d}.warc.gz" for shard in range(4)]
    pages: dict[str, int] = {}
    for shard, path in enumerate(archives):
        with path.open("rb") as stream:
            urls = [
                record.headers["WARC-Target-URI"]
                for record in ArchiveIterator(stream, record_types=WarcRecordType.response, verify_digests=True)
            ]
        with path.open("rb") as stream:
            kinds = Counter(record.rec_type for record in WarcioIterator(stream, check_digests="raise"))
        assert kinds == {"warcinfo": 1, **dict.fromkeys(("request", "response", "metadata"), len(urls))}
        pages |= dict.fromkeys(urls, shard)
    assert len(pages) == crawl.pages
    assert {pair["page_url"]: pair["shard"] for pair in truth}.items() <= pages.items()
    counts = Counter(pages.values())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_wat_points_into_the_warc_and_keeps_links_as_they_stand(crawl: DemoCrawl) -> None:
    warc = crawl.archives / "00000.warc.gz"
    with (crawl.archives / "00000.wat.gz").open("rb") as stream:
        documents = read_json(stream)
    content = warc.read_bytes()
    links = []
    for document in documents:
        offset = int(document["Container"]["Offset"])
        length = int(document["Container"]["Gzip-Metadata"]["Deflate-Length"])
        assert content[offset : offset + 2] == b"\x1f\x8b"
        assert offset + length == len(content) or content[offset + length :][:2] == b"\x1f\x8b"
        response = document["Envelope"]["Payload-Metadata"].get("HTTP-Response-Metadata")
        links += response["HTML-Metadata"]["Links"] if response else []
    urls = [link["url"] for link in links if link["path"] == "IMG@/src"]
    assert any(url.startswith("/pictures/") for url in urls)
    assert any(url.startswith("../pictures/") for url in urls)
    assert any(url.startswith("http://") for url in urls)


@pytest.mark.parametrize("archive", ["warc", "wat"])
def test_the_readers_find_exactly_the_pairs_of_the_truth(crawl: DemoCrawl, truth: list[dict], archive: str) -> None:
    found: Counter[tuple[str, str]] = Counter()
    for path in sorted(crawl.archives.glob(f"*.{archive}.gz")):
        with path.open("rb") as stream:
            for batch in Extract(archive=archive).read(stream, path.name, Counter()):
                found.update(zip(batch.column("url").to_pylist(), batch.column("page_url").to_pylist(), strict=True))
    wanted = Counter((pair["url"], pair["page_url"]) for pair in truth if pair["via"] in ("both", archive))
    assert found == wanted


def test_truth_uses_the_closed_list_of_reasons_and_groups_have_one_survivor(truth: list[dict]) -> None:
    expected: Counter[str] = Counter()
    for pair in truth:
        names = [pair["expect"]] if isinstance(pair["expect"], str) else pair["expect"]
        assert set(names) - {"kept"} <= REASONS
        assert bool(pair["group"]) == (len(names) > 1 and "kept" in names)
        expected[names[0]] += 1
    assert len(truth) > 400
    assert expected["kept"] > 250
    assert {"timeout", "leak_phash", "leak_sha256", "known_hash", "opt_out_tdm", "too_many_redirects"} <= set(expected)


def test_pictures_differ_and_copies_do_not(crawl: DemoCrawl, truth: list[dict]) -> None:
    """By an implementation of pHash that is not ours."""
    hashes: dict[str, list[imagehash.ImageHash]] = {}
    for pair in truth:
        path = crawl.folder / "site" / pair["url"].removeprefix("http://").partition("?")[0]
        if pair["stage"] in ("publish", "dedup") and path.is_file() and "formats.demo" not in pair["url"]:
            name = pair["group"] or pair["url"]
            hashes.setdefault(name, []).append(imagehash.phash(Image.open(path)))
    for name, copies in hashes.items():
        assert all(one - other <= 4 for one, other in combinations(copies, 2)), name
    firsts = [(name, copies[0]) for name, copies in hashes.items()]
    close = [(a, b) for (a, one), (b, other) in combinations(firsts, 2) if one - other <= 8 and a != b]
    assert not close


def test_every_region_has_english_and_known_languages() -> None:
    regions = read_regions()
    assert len({region.name for region in regions}) == len(regions) > 90
    for region in regions:
        languages = [language for language, _ in region.captions]
        assert languages[0] == "en"
        assert set(languages) <= {"en", "de", "fr", "es", "zh", "ja", "ru"}
        assert len(languages) == (3 if region.role == "page" else 1)


def test_takes_of_reserved_regions_resemble_nothing_else() -> None:
    takes = admitted_takes(read_regions())
    reserved = [phash(picture(take)) for take in takes if take.region.role != "page"]
    others = [phash(picture(take)) for take in takes if take.region.role == "page"]
    assert min((one ^ other).bit_count() for one in reserved for other in others) > 8


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
