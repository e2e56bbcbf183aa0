"""What captions talk about: length, place, attributes, writing, knowledge, variety; synthetic ones beside alt texts.

A caption counts for a kind when a rule finds it there; rules are word lists, so a share compares two sets of captions
of one language and is no measure of truth. They hold for the languages of RULES; captions in others, or too short to
tell the language, are counted and named as not judged.

place       relations in space: "in front of", "left of", "background"; "on", "in", "at" alone also mean time and state
            and count for nothing
attributes  words of colour, size, shape, material, pattern
writing     words for what is written in a picture ("sign", "reads"), and quoted text
knowledge   a name: a capitalised word within a sentence, unless half of the words are (a title); a year. Only where
            names alone are capitalised: English
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from curation.errors import BadShardError, ConfigError
from curation.store import Store

if TYPE_CHECKING:  # recipes are checked against what quality reports have, and these count captions
    from curation.recipe import Recipe

LEAST_CONFIDENCE = 0.4
"""From here on a language counts; measured in curation.text.language."""
_WORD = re.compile(r"\w+(?:['\u2019]\w+)?")
_UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo", "wuu", "yue"})  # words there are not told by spaces
_VARIETY_WORDS = 200_000
_OPENING = 3  # words
KINDS = ("place", "attributes", "writing", "knowledge")
"""What a caption may talk about; knowledge is not judged where names do not show."""


class Rule(NamedTuple):
    """What finds each kind in a lower-cased caption; names_show: a capital letter within a sentence is a name."""

    place: re.Pattern[str]
    attributes: re.Pattern[str]
    writing: re.Pattern[str]
    names_show: bool


def _english(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words.split(','))})\b")


_QUOTED = '"[^"]+"|\u201c[^\u201d]+\u201d'
RULES = {
    "en": Rule(
        _english(
            "in front of,in the front,behind,beside,besides the,next to,near,nearby,between,among,above,below,under,"
            "underneath,beneath,on top of,atop,over,(?:to|on|at) (?:the|its|his|her|their) (?:left|right|far|side|edge|"
            "top|bottom|corner),(?:left|right) (?:side|of|corner),(?:back|fore)ground,in the (?:middle|center|centre|"
            "distance|corner),surrounded by,surrounding,across from,opposite,against,along,around,alongside,"
            "adjacent to,inside,outside,facing,through"
        ),
        _english(
            "red,blue,green,yellow,orange,purple,violet,pink,brown,black,white,gr[ae]y,beige,golden,silver,turquoise,dark,"
            "bright,pale,colou?rful,big,large,huge,giant,small,tiny,little,tall,short,long,wide,narrow,thick,thin,round,"
            "square,rectangular,circular,oval,triangular,curved,flat,wood(?:en)?,metal(?:lic)?,plastic,leather,glass,stone,"
            "brick,concrete,cotton,knitted,furry,fluffy,shiny,smooth,rough,striped,dotted,plaid,checke?red,floral,"
            "transparent,empty,open,closed,old,young,new,wet,dirty,worn,rusty"
        ),
        re.compile(rf"\b(?:text|lettering|inscription|inscribed|letters|sign|signs|logo|words?|written|reads|reading"
                   rf" \"|says|labell?ed|captioned|headline|slogan)\b|{_QUOTED}"),
        True,
    ),
    "zh": Rule(
        re.compile("前面|后面|後面|前方|后方|後方|旁边|旁邊|左边|左側|左侧|右边|右側|右侧|上面|下面|上方|下方|之间|之間|中间|中間|"
                   "中央|背景|前景|周围|周圍|附近|里面|裡面|外面|对面|對面|边上|邊上|身后|身後|身旁"),
        re.compile("[红紅蓝藍绿綠黄黃紫粉棕黑白灰橙金银銀]色|[红紅蓝藍绿綠黄黃黑白][的衣帽裙裤褲]|彩色|巨大|大型|小型|高大|长长|圆形|圓形|"
                   "方形|木制|木製|木质|木質|金属|金屬|塑料|玻璃|石头|皮革|条纹|條紋|格子|光滑|透明|年轻|年輕|老旧|老舊"),
        re.compile("文字|字样|字樣|写着|寫著|标志|標誌|招牌|标语|標語|标签|標籤|商标|商標|印有|「[^」]+」|“[^”]+”"),
        False,
    ),
}  # fmt: skip
"""Rules by language."""
_YEAR = re.compile(r"\b1[5-9]\d\d\b|\b20\d\d\b")


class Statistics:
    """Adds up captions of one origin; figures() tells what came together."""

    def __init__(self) -> None:
        self._languages: Counter[str] = Counter()
        self._kinds: dict[str, Counter[str]] = {}
        self._chars: Counter[int] = Counter()
        self._words: Counter[int] = Counter()
        self._openings: Counter[str] = Counter()
        self._texts: list[str] = []
        self._room = _VARIETY_WORDS

    def add(self, captions: Sequence[str]) -> None:
        """Count captions; the language of each is detected."""
        from curation.text.language import detect_languages

        lines = [" ".join(caption.split()) for caption in captions]
        for caption, language, confidence in zip(lines, *detect_languages(lines), strict=True):
            self._add(caption, language if confidence >= LEAST_CONFIDENCE else "")

    def _add(self, caption: str, language: str) -> None:
        self._languages[language] += 1
        self._chars[len(caption)] += 1
        if language not in _UNSPACED:
            words = _WORD.findall(caption)
            self._words[len(words)] += 1
            self._openings[" ".join(words[:_OPENING]).lower()] += 1
            if len(words) <= self._room:
                self._texts.append(caption)
                self._room -= len(words)
        if (rule := RULES.get(language)) is not None:
            kinds = self._kinds.setdefault(language, Counter())
            lower = caption.lower()
            kinds["captions"] += 1
            kinds["place"] += bool(rule.place.search(lower))
            kinds["attributes"] += bool(rule.attributes.search(lower))
            kinds["writing"] += bool(rule.writing.search(lower))
            if rule.names_show:
                kinds["knowledge"] += names_something(caption)

    def tally(self) -> Counter[str]:
        """Counts that add up with those of other captions: comparison() tells what came together.

        captions, chars; worded and words, of captions in languages that part words by spaces; and of each language of
        RULES `en captions`, `en place`, ...
        """
        found = Counter({f"{language} {kind}": n for language, of in self._kinds.items() for kind, n in of.items()})
        for name, name_of_sum, lengths in (("captions", "chars", self._chars), ("worded", "words", self._words)):
            found[name] = lengths.total()
            found[name_of_sum] = sum(length * count for length, count in lengths.items())
        return found

    def figures(self) -> dict[str, Any]:
        """Plain data.

        captions     number; languages: by code, "" not told
        chars        mean, median, p95; words: the same, of captions in languages that part words by spaces
        judged       by language of RULES: captions, and the shares 0..1 of place, attributes, writing, knowledge
        not_judged   captions by language, of which no rule says anything
        opening      the commonest first three words and the share of captions that begin with them
        variety      ttr, mattr, mtld of the first 200,000 words, as curation.publish.lexical has it
        """
        from curation.publish.lexical import diversity

        opening = self._openings.most_common(1)
        return {
            "captions": sum(self._chars.values()),
            "languages": dict(self._languages.most_common()),
            "chars": _spread(self._chars),
            "words": _spread(self._words),
            "judged": {
                language: {
                    kind: count if kind == "captions" else round(count / kinds["captions"], 4)
                    for kind, count in kinds.items()
                }
                for language, kinds in sorted(self._kinds.items())
            },
            "not_judged": {name: count for name, count in self._languages.most_common() if name not in RULES},
            "opening": {
                "words": opening[0][0], "share": round(opening[0][1] / sum(self._words.values()), 4)
            } if opening else {},
            "variety": diversity(self._texts),
        }  # fmt: skip


def comparison(tally: Mapping[str, int]) -> dict[str, Any]:
    """Means and shares of a tally as plain data: captions, chars, words, judged (as figures() has it)."""
    judged: dict[str, dict[str, float]] = {}
    for language in RULES:
        if captions := tally.get(f"{language} captions", 0):
            kinds = KINDS if RULES[language].names_show else KINDS[:-1]
            shares = {kind: round(tally.get(f"{language} {kind}", 0) / captions, 4) for kind in kinds}
            judged[language] = {"captions": captions, **shares}
    return {
        "captions": tally.get("captions", 0),
        "chars": round(tally.get("chars", 0) / max(1, tally.get("captions", 0)), 2),
        "words": round(tally.get("words", 0) / max(1, tally.get("worded", 0)), 2),
        "judged": judged,
    }


def names_something(caption: str) -> bool:
    """Whether a caption in a language that capitalises names alone has a name or a year in it."""
    if _YEAR.search(caption):
        return True
    words = [word for word in _WORD.findall(caption) if word[0].isalpha()]
    if not words or 2 * sum(word[0].isupper() for word in words) > len(words):
        return False  # a title, or nothing but names: it can't be told
    inner = (word for part in re.split(r"[.!?:;\"\u201c]\s*", caption) for word in _WORD.findall(part)[1:])
    return any(word[0].isupper() and len(word) > 1 and word.split("'")[0] != "I" for word in inner)


def of_dump(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Figures of the captions of a dump's kept samples by origin: alt text, synthetic, published (what was chosen).

    raises   ConfigError where no shard is done
    """
    from curation.tombstones import read_spared

    wanted = ["text", *(["synthetic", "captions"] if "caption" in recipe.stage_names else [])]

    def batches() -> Iterator[pa.RecordBatch]:
        for shard in shards:
            try:
                yield from read_spared(store, recipe, dump, shard, wanted)
            except BadShardError:  # not done yet
                continue

    return _told(batches(), f"{dump}: no sample of recipe {recipe.name} is done and kept")


def of_version(store: Store, recipe: str, version: str) -> dict[str, dict[str, Any]]:
    """Figures of the captions of a published version, as of_dump. Raises ConfigError for one without metadata."""
    from curation.publish.export import kind_of
    from curation.publish.verify import read_manifest

    manifest = read_manifest(store, recipe, version)
    keys = [file["key"] for file in manifest["files"] if kind_of(file["key"]) == "metadata"]

    def batches() -> Iterator[pa.RecordBatch]:
        for key in keys:
            with store.open_parquet(key) as table:
                names = [name for name in ("text", "synthetic", "captions") if name in table.schema_arrow.names]
                yield from table.iter_batches(columns=names)

    return _told(batches(), f"{recipe}/{manifest['version']} has no captions in metadata tables")


def of_texts(origins: dict[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Figures of captions by origin."""
    found = {}
    for origin, texts in origins.items():
        found[origin] = Statistics()
        found[origin].add(texts)
    return {origin: one.figures() for origin, one in found.items()}


def table(figures: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Rows of a table, the first one its head: a column for each origin."""
    origins = list(figures)
    rows = [["", *origins], ["captions", *(str(figures[name]["captions"]) for name in origins)]]
    for what in ("words", "chars"):
        for part in ("mean", "median", "p95"):
            rows.append([f"{what}, {part}", *(f"{figures[name][what].get(part, 0):g}" for name in origins)])
    for language in sorted({one for name in origins for one in figures[name]["judged"]}):
        judged = [figures[name]["judged"].get(language, {}) for name in origins]
        rows.append([f"{language}: judged", *(str(one.get("captions", 0)) for one in judged)])
        for kind in KINDS:
            rows.append([f"{language}: {kind}", *(f"{one[kind]:.1%}" if kind in one else "-" for one in judged)])
    rows.append(["not judged", *(str(sum(figures[name]["not_judged"].values())) for name in origins)])
    rows.append(["begin alike", *(f"{figures[name]['opening'].get('share', 0):.1%}" for name in origins)])
    for measure in ("ttr", "mattr", "mtld"):
        rows.append([f"variety, {measure}", *(f"{figures[name]['variety'].get(measure, 0):g}" for name in origins)])
    return rows


def _told(batches: Iterator[pa.RecordBatch], missing: str) -> dict[str, dict[str, Any]]:
    found: dict[str, Statistics] = {}
    for batch in batches:
        for column, origin in (("text", "alt text"), ("synthetic", "synthetic"), ("captions", "published")):
            if column not in batch.schema.names:
                continue
            values = batch.column(column)
            if pa.types.is_list(values.type):
                values = values.flatten()
            found.setdefault(origin, Statistics()).add(values.drop_null().to_pylist())
    if not found:
        raise ConfigError(missing)
    return {origin: one.figures() for origin, one in found.items()}


def _spread(lengths: Counter[int]) -> dict[str, float]:
    if not lengths:
        return {}
    values = np.array(sorted(lengths))
    counts = np.array([lengths[value] for value in values.tolist()])
    reached = counts.cumsum() / counts.sum()
    at = {name: int(values[np.searchsorted(reached, share)]) for name, share in (("median", 0.5), ("p95", 0.95))}
    return {"mean": round(float((values * counts).sum() / counts.sum()), 2), **at}
