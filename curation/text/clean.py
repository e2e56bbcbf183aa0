"""What a page says about a picture, made readable, and whether it is a caption at all."""

import html
import re
import unicodedata

import ftfy
from ftfy.badness import is_bad

_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]+"
)
_SPACE = re.compile(r"\s\s+|[^\S ]")
_PLAIN = re.compile(r"[!-%'-~]+(?: [!-%'-~]+)*")  # ASCII without "&", single spaces: nothing to do
_ENTITY = re.compile(r"&(?:#\d|#x[0-9a-f]|[a-z])", re.IGNORECASE)

# Where this finds nothing ftfy's detector, at 25 us a text, finds nothing either: it looks for letters and signs of the
# European code pages side by side.
_MAYBE_MOJIBAKE = re.compile("[^\x00-\x7f\u0590-\u1fff\u3000-\ud7ff\uff00-\uffef]{2}|[ÃÂŒœ\x80-\x9f]")

_EXTENSION = re.compile(r"\.(?:jpe?g|png|gif|webp|avif|bmp|tiff?|svg|heic|jfif)", re.IGNORECASE)
_FILENAME = re.compile(  # of what does not end in an extension
    r"(?:img|dscn?|dscf|pict?|image|photo|screenshot|screen[ _-]shot|untitled|whatsapp[ _-]image|mvimg|pxl)"
    r"[ _-]*\d[\d _.-]*(?:at[\d _.-]*|[ap]m|copy|\(\d+\))*"
    r"|[0-9a-f]{16,64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?:https?://|www\.)\S+",
    re.IGNORECASE,
)
# The whole text, nothing around it; words for "picture" that templates and editors leave behind, in the ten languages
# most frequent in Common Crawl.
_PLACEHOLDER_WORDS = """
    image|images|img|picture|pictures|pic|photo|photos|photograph|foto|fotos|bild|bilder|abbildung|
    imagen|imágenes|imagem|imagens|immagine|immagini|afbeelding|obrazek|zdjęcie|obraz|изображение|картинка|
    фото|фотография|図|画像|写真|图片|图像|圖片|图|照片|이미지|사진|hình ảnh|ảnh|resim|görsel|fotoğraf|صورة|تصویر|
    gambar|kép|obrázek|kuva|billede|no image|no photo|no picture|no image available|image not available|
    image not found|photo not available|image coming soon|photo coming soon|coming soon|image unavailable|
    kein bild|pas d'image|sin imagen|sem imagem|placeholder|image placeholder|placeholder image|default image|
    default|dummy|blank|spacer|empty|transparent|pixel|tracking pixel|loading|loading...|loading…|lazyload|
    lazy|icon|icons|icono|logo|logos|avatar|user avatar|profile picture|profile photo|user|author|
    thumbnail|thumb|thumbnails|banner|slide|slider|background|hero|hero image|cover|cover image|
    featured image|post image|article image|product image|main image|image description|image title|image alt|
    alt|alt text|alt tag|alternative text|title|caption|untitled|unnamed|undefined|null|none|nil|n/a|na|
    nan|false|true|test|[object object]|attachment|file|download|click to enlarge|enlarge|zoom|view larger|
    view full size|more|read more|close|open|menu|search|next|previous|prev|back|home|arrow|bullet|line|
    divider|separator|star|rating|play|video|share|facebook|twitter|instagram|youtube|linkedin|pinterest|
    whatsapp|email|print|rss
"""
_PLACEHOLDER = frozenset(word.strip() for word in _PLACEHOLDER_WORDS.split("|"))
_PLACEHOLDER_CHARS = max(map(len, _PLACEHOLDER)) + 16  # with a number and brackets
_WHITE = re.compile(r"\s")
_NUMBER = re.compile(r"[\s#_.:-]*\d{0,4}[.:]?\Z")


def clean_text(raw: str, max_chars: int = 2000) -> str:
    """Caption in its readable form: "" when nothing is left.

    Entities are decoded, mojibake is repaired by ftfy where its detector finds any, Unicode is NFC, runs of white
    space and control characters (bidirectional marks, soft hyphens, lone surrogates, NUL) become one space, cut at
    max_chars code points. Quotes, ligatures and full-width letters stay as the author wrote them. Idempotent but for
    text that was escaped twice.
    """
    if len(raw) <= max_chars and _PLAIN.fullmatch(raw):
        return raw
    # an entity or a mojibake of one character takes up to a dozen: the cut in front keeps hostile texts cheap
    text = raw[: 4 * max_chars + 64]
    if "&" in text and _ENTITY.search(text):
        text = html.unescape(text)
    if not text.isascii():
        text = _CONTROL.sub(_blank, text)
        if _MAYBE_MOJIBAKE.search(text) and is_bad(text):
            text = ftfy.fix_encoding(text)
        text = unicodedata.normalize("NFC", text)
    text = _SPACE.sub(" ", _CONTROL.sub(_blank, text)).strip()
    return text[:max_chars].rstrip()


def text_class(text: str) -> str:
    """What a cleaned text is: ok, placeholder (says nothing of the picture) or filename.

    The whole text is judged, so "image of a dog" is ok and "Image 12" is not. Boilerplate needs the page: see
    sources/candidates.py.
    """
    if len(text) > 120:
        return "ok"
    if len(text) <= _PLACEHOLDER_CHARS:
        folded = text.casefold()
        if folded in _PLACEHOLDER or _NUMBER.split(folded, 1)[0].strip(" ()[]-_.:!") in _PLACEHOLDER:
            return "placeholder"
    if not any(map(str.isalpha, text)):
        return "placeholder"
    return "filename" if _is_filename(text) else "ok"


def _is_filename(text: str) -> bool:
    dot = text.rfind(".", -5)
    if dot > 0 and _EXTENSION.fullmatch(text, dot):
        last = text[dot - 1]
        one_word = last != "." and not _WHITE.search(text, 0, dot)
        if one_word or (dot <= 61 and (last.isalnum() or last in "_)")):
            return True
    return _FILENAME.fullmatch(text) is not None


def _blank(found: re.Match[str]) -> str:
    # characters of no width join what stands around them; the others part it
    return "" if all(unicodedata.category(character) in ("Cf", "Cs") for character in found[0]) else " "
