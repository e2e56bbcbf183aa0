"""Airflow and the curation pages as people use them: a headless Chromium on a real Airflow.

Runs wherever a Chromium is found ($CHROMIUM, or on the path); elsewhere it is left out, and the summary says so.
"""

import json
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")
pytest.importorskip("playwright", reason="NO BROWSER TESTS: playwright is not installed")

import jwt
from playwright import sync_api as playwright

from curation.demo.airflow_client import AirflowClient
from curation.demo.airflow_server import AirflowServer
from curation.errors import OutageError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")
pytestmark = [
    pytest.mark.airflow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not CHROMIUM, reason="NO BROWSER TESTS: no Chromium is installed; apt-get install chromium"),
]
ROOT = Path(__file__).resolve().parents[2]
USERS = {"admin": "admin", "viewer": "viewer"}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
N_PICTURES = 12
LEAKED, REPEATED = "A picture that an evaluation set has too", "The first picture once more under another name"
EVALSET = "seen-before"
CAPTIONED, TEACHER = "captioned", "teacher"  # the recipe demo with its captions, beside what the form asks for
HOSTILE = "<script>document.title='taken over'</script><img src=x onerror=alert(1)> A red boat \u202efdp.exe\u202c"
LIMIT_S = 400  # of a page or a run, beside other tests


class Web(BaseHTTPRequestHandler):
    """A page's pictures, each another one."""

    pictures: list[bytes]

    def do_GET(self) -> None:
        found = re.fullmatch(r"/(\d+)\.jpg", self.path)
        body = self.pictures[int(found[1])] if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


SECRET = "AIRFLOW__API_AUTH__JWT_SECRET"


class World(NamedTuple):
    server: AirflowServer
    client: AirflowClient
    store: Path
    crawl: Path
    overrides: dict[str, Any]


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    from PIL import Image
    from skimage import data

    pictures = []
    turned = [(name, turn) for name in ("astronaut", "chelsea", "coffee", "rocket") for turn in range(3)]
    assert len(turned) == N_PICTURES
    for name, turn in [*turned, ("rocket", 3)]:
        out = BytesIO()
        Image.fromarray(getattr(data, name)()).rotate(90 * turn, expand=True).save(out, "JPEG", quality=80)
        pictures.append(out.getvalue())
    pictures.append(pictures[0])
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("W", (Web,), {"pictures": pictures}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, web: int) -> Iterator[World]:
    """A crawl of a page with 12 pictures, one that an evaluation set has too and the first once more; two versions.

    Two other recipes have captioned its pictures.
    """
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    folder = tmp_path_factory.mktemp("browser")
    crawl = folder / "crawl"
    crawl.mkdir()
    texts = [f"A picture of a quiet scene with the number {n}" for n in range(N_PICTURES - 1)]
    texts += [HOSTILE, LEAKED, REPEATED]
    pictures = "".join(
        f'<img src="/{n}.jpg" alt="{text.replace("<", "&lt;").replace(chr(34), "&quot;")}">'
        for n, text in enumerate(texts)
    )
    with (crawl / "0.warc.gz").open("wb") as out:
        writer = WARCWriter(out, gzip=True)
        head = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
        body = BytesIO(f'<html lang="en">{pictures}</html>'.encode())
        writer.write_record(writer.create_warc_record("http://host.test/", "response", payload=body, http_headers=head))
    lowest = dict.fromkeys(("en", "multi", "nolang"), -1)
    overrides = {
        "stages.download.connect_to": {"*.test": f"127.0.0.1:{web}"},
        "stages.leakage.evalsets": [EVALSET],
        "stages.caption": None,
        "gates.similarity_low.at_least": lowest,
    }
    home = folder / "home"
    home.mkdir()
    (home / "passwords.json").touch(mode=0o600)
    (home / "passwords.json").write_text(json.dumps({name: f"of-{name}" for name in USERS}))
    settings = {
        "CURATION_STORE": str(folder / "store"),
        "HF_HUB_OFFLINE": "1",
        "CURATION_PRICE_CPU_HOUR": "0.05",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
    }
    with AirflowServer(home, ROOT, settings) as server:
        server.start()
        # while Airflow comes up
        index_leaked(folder, web)
        for changed in ({"publish.webdataset": False}, {}):
            publish_before(folder / "store", crawl, overrides | changed)
        captioned = {name: value for name, value in overrides.items() if name != "stages.caption"}
        for recipe in (CAPTIONED, TEACHER):
            run_before(folder / "store", recipe, crawl, captioned)
        client = AirflowClient(server.url, "admin", "of-admin")
        client.wait_until_healthy("curate_block", server.check, patience_s=480)
        client.set_pool("download", 1, "downloads")
        client.set_pool("index", 1, "commits")
        yield World(server, client, folder / "store", crawl, overrides)


def index_leaked(folder: Path, web: int) -> None:
    """The evaluation set: the one picture that the page should not have shown."""
    from curation.evalsets import index_evalset
    from curation.store import Store

    pictures = folder / "evalset"
    pictures.mkdir()
    with urllib.request.urlopen(f"http://127.0.0.1:{web}/{N_PICTURES}.jpg", timeout=60) as answer:
        (pictures / "rocket.jpg").write_bytes(answer.read())
    index_evalset(Store(folder / "store"), EVALSET, pictures)


def publish_before(root: Path, crawl: Path, overrides: dict[str, Any]) -> None:
    """The block that the form will ask for, made by the command's own code: the run finds every shard done."""
    run_before(root, "demo", crawl, overrides)


def run_before(root: Path, recipe: str, crawl: Path, overrides: dict[str, Any]) -> None:
    from curation.block import plan
    from curation.local import run_block
    from curation.pipeline import saved_recipe
    from curation.recipe import load_recipe
    from curation.store import Store

    class Quiet:
        def begin(self, step: str, shards: int) -> None:
            pass

        def move(self, step: str, shard: int, rows: int, of: int) -> None:
            pass

        def finish(self, step: str, shard: int) -> None:
            pass

    store = Store(root)
    block = plan(store, load_recipe("demo", overrides | {"name": recipe}), "seen", str(crawl))
    assert not run_block(store, saved_recipe(store, block.recipe_key), block, Quiet()).failed


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept: $CURATION_SCREENSHOTS, or the run's temporary folder."""
    folder = Path(os.environ.get("CURATION_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def logged_in(browser: Any, world: World, user: str, **context: Any) -> Any:
    page = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **context}).new_page()
    page.set_default_timeout(1000 * LIMIT_S)
    page.goto(f"{world.server.url}/auth/login")
    page.fill("input[name=username]", user)
    page.fill("input[name=password]", f"of-{user}")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "login" not in url)
    return page


def wait_for(state: Any, *wanted: str) -> None:
    until = time.monotonic() + LIMIT_S
    while (now := state()) not in wanted:
        assert now != "failed" or "failed" in wanted
        assert time.monotonic() < until, now
        time.sleep(0.5)


def looked_at(page: Any, place: str, has: str) -> None:
    """Open a page, again as long as it is being counted; it must hold the words and nothing may overflow it."""
    until = time.monotonic() + LIMIT_S
    while True:
        assert page.goto(place).status == 200, place
        if has in page.content():
            break
        assert "look again" in page.content(), page.content()
        assert time.monotonic() < until
        time.sleep(0.3)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        f"{place} is wider than the window"
    )


def the_version(world: World) -> str:
    from curation.publish.verify import newest
    from curation.store import Store

    return newest(Store(world.store), "demo")


def the_versions(world: World) -> list[str]:
    from curation.store import Store
    from curation.ui.browse import versions

    return [one.version for one in versions(Store(world.store)) if one.recipe == "demo"]


def test_every_page_shows_the_block(world: World, browser: Any, shots: Path) -> None:
    page = logged_in(browser, world, "admin")
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    pages = f"{world.server.url}/curation"
    dump, version = f"{pages}/dumps/seen/demo", f"{pages}/versions/demo/{the_version(world)}"
    old = next(one for one in the_versions(world) if not version.endswith(one))
    looked_at(page, f"{pages}/", "Cost so far")
    page.screenshot(path=shots / "overview.png")
    for place, has in {
        dump: "12 of 14 samples kept",
        f"{dump}/samples": "quiet scene",
        f"{dump}/samples?sort=-similarity": "quiet scene",
        f"{dump}/samples?reason=too_small": "No sample",
        f"{dump}/threshold": "measured samples",
        f"{dump}/duplicates": "2 members",
        f"{dump}/leakage": "dropped: leak_sha256",
        f"{dump}/audit": "By language",
        f"{pages}/dumps/seen/{CAPTIONED}/captions?other={TEACHER}": f"<dt>{TEACHER}",
        version: "samples",
        f"{version}/diff?old={old}": "publish.webdataset",
        f"{version}/samples": "quiet scene",
        f"{version}/card": "demo",
        f"{pages}/takedown": "none yet",
    }.items():
        looked_at(page, place, has)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=shots / f"{re.sub(r'[^a-z]+', '-', place.partition('/curation/')[2])}.png", full_page=True)
    slider = page.locator("input[type=range]")
    looked_at(page, f"{dump}/threshold", "measured samples")
    slider.focus()
    with page.expect_navigation(wait_until="load"):
        slider.press("End")
    assert re.search(r"line=0\.\d{4}$", page.url), page.url
    assert page.locator("main p strong").first.inner_text() == "0.0%", "the line is beyond every sample"
    looked_at(page, f"{version}/samples?text=red+boat", "red boat")
    page.wait_for_load_state("networkidle")
    assert page.title().startswith("samples"), "an alt text ran"
    assert page.locator("main script, main img[onerror]").count() == 0
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert told == []
    page.context.close()
    phone = logged_in(browser, world, "viewer", color_scheme="dark", viewport={"width": 390, "height": 844})
    for place, has in {
        f"{pages}/": "Cost so far",
        dump: "samples kept",
        f"{dump}/duplicates": "2 members",
        f"{dump}/leakage": "dropped: leak_sha256",
        f"{dump}/audit": "By language",
        f"{pages}/dumps/seen/{CAPTIONED}/captions?other={TEACHER}": f"<dt>{TEACHER}",
        f"{version}/diff?old={old}": "publish.webdataset",
        f"{version}/samples": "quiet scene",
    }.items():
        looked_at(phone, place, has)
        phone.wait_for_load_state("networkidle")
        name = re.sub(r"[^a-z]+", "-", place.partition("/curation/")[2]) or "overview"
        phone.screenshot(path=shots / f"phone-{name}.png", full_page=True)
    phone.context.close()


def test_ten_samples_are_reviewed_by_keyboard(world: World, browser: Any, shots: Path) -> None:
    from curation.review.ratings import progress, read_ratings
    from curation.review.sets import Sampling, create_set
    from curation.store import Store

    store, version = Store(world.store), the_version(world)
    drawn = create_set(store, "demo", version, Sampling(n=10, raters=1, by=()))
    page = logged_in(browser, world, "admin")
    page.goto(f"{world.server.url}/curation/versions/demo/{version}/review/review")
    for number in range(10):
        page.get_by_text(f"you have rated {number}").wait_for()
        page.locator("fieldset.current").wait_for()
        if number == 1:
            page.screenshot(path=shots / "review.png")
            page.keyboard.press("2")
            page.keyboard.press("Backspace")
        for key in "5431":
            page.keyboard.press(key)
        page.keyboard.press("Enter")
    page.get_by_text("nothing left for you to rate").wait_for()
    assert progress(store, drawn)["complete"] == 10
    given = {(one.accuracy, one.completeness, one.detail, one.relevance) for one in read_ratings(store, drawn)}
    assert given == {(5, 4, 3, 1)}
    page.context.close()


def test_a_takedown_is_filed_and_waits_for_a_yes(world: World, browser: Any, shots: Path) -> None:
    from curation.publish.parts import manifest_key
    from curation.store import Store

    version = the_version(world)
    page = logged_in(browser, world, "admin")
    page.goto(f"{world.server.url}/curation/takedown")
    page.get_by_label("what is named").select_option("domain")
    page.get_by_label("which, one a line").fill("host.test")
    page.get_by_label("who asked").fill("a painter")
    page.get_by_role("button", name="count what would go").click()
    page.get_by_text("counts what would go").wait_for()
    page.screenshot(path=shots / "takedown-filed.png")
    (run,) = world.client._call("GET", "/dags/takedown/dagRuns")["dag_runs"]
    assert (run["triggering_user_name"], run["conf"]["values"]) == ("admin", ["host.test"])

    def approval() -> str:
        found = world.client.task_instances("takedown", run["dag_run_id"])
        return next((str(one["state"]) for one in found if one["task_id"] == "approve"), "")

    wait_for(approval, "awaiting_input", "deferred")
    assert world.client.xcom("takedown", run["dag_run_id"], "find")["n_samples"] == N_PICTURES
    assert Store(world.store).exists(manifest_key("demo", version)), "nothing goes before a person has said yes"
    page.context.close()


def answer(world: World, place: str, token: str = "", form: str | None = None, **headers: str) -> int:
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(
        f"{world.server.url}/curation/{place}", None if form is None else form.encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as given:
            return int(given.status)
    except urllib.error.HTTPError as err:
        return err.code


def token_of(world: World, user: str) -> str:
    asked = AirflowClient(world.server.url, user, f"of-{user}")
    asked._call("GET", "/dags?limit=1")
    return asked._token


def test_who_may_not_act_is_refused_and_hostile_addresses_find_nothing(world: World, browser: Any) -> None:
    version = the_version(world)
    review, takedown = f"versions/demo/{version}/review/review", "kind=domain&values=host.test"
    admin, viewer = token_of(world, "admin"), token_of(world, "viewer")
    assert answer(world, "", viewer) == 200, "a viewer looks"
    assert answer(world, "takedown", viewer, takedown) == 403
    assert answer(world, review, viewer, "item=0&accuracy=3") == 403
    assert answer(world, "takedown", admin, takedown, Origin="http://elsewhere.test") == 403
    for form in (
        "kind=everything&values=x",
        "kind=domain&values=",
        "kind=sha256&values=xyz",
        "kind=phash&values=0&radius=99",
    ):
        assert answer(world, "takedown", admin, form) == 400, form
    assert answer(world, "takedown", admin, "values=" + "a" * 70_000) == 413
    claims, secret = jwt.decode(admin, options={"verify_signature": False}), world.server.environment[SECRET]
    still_good, expired = (jwt.encode(claims | {"exp": claims["exp"] - s}, secret, "HS512") for s in (60, 30 * 86400))
    assert answer(world, "", still_good) == 200, "signed as Airflow signs: of the next one only the time is wrong"
    forged = admin[:-6] + "AAAAAA"
    for place in ("", "takedown", "dumps/seen/demo", f"versions/demo/{version}/samples", "files/style.css"):
        assert answer(world, place) == 401, place
        for token in (expired, forged):
            assert answer(world, place, token) in (401, 403), place
    dump = "dumps/seen/demo"
    for place in (
        *("dumps/..%2f../demo", "dumps/seen/..%2fdemo", "files/..%2fpages.py", "files/..", f"{dump}/pictures/0/99999"),
        *(
            f"{dump}/pictures/0/-1",
            f"{dump}/samples?sort=url",
            f"{dump}/samples?reason=x%27%20OR%201",
            "dumps/a%00b/demo",
        ),
        *(f"{dump}/samples?start=0-0;drop", f"{dump}/threshold?column=__class__", f"{dump}/captions?other=../x"),
        *(
            f"{dump}/threshold?line=nan",
            f"versions/demo/{version}/pictures/0/..%2f..%2fx",
            f"{dump}/duplicates?first=-1",
        ),
        *(f"versions/demo/{version}/diff?old=..%2fx", f"versions/demo/{version}/review/..%2f..%2fset"),
    ):
        assert answer(world, place, admin) in (404, 422), place
    for text in ("%27%20OR%201%3D1--", "%00", "%F0%28%8C%28", "%E2%80%AE", "%3Cscript%3E", "a" * 200):
        assert answer(world, f"{dump}/samples?text={text}", admin) == 200, text
    with pytest.raises(OutageError, match="401"):
        AirflowClient(world.server.url, "admin", "wrong")._call("GET", "/dags?limit=1")

    page = browser.new_context().new_page()
    page.goto(f"{world.server.url}/auth/login")
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1000)
    assert "login" in page.url
    page.context.close()

    page = logged_in(browser, world, "admin")
    page.goto(f"{world.server.url}/curation/takedown")
    page.get_by_label("which, one a line").fill("http://host.test/0.jpg")
    page.context.add_cookies([{"name": "_token", "value": expired, "url": world.server.url}])  # the session is over
    with page.expect_response(lambda one: one.url.endswith("/curation/takedown")) as sent:
        page.get_by_role("button", name="count what would go").click()
    assert sent.value.status == 401
    page.context.close()
    assert len(world.client._call("GET", "/dags/takedown/dagRuns")["dag_runs"]) == 1, "a refused request ran"


def test_a_block_is_triggered_by_its_form_and_watched_to_its_end(world: World, browser: Any, shots: Path) -> None:
    page = logged_in(browser, world, "admin")
    page.goto(f"{world.server.url}/dags/curate_block")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.locator("[role=dialog][data-scope=dialog]")
    form.locator("input[name=element_dump]").fill("seen")
    form.locator("input[name=element_source]").fill(str(world.crawl))
    form.locator("input[role=combobox]").fill("demo")
    page.get_by_role("option", name="demo", exact=True).click()
    form.locator("[data-testid=element_overrides], .monaco-editor, .cm-content").first.click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(json.dumps(world.overrides))
    page.keyboard.press("Control+Shift+End")
    page.keyboard.press("Delete")  # what the editor has closed by itself
    page.screenshot(path=shots / "trigger.png")
    form.get_by_role("button", name="Trigger", exact=True).click()

    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = world.client._call("GET", "/dags/curate_block/dagRuns")["dag_runs"]
        return found

    wait_for(lambda: str(len(runs())), "1")
    assert runs()[0]["conf"] | {"overrides": world.overrides} == runs()[0]["conf"]
    wait_for(lambda: runs()[0]["state"], "success")
    page.goto(f"{world.server.url}/dags/curate_block/runs/{runs()[0]['dag_run_id']}")
    page.get_by_text("Success").first.wait_for()
    page.context.close()


def test_a_backfill_over_two_dumps_is_started_by_its_dialog(world: World, browser: Any, shots: Path) -> None:
    world.client._call("PATCH", "/dags/curate_dump", {"is_paused": True})  # the runs of a backfill: test_airflow_demo
    page = logged_in(browser, world, "admin")
    page.goto(f"{world.server.url}/dags/curate_dump")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.locator("[role=dialog][data-scope=dialog]")
    form.get_by_text("Run this Dag for a range of dates").click()
    for day in ("2026/01/19", "2026/02/16"):
        form.get_by_text("Select date and time").first.click()
        page.get_by_placeholder("YYYY/MM/DD").last.fill(day)
        page.get_by_placeholder("HH:mm").last.fill("00:00")
        page.keyboard.press("Enter")
        form.get_by_text("Date Range").click()  # the calendar closes
    form.get_by_text("2 runs will be triggered").wait_for()
    form.get_by_text("Unpause curate_dump on trigger").click()
    form.get_by_text("Override parameters on existing runs").click()  # without it the dialog sends no parameters
    form.locator("input[role=combobox]").fill("demo")
    page.get_by_role("option", name="demo", exact=True).click()
    page.screenshot(path=shots / "backfill.png")
    with page.expect_response(lambda one: one.url.endswith("/backfills") and one.request.method == "POST") as sent:
        form.get_by_role("button", name="Run Backfill").click()
    assert sent.value.ok
    page.context.close()
    runs = world.client._call("GET", "/dags/curate_dump/dagRuns")["dag_runs"]
    assert {run["partition_key"]: run["conf"]["recipe"] for run in runs} == {
        "CC-MAIN-2026-04": "demo",
        "CC-MAIN-2026-08": "demo",
    }
