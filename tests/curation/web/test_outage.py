import pytest

from curation.errors import OutageError
from curation.verdicts import Fault
from curation.web.outage import Ledger

DNS, GONE = Fault.DNS_FAILED, Fault.HTTP_404


def ended(ledger: Ledger, faults: list[Fault | None], hosts: int, prefix: str = "h") -> None:
    for n, fault in enumerate(faults):
        ledger.close(ledger.open(), f"{prefix}{n % hosts}.test", fault)


def test_a_window_of_failures_is_an_outage() -> None:
    ledger = Ledger()
    ended(ledger, [DNS] * 49, 5)
    ledger.check()
    ended(ledger, [Fault.TIMEOUT], 1)
    with pytest.raises(OutageError, match="50 URLs of 5 hosts in a row failed \\(49 dns_failed, 1 timeout\\)"):
        ledger.check()


def test_a_dead_host_is_no_outage() -> None:
    ledger = Ledger()
    ended(ledger, [DNS] * 500, 4)
    ledger.check()


def test_any_response_means_that_the_network_is_there() -> None:
    ledger = Ledger()
    ended(ledger, [GONE, *[DNS] * 200], 20)
    ledger.check()
    ledger.check_all()


def test_the_network_may_go_later() -> None:
    ledger = Ledger()
    ended(ledger, [None] * 500 + [DNS] * 60, 60)
    with pytest.raises(OutageError):
        ledger.check()


def test_rows_that_say_nothing_of_the_network_neither_raise_nor_prevent_it() -> None:
    ledger = Ledger()
    ended(ledger, [DNS, Fault.HOST_SUSPENDED, Fault.ADDRESS_REFUSED, Fault.DEADLINE] * 20, 4, "x")
    ledger.check_all()
    ended(ledger, [DNS] * 30, 10)
    with pytest.raises(OutageError):
        ledger.check()


def test_failures_that_are_faster_than_the_first_pictures_are_no_outage() -> None:
    ledger = Ledger()
    picture = ledger.open()
    ended(ledger, [DNS] * 200, 100)
    ledger.check()
    ledger.close(picture, "a.test", None)


def test_a_small_shard_is_judged_when_all_is_done() -> None:
    for count, hosts, outage in ((20, 3, True), (19, 3, False), (20, 2, False)):
        ledger = Ledger()
        ended(ledger, [DNS] * count, hosts)
        ledger.check()
        if outage:
            with pytest.raises(OutageError):
                ledger.check_all()
        else:
            ledger.check_all()
