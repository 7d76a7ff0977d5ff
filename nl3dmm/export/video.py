"""Films: MP4 and GIF."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from nl3dmm.errors import BackendError
from nl3dmm.export.mesh import check_suffix
from nl3dmm.outputs import atomic_path

_CODECS = ("vp09", "mp4v")  # what browsers play, what every build of OpenCV writes


def write_video(
    path: str | Path, frames: Iterable[Float[Tensor, "3 height width"]], frames_per_second: float = 24.0
) -> None:
    """Write RGB frames in [0, 1] of one even size: .mp4 (VP9 where OpenCV has it), or .gif, which repeats for ever.

    Raises:
        OutputError: the name ends otherwise, or the file cannot be written.
        BackendError: OpenCV cannot write MP4 on this machine.
    """
    path = check_suffix(path, ".mp4", ".gif")
    write = _write_gif if path.suffix.lower() == ".gif" else _write_mp4
    with atomic_path(path) as temporary:
        temporary.touch()  # a folder that cannot be written to says so before any frame is drawn
        write(temporary, (_levels(frame) for frame in frames), frames_per_second)


def _levels(frame: Float[Tensor, "3 height width"]) -> UInt8[ndarray, "height width 3"]:
    return (frame.detach().cpu().clamp(0, 1) * 255).round().numpy().astype(np.uint8).transpose(1, 2, 0)


def _write_gif(path: Path, frames: Iterable[UInt8[ndarray, "height width 3"]], rate: float) -> None:
    first, *others = [Image.fromarray(frame).quantize(dither=Image.Dither.NONE) for frame in frames]
    options = {"save_all": True, "append_images": others, "duration": round(1000 / rate), "loop": 0, "optimize": False}
    first.save(path, format="GIF", **options)


def _write_mp4(path: Path, frames: Iterable[UInt8[ndarray, "height width 3"]], rate: float) -> None:
    import cv2

    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    for codec in _CODECS:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (width, height))
        if writer.isOpened():
            break
    else:
        raise BackendError(f"{path.suffix}: OpenCV has none of the codecs {', '.join(_CODECS)}. Write a .gif.")
    count = 0
    try:
        for frame in chain([first], frames):
            writer.write(frame[..., ::-1].copy())
            count += 1
    finally:
        writer.release()
    written = _count_frames(path)
    if written != count:  # OpenCV says nothing of a full disk
        raise OSError(f"{written} of {count} frames were written")


def _count_frames(path: Path) -> int:
    import cv2

    reader = cv2.VideoCapture(str(path))
    try:
        return int(reader.get(cv2.CAP_PROP_FRAME_COUNT)) if reader.isOpened() else 0
    finally:
        reader.release()
