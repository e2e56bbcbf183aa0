"""The client against real servers: one that misbehaves on purpose, and `transformers serve` with a tiny model."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curation.captions.answers import AnswerCache, GarbageError, Reason, judge
from curation.captions.endpoint import Asker, Endpoint, load_endpoint_captioner
from curation.demo.airflow_server import free_port
from curation.errors import ConfigError, OutageError
from curation.store import Store
from tests.curation.captions.endpoint_server import EndpointServer, completion

ROOT = Path(__file__).resolve().parents[3]


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (number % 256, 90, 20)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> AnswerCache:
    return AnswerCache(Store(tmp_path / "store"))


def asker(server: EndpointServer, cache: AnswerCache, **changes: Any) -> Asker:
    quick = {"backoff_s": 0.01, "timeout_s": 2.0, "concurrency": 4, "attempts": 3}
    return Asker(Endpoint(url=server.url, model="teacher", **quick | changes), cache)


def test_a_picture_is_asked_about_once_whoever_asks(server: EndpointServer, cache: AnswerCache) -> None:
    pictures = [picture(i) for i in (1, 2, 1, 1, 2)]
    answers = list(asker(server, cache).ask_all(pictures))
    assert [a.text for a in answers] == ["A red square."] * 5
    assert sorted(server.asked.values()) == [1, 1]
    again = list(asker(server, cache).ask_all(pictures))
    assert all(a.cached for a in again)
    assert sum(server.asked.values()) == 2
    body = server.bodies[0]
    assert body["messages"][0]["content"][0]["text"].startswith("Describe this picture in detail")
    assert body["stream"] is False
    assert body["max_tokens"] == 1024


def test_prompt_model_and_sampling_make_another_question(server: EndpointServer, cache: AnswerCache) -> None:
    for change in ({}, {"prompt": "zh"}, {"temperature": 0.9}, {"max_tokens": 9}, {"seed": 1}, {"detail": "low"}):
        asker(server, cache, **change).ask(picture(1))
    assert sum(server.asked.values()) == 6
    asker(server, cache, concurrency=1, timeout_s=9.0, max_money=1.0).ask(picture(1))
    assert sum(server.asked.values()) == 6


@pytest.mark.parametrize(
    "fault",
    [429, 500, 503, "reset", "cut", "hang", "drip", b"", b"<html>Bad gateway</html>", b'{"choices": []}', b"[1]",
     b"nul", b'{"choices": [{"message"', b'{"choices": [{"message": {"content": 7}}]}', b"[" * 100_000],
    ids=lambda fault: str(fault)[:40],
)  # fmt: skip
def test_a_fault_is_tried_again(server: EndpointServer, cache: AnswerCache, fault: Any) -> None:
    server.behaviours.append(fault)
    answer = asker(server, cache).ask(picture(1))
    assert answer.text == "A red square."
    assert server.asked.total() == 2


def test_a_picture_without_an_answer_does_not_stop_the_others(server: EndpointServer, cache: AnswerCache) -> None:
    server.behaviours.extend([500] * 3)
    answers = list(asker(server, cache, concurrency=1).ask_all([picture(i) for i in range(3)]))
    assert [a.reason for a in answers] == [Reason.UNANSWERED, "", ""]
    assert "status 500" in answers[0].detail
    assert asker(server, cache).ask(picture(0)).text  # it may be asked again


def test_retry_after_holds_back_every_thread(server: EndpointServer, cache: AnswerCache) -> None:
    server.behaviours.append((429, b"{}", {"Retry_After": "1"}))
    list(asker(server, cache, concurrency=1).ask_all([picture(1), picture(2)]))
    assert server.times[1] - server.times[0] > 0.9


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (completion("I'm sorry, but I can't help with that."), Reason.REFUSED),
        (completion("As an AI, I cannot describe people."), Reason.REFUSED),
        (completion("很抱歉，我无法描述这张图片。"), Reason.REFUSED),
        (completion(None, refusal="Not this one"), Reason.REFUSED),
        (completion("A dog and a", "length"), Reason.TRUNCATED),
        (completion("A do", "content_filter"), Reason.FILTERED),
        (completion("  \n "), Reason.EMPTY),
        ((400, b'{"error": {"code": "content_policy_violation"}}', {}), Reason.FILTERED),
        ((413, b"too large", {}), Reason.REJECTED),
    ],
)
def test_what_is_no_caption_has_a_reason_and_is_not_paid_again(
    server: EndpointServer, cache: AnswerCache, said: Any, reason: Reason
) -> None:
    server.usual = said
    for _ in range(2):
        answer = asker(server, cache).ask(picture(1))
        assert (answer.text, answer.reason) == (None, reason)
    assert server.asked.total() == 1


@pytest.mark.parametrize(
    "said",
    [
        "I\u2019m sorry, but I can\u2019t assist with that.",  # as GPT-4o sets its apostrophes
        "I can\u2019t see any image.",
        "I don\u2019t see an image attached.",
        "Unfortunately, I can't view pictures.",
        "There is no image provided.",
        "Please upload the picture that you want described.",
        "對不起，我不能描述這張圖片。",
        "我無法查看圖片。",
        "无法识别图片内容。",
        "您没有上传图片。",
        "请提供图片。",
        "作为一名人工智能助手，我无法看到图片。",
    ],
)
def test_teachers_refuse_in_many_words(said: str) -> None:
    assert judge(completion(said)).reason == Reason.REFUSED


@pytest.mark.parametrize(
    "said",
    [
        "A sign reads: I'm sorry, we are closed.",
        "Sorrel horses graze in a field.",
        "There is no picture on the wall, only a clock.",
        "Pleased children wave.",
        "图片中一位女士无法打开门。",
        "请勿吸烟的标志挂在墙上。",
    ],
)
def test_a_caption_that_begins_like_a_refusal_is_one_that_only_mentions_it(said: str) -> None:
    assert judge(completion(said)).text


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["choices", "message", "content", "usage", "prompt_tokens", "finish_reason"]), x)))  # fmt: skip
@settings(max_examples=60)
def test_any_json_is_an_answer_or_garbage(said: Any) -> None:
    try:
        answer = judge(said)
    except GarbageError:
        return
    assert (answer.text is None) == bool(answer.reason)


@given(st.text())
@settings(max_examples=60)
def test_any_text_can_be_written(text: str) -> None:
    answer = judge(completion(text + "\ud800\x00x"))
    assert "\x00" not in (answer.text or "")
    (answer.text or "").encode()


def test_the_cap_is_never_passed_and_a_restart_gets_no_new_one(server: EndpointServer, cache: AnswerCache) -> None:
    # a question is 100 tokens; it is let through only while the estimate for the next one fits
    cap = {"max_total_tokens": 1000, "image_tokens": 10, "instruction": "Say.", "max_tokens": 100}
    pictures = [picture(i) for i in range(20)]
    first = asker(server, cache, **cap)
    answers = list(first.ask_all(pictures))
    assert {a.reason for a in answers} == {"", Reason.OVER_BUDGET}
    asked = server.asked.total()
    assert first.budget.spent_tokens == 100 * asked <= 1000
    again = asker(server, cache, **cap)
    assert [a.reason for a in again.ask_all(pictures)].count("") >= asked
    assert again.budget.spent_tokens <= 1000
    money = {"max_money": 0.001, "price_prompt": 1.0, "price_completion": 1.0, "seed": 5}
    dear = asker(server, cache, **{k: v for k, v in cap.items() if k != "max_total_tokens"}, **money)
    assert [a.reason for a in dear.ask_all(pictures)].count(Reason.OVER_BUDGET) > 0
    assert dear.budget.spent_money <= 0.001


def test_requests_a_minute_are_kept() -> None:
    from curation.captions.pacing import Pace

    now = [0.0]
    pace = Pace(3, 100, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    sent = []
    for tokens in (10, 10, 10, 10, 95, 10, 200):
        pace.wait(tokens)
        sent.append(now[0])
    assert sent == [0, 0, 0, 60, 120, 180, 240]


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("1e9", 600), ("-3", 0), ("soon", None), (None, None),
                         ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("nan", None)])  # fmt: skip
def test_retry_after_is_read(value: str | None, seconds: float | None) -> None:
    from curation.captions.pacing import retry_after_s

    assert retry_after_s(value) == seconds


@pytest.mark.parametrize("status", [401, 403, 404])
def test_wrong_settings_stop_at_once(server: EndpointServer, cache: AnswerCache, status: int) -> None:
    server.usual = status
    with pytest.raises(ConfigError, match=str(status)):
        list(asker(server, cache, concurrency=1).ask_all([picture(i) for i in range(9)]))
    assert server.asked.total() <= 2


def test_an_endpoint_that_is_down_is_an_outage(server: EndpointServer, cache: AnswerCache) -> None:
    list(asker(server, cache).ask_all([picture(1)]))
    server.usual = 503
    with pytest.raises(OutageError, match="3 questions in a row"):
        list(asker(server, cache, give_up_after=3, concurrency=1).ask_all([picture(i) for i in range(1, 30)]))
    assert server.asked.total() <= 1 + 3 * 3 + 6
    server.usual = completion()
    assert all(a.text for a in asker(server, cache).ask_all([picture(i) for i in range(1, 30)]))


def test_the_key_is_sent_and_redirects_are_not_followed(
    server: EndpointServer, cache: AnswerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    server.behaviours.append((307, b"", {"Location": server.url + "/chat/completions"}))
    asker(server, cache, api_key_env="MY_KEY", attempts=1).ask(picture(1))
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert server.asked.total() == 1


def test_killed_in_the_middle_nothing_that_was_answered_is_asked_again(tmp_path: Path) -> None:
    serve = [sys.executable, str(Path(__file__).with_name("endpoint_server.py")), "0.05"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        script = textwrap.dedent(f"""
            import io, sys
            from PIL import Image
            from curation.captions.endpoint import *
            from curation.captions.answers import AnswerCache
            from curation.store import Store
            def picture(n):
                file = io.BytesIO(); Image.new("RGB", (8, 8), (n, 0, 0)).save(file, "PNG"); return file.getvalue()
            asker = Asker(Endpoint(url={url!r}, model="m", concurrency=2), AnswerCache(Store({str(tmp_path)!r})))
            for answer in asker.ask_all(picture(n) for n in range(40)):
                print(answer.cached, flush=True)
        """)
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env) as first:
            assert first.stdout
            for _ in range(5):
                first.stdout.readline()
            os.kill(first.pid, signal.SIGKILL)
        kept = len(list(tmp_path.rglob("captions/answers/*/*.json")))
        assert 5 <= kept < 40
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
        assert done.stdout.split().count("True") == kept
        assert len(list(tmp_path.rglob("captions/answers/*/*.json"))) == 40
        process.kill()


def test_an_endpoint_stands_in_for_a_captioner(server: EndpointServer, tmp_path: Path) -> None:
    captioner = load_endpoint_captioner(f"{server.url}#teacher", store=Store(tmp_path))
    server.behaviours.append(completion("I'm sorry, no."))
    images = [np.full((10, 12, 3), shade, np.uint8) for shade in (0, 99)]
    captions = captioner.caption(images, top_p=0.9, max_length=30, seed=3, prompt="One sentence.")
    assert sorted(captions) == ["", "A red square."]
    body = server.bodies[0]
    assert (body["top_p"], body["max_tokens"], body["seed"], body["temperature"]) == (0.9, 30, 3, 1.0)
    assert body["messages"][0]["content"][0]["text"] == "One sentence."
    with pytest.raises(ConfigError, match="http://host/v1#model"):
        load_endpoint_captioner("http://host/v1")


def test_a_real_model_server_captions_through_the_same_client(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra: pip install curation[models]")
    pytest.importorskip("openai", reason="transformers serve needs it")
    from tests.curation.models.tiny import save_tiny_qwen2_vl

    model = save_tiny_qwen2_vl(tmp_path / "tiny-qwen2-vl")
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--port", str(port)]
    with subprocess.Popen([*command, "--device", "cpu"], env=os.environ | {"HF_HUB_OFFLINE": "1"},
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            captioner = load_endpoint_captioner(f"http://127.0.0.1:{port}/v1#{model}", store=Store(tmp_path / "store"))
            image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
            assert captioner.caption([image], max_length=6) == [""]  # these weights do not end: truncated
            (kept,) = (tmp_path / "store").rglob("captions/answers/*/*.json")
            answer = json.loads(kept.read_bytes())
            assert (answer["reason"], answer["completion_tokens"]) == ("truncated", 6)
            assert answer["prompt_tokens"] > 4
        finally:
            process.kill()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 300  # torch and transformers are imported first, beside other tests
    while time.monotonic() < until:
        assert process.poll() is None
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


def test_keys_are_stable() -> None:
    endpoint = Endpoint(url="http://a/v1", model="m", instruction="x")
    assert endpoint.key(b"p") == Endpoint(url="http://b/v1", model="m", instruction="x", concurrency=1).key(b"p")
    assert len({endpoint.key(b"p"), endpoint.key(b"q"), hashlib.sha256(b"p").hexdigest()}) == 3
