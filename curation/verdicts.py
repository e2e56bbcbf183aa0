"""The closed list of reasons for which a sample is not in a dataset.

A *fault* is set by a stage that could not measure a row; a *verdict* by a gate that judged what was measured.
Both share one name space, so that "why is it not in?" has one answer: the stage and the reason.
"""

from enum import StrEnum


class Fault(StrEnum):
    """Why a stage could not measure a row."""

    # download: the network
    DNS_FAILED = "dns_failed"  # the host name did not resolve
    TLS_FAILED = "tls_failed"  # certificate or handshake refused
    CONNECTION_FAILED = "connection_failed"  # refused, reset or unreachable before a response
    TIMEOUT = "timeout"  # no complete response within the time limit
    TRUNCATED_BODY = "truncated_body"  # fewer bytes than announced, or reset mid-body
    TOO_MANY_REDIRECTS = "too_many_redirects"
    ADDRESS_REFUSED = "address_refused"  # private, loopback, link-local or metadata address
    TOO_LARGE = "too_large"  # more bytes than the limit
    HOST_SUSPENDED = "host_suspended"  # circuit breaker: the host failed too often in this task
    DEADLINE = "deadline"  # the shard's time was over before this URL had its turn
    BYTE_BUDGET = "byte_budget"  # the shard's bytes were spent before this URL had its turn
    HTTP_401 = "http_401"
    HTTP_403 = "http_403"
    HTTP_404 = "http_404"
    HTTP_410 = "http_410"
    HTTP_429 = "http_429"
    HTTP_4XX = "http_4xx"  # any other 4xx
    HTTP_5XX = "http_5xx"
    BAD_HTTP = "bad_http"  # not a response that HTTP allows
    # download: consent
    ROBOTS_DISALLOWED = "robots_disallowed"  # robots.txt, RFC 9309
    OPT_OUT_HEADER = "opt_out_header"  # X-Robots-Tag: noai, noimageai, ...
    OPT_OUT_TDM = "opt_out_tdm"  # TDM reservation protocol
    OPT_OUT_META = "opt_out_meta"  # the page's own meta robots, where no gate opt_out_page said so before
    # download: the picture
    NOT_AN_IMAGE = "not_an_image"  # HTML, SVG, video...: the bytes are of no format we decode
    BAD_IMAGE = "bad_image"  # an image format, but the decoder failed
    IMAGE_TOO_LARGE = "image_too_large"  # more pixels than the limit
    PICTURE_MISSING = "picture_missing"  # an annotated set names a file that is not there
    PICTURE_REFUSED = "picture_refused"  # an annotated set names a file outside its own folder
    # caption
    NO_CAPTION = "no_caption"  # the model or the endpoint gave none, and the policy takes no other text
    BAD_CAPTION = "bad_caption"  # what it gave is none: control characters alone, 100,000 words
    OUT_OF_MEMORY = "out_of_memory"  # this picture alone has no room on the device


class Verdict(StrEnum):
    """Why a gate dropped a row that was measured."""

    URL_BLOCKED = "url_blocked"  # the host or URL is on a blocklist
    URL_REJECTED = "url_rejected"  # scheme, extension, length, tracking pixel
    TEXT_TOO_SHORT = "text_too_short"
    TEXT_TOO_LONG = "text_too_long"
    TEXT_PLACEHOLDER = "text_placeholder"  # "image", a file name, boilerplate
    LANGUAGE = "language"  # not among the recipe's languages
    DUPLICATE_PAIR = "duplicate_pair"  # the same url and text stands elsewhere
    DUPLICATE_URL = "duplicate_url"  # the same url with another text stands elsewhere
    OPT_OUT_PAGE = "opt_out_page"  # the page's own meta robots
    BODY_TOO_SMALL = "body_too_small"  # fewer bytes than a picture of use has
    TOO_SMALL = "too_small"  # shortest side in px
    ASPECT_EXTREME = "aspect_extreme"
    PLACEHOLDER_IMAGE = "placeholder_image"  # many URLs of the host give these very bytes
    PICTURE_CHANGED = "picture_changed"  # not the picture that the URL table means
    SIMILARITY_LOW = "similarity_low"
    AESTHETIC_LOW = "aesthetic_low"
    WATERMARK = "watermark"
    DUPLICATE_SHA256 = "duplicate_sha256"
    DUPLICATE_PHASH = "duplicate_phash"
    DUPLICATE_EMBEDDING = "duplicate_embedding"
    KNOWN_HASH = "known_hash"  # on an operator's list of known unsafe pictures
    UNSAFE = "unsafe"
    QUARANTINED = "quarantined"  # held back until a person has looked: `curation quarantine` lists them
    CAPTION_LOW = "caption_low"  # no caption, original or synthetic, matches well enough
    LEAK_SHA256 = "leak_sha256"
    LEAK_PHASH = "leak_phash"
    LEAK_EMBEDDING = "leak_embedding"
    LEAK_TEXT = "leak_text"
    TOMBSTONE = "tombstone"  # taken down
    # publish: chosen among what every gate let through
    DOMAIN_CAP = "domain_cap"  # more samples of its host than publish.max_per_domain or max_domain_share
    BALANCED_OUT = "balanced_out"  # its concepts are common enough, or it names none: publish.balance
    HELD_OUT = "held_out"  # in another part of publish.splits


HEALS: frozenset[str] = frozenset(
    [
        *(Fault.DNS_FAILED, Fault.TLS_FAILED, Fault.CONNECTION_FAILED, Fault.TIMEOUT, Fault.TRUNCATED_BODY),
        *(Fault.HTTP_429, Fault.HTTP_5XX, Fault.HOST_SUSPENDED, Fault.DEADLINE, Fault.BYTE_BUDGET),
        Fault.PICTURE_MISSING,
    ]
)
"""Faults that another day may heal: what `curation retry` fetches again."""

REASONS: frozenset[str] = frozenset([*Fault, *Verdict])
