"""``fit_latent``: a photo in, a face out."""

import copy
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.checkpoint import TrainedSystem, load_system
from nl3dmm.data.crop import Crop, crop_from_box, crop_from_landmarks, hull_mask
from nl3dmm.data.detection import detect_landmarks
from nl3dmm.data.images import ImageSource, read_image, read_sticker, write_png
from nl3dmm.data.landmark_files import check_landmarks, read_landmarks
from nl3dmm.editing import Edit, FaceInPhoto, apply_sticker
from nl3dmm.errors import BackendError, ImageError, ShapeError
from nl3dmm.export import write_obj
from nl3dmm.fitting import FitResult, Progress, add_albedo_detail, optimise_faces, photo_config, photometric_errors
from nl3dmm.geometry.camera import project
from nl3dmm.model import Face, FaceModel, FourRenderings, Geometry
from nl3dmm.outputs import atomic_path, prepare_output_folder
from nl3dmm.panels import error_picture, stack_rows
from nl3dmm.render import default_device
from nl3dmm.render.scene import composite, render_geometry
from nl3dmm.stickers import Sticker
from nl3dmm.types import Camera

DEFAULT_MODEL = Path("runs/default")
_PANEL_SIZE = 256


@dataclass(frozen=True)
class Reconstruction:
    """One fitted face. Tensors are on the CPU; pixels belong to the photo unless a name says crop."""

    photo: Float[Tensor, "3 height width"]
    crop: Crop
    model: FaceModel
    face: Face  # latents, camera and light in the crop's frame
    geometry: Geometry
    losses: dict[str, list[float]]  # weighted terms, one value per step
    start_error: (
        float  # photometric l2,1 of (S, A), encoder alone, over the landmarks' hull or what any estimate covers
    )
    final_error: float  # the same after fitting
    seconds: float

    @property
    def vertices(self) -> Float[Tensor, "vertices 3"]:
        """Final shape, mm, object frame."""
        return self.geometry.vertices_final[0]

    @property
    def triangles(self) -> Int[Tensor, "triangles 3"]:
        return self.model.template.triangles

    @property
    def uv(self) -> Float[Tensor, "vertices 2"]:
        return self.model.template.uv

    @property
    def landmarks_3d(self) -> Float[Tensor, "68 3"]:
        """mm, object frame."""
        return self.model.template.landmarks(self.geometry.vertices_final)[0]

    @property
    def landmarks(self) -> Float[Tensor, "68 2"]:
        """Projected to photo pixels."""
        return project(self.camera, self.landmarks_3d[None])[0][0]

    @property
    def albedo(self) -> Float[Tensor, "3 uv_height uv_width"]:
        """Final albedo, [0, 1], encoded as the model's config says."""
        return self.geometry.maps.albedo_final[0]

    @property
    def camera(self) -> Camera:
        """Projects to photo pixels."""
        return self.crop.camera_to_photo(self.face.camera)

    @cached_property
    def renderings(self) -> FourRenderings:
        """The four pairs of proxy and final, at the crop's size."""
        with torch.no_grad():
            return self.model.render_four(self.face, self.geometry, (self.crop.size, self.crop.size))

    @cached_property
    def overlay(self) -> Float[Tensor, "3 height width"]:
        """The photo with the rendering of (S, A) on it."""
        size = (self.photo.shape[-2], self.photo.shape[-1])
        face = replace(self.face, camera=self.camera)
        with torch.no_grad():
            drawn = self.model.render_final(face, self.geometry, size)
            return composite(drawn.images[:, 0].clamp(0, 1), self.photo[None], drawn.mask)[0]

    @cached_property
    def panel(self) -> Float[Tensor, "3 height width"]:
        """Photo crop, overlay, clay, and below error, albedo proxy, albedo final."""
        view = replace(self.crop, size=_PANEL_SIZE, scale=self.crop.scale * _PANEL_SIZE / self.crop.size)
        camera = view.camera_to_crop(self.camera)
        photo = view.image(self.photo)[None]
        face = replace(self.face, camera=camera)
        size = (_PANEL_SIZE, _PANEL_SIZE)
        maps = self.geometry.maps
        with torch.no_grad():
            drawn = self.model.render_final(face, self.geometry, size)
            over = composite(drawn.images[:, 0].clamp(0, 1), photo, drawn.mask)
            clay = render_geometry(self.geometry.vertices_final, camera, self.model.surface, size)
        masked = [
            torch.where(self.model.template.uv_mask, a, torch.ones_like(a))
            for a in (maps.albedo_proxy, maps.albedo_final)
        ]
        albedos = [torch.nn.functional.interpolate(albedo, size, mode="bilinear") for albedo in masked]
        return stack_rows([torch.cat([photo, over, clay]), torch.cat([error_picture(over, photo), *albedos])])

    def edit_albedo(
        self,
        sticker: ImageSource,
        at: str | tuple[float, float],
        *,
        size_mm: float | int = 30.0,
        rotation: float | int = 0.0,
        blend: str = "normal",
        light: Float[Tensor, "3 9"] | None = None,
        occluder: Bool[Tensor, "height width"] | None = None,
    ) -> Edit:
        """The photo with a sticker (any picture, alpha optional) on the face.

        ``at``, ``size_mm``, ``rotation`` and ``blend`` are those of ``stickers.Sticker``; ``light``, in spherical
        harmonics of the camera frame, replaces the fitted one; where ``occluder`` is True something hides the face.

        Raises:
            ConfigError, ImageError, ShapeError: of ``read_sticker``, ``Sticker`` and ``apply_sticker``.
        """
        laid = Sticker(read_sticker(sticker).cpu(), at, size_mm, rotation, blend)
        return apply_sticker(self.in_photo(occluder), laid, None if light is None else light[None])

    def in_photo(self, occluder: Bool[Tensor, "height width"] | None = None) -> FaceInPhoto:
        """What edits need to know of this face."""
        albedo, encoding = self.geometry.maps.albedo_final, self.model.config.shading_space
        light, vertices = self.face.sh_coefficients, self.geometry.vertices_final
        return FaceInPhoto(
            self.photo, self.model.template, vertices, self.camera, light, albedo, encoding, occluder=occluder
        )

    def summary(self) -> dict[str, Any]:
        """The numbers, as plain values."""
        height, width = self.photo.shape[-2:]
        return {
            "photo_size": [height, width],
            "crop": vars(self.crop),
            "photometric_l21_start": self.start_error,
            "photometric_l21": self.final_error,
            "seconds": round(self.seconds, 2),
            "rotation": self.camera.rotation[0].tolist(),
            "scale_px_per_mm": float(self.camera.scale[0]),
            "landmarks": self.landmarks.tolist(),
            "landmarks_3d_mm": self.landmarks_3d.tolist(),
            "sh_coefficients": self.face.sh_coefficients[0].tolist(),
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``panel.png``, ``overlay.png``, ``face.obj`` with texture, and ``face.json``; returns the folder.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = prepare_output_folder(folder)
        write_png(self.panel, folder / "panel.png")
        write_png(self.overlay, folder / "overlay.png")
        write_obj(folder / "face.obj", self.vertices, self.triangles, self.uv, self.albedo)
        with atomic_path(folder / "face.json") as temporary:
            temporary.write_text(json.dumps(self.summary() | {"losses": self.losses}, indent=1))
        return folder


def fit_latent(
    image: ImageSource,
    *,
    model: str | Path | TrainedSystem = DEFAULT_MODEL,
    landmarks: str | Path | Float[Tensor, "68 2"] | None = None,
    box: Sequence[float] | None = None,
    steps: int = 150,
    device: str = "auto",
    progress: Progress = lambda step, steps, loss: None,
) -> Reconstruction:
    """Reconstruct the face of a photo by optimising latents, camera and light.

    Args:
        image: path, bytes, PIL image, array or tensor; see ``data.images.read_image``.
        model: checkpoint, run folder, or an already loaded system. No weights ship yet: train them first.
        landmarks: 68 points in photo pixels, or a .pts, .npy or .json file; they frame the crop and guide the pose.
            Without them and without a box those of the largest face are found.
        box: left, top, right, bottom of the face (brows to chin) in photo pixels; used without landmarks.
        steps: optimisation steps; 0 gives the encoder's estimate.

    Raises:
        ImageError: unreadable photo, or no face found in it.
        ShapeError: wrong landmarks or box.
        CheckpointError: no trained model, or a damaged one.
    """
    photo = read_image(image).cpu()
    points, frame = _locate(photo, landmarks, box)
    trained = model if isinstance(model, TrainedSystem) else load_system(model, device=_pick_device(device))
    network = trained.system.model
    size = trained.config.model.image_size
    started = time.perf_counter()
    crop = frame(size)
    picture = crop.image(photo)[None].to(network.device)
    with torch.no_grad():
        start = network.encode(picture)
    targets = None if points is None else crop.points_to_crop(points)[None].to(network.device)
    result = _optimise(network, picture, start, targets, steps, progress)
    with torch.no_grad():
        geometry = add_albedo_detail(network.decode(result.face.latents), result.albedo_detail)
        estimates = [(start, network.decode(start.latents)), (result.face, geometry)]
    region = None if targets is None else hull_mask(targets[0], size)[None]
    start_error, final_error = photometric_errors(network, picture, estimates, region)
    return Reconstruction(
        photo=photo,
        crop=crop,
        model=network if network.device.type == "cpu" else copy.deepcopy(network).cpu(),
        face=result.face.to("cpu"),
        geometry=geometry.to("cpu"),
        losses=result.curves,
        start_error=float(start_error),
        final_error=float(final_error),
        seconds=time.perf_counter() - started,
    )


def _locate(photo: Tensor, landmarks, box: Sequence[float] | None) -> tuple[Tensor | None, Callable[[int], Crop]]:
    """Landmarks, unless there is only a box, and how to crop the photo to a size."""
    frame = None if box is None else _check_box(box)
    if landmarks is None and frame is not None:
        return None, partial(crop_from_box, *frame)
    points = _find_points(photo) if landmarks is None else _read_points(landmarks, photo)
    return points, partial(crop_from_landmarks, points)


def _find_points(photo: Tensor) -> Float[Tensor, "68 2"]:
    """Of the largest face."""
    faces = detect_landmarks(photo, max_faces=1)
    if not len(faces):
        height, width = photo.shape[-2:]
        raise ImageError(
            f"image: no face found in {width} x {height} px; expected one of 40 px or more from brows to chin, not "
            "upside down. Give landmarks (68 points) or the face's box."
        )
    return faces.landmarks[0]


def _optimise(model, picture, start, targets, steps, progress) -> FitResult:
    if steps == 0:
        return FitResult(start, {}, picture.new_zeros(1, 3, *model.template.uv_size))
    guided = targets is not None
    config = replace(photo_config(steps, guided), detail_steps=steps * 2 // 5)
    return optimise_faces(model, picture, start, config, landmarks=targets, progress=progress)


def _read_points(landmarks, photo: Tensor) -> Float[Tensor, "68 2"]:
    points = landmarks if isinstance(landmarks, Tensor) else read_landmarks(landmarks)
    if tuple(points.shape) != (68, 2):
        raise ShapeError(f"landmarks: got shape {tuple(points.shape)}; expected (68, 2). Give all 68 points.")
    check_landmarks(points, photo.shape[-2], photo.shape[-1])
    return points.float()


def _check_box(box: Sequence[float]) -> tuple[float, float, float, float]:
    if len(box) != 4:
        raise ShapeError(f"box: got {len(box)} numbers; expected left, top, right, bottom. Give four.")
    left, top, right, bottom = (float(value) for value in box)
    return left, top, right, bottom


def _pick_device(device: str) -> str:
    if device == "auto":
        return default_device()
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise BackendError(f"device: got {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:0'. Choose one.")
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device: got {device!r} with {torch.cuda.device_count()} CUDA devices on this machine; expected one of "
            "them or 'cpu'. Use device='auto'."
        )
    return device
