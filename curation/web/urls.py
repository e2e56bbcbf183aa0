"""One spelling per URL: the canonical form that identifies a picture, and the join of relative links.

canonical() keeps what a server could tell apart and unifies what it could not:
  * white space and control characters are stripped at the ends and removed inside, lone surrogates are removed;
  * scheme and host are lower case, the host in IDNA's ASCII form (UTS 46) without a trailing dot, default port dropped;
  * in the path a backslash is a slash, dot segments are resolved, escapes have upper-case digits, unreserved
    characters are not escaped, everything else that RFC 3986 does not allow is escaped as UTF-8, a stray "%" as %25;
  * the query stays as written, but for characters that cannot be sent (space, quotes, <>, non-ASCII): escaped;
  * the fragment is dropped.
Only http and https are rewritten; another scheme keeps its text. canonical(canonical(u)) == canonical(u).
"""

import re
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b

import idna

_CANONICAL = re.compile(  # most URLs of a crawl: nothing to rewrite unless "/." is in it; then the slow way is walked
    r"https?://[a-z0-9-]++(?:\.[a-z0-9-]++)+"  # no group that keeps what it took: Python 3.11.2 then takes too much
    r"/[A-Za-z0-9\-_~!$&'()*+,;=:@./]*+"
    r"(?:\?[!$%&()*+,\-./0-9:;=?@A-Z\[\]\\^_`a-z{|}~]*+)?"
)
_JUNK = re.compile("[\x00-\x1f\x7f\x85\u200b\u2028\u2029\ufeff\ud800-\udfff]+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_PARTS = re.compile(r"[/\\]*([^/\\?#]*)([^?#]*)(\?[^#]*)?", re.DOTALL)
_ESCAPE = re.compile(r"%(?:([0-9A-Fa-f]{2}))?|[^A-Za-z0-9\-._~!$&'()*+,;=:@/%]")
_UNSENDABLE_IN_QUERY = re.compile(r"[^!$%&()*+,\-./0-9:;=?@A-Z\[\]\\^_`a-z{|}~]")
_DOTTED = re.compile(r"(?:^|/)\.\.?(?:/|$)")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DEFAULT_PORT = {"http": "80", "https": "443"}
_HOST = re.compile(r"(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)+(?!-)[a-z0-9-]{1,63}|localhost|\[[0-9a-f:.]{2,45}\]")
_PORT = re.compile(r"[0-9]{1,5}")


def is_plain(url: str) -> bool:
    """Whether this is an absolute URL in which nothing is to be rewritten; False says nothing."""
    return _CANONICAL.fullmatch(url) is not None and "/." not in url


def canonical(url: str) -> str:
    """Canonical form of an absolute URL; see the module's docstring. Never raises."""
    plain = url[: url.index("#")] if "#" in url else url
    if is_plain(plain):
        return plain
    url = _without_junk(url)
    found = _SCHEME.match(url)
    if found is None:
        return url
    scheme = found[1].lower()
    if scheme not in _DEFAULT_PORT:
        return f"{scheme}:{url[found.end() :]}"
    parts = _PARTS.match(url, found.end())
    assert parts is not None  # every part may be empty
    path = _ESCAPE.sub(_respelt, parts[2].replace("\\", "/"))
    if _DOTTED.search(path):
        path = _without_dots(path)
    query = _UNSENDABLE_IN_QUERY.sub(_escaped, parts[3]) if parts[3] else ""
    return f"{scheme}://{_authority(parts[1], scheme)}{path or '/'}{query}"


def hostname(url: str) -> str:
    """Host of a canonical http(s) URL, "" when it has none that a name server or an address parser would take.

    URLs with credentials count as having none: they are somebody's session, not a public picture.
    """
    start = url.find("://")
    authority = re.split(r"[/?#]", url[start + 3 :], maxsplit=1)[0] if start > 0 else ""
    host, _, port = (authority, "", "") if authority.endswith("]") else _port_split(authority)
    if (port and not (_PORT.fullmatch(port) and int(port) < 65536)) or not _HOST.fullmatch(host):
        return ""
    return host


def sample_id(url: str, text: str) -> str:
    """Identity of a pair: 32 hex digits, BLAKE2b-128 of canonical url NUL text.

    The text must be cleaned already (no NUL, no lone surrogate), so that no two pairs share their bytes.
    """
    return blake2b(f"{url}\0{text}".encode(), digest_size=16).hexdigest()


class Base:
    """The address that relative links of one page are joined to (RFC 3986, 5.2)."""

    __slots__ = ("directory", "origin", "page", "scheme")

    def __init__(self, url: str) -> None:
        page = self.page = canonical(url).partition("?")[0]
        self.scheme = self.origin = self.directory = ""
        if page.startswith(("http://", "https://")):
            host = page.index("/") + 2
            self.scheme, self.origin = page[: host - 2], page[: page.index("/", host)]
            self.directory = page[: page.rindex("/") + 1]

    def join(self, link: str) -> str:
        """Canonical absolute form of a link of this page; "" for a link that is empty or only a fragment."""
        if link.startswith(("http://", "https://")):
            return canonical(link)
        if link.startswith("data:") and link.isascii() and link.isprintable():
            return link.rstrip()  # as below, in one step; so is the next
        if self.origin and link[:1] not in ("", "?") and (link[0] == "/" or ":" not in link):
            root = self.directory if link[0] != "/" else self.scheme if link[1:2] == "/" else self.origin
            joined = root + link
            if is_plain(joined):
                return joined
        link = _without_junk(link)
        if not link or link[0] == "#":
            return ""
        scheme = _SCHEME.match(link)
        if scheme is not None:
            inside = scheme[1].lower() + ":" == self.scheme and link[scheme.end() : scheme.end() + 1] not in ("/", "\\")
            return self.join(link[scheme.end() :]) if inside else canonical(link)
        if not self.origin:
            return link
        head = link[:2].replace("\\", "/")
        if head == "//":
            return canonical(self.scheme + link)
        if head[0] == "/":
            return canonical(self.origin + link)
        return canonical((self.page if head[0] == "?" else self.directory) + link)


def _without_junk(url: str) -> str:
    # data: addresses are long, and an expression looks at each character
    return (url if url.isascii() and url.isprintable() else _JUNK.sub("", url)).strip()


def _respelt(found: re.Match[str]) -> str:
    if found[1]:
        character = chr(int(found[1], 16))
        return character if character in _UNRESERVED else f"%{found[1].upper()}"
    return _escaped(found)


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode())


def _without_dots(path: str) -> str:
    kept: list[str] = []
    segments = path.split("/")[1:] if path.startswith("/") else path.split("/")
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


@lru_cache(maxsize=65536)
def _authority(text: str, scheme: str) -> str:
    credentials, at, rest = text.rpartition("@")
    host, _, port = (rest, "", "") if rest.endswith("]") else _port_split(rest)
    if not host or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        host, port = rest.lower(), ""  # no address: kept as it stands, for less of it could be read as another
    else:
        host, port = _ascii_host(host), port.lstrip("0") or port[:1]
    colon = "" if port in ("", _DEFAULT_PORT[scheme]) else f":{port}"
    return (
        _ESCAPE_AUTHORITY.sub(_escaped, f"{credentials}{at}")
        + _ESCAPE_AUTHORITY.sub(_escaped, f"{host}{colon}").lower()
    )


_ESCAPE_AUTHORITY = re.compile(r"[^!$%&()*+,\-.0-9:;=@A-Z\[\]_a-z~]")


def _port_split(authority: str) -> tuple[str, str, str]:
    host, colon, port = authority.rpartition(":")
    return (host, colon, port) if colon and "]" not in port else (authority, "", "")


def _ascii_host(host: str) -> str:
    host = host.lower()
    if not host.isascii():
        with suppress(UnicodeError):  # not a name: hostname() will say so
            host = idna.encode(host, uts46=True).decode()
    return host.rstrip(".") or host
