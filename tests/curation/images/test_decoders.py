"""Decoder processes: what a picture does to its decoder stays there."""

import io
import os
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from curation.images import decoder
from curation.images.decoders import Decoders
from tests.curation.images.test_decode import CAT, SMALL, encoded, huge_png

PLAIN = {"side_px": 64, "max_pixels": 1 << 27}
GOOD = encoded(CAT, "JPEG")


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    with Decoders(2, PLAIN, memory_bytes=128 << 20, seconds=5.0) as made:
        yield made


def children() -> list[psutil.Process]:
    """The process that forks decoders, and the decoders."""
    found = psutil.Process().children(recursive=True)
    return [child for child in found if "curation.images.decoder" in " ".join(child.cmdline())]


def test_a_picture_comes_back_as_decoded_here(decoders: Decoders) -> None:
    from curation.images.decode import decode_picture

    expected = decode_picture(GOOD, side_px=64)._asdict()
    assert decoders.submit(GOOD).result() == expected
    assert decoders.submit(bytearray(GOOD)).result() == expected
    assert decoders.submit(b"<html>").result()["fault"] == "not_an_image"


def test_bodies_of_any_length_arrive_and_none_is_taken_for_the_one_before() -> None:
    long = encoded(np.random.default_rng(0).integers(0, 256, (700, 600, 3), np.uint8), "BMP")
    assert len(long) > decoder.SHARED_BYTES
    with Decoders(1, PLAIN, memory_bytes=128 << 20, seconds=5.0) as decoders:
        found = [decoders.submit(body).result() for body in (long, GOOD, GOOD[:500], long)]
        assert [each.get("original_format") for each in found] == ["bmp", "jpeg", None, "bmp"]
        assert found[0] == found[3]
        without_room = decoders.submit(bytes(160 << 20)).result()
        assert without_room["fault"] == "bad_image"
        assert decoders.submit(GOOD).result() == found[1]


def test_a_decoder_that_is_killed_costs_nothing(decoders: Decoders) -> None:
    decoders.submit(GOOD).result()
    for child in children():
        os.kill(child.pid, signal.SIGKILL)
    assert "fault" not in decoders.submit(GOOD).result()  # it is tried once more, in a fresh process
    assert decoders.deaths == 1


def crashing_decoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """Make decoder processes run `body` on pictures that hold the word CRASH: what a hole in a codec does."""
    hook = f"""
import curation.images.decode as decode
plain = decode.decode_picture
def decode_picture(data, **rest):
    if b"CRASH" in data:
        {body}
    return plain(data, **rest)
decode.decode_picture = decode_picture
"""
    (tmp_path / "sitecustomize.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize(
    ("body", "deaths"),
    [
        ("import ctypes; ctypes.string_at(0)", 2),  # a segmentation fault
        ("import os; os.abort()", 2),
        ("import os; os._exit(3)", 2),
        ("import time; time.sleep(60)", 1),
        ("import ctypes; ctypes.CDLL(None).pause()", 1),  # C code that never returns to Python
    ],
    ids=["segfault", "abort", "exit", "hang", "hang-in-c"],
)
def test_only_the_guilty_picture_pays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, deaths: int) -> None:
    crashing_decoder(monkeypatch, tmp_path, body)
    with Decoders(2, PLAIN, memory_bytes=128 << 20, seconds=0.5) as made:
        pictures = [GOOD] * 5 + [GOOD + b"CRASH"] + [GOOD] * 5
        found = [future.result() for future in [made.submit(data) for data in pictures]]
        assert [entry.get("fault") for entry in found] == [None] * 5 + ["bad_image"] + [None] * 5
        assert made.deaths == deaths
    assert children() == []


def flat_png(side: int) -> bytes:
    """A picture of one colour, side x side: small as a file, large in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = b"\0" + bytes(3 * side)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_picture_that_needs_too_much_memory_is_too_large(decoders: Decoders) -> None:
    found = [decoders.submit(data).result() for data in (flat_png(7000), GOOD, flat_png(4000))]
    assert [entry.get("fault") for entry in found] == ["image_too_large", None, None]  # 196 MB; 64 MB
    assert decoders.deaths == 0


def test_large_pictures_take_turns(decoders: Decoders) -> None:
    large = flat_png(4000)
    decoders.submit(GOOD).result()
    futures = [decoders.submit(large) for _ in range(6)]
    peak = 0
    while not all(future.done() for future in futures):
        peak = max(peak, sum(child.memory_full_info().uss for child in children()))
        time.sleep(0.01)
    assert {future.result().get("fault") for future in futures} == {None}
    assert peak < 2 * (64 << 20) + 2 * (100 << 20)


def test_a_long_run_goes_on_with_compiled_loops_and_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.images.decoders._COMPILED_FROM", 6)
    png = encoded(CAT, "PNG")
    with Decoders(2, PLAIN, memory_bytes=128 << 20, seconds=30.0) as made:
        found = [future.result() for future in [made.submit(png) for _ in range(12)]]
        found += [future.result() for future in [made.submit(png) for _ in range(12)]]
        assert made.deaths == 0
        compiled = [any("llvmlite" in each.path for each in child.memory_maps()) for child in children()]
        assert sum(compiled) >= 2  # their starter, and a decoder that was forked since
    assert found[0]["original_format"] == "png"
    assert all(each == found[0] for each in found)


def test_decoders_end_with_their_parent() -> None:
    with Decoders(2, PLAIN, memory_bytes=128 << 20, seconds=5.0) as made:
        made.submit(GOOD).result()
        assert len(children()) == 2
    assert children() == []


def test_a_message_that_breaks_off_ends_the_reader() -> None:
    import socket

    one, other = socket.socketpair()
    one.sendall(b"abc")
    one.close()
    with other, pytest.raises(EOFError):
        decoder.received(other, 4)


def malformed() -> dict[str, bytes]:
    """Files that are wrong in the ways in which decoders were broken: sizes that lie, loops, bombs, cut streams."""
    gif = encoded(CAT[::8, ::8], "GIF")
    jpeg = encoded(CAT, "JPEG")
    tiff = encoded(CAT[::8, ::8], "TIFF")
    bmp = encoded(CAT[::8, ::8], "BMP")
    frames = [Image.new("P", (40, 30), n % 256) for n in range(10_000)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    sof = jpeg.index(b"\xff\xc0")
    webp = encoded(CAT[::8, ::8], "WEBP")
    return {
        "huge.png": huge_png() + encoded(CAT, "PNG")[33:],
        "ten-thousand-frames.gif": out.getvalue(),
        "gif-screen-65535.gif": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "gif-no-trailer.gif": gif[:-1],
        "jpeg-0x0.jpg": jpeg[: sof + 5] + bytes(4) + jpeg[sof + 9 :],
        "jpeg-65500.jpg": jpeg[: sof + 5] + b"\xff\xdc\xff\xdc" + jpeg[sof + 9 :],
        "jpeg-no-huffman.jpg": jpeg.replace(b"\xff\xc4", b"\xff\xfe"),
        "jpeg-only-markers.jpg": b"\xff\xd8" + b"\xff\xd9" * 1000,
        "jpeg-exif-loop.jpg": jpeg[:2]
        + b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08"
        + jpeg[2:],
        "tiff-ifd-loop.tif": tiff[:4] + struct.pack("<I", 4) + tiff[8:],
        "tiff-ifd-far.tif": tiff[:4] + struct.pack("<I", 0xFFFFFFF0) + tiff[8:],
        "bmp-minus-one.bmp": bmp[:18] + b"\xff\xff\xff\xff\xff\xff\xff\xff" + bmp[26:],
        "bmp-negative-height.bmp": bmp[:22] + b"\x00\x00\x00\x80" + bmp[26:],
        "webp-length-lies.webp": webp[:4] + b"\xff\xff\xff\x7f" + webp[8:],
        "png-bomb.png": flat_png(7000),
        "png-no-end.png": encoded(CAT, "PNG")[:-12],
        "png-text-bomb.png": _text_bomb(),
        "icc-garbage.jpg": encoded(CAT, "JPEG", icc_profile=os.urandom(3000)),
    }


def _text_bomb() -> bytes:
    png = encoded(CAT[::8, ::8], "PNG")
    data = b"a\0\0" + zlib.compress(bytes(100 << 20), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return png[:33] + chunk + png[33:]


def test_malformed_files_give_a_picture_or_a_fault_and_no_decoder_dies(decoders: Decoders) -> None:
    files = malformed()
    began = time.monotonic()
    found = {name: decoders.submit(data).result() for name, data in files.items()}
    assert time.monotonic() - began < 60
    assert decoders.deaths == 0
    faults = {name: entry.get("fault") for name, entry in found.items()}
    pictures = {name for name, fault in faults.items() if fault is None}
    may_decode = (
        "frames",
        "no-trailer",
        "65535.gif",
        "no-huffman",
        "exif-loop",
        "icc",
        "text-bomb",
        "no-end",
        "ifd-loop",
    )
    may_decode += ("length-lies", "negative-height")
    assert all(any(name in picture for name in may_decode) for picture in pictures), pictures
    assert {"ten-thousand-frames.gif", "icc-garbage.jpg"} <= pictures
    assert faults["huge.png"] == "image_too_large"
    assert set(faults.values()) <= {None, "bad_image", "image_too_large"}


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Decoders]:
    with Decoders(1, PLAIN | {"max_pixels": 1 << 20}, memory_bytes=128 << 20, seconds=5.0) as made:
        yield made


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")), suppress_health_check=HealthCheck)
@given(
    st.sampled_from(sorted(SMALL)),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=20),
    st.floats(0, 1),
    st.binary(max_size=64),
)
def test_fuzzed_files_kill_no_decoder(
    fuzzed: Decoders, kind: str, changes: list[tuple[float, bytes]], cut: float, tail: bytes
) -> None:
    data = bytearray(SMALL[kind])
    for place, new in changes:
        at = int(place * (len(data) - 1))
        data[at : at + len(new)] = new
    data = data[: 16 + int(cut * len(data))] + tail
    found = fuzzed.submit(bytes(data)).result()
    assert found.get("fault") in (None, "bad_image", "image_too_large", "not_an_image")
    assert fuzzed.deaths == 0


def test_a_seed_picture_of_each_format_decodes(fuzzed: Decoders) -> None:
    for kind in SMALL:
        assert "fault" not in fuzzed.submit(SMALL[kind]).result()
