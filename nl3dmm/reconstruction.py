"""What fitting a photo gives: shape, albedo, light and camera, the pictures made of them, and files."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.data.crop import Crop
from nl3dmm.data.images import ImageSource, read_sticker, write_png
from nl3dmm.editing import Edit, FaceInPhoto, apply_sticker
from nl3dmm.errors import Nl3dmmError, OutputError
from nl3dmm.export import write_glb, write_npz, write_obj, write_ply
from nl3dmm.geometry.camera import project
from nl3dmm.geometry.lighting import Light, light_from
from nl3dmm.model import Face, FaceModel, FourRenderings, Geometry
from nl3dmm.outputs import atomic_path, prepare_output_folder
from nl3dmm.panels import fit_panel
from nl3dmm.render.scene import composite
from nl3dmm.render.uv import UVObservation, unwrap_photo
from nl3dmm.stickers import Sticker
from nl3dmm.types import Camera
from nl3dmm.views import FaceViews

_FOLDER = ("overlay.png", "panel.png", "face.glb", "face.obj", "face.mtl", "face_albedo.png", "face.json")


@dataclass(frozen=True)
class Reconstruction(FaceViews):
    """One fitted face. Tensors are on the CPU; pixels belong to the photo unless a name says crop."""

    photo: Float[Tensor, "3 height width"]
    crop: Crop
    model: FaceModel
    face: Face  # latents, camera and light in the crop's frame
    geometry: Geometry
    losses: dict[str, list[float]]  # weighted terms, one value per step
    # photometric l2,1 of (S, A), encoder alone, over the landmarks' hull or what any estimate covers
    start_error: float
    final_error: float  # the same after fitting
    model_error: float  # the same without the free residual of albedo, which copies the photo: what the model explains
    converged: bool  # the loss of latents, camera and light had stopped falling when their steps ended
    seconds: float  # of fitting; a batch's are divided by its photos
    source: str = "photo"  # the file's name, where there is one
    landmark_source: str = "none"  # found (by the detector), given, none (a box alone)
    warnings: tuple[str, ...] = ()  # what makes this fit less sure than others

    status = "ok"

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
    def observation(self) -> UVObservation:
        """What the photo shows of each texel: its colour, whether it is visible, and the confidence in it."""
        with torch.no_grad():
            return unwrap_photo(self.photo[None], self.camera, self.geometry.vertices_final, self.model.surface)

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
        return fit_panel(self.model, self.face, self.geometry, self.photo, self.crop)

    def edit_albedo(
        self,
        sticker: ImageSource,
        at: str | tuple[float, float],
        *,
        size_mm: float | int = 30.0,
        rotation: float | int = 0.0,
        blend: str = "normal",
        light: Light | None = None,
        occluder: Bool[Tensor, "height width"] | None = None,
    ) -> Edit:
        """The photo with a sticker (any picture, alpha optional) on the face.

        ``at``, ``size_mm``, ``rotation`` and ``blend`` are those of ``stickers.Sticker``; ``light``, in spherical
        harmonics of the camera frame, replaces the fitted one; where ``occluder`` is True something hides the face.

        Raises:
            ConfigError, ImageError, ShapeError: of ``read_sticker``, ``Sticker`` and ``apply_sticker``.
        """
        laid = Sticker(read_sticker(sticker).cpu(), at, size_mm, rotation, blend)
        return apply_sticker(self.in_photo(occluder), laid, None if light is None else light_from(light)[None])

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
            "source": self.source,
            "status": self.status,
            "warnings": list(self.warnings),
            "landmark_source": self.landmark_source,
            "converged": self.converged,
            "photo_size": [height, width],
            "crop": vars(self.crop),
            "photometric_l21_start": self.start_error,
            "photometric_l21": self.final_error,
            "photometric_l21_model": self.model_error,
            "seconds": round(self.seconds, 2),
            "rotation": self.camera.rotation[0].tolist(),
            "scale_px_per_mm": float(self.camera.scale[0]),
            "landmarks": self.landmarks.tolist(),
            "landmarks_3d_mm": self.landmarks_3d.tolist(),
            "sh_coefficients": self.face.sh_coefficients[0].tolist(),
        }

    def save(self, path: str | Path) -> Path:
        """Write a folder, or one file by its suffix; returns its path.

        A folder gets ``panel.png``, ``overlay.png``, ``face.glb``, ``face.obj`` with texture, and ``face.json``. Files:
        .glb (metres, with the fitted square's camera and expressions), .obj with .mtl and .png, .ply (both mm), .npz
        (all ``arrays``), .png (the panel).

        Raises:
            OutputError: another suffix, or it cannot be written.
            ShapeError: the fit is not finite.
        """
        path = Path(path)
        if not path.suffix or path.is_dir():
            return self.save_folder(path)
        writers = self._writers()
        if path.suffix.lower() not in writers:
            kinds = ", ".join(writers)
            raise OutputError(f"path: got {path}; expected a folder, or a file of {kinds}. Change the suffix.")
        writers[path.suffix.lower()](path)
        return path

    def _writers(self) -> dict[str, Callable[[Path], None]]:
        """Of one file, by its suffix."""
        view = (self.crop.size, self.crop.size)
        return {
            ".glb": lambda file: write_glb(file, self.mesh, self.face.camera, view, {"crop": vars(self.crop)}),
            ".obj": lambda file: write_obj(file, self.vertices, self.triangles, self.uv, self.albedo),
            ".ply": lambda file: write_ply(file, self.mesh),
            ".npz": lambda file: write_npz(file, self.arrays()),
            ".png": lambda file: write_png(self.panel, file),
        }

    def save_folder(self, path: str | Path) -> Path:
        """``save`` of a folder whatever its name; returns its path.

        Raises:
            OutputError, ShapeError: as ``save``; then none of the files is there.
        """
        folder, writers = prepare_output_folder(path), self._writers()
        try:
            write_png(self.overlay, folder / "overlay.png")
            for name in ("panel.png", "face.glb", "face.obj"):
                writers[Path(name).suffix](folder / name)
            with atomic_path(folder / "face.json") as temporary:
                temporary.write_text(json.dumps(self.summary() | {"losses": self.losses}, indent=1))
        except Nl3dmmError:
            for name in _FOLDER:  # a part of a face, or of two, is worth nothing, and the disk may be full
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)
            raise
        return folder
