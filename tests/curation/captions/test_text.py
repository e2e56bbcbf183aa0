from hypothesis import given
from hypothesis import strategies as st

from curation.captions.text import MAX_CHARS, clean_caption


def test_control_characters_go_and_floods_are_no_captions() -> None:
    assert clean_caption("a dog\x00 runs\x1b \u202ein\n the  snow\r\n") == "a dog runs in the snow"
    assert clean_caption("\x00\x07\u200b") == ""
    assert clean_caption("word " * 100_000) == ""
    assert clean_caption("x" * MAX_CHARS) == "x" * MAX_CHARS


@given(st.text(max_size=300))
def test_what_is_left_is_one_printable_line(raw: str) -> None:
    text = clean_caption(raw)
    assert text == text.strip()
    assert not {character for character in text if character < " " or character == "\x7f"}
