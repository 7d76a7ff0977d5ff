"""Frames of a video as photos."""

from pathlib import Path

import cv2
import numpy as np

from nl3dmm.config import check_range
from nl3dmm.errors import ImageError

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})


def is_video(path: str | Path) -> bool:
    """By its suffix."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_frames(path: str | Path, count: int) -> list[tuple[int, bytes]]:
    """Up to ``count`` frames, evenly spread, with their numbers; as PNG files, a tenth of the tensors' memory.

    Raises:
        ImageError: no such file, not a video, or no frame of it can be decoded.
    """
    check_range("count", count, 1, 100_000)
    if not Path(path).is_file():
        raise ImageError(f"{path}: got no such file; expected a video. Check the path.")
    video, frames = cv2.VideoCapture(str(path)), []
    try:
        total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        wanted = set(np.linspace(0, max(total - 1, 0), min(count, max(total, 1))).round().astype(int).tolist())
        for number in range(total):
            if not video.grab():  # decodes only what is asked for
                break
            if number in wanted and (frame := video.retrieve()[1]) is not None:
                frames.append((number, cv2.imencode(".png", frame)[1].tobytes()))
    finally:
        video.release()
    if not frames:
        raise ImageError(f"{path}: got no frames; expected a video that OpenCV can decode. Convert it to MP4 (H.264).")
    return frames
