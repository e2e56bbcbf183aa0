"""What a model or an endpoint wrote, made fit to publish, or refused."""

from curation.text.clean import clean_text

MAX_CHARS = 20_000  # about 3,000 words; ShareGPT4V's longest description has some 500


def clean_caption(raw: str) -> str:
    """One line of readable text without control characters; "" for what is no caption: nothing left, or a flood."""
    return clean_text(raw, MAX_CHARS) if len(raw) <= MAX_CHARS else ""
