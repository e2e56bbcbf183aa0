"""The batch API against a real server: what is paid for is fetched, whatever dies in between."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.captions.answers import AnswerCache, Reason
from curation.captions.batch import BatchClient
from curation.captions.endpoint import Asker, Endpoint
from curation.store import Store
from tests.curation.captions.endpoint_server import EndpointServer, completion


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def client(server: EndpointServer, store: Store, sleep: Any = lambda s: None, **changes: Any) -> BatchClient:
    endpoint = Endpoint(url=server.url, model="m", backoff_s=0.01, price_prompt=10, price_completion=10, **changes)
    return BatchClient(Asker(endpoint, AnswerCache(store)), store, sleep=sleep, max_requests=3)


PICTURES = [bytes([n]) * 20 for n in range(5)]


def test_answers_come_in_parts_and_are_kept(server: EndpointServer, tmp_path: Path) -> None:
    store = Store(tmp_path)
    server.behaviours.extend([completion(), 500, completion("Sorry, no.")])
    made = client(server, store)
    answers = made.ask_all([*PICTURES, PICTURES[0]])
    assert sorted(a.reason for a in answers.values()) == ["", "", "", Reason.REFUSED, Reason.UNANSWERED]
    assert len(server.batches) == 2
    assert made._asker.budget.spent_money == pytest.approx(0.5 * 4 * 100 * 10 / 1e6)
    again = client(server, store).ask_all(PICTURES)
    assert sum(a.cached for a in again.values()) == 4
    assert sorted(server.asked.values()) == [1, 1, 1, 1, 2]
    assert list(store.entries("captions/batches/")) == []


class Killed(BaseException):
    pass


@pytest.mark.parametrize("between", ["made and noted", "noted and fetched"])
def test_a_batch_that_was_made_is_not_made_again(
    server: EndpointServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    store = Store(tmp_path)

    def killed(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    first = client(server, store, sleep=killed)
    if between == "made and noted":
        submit = first._submit
        monkeypatch.setattr(first, "_submit", lambda *args: (submit(*args), killed()))
    with pytest.raises(Killed):
        first.ask_all(PICTURES[:3])
    assert len(server.batches) == 1
    answers = client(server, store).ask_all(PICTURES[:3])
    assert all(a.text and a.cached for a in answers.values())
    assert len(server.batches) == 1
    assert set(server.asked.values()) == {1}


def test_the_budget_holds_for_batches(server: EndpointServer, tmp_path: Path) -> None:
    cap = {"max_total_tokens": 450, "instruction": "Say.", "image_tokens": 98, "max_tokens": 50}
    answers = client(server, Store(tmp_path), **cap).ask_all(PICTURES)
    assert [a.reason for a in answers.values()].count(Reason.OVER_BUDGET) == 2
    assert server.asked.total() == 3
