"""Hosts that answer badly, refuse, or ask not to be used."""

from __future__ import annotations

import json
from collections.abc import Iterator

from curation.demo_crawl.pictures import Take, encode, picture
from curation.demo_crawl.site import Page, Resource, Site

_SCENES = (  # captions of pictures that never arrive
    "A lighthouse on a rocky coast in a storm",
    "Children flying kites on a hill",
    "A market stall with apples and pears",
    "An old steam train leaving the station",
    "Fishing boats in a small harbour at dawn",
    "A waterfall in a green forest",
    "Cyclists climbing a mountain road",
)


def build_answers(site: Site, takes: Iterator[Take], unseen: Iterator[Take]) -> list[Page]:
    """Error statuses, redirects, stalls, resets: few for each host, so that no host looks dead for its neighbours.

    Pictures that arrive are from `takes`, those that must not from `unseen`.
    """
    scenes = _cycle()
    pages = []

    def host(name: str) -> Page:
        pages.append(Page(site, f"http://{name}.demo.test/", f"The {name} site"))
        return pages[-1]

    gone = host("gone")
    for status in (404, 410):
        for number in (1, 2, 3):
            answer = Resource(b"gone\n", "text/plain", status)
            gone.show(site.put(f"{gone.url}{status}-{number}.jpg", answer), next(scenes), f"http_{status}")
    gone.show("/never-there.jpg", next(scenes), "http_404", note="no such file")
    errors = host("errors")
    for status in (500, 502):
        answer = Resource(b"error\n", "text/plain", status)
        errors.show(site.put(f"{errors.url}{status}.jpg", answer), next(scenes), "http_5xx", note=str(status))

    moved = host("moved")
    for name, hops in (("once", 1), ("thrice", 3)):
        take = next(takes)
        target = site.put(f"http://cdn.demo.test/{take.name}.jpg", encode(picture(take)))
        for hop in range(hops, 0, -1):
            target = site.put(f"{moved.url}{name}-{hop}.jpg", _redirect(target, 301 if hop % 2 else 302))
        moved.show(target, take.region.english, note=f"{hops} redirects")
    loop = site.put(f"{moved.url}loop.jpg", _redirect("/pool.jpg"))
    site.put(f"{moved.url}pool.jpg", _redirect("loop.jpg"))
    moved.show(loop, next(scenes), "too_many_redirects", note="loop")
    moved.show(
        site.put(f"{moved.url}self.jpg", _redirect("self.jpg")), next(scenes), "too_many_redirects", note="to itself"
    )
    for name, target in (
        ("metadata", "http://169.254.169.254/latest/meta-data/"),
        ("loopback", "http://127.0.0.1:1/admin.jpg"),
        ("private", "http://10.0.0.5/camera.jpg"),
    ):
        moved.show(site.put(f"{moved.url}{name}.jpg", _redirect(target)), next(scenes), "address_refused", note=target)

    inside = host("inside")
    for target in ("http://169.254.169.254/latest/photo.jpg", "http://192.168.1.1/camera.jpg", "http://[::1]/cat.jpg"):
        inside.show(target, next(scenes), ["address_refused", "url_rejected"], note="private address in the page")

    for name, fault, expect in (  # the excess of a modest length may be told from the framing or from the picture
        ("slow", "stall", "timeout"),
        ("sleepy", "stall-body", "timeout"),
        ("drip", "drip", "timeout"),
        ("torn", "reset", "truncated_body"),
        ("dead", "refuse", "connection_failed"),
        ("boastful", "short", "truncated_body"),
        ("modest", "long", ["bad_image", "bad_http"]),
    ):
        page = host(name)
        body = encode(picture(next(unseen)))
        for number in (1, 2) if expect != "timeout" else (1,):
            file = Resource(body, fault=fault)
            page.show(site.put(f"{page.url}{fault}-{number}.jpg", file), next(scenes), expect, note=fault)
    patient = host("patient")
    for fault in ("heal", "heal", "delay"):
        take = next(takes)
        url = site.put(f"{patient.url}{take.name}.jpg", Resource(encode(picture(take)), fault=fault))
        patient.show(url, take.region.english, note=fault)
    return pages


def build_refusals(site: Site, takes: Iterator[Take], unseen: Iterator[Take]) -> list[Page]:
    """Pictures that their sites keep from us: robots.txt, headers, TDM reservations, meta robots."""
    robots = Page(site, "http://guarded.demo.test/", "A guarded site")
    site.put(robots.url + "robots.txt", Resource(b"User-agent: *\nDisallow: /private/\n", "text/plain"))
    for number, folder in enumerate(("private", "private", "private", "public")):
        take = next(takes if folder == "public" else unseen)
        url = site.put(f"{robots.url}{folder}/{number}.jpg", encode(picture(take)))
        robots.show(url, take.region.english, "kept" if folder == "public" else "robots_disallowed")

    headers = Page(site, "http://signed.demo.test/", "A site with headers")
    for name, tag in (
        ("noai", "noai"),
        ("noimageai", "noindex-not, noimageai"),
        ("both", "noai, noimageai"),
        ("for-googlebot", "googlebot: noai"),
    ):
        take = next(takes if name == "for-googlebot" else unseen)
        file = Resource(encode(picture(take)), headers={"X-Robots-Tag": tag})
        url = site.put(f"{headers.url}{name}.jpg", file)
        headers.show(url, take.region.english, "kept" if name == "for-googlebot" else "opt_out_header", note=tag)
    for name, value in (("reserved", "1"), ("free", "0")):
        take = next(takes if name == "free" else unseen)
        file = Resource(encode(picture(take)), headers={"tdm-reservation": value})
        url = site.put(f"{headers.url}{name}.jpg", file)
        headers.show(url, take.region.english, "opt_out_tdm" if value == "1" else "kept", note=f"reservation {value}")

    tdm = Page(site, "http://reserved.demo.test/", "A site with a reservation for some of its pictures")
    rules = [{"location": "/art/", "tdm-reservation": 1}]
    site.put(tdm.url + ".well-known/tdmrep.json", Resource(json.dumps(rules).encode(), "application/json"))
    for folder in ("art", "open"):
        take = next(takes if folder == "open" else unseen)
        url = site.put(f"{tdm.url}{folder}/{take.name}.jpg", encode(picture(take)))
        tdm.show(url, take.region.english, "opt_out_tdm" if folder == "art" else "kept", note="tdmrep.json")

    page = Page(site, "http://unwilling.demo.test/", "A page that asks not to be used")
    page.head.append('<meta name="robots" content="index, follow, noai, noimageai">')
    for number in range(4):
        take = next(unseen)
        url = site.put(f"{page.url}{take.name}.jpg", encode(picture(take)))
        page.show(url, take.region.english, "opt_out_page", template=number)
    return [robots, headers, tdm, page]


def _redirect(target: str, status: int = 302) -> Resource:
    return Resource(b"", "text/html", status, {"Location": target})


def _cycle() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"{_SCENES[number % len(_SCENES)]}, number {number}"
