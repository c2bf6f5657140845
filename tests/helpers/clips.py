"""Small clips, written by OpenCV and changed in their bytes."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def moving_square(count: int, size: tuple[int, int] = (64, 96)) -> list[NDArray[np.uint8]]:
    """Frames (H, W, 3) BGR of `size` height and width, with a square that moves right by a pixel a frame."""
    frames = []
    for index in range(count):
        frame = np.random.default_rng(0).integers(0, 60, (*size, 3), np.uint8)
        left = 4 + index % (size[1] - 28)
        frame[20:40, left : left + 20] = (40, 40, 250)
        frames.append(frame)
    return frames


def write_clip(path: Path, frames: list[NDArray[np.uint8]], rate: float = 10.0, code: str = "mp4v") -> Path:
    import cv2

    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def cut(path: Path, share: float) -> Path:
    """Cut a file off after a share of its bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def turn(path: Path) -> Path:
    """Make an mp4 file one that is turned by 90 degrees when it is played, like those of phones."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def slow_down(path: Path, count: int) -> Path:
    """Make the last `count` frames of an mp4 file last three times as long as the others."""
    content = bytearray(path.read_bytes())
    shown = content.index(b"elst") + 4 + 8  # how much of the track is played, in milliseconds
    content[shown : shown + 4] = struct.pack(">I", 3 * struct.unpack(">I", content[shown : shown + 4])[0])
    at = content.index(b"stts") + 4
    _, entries, frames, duration = struct.unpack(">4I", content[at : at + 16])
    assert entries == 1
    content[at : at + 16] = struct.pack(">4I", 0, 2, frames - count, duration)
    content[at + 16 : at + 16] = struct.pack(">2I", count, 3 * duration)
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):  # which all hold the new entry; moov is last
        size = content.index(box) - 4
        content[size : size + 4] = struct.pack(">I", struct.unpack(">I", content[size : size + 4])[0] + 8)
    path.write_bytes(content)
    return path
