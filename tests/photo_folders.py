"""Photos for tests: synthetic faces as JPEG files with landmark files, and discs for a detector of discs."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from nl3dmm.data.detected_faces import DetectedFaces, collect_faces
from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig
from nl3dmm.types import FaceBatch


def synthetic_faces(template, count: int, size: int = 160) -> FaceBatch:
    """Unoccluded, and large enough to be taken."""
    world = SyntheticWorld(template, WorldConfig(occlusion=0.0, super_sampling=1), image_size=size)
    return world.sample(torch.arange(count))


def jpeg(image: torch.Tensor, quality: int = 92) -> bytes:
    levels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_landmarks(path: Path, faces: torch.Tensor) -> None:
    """``.json`` or ``.npy`` count from the centre of the first pixel, ``.pts`` of one face counts pixels from 1."""
    if path.suffix == ".json":
        path.write_text(json.dumps({"landmarks": (faces - 0.5).tolist()}))
    elif path.suffix == ".npy":
        np.save(path, (faces - 0.5).numpy())
    else:
        points = "\n".join(f"{x + 0.5:.4f} {y + 0.5:.4f}" for x, y in faces.view(68, 2).tolist())
        path.write_text(f"version: 1\nn_points: 68\n{{\n{points}\n}}\n")


def write_photo(path: Path, image: torch.Tensor, faces: torch.Tensor | None, suffix: str = ".json") -> None:
    """A JPEG file, and its landmark file if ``faces`` (faces, 68, 2) is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(image))
    if faces is not None:
        write_landmarks(path.with_suffix(suffix), faces)


@dataclass
class DiscDetector:
    """Takes red discs for faces: 68 points around each; roundness is confidence."""

    name: str = "discs"

    def __call__(self, image: torch.Tensor) -> DetectedFaces:
        red = ((image[0] > 0.6) & (image[1:] < 0.4).all(0)).numpy().astype(np.uint8)
        _, _, found, centres = cv2.connectedComponentsWithStats(red)
        turns = torch.linspace(0, 2 * torch.pi, 69)[:68]
        ring = torch.stack([turns.cos(), turns.sin()], -1) / 2
        boxes = torch.tensor(found[1:, :4], dtype=torch.float32).view(-1, 4)
        points = torch.tensor(centres[1:], dtype=torch.float32)[:, None] + 0.5 + ring * boxes[:, None, 2:]
        areas = torch.tensor(found[1:, 4], dtype=torch.float32)
        return collect_faces(points, (areas / boxes[:, 2:].prod(1) / (torch.pi / 4)).clamp(0, 1), self.name)


def discs(*places: tuple[int, int, int], size: int = 300) -> torch.Tensor:
    """A grey photo with discs (column, row, radius)."""
    canvas = np.full((size, size, 3), 128, np.uint8)
    for column, row, radius in places:
        cv2.circle(canvas, (column, row), radius, (230, 20, 20), -1)
    return torch.from_numpy(canvas).permute(2, 0, 1).float() / 255


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a prepared folder but its lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
