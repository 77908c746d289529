"""Videos: frames, their times and number, what is cut off, and what is written read back."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from films import box_at, cut, write_film
from finder import Finder, assert_boxes, scene

from zoominnet.data import ImageError
from zoominnet.prediction.video import VideoReader, VideoWriter


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi"])
def test_frames_are_read_in_order(tmp_path: Path, suffix: str) -> None:
    with VideoReader(write_film(tmp_path / f"a.{suffix}")) as reader:
        assert reader.rate == 10
        assert reader.expected == 20
        frames = list(reader.frames())
    assert (reader.read, reader.cut_off) == (20, None)
    assert [number for number, *_ in frames] == list(range(1, 21))
    np.testing.assert_allclose([seconds for _, seconds, _ in frames], np.arange(20) / 10, atol=0.01)
    finder = Finder(160)
    for number, _, pixels in frames[::5]:
        assert (pixels.shape, pixels.dtype) == ((3, 120, 160), torch.uint8)
        assert_boxes(finder.predict(pixels).boxes, [box_at(number - 1)], 1)


def test_every_third_frame(tmp_path: Path) -> None:
    with VideoReader(write_film(tmp_path / "a.mp4"), frame_step=3) as reader:
        assert [number for number, *_ in reader.frames()] == [1, 4, 7, 10, 13, 16, 19]
    assert reader.read == 20
    assert reader.cut_off is None


def test_a_video_held_otherwise_is_upright(tmp_path: Path) -> None:
    """The frame's rotation, as a player applies it."""
    plain, turned = write_film(tmp_path / "a.mp4", frames=3), tmp_path / "turned.mp4"
    # The display matrix in the track header: 16.16 fixed point, here the identity.
    data = plain.read_bytes()
    one, wide = (1 << 16).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    zero = bytes(4)
    identity = one + zero * 3 + one + zero * 3 + wide
    minus = (2**32 - (1 << 16)).to_bytes(4, "big")
    quarter = zero + one + zero + minus + zero * 4 + wide
    header = data.index(b"tkhd")
    place = data.index(identity, header)
    turned.write_bytes(data[:place] + quarter + data[place + len(quarter) :])
    with VideoReader(plain) as reader:
        upright = next(iter(reader.frames()))[2]
    with VideoReader(turned) as reader:
        pixels = next(iter(reader.frames()))[2]
    assert pixels.shape == (3, 160, 120)
    np.testing.assert_array_equal(pixels, torch.rot90(upright, -1, (1, 2)))  # the matrix turns clockwise


@pytest.mark.parametrize("suffix", ["mkv", "avi", "ts"])
def test_of_a_cut_off_video_the_frames_before_are_used(tmp_path: Path, suffix: str) -> None:
    path = cut(write_film(tmp_path / f"a.{suffix}", frames=60, noise=True), 0.5)
    with VideoReader(path) as reader:
        numbers = [number for number, *_ in reader.frames()]
    assert 15 < len(numbers) < 45
    assert numbers == list(range(1, len(numbers) + 1))
    if suffix != "ts":  # whose length nothing in the file tells
        assert reader.cut_off is not None
        assert f"frame {len(numbers)} of 60" in reader.cut_off


def test_a_video_with_an_error_in_the_middle_ends_there_or_goes_on(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", frames=60, noise=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    with VideoReader(path) as reader:
        count = len(list(reader.frames()))
    assert count > 10
    assert count == 60 or reader.cut_off


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video at all" * 100)
    cut(write_film(tmp_path / "b.mp4"), 0.5)
    (tmp_path / "c.mp4").write_bytes(b"")
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        with pytest.raises(ImageError, match=rf"{name}: not a readable video, or cut off before its index"):
            VideoReader(tmp_path / name)
    with av.open(str(tmp_path / "d.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ImageError, match=r"d\.mkv: holds no pictures"):
        VideoReader(tmp_path / "d.mkv")


@pytest.mark.parametrize("size", [(160, 120), (161, 121)])
def test_what_is_written_reads_back(tmp_path: Path, size: tuple[int, int]) -> None:
    """Sides that are odd become even, at the right and below; frames keep their times."""
    times = [0.0, 0.1, 0.2, 0.5, 0.6, 0.6, 0.9]
    frames = [scene(*size, [box_at(i)]) for i in range(len(times))]
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(10), frames[0])
    for pixels, seconds in zip(frames, times, strict=True):
        writer.write(pixels, seconds)
    writer.close()
    with VideoReader(tmp_path / "a.mp4") as reader:
        back = list(reader.frames())
    assert reader.cut_off is None
    np.testing.assert_allclose([seconds for _, seconds, _ in back], times, atol=0.001)
    for (_, _, pixels), wanted in zip(back, frames, strict=True):
        assert pixels.shape == (3, 120 + 2 * (size[1] % 2), 160 + 2 * (size[0] % 2))
        difference = np.abs(pixels.permute(1, 2, 0).numpy()[: size[1], : size[0]].astype(int) - wanted)
        assert difference.mean() < 3


def test_a_frame_of_another_size_is_scaled(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(10), scene(160, 120, []))
    for i, size in enumerate(((160, 120), (320, 240), (81, 61))):
        writer.write(scene(*size, []), i / 10)
    writer.close()
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert [pixels.shape for *_, pixels in reader.frames()] == [(3, 120, 160)] * 3
