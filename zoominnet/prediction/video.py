"""Videos read and written by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoominnet.data import ImageError
from zoominnet.errors import UserError
from zoominnet.prediction.extras import extra

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""The first of these that PyAV's FFmpeg has writes the videos."""
_CLOCK = Fraction(1, 90_000)


class VideoReader:
    """The frames of a video, upright as players show them.

    Attributes:
        expected: the number of frames that the file says it has, None where it does not say.
        read: frames decoded so far.
        cut_off: after the last frame: what was found amiss, None where the video is whole.

    Args:
        path: of the file.
        frame_step: every so many-th frame, beginning with the first.

    Raises:
        MissingExtraError: PyAV is not installed.
        ImageError: not a video that can be read.
    """

    def __init__(self, path: Path, frame_step: int = 1) -> None:
        self.path, self.frame_step = path, frame_step
        self.read = 0
        self.cut_off: str | None = None
        self._av: Any = extra("av", "reading videos")
        try:
            self._container = self._av.open(str(path))
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise ImageError(f"{path}: not a readable video, or cut off before its index ({_reason(error)})") from error
        if not self._container.streams.video:
            self._container.close()
            raise ImageError(f"{path}: holds no pictures, only sound or text")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.expected = self._stream.frames or self._frames_by_duration()

    def _frames_by_duration(self) -> int | None:
        duration, base = self._stream.duration, self._stream.time_base
        if duration is None or base is None:
            duration, base = self._container.duration, Fraction(1, self._av.time_base)
        return None if duration is None else round(duration * base * self.rate)

    def frames(self) -> Iterator[tuple[int, float, Tensor]]:
        """(number, seconds from the first, uint8 [3, H, W]) of each frame that is asked for; the first has the number 1."""
        start: float | None = None
        has_times = self._container.format.name != "avi"  # whose frames have those of their decoding
        try:
            for frame in self._container.decode(self._stream):
                self.read += 1
                if (self.read - 1) % self.frame_step:
                    continue
                array = np.rot90(frame.to_ndarray(format="rgb24"), (getattr(frame, "rotation", 0) // 90) % 4)
                seconds = float((self.read - 1) / self.rate)
                if has_times and frame.time is not None:
                    start = frame.time if start is None else start
                    seconds = frame.time - start
                yield self.read, seconds, torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
        except (self._av.FFmpegError, OSError) as error:
            self.cut_off = f"cannot be read beyond frame {self.read}{self._of_expected()} ({_reason(error)})"
        else:
            # Files round their duration: a frame or two fewer than it says are a whole video.
            if self.expected and self.read < self.expected - max(2, self.expected // 100):
                self.cut_off = f"ends after frame {self.read}{self._of_expected()}"

    def _of_expected(self) -> str:
        return f" of {self.expected}" if self.expected else ""

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).partition("\n")[0]


class VideoWriter:
    """Writes frames of one size to an MP4 (H.264), at the times that they have; without sound.

    Sides that are odd become even by a copy of the last row or column, as the format asks for.

    Args:
        path: of the file, new.
        rate: frames a second.
        first: the first frame's pixels, uint8 [H, W, 3], of which the size is taken.

    Raises:
        MissingExtraError: PyAV is not installed.
        UserError: its FFmpeg can write no video.
    """

    def __init__(self, path: Path, rate: Fraction, first: np.ndarray) -> None:
        self._av: Any = extra("av", "writing videos")
        codec = next((name for name in ENCODERS if name in self._av.codecs_available), None)
        if codec is None:
            raise UserError(
                f"{path}: PyAV's FFmpeg here writes none of {', '.join(ENCODERS)}; leave out --save pictures"
            )
        self._container = self._av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream(codec, rate=rate)
        height, width = first.shape[:2]
        self._size = (height + height % 2, width + width % 2)
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _CLOCK
        if codec == "libx264":
            self._stream.options = {"crf": "20", "preset": "veryfast"}
        self._last = -1

    def write(self, pixels: np.ndarray, seconds: float) -> None:
        """Adds a frame, uint8 [H, W, 3] (RGB), shown from `seconds` on; after the one before in any case.

        One of another size than the first is scaled to that: a video may change it.
        """
        height, width = pixels.shape[:2]
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        if (frame.height, frame.width) != self._size:
            frame = frame.reformat(width=self._size[1], height=self._size[0])
        self._last = max(round(seconds / _CLOCK), self._last + 1)
        frame.pts, frame.time_base = self._last, _CLOCK
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Writes what is left, and the index without which no player opens the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
