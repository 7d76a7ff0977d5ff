"""Frames of a video as photos."""

from pathlib import Path

import cv2
import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.config import check_range
from nl3dmm.errors import ImageError

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})


def is_video(path: str | Path) -> bool:
    """By its suffix."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_frames(path: str | Path, count: int) -> list[tuple[int, Float[Tensor, "3 height width"]]]:
    """Up to ``count`` frames, evenly spread, with their numbers; RGB in [0, 1].

    Raises:
        ImageError: no such file, not a video, or no frame of it can be decoded.
    """
    check_range("count", count, 1, 100_000)
    video = cv2.VideoCapture(str(path)) if Path(path).is_file() else None
    try:
        total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video is not None else 0
        wanted = set(torch.linspace(0, max(total - 1, 0), min(count, max(total, 1))).round().int().tolist())
        frames = []
        for number in range(total):
            if video is None or not video.grab():  # decodes only what is asked for
                break
            if number in wanted and (frame := video.retrieve()[1]) is not None:
                frames.append((number, torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1).float() / 255))
    finally:
        if video is not None:
            video.release()
    if not frames:
        raise ImageError(f"{path}: got no frames; expected a video that OpenCV can decode. Convert it to MP4 (H.264).")
    return frames
