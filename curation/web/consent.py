"""Consent: robots.txt, X-Robots-Tag and TDM reservations, read as their specifications ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import urlsplit

from protego import Protego

ROBOTS_BYTES = 500 << 10
"""How much of a robots.txt is read: RFC 9309, 2.5 asks for at least this."""
UNREACHABLE = "robots.txt unreachable"
"""Evidence of a refusal that may heal: the host could not tell its rules."""
# directives of X-Robots-Tag that have a value after a colon, as an agent's name has directives
_WITH_VALUE = frozenset(["unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"])


class Robots:
    """robots.txt of one host (RFC 9309: 4xx allows everything, 5xx and unreachable nothing)."""

    def __init__(self, status: int | None, body: bytes, agent: str) -> None:
        self._agent = agent
        self._rules: Protego | None = None
        self._closed = status is None or status >= 500
        if status is not None and 200 <= status < 300:
            self._rules = Protego.parse(body[:ROBOTS_BYTES].decode("utf-8", "replace"))

    def refusal(self, url: str) -> str | None:
        """Why the URL must not be fetched, None when it may."""
        if self._closed:
            return UNREACHABLE
        if self._rules is not None and not self._rules.can_fetch(url, self._agent):
            return f"robots.txt: {urlsplit(url).path}"
        return None


def header_refusal(values: Sequence[str], directives: frozenset[str], agent: str) -> str | None:
    """The X-Robots-Tag value that refuses, None when none does.

    A value is `directive, ...` for everyone or `agent: directive, ...` for one; several of these may be joined by
    commas, as proxies join headers. Directives and agents are compared in lower case.
    """
    for value in values:
        ours = True
        for part in value.split(","):
            name, colon, rest = part.partition(":")
            name = name.strip().lower()
            if colon and name not in _WITH_VALUE and " " not in name:
                ours = name in ("*", agent.lower())
                name = rest.strip().lower()
            if ours and name in directives:
                return f"X-Robots-Tag: {value.strip()}"[:200]
    return None


def tdm_refusal(headers: dict[str, str], wellknown: bytes, url: str) -> str | None:
    """The TDM reservation that covers the URL (TDMRep: header first, then /.well-known/tdmrep.json), else None."""
    header = headers.get("tdm-reservation")
    if header is not None:
        policy = headers.get("tdm-policy")
        evidence = f"tdm-reservation: 1; tdm-policy: {policy}" if policy else "tdm-reservation: 1"
        return evidence[:200] if header.strip() == "1" else None
    if not wellknown:
        return None
    try:
        rules = json.loads(wellknown)
    except (ValueError, RecursionError):
        return None
    path = urlsplit(url).path or "/"
    for rule in rules if isinstance(rules, list) else []:
        if isinstance(rule, dict) and _covers(str(rule.get("location", "")), path):
            return f"tdmrep.json: {rule.get('location')}"[:200] if rule.get("tdm-reservation") == 1 else None
    return None


def _covers(location: str, path: str) -> bool:
    if location.endswith("$"):
        return path == location[:-1]
    return bool(location) and path.startswith(location.rstrip("*"))
