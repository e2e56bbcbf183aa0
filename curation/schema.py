"""Every column of every table, declared once: name, type, unit, meaning, meaning of null, producer.

docs/columns.md is generated from here; gates find the stage that a column belongs to here.
"""

import math
import re
from typing import NamedTuple

import pyarrow as pa

from curation.errors import ConfigError


class Column(NamedTuple):
    """One column: its Arrow type, the stage that writes it, what it means, its unit, what null means, its values."""

    type: pa.DataType
    producer: str
    doc: str
    unit: str = ""
    null: str = "never"
    values: tuple[str, ...] = ()  # all that it takes, where these are a closed list

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value, as the unit says: (0, 1) for 0..1, without an end where it names none."""
        if found := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", self.unit):
            return float(found[1]), float(found[2])
        if found := re.fullmatch(r">= (\d+)", self.unit):
            return float(found[1]), math.inf
        return (0.0 if self.unit in _COUNTED else -math.inf), math.inf


_COUNTED = ("px", "bytes", "ms", "tokens", "code points")
_UNMEASURED = "not measured: see verdict and fault"
_EMBEDDING = pa.list_(pa.float16())  # in files of fixed size, which the recipe's model tells
OWN_HEAD = r"head_[a-z0-9_]{1,40}"
"""Pattern of the columns that heads of a recipe's own measure."""


class _Columns(dict[str, Column]):
    """The columns below, and head_NAME for what a recipe's own head NAME measures."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and re.fullmatch(OWN_HEAD, name) is not None)

    def __missing__(self, name: str) -> Column:
        if name not in self:
            raise KeyError(name)
        return Column(pa.float32(), "score", "what the recipe's head of this name measures", "", _UNMEASURED)


_DECLARED: dict[str, Column] = {
    # every table
    "sample_id": Column(pa.string(), "extract", "128-bit BLAKE2b of normalised url NUL text", "32 hex digits"),
    "verdict": Column(pa.string(), "*", "why the row did not enter this stage", "verdicts.py", "the row was measured"),
    "fault": Column(pa.string(), "*", "why this stage could not measure the row", "verdicts.py", "no fault"),
    # extract
    "url": Column(pa.string(), "extract", "absolute image URL in canonical form"),
    "text": Column(pa.string(), "extract", "caption: the alt (or other kind) after clean_text"),
    "alt": Column(pa.string(), "extract", "text as found in the page, entities decoded"),
    "text_kind": Column(
        pa.string(), "extract", "alt, title, aria-label, figcaption, og, json-ld; table: a URL table's; annotated"
    ),
    "page_url": Column(pa.string(), "extract", "page on which the pair stands", "", "none named: a URL table"),
    "page_language": Column(pa.string(), "extract", "html lang attribute, primary subtag", "", "none declared"),
    "page_opt_out": Column(pa.bool_(), "extract", "the page's meta robots refuses use for AI"),
    "warc_filename": Column(pa.string(), "extract", "archive, or URL table, the pair was read from"),
    "warc_record_offset": Column(
        pa.int64(), "extract", "offset of the record in the archive; of a URL table the number of the row", "bytes"
    ),
    "url_class": Column(
        pa.string(),
        "extract",
        "what the rules on URLs say",
        values=("ok", "blocked", "scheme", "extension", "pattern", "length", "host"),
    ),
    "text_class": Column(
        pa.string(),
        "extract",
        "what the rules on texts say",
        values=("ok", "placeholder", "filename", "boilerplate"),
    ),
    "n_chars": Column(pa.int32(), "extract", "length of text", "code points"),
    "n_words": Column(pa.int32(), "extract", "runs of non-space in text; of little meaning for zh, ja, th"),
    "language": Column(pa.string(), "extract", "ISO 639 code; empty when not reliable", ""),
    "language_confidence": Column(pa.float32(), "extract", "confidence of language", "0..1"),
    "partition": Column(pa.string(), "extract", "LAION's split by language", values=("en", "multi", "nolang")),
    "duplicate_pair": Column(pa.bool_(), "extract", "the same sample_id stood earlier in this shard"),
    "expected_sha256": Column(
        pa.string(), "extract", "of the bytes once fetched, as a URL table says", "64 hex digits", "none given"
    ),
    "expected_phash": Column(
        pa.string(), "extract", "imagehash.phash of the picture, as a URL table says", "16 hex digits", "none given"
    ),
    "picture_ref": Column(
        pa.string(), "extract", "where the picture of an annotated set lies, JSON", "", "on the web: at url"
    ),
    "annotated_set": Column(pa.string(), "extract", "annotated set that the pair comes from", "", "the crawl's"),
    "annotated_item": Column(pa.string(), "extract", "the pair's own id in that set", "", "the crawl's"),
    "licence": Column(pa.string(), "extract", "licence that the set gives for the pair", "", "none given"),
    "text_origin": Column(
        pa.string(), "extract", "who wrote the text; synthetic: a model", values=("web", "human", "synthetic")
    ),
    "conversation": Column(
        pa.string(), "extract", "turns of an annotated record, and which of its pictures this is, JSON", "", "has none"
    ),
    # pairs
    "known_pair": Column(
        pa.string(),
        "pairs",
        "this url is fetched in another shard or dump: pair (with this text), url (with another text)",
        "",
        "not seen before",
        ("pair", "url"),
    ),
    # download
    "image": Column(pa.binary(), "download", "picture after resizing, encoded", "bytes", _UNMEASURED),
    "image_format": Column(pa.string(), "download", "format of image", "", _UNMEASURED, ("jpeg", "png", "webp")),
    "original_format": Column(pa.string(), "download", "format as fetched", "", _UNMEASURED),
    "sha256": Column(pa.string(), "download", "of the bytes as fetched", "64 hex digits", _UNMEASURED),
    "phash": Column(pa.string(), "download", "imagehash.phash of the decoded picture", "16 hex digits", _UNMEASURED),
    "phash_spread": Column(
        pa.float32(), "download", "standard deviation of the 32x32 grey picture: 0 is flat", "0..127", _UNMEASURED
    ),
    "original_width": Column(pa.int32(), "download", "as fetched, after EXIF rotation", "px", _UNMEASURED),
    "original_height": Column(pa.int32(), "download", "as fetched, after EXIF rotation", "px", _UNMEASURED),
    "min_side": Column(pa.int32(), "download", "shorter of original_width, original_height", "px", _UNMEASURED),
    "aspect": Column(pa.float32(), "download", "longer side / shorter side of the original", ">= 1", _UNMEASURED),
    "width": Column(pa.int32(), "download", "after resize", "px", _UNMEASURED),
    "height": Column(pa.int32(), "download", "after resize", "px", _UNMEASURED),
    "body_bytes": Column(pa.int64(), "download", "size of the body as fetched", "bytes", "no response"),
    "http_status": Column(pa.int16(), "download", "status of the last response", "", "no response"),
    "final_url": Column(pa.string(), "download", "URL after redirects", "", "not redirected"),
    "etag": Column(pa.string(), "download", "ETag as sent", "", "none sent"),
    "exif": Column(pa.string(), "download", "JSON of the EXIF fields asked for", "", "none asked for, or none there"),
    "same_on_host": Column(
        pa.int32(),
        "download",
        "URLs of this host in the shard that gave these very bytes: many for a placeholder",
        ">= 1",
        "no body",
    ),
    "identity": Column(
        pa.string(), "download", "sha256 against expected_sha256", "", "none expected, no body", ("same", "changed")
    ),
    "phash_distance": Column(
        pa.int32(), "download", "bits in which phash differs from expected_phash", "0..64", "none expected, unmeasured"
    ),
    "consent": Column(pa.string(), "download", "the robots line or header that refused", "", "nothing refused"),
    "fetch_ms": Column(pa.int32(), "download", "time from first request to last byte", "ms", "not requested"),
    # score
    "similarity": Column(pa.float32(), "score", "cosine of image and text embeddings", "-1..1", _UNMEASURED),
    "aesthetic": Column(
        pa.float32(), "score", "LAION aesthetic predictor; no probability", "about 1..10", "no head configured"
    ),
    "punsafe": Column(pa.float32(), "score", "probability of unsafe content, a named head's", "0..1", "no head"),
    "pwatermark": Column(pa.float32(), "score", "probability of a watermark, a named head's", "0..1", "no head"),
    "img_emb": Column(
        _EMBEDDING, "score", "CLIP image embedding of fixed size, norm 1 before rounding", "", _UNMEASURED
    ),
    "txt_emb": Column(
        _EMBEDDING, "score", "CLIP text embedding of fixed size, norm 1 before rounding", "", _UNMEASURED
    ),
    # dedup
    "duplicate_kind": Column(
        pa.string(),
        "dedup",
        "in what the sample equals the one that is kept",
        "",
        "no duplicate",
        ("pair", "sha256", "url", "phash", "embedding"),
    ),
    "duplicate_of": Column(pa.string(), "dedup", "sample_id that is kept in its place", "", "no duplicate"),
    "group_id": Column(pa.string(), "dedup", "sample_id that is kept of the duplicate group", "", "alone"),
    "group_size": Column(pa.int32(), "dedup", "members of the group", "", _UNMEASURED),
    # safety
    "known_hash": Column(pa.string(), "safety", "list entry that the picture equals", "", "none"),
    "safety_tag": Column(pa.string(), "safety", "tag as LAION's", "", _UNMEASURED, ("safe", "unsure", "unsafe")),
    "safety_reason": Column(pa.string(), "safety", "what raised the tag", "", "nothing did"),
    # caption
    "synthetic": Column(pa.string(), "caption", "the synthetic caption, the best ranked of several", "", "none made"),
    "synthetics": Column(pa.list_(pa.string()), "caption", "every synthetic caption, the best first", "", _UNMEASURED),
    "synthetic_ranks": Column(
        pa.list_(pa.float32()),
        "caption",
        "of synthetics, in their order: CLIP cosine; empty where there was nothing to rank",
        "-1..1",
        _UNMEASURED,
    ),
    "caption_grid": Column(
        pa.string(), "caption", "columns x rows of the AnyRes tiles that the captioner saw", "", "one view"
    ),
    "caption_tokens_flat": Column(
        pa.int32(), "caption", "visual tokens of all views: a view's, times 1 + tiles", "tokens", "one view"
    ),
    "caption_tokens_unpadded": Column(
        pa.int32(), "caption", "visual tokens that the captioner read: unpadded, a newline a row", "tokens", "one view"
    ),
    "itm_text": Column(
        pa.float32(), "caption", "match of the original text: ITM probability, or CLIP cosine", "0..1", _UNMEASURED
    ),
    "itm_synthetic": Column(pa.float32(), "caption", "match of the synthetic caption", "0..1", "none made"),
    "caption": Column(pa.string(), "caption", "text that the policy chose, the first of captions", "", "none chosen"),
    "caption_source": Column(pa.string(), "caption", "which caption is", "", "none chosen", ("text", "synthetic")),
    "captions": Column(
        pa.list_(pa.string()),
        "caption",
        "texts that the policy chose: each is published as a pair",
        "",
        _UNMEASURED,
    ),
    "caption_sources": Column(
        pa.list_(pa.string()), "caption", "of captions, in their order: text, synthetic", "", _UNMEASURED
    ),
    # leakage
    "leak_kind": Column(
        pa.string(), "leakage", "how the item was found", "", "no hit", ("sha256", "phash", "embedding", "text")
    ),
    "leak_set": Column(pa.string(), "leakage", "evaluation set that was hit", "", "no hit"),
    "leak_item": Column(pa.string(), "leakage", "item of that set", "", "no hit"),
    "leak_distance": Column(
        pa.float32(),
        "leakage",
        "by leak_kind: 0; Hamming bits; 1 - cosine; share of the caption's word runs that the item has not",
        "",
        "no hit",
    ),
}
COLUMNS: dict[str, Column] = _Columns(_DECLARED)


def schema(*names: str) -> pa.Schema:
    """Arrow schema of the named columns with their units, in this order. Raises ConfigError for an unknown name."""
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise ConfigError(f"unknown column {unknown[0]!r}: columns are declared in curation/schema.py")
    return pa.schema([pa.field(name, COLUMNS[name].type, metadata=_noted(COLUMNS[name])) for name in names])


def _noted(column: Column) -> dict[str, str] | None:
    """Unit or range, kept in the files' schema: who reads aesthetic sees that it is no probability."""
    return {"unit": column.unit} if column.unit else None
