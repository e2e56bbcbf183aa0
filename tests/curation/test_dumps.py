"""The list of Common Crawl's dumps: known without a network, renewed over one, kept when that fails."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from curation.block import plan
from curation.dumps import archives_of, known_dumps, refresh_dumps
from curation.errors import BadShardError, ConfigError
from curation.recipe import load_recipe
from curation.sources.common_crawl import KNOWN_DUMPS, is_dump
from curation.store import Store


def test_known_dumps_need_no_network(tmp_path: Path) -> None:
    dumps = known_dumps(Store(tmp_path))
    assert dumps == sorted(KNOWN_DUMPS)
    assert dumps[0] == "CC-MAIN-2013-20"
    assert {"CC-MAIN-2024-10", "CC-MAIN-2026-04"} <= set(dumps)
    assert all(map(is_dump, dumps))
    assert all(map(is_dump, ("CC-NEWS-2026-02", "CC-NEWS-2026-02-13")))
    assert not is_dump("CC-MAIN-2024")


def test_the_list_is_renewed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        json.dumps([{"id": "CC-MAIN-2030-05"}, {"id": "CC-MAIN-2024-10"}, {"id": "CC-MAIN-2008-2009"}]).encode(),
        b'{"error": "busy"}',
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers.pop(0))

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("CURATION_COMMONCRAWL_LIST_URL", f"http://127.0.0.1:{server.server_port}/collinfo.json")
    try:
        store = Store(tmp_path)
        assert refresh_dumps(store) == ["CC-MAIN-2030-05"]
        assert known_dumps(store)[-1] == "CC-MAIN-2030-05"
        with pytest.raises(BadShardError, match="list of dumps"):
            refresh_dumps(store)
        assert known_dumps(store)[-1] == "CC-MAIN-2030-05"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_table_without_the_columns_stops_the_plan(tmp_path: Path) -> None:
    crawl = tmp_path / "tables"
    crawl.mkdir()
    (crawl / "a.csv").write_text("link,words\na,b\n")
    store, settings = Store(tmp_path / "store"), {"stages.extract.archive": "url_table", "stages.leakage.evalsets": []}
    with pytest.raises(ConfigError, match=r"found link, words; name it: stages\.extract\.url_column"):
        plan(store, load_recipe("demo", settings), "mine", str(crawl))
    named = settings | {"stages.extract.url_column": "link", "stages.extract.text_column": "words"}
    assert plan(store, load_recipe("demo", named), "mine", str(crawl)).shards == [0]
    assert archives_of(store, "mine", "url_table") == [f"{crawl}/a.csv#rows=0-1"]
