"""Real files made by FFmpeg here, whole and damaged."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra: pip install curation[video]")

import av

from curation.errors import ConfigError
from curation.video.frames import (
    Limits,
    VideoError,
    VideoFault,
    context_scaling,
    read_frames,
    tokens_per_frame,
)


def save_video(path: Path, frames: int = 30, rate: int = 10, side: tuple[int, int] = (64, 48)) -> Path:
    """A video whose frame i is grey of brightness 8 i, a key frame each 8."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height = side
        stream.pix_fmt, stream.gop_size = "yuv420p", 8
        container.start_encoding()
        for number in range(frames):
            grey = np.full((side[1], side[0], 3), number * 8 % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        if frames:
            container.mux(stream.encode())
    return path


def fault_of(path: Path, limits: Limits | None = None) -> VideoFault:
    with pytest.raises(VideoError) as caught:
        read_frames(path, limits=limits)
    return caught.value.fault


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_video(tmp_path_factory.mktemp("video") / "grey.mp4")


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"count": 4}, [0, 9, 19, 29]),
        ({"count": 1}, [0]),
        ({"count": 99}, list(range(30))),
        ({"count": None, "fps": 2}, [0, 5, 10, 15, 20, 25]),
        ({"count": None, "fps": 1000}, list(range(30))),
        ({"count": None, "fps": 0.1}, [0]),
    ],
)
def test_frames_are_sampled_uniformly(video: Path, sampling: dict, expected: list[int]) -> None:
    found = read_frames(video, **sampling)
    assert [round(moment * 10) for moment in found.times] == expected
    brightness = [float(image.mean()) / 8 for image in found.images]
    assert brightness == pytest.approx(expected, abs=0.9)  # the codec is lossy
    assert (found.frames, found.seconds) == (30, pytest.approx(2.9))
    assert {image.shape for image in found.images} == {(48, 64, 3)}


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
def test_other_containers(suffix: str, tmp_path: Path) -> None:
    found = read_frames(save_video(tmp_path / f"grey.{suffix}"), count=4, side=32)
    assert [round(moment * 10) for moment in found.times] == [0, 9, 19, 29]
    assert {image.shape for image in found.images} == {(24, 32, 3)}


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_truncated_file_is_told(suffix: str, share: float, tmp_path: Path) -> None:
    whole = save_video(tmp_path / f"grey.{suffix}")
    os.truncate(whole, int(whole.stat().st_size * share))
    faults = set(VideoFault) - {VideoFault.TOO_LONG, VideoFault.TOO_LARGE, VideoFault.DEADLINE}
    assert fault_of(whole) in faults


def test_a_file_that_lacks_its_index_alone_is_read(tmp_path: Path) -> None:
    whole = save_video(tmp_path / "grey.mkv")
    os.truncate(whole, int(whole.stat().st_size * 0.8))
    assert read_frames(whole).frames >= 27


@pytest.mark.parametrize("content", [b"", b"<html>" * 100, bytes(4096), b"RIFF\xff\xff\xff\xffAVI LIST"])
def test_what_is_no_video(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    assert fault_of(path) == VideoFault.NOT_A_VIDEO


def test_a_track_without_frames(tmp_path: Path) -> None:
    assert fault_of(save_video(tmp_path / "empty.mkv", frames=0)) == VideoFault.NO_FRAMES


def test_a_duration_that_is_not_there(tmp_path: Path) -> None:
    whole = save_video(tmp_path / "grey.mkv").read_bytes()
    at = whole.index(b"\x44\x89\x88") + 3  # Matroska's Duration, a float of 8 bytes [ms]
    assert struct.unpack_from(">d", whole, at) == (3000.0,)
    for seconds, fault in ((3600, VideoFault.DURATION_WRONG), (360_000, VideoFault.TOO_LONG)):  # 1 h, 100 h
        path = tmp_path / f"{seconds}.mkv"
        path.write_bytes(whole[:at] + struct.pack(">d", seconds * 1000.0) + whole[at + 8 :])
        assert fault_of(path) == fault
    assert fault_of(path, Limits(hours=200)) == VideoFault.DURATION_WRONG


def test_limits(video: Path, tmp_path: Path) -> None:
    assert fault_of(video, Limits(packets=29)) == VideoFault.TOO_LONG
    assert fault_of(video, Limits(hours=2 / 3600)) == VideoFault.TOO_LONG
    assert fault_of(video, Limits(pixels=64 * 48 - 1)) == VideoFault.TOO_LARGE
    assert fault_of(video, Limits(seconds=0)) == VideoFault.DEADLINE


def test_a_hundred_hours_of_real_frames(tmp_path: Path) -> None:
    path = tmp_path / "slow.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts = number * 40_000  # one each 11 hours
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert fault_of(path) == VideoFault.TOO_LONG
    assert len(read_frames(path, count=3, limits=Limits(hours=200)).images) == 3


@pytest.mark.parametrize("sampling", [{"count": 0}, {"count": 2, "fps": 1}, {"count": None}, {"count": None, "fps": 0}])
def test_settings_that_contradict_each_other(video: Path, sampling: dict) -> None:
    with pytest.raises(ConfigError, match="a number of frames or a rate"):
        read_frames(video, **sampling)


def test_tokens_and_context() -> None:
    assert tokens_per_frame() == 144
    assert tokens_per_frame(stride=1) == 576
    assert [context_scaling(frames) for frames in (8, 16, 32, 56)] == [1, 1, 2, 3]
