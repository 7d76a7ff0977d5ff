"""What can be drawn of a fitted face: UV maps, pictures from any side in any light, films, the mesh for files."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.config import check_range
from nl3dmm.data.crop import Crop
from nl3dmm.export import FaceMesh, write_video
from nl3dmm.geometry.camera import project, rotate, rotation_from_euler, weak_perspective, zoom
from nl3dmm.geometry.lighting import Light, light_albedo, light_from
from nl3dmm.model import Face, FaceModel, Geometry
from nl3dmm.panels import on_white
from nl3dmm.render import shade, vertex_normals
from nl3dmm.render.relief import bake_relief, texel_normals
from nl3dmm.render.scene import render_textures
from nl3dmm.types import Camera

_SUPER_SAMPLING = 2
_FILL = 0.9  # of a picture's shorter side that a face fills at most, however it turns
_LEAST_SHADING, _MOST_GAIN = 0.05, 8.0  # by how much a new light may brighten a photo
_FEATHER = 0.04  # of the fitted square: how far from the face's rim a new light fades in
_TEXELS_PER_VERTEX = 2  # from here on a normal map knows more than the mesh


class FaceViews:
    """Base of ``Reconstruction``, which brings these fields."""

    photo: Float[Tensor, "3 height width"]
    crop: Crop
    model: FaceModel
    face: Face
    geometry: Geometry

    @cached_property
    def normals(self) -> Float[Tensor, "vertices 3"]:
        """Unit vertex normals, object frame."""
        return vertex_normals(self.geometry.vertices_final, self.model.template.triangles)[0]

    @cached_property
    def normal_map(self) -> Float[Tensor, "3 uv_height uv_width"]:
        """Unit normals of the final shape at the texels, object frame, with what the map knows beyond the mesh."""
        shape = self.geometry.maps.shape_final[0]
        return texel_normals(self.geometry.vertices_final[0], shape, self.model.surface)

    @cached_property
    def vertex_shading(self) -> Float[Tensor, "vertices 3"]:
        """Fitted light on the final shape, as the renderer carries it; 1 leaves an albedo as it is."""
        return shade(rotate(self.face.camera, self.normals[None]), self.face.sh_coefficients)[0]

    @cached_property
    def shading(self) -> Float[Tensor, "3 uv_height uv_width"]:
        """``vertex_shading`` at the texels."""
        return self.model.surface.to_uv_map(self.vertex_shading[None])[0]

    @property
    def mesh(self) -> FaceMesh:
        """For files; with a normal map where the shape map is finer than the mesh."""
        template, vertices = self.model.template, self.geometry.vertices_final[0]
        is_fine = int(template.uv_mask.sum()) >= _TEXELS_PER_VERTEX * len(vertices)
        relief = bake_relief(vertices, self.normal_map, self.model.surface) if is_fine else None
        return FaceMesh(
            name=template.name,
            vertices=vertices,
            triangles=template.triangles,
            uv=template.uv,
            normals=self.normals,
            albedo=self.geometry.maps.albedo_final[0],
            uv_mask=template.uv_mask,
            morphs=template.expression_basis,
            morph_names=template.expression_names,
            tangents=None if relief is None else relief.tangents,
            relief=None if relief is None else relief.normals,
        )

    def arrays(self) -> dict[str, Tensor | str]:
        """Everything by name; units in the names or as in ``docs/conventions.md``, the camera in photo pixels."""
        template, camera = self.model.template, self.crop.camera_to_photo(self.face.camera)
        parts = (vars(self.geometry.maps), vars(self.face.latents), {f"camera_{k}": v for k, v in vars(camera).items()})
        fields = {name: value[0] for part in parts for name, value in part.items()}
        marks = template.landmarks(self.geometry.vertices_final)
        return fields | {
            "template": template.name,
            "vertices_mm": self.geometry.vertices_final[0],
            "vertices_proxy_mm": self.geometry.vertices_proxy[0],
            "triangles": template.triangles,
            "uv": template.uv,
            "uv_mask": template.uv_mask,
            "normals": self.normals,
            "normal_map": self.normal_map,
            "shading": self.shading,
            "sh_coefficients": self.face.sh_coefficients[0],
            "landmarks_3d_mm": marks[0],
            "landmarks_px": project(camera, marks)[0][0],
            "photo": self.photo,
        }

    def view(self, yaw: float = 0.0, pitch: float = 0.0, size: int | tuple[int, int] = 512) -> Camera:
        """A camera for ``render``: the face in the middle, turned by degrees; positive yaw looks to the image's right.

        Args:
            size: side of a square picture, or (height, width), px.
        """
        height, width = _height_width(size)
        corners = self.geometry.vertices_final[0][self.model.template.triangles.unique()]
        middle = (corners.amin(0) + corners.amax(0)) / 2
        pitch_rad, yaw_rad, zero = torch.deg2rad(corners.new_tensor([pitch, yaw, 0.0]))[:, None]
        nodded = (corners - middle) @ rotation_from_euler(pitch_rad, zero, zero)[0].T
        reach = torch.maximum(nodded[:, 1].abs(), nodded[:, ::2].norm(dim=1)).max()  # however it turns from there
        rotation = rotation_from_euler(pitch_rad, yaw_rad, zero)
        scale = _FILL / 2 * min(height, width) / reach
        translation = -scale * (rotation[0] @ middle)[:2] * corners.new_tensor([1, -1])
        return weak_perspective(rotation, translation[None], scale[None], corners.new_tensor([[width / 2, height / 2]]))

    @torch.no_grad()
    def render(
        self, camera: Camera | None = None, light: Light | None = None, size: int | tuple[int, int] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """The final shape with the final albedo on white, with smooth edges.

        Args:
            camera: projects to pixels of the picture, for instance ``view(yaw=30)``; by default the fitted one.
            light: (3, 9) coefficients, a direction or a name (``geometry.lighting.light_from``), in the camera's frame;
                by default the fitted one.
            size: side of a square picture, or (height, width), px. By default what a given camera looks at the middle
                of, as those of ``view`` do, or the photo's; the fitted camera then sees what the photo shows, and with
                a size the square that was fitted.

        Raises:
            ConfigError, ShapeError: of the light.
        """
        height, width = self._picture_size(camera) if size is None else _height_width(size)
        if camera is None:
            camera = self.crop.camera_to_photo(self.face.camera) if size is None else self._fitted(height, width)
        large = (height * _SUPER_SAMPLING, width * _SUPER_SAMPLING)
        face = replace(self.face, camera=zoom(camera, _SUPER_SAMPLING), sh_coefficients=self._light(light))
        drawn = self.model.render_final(face, self.geometry, large)
        picture = on_white(drawn.images[:, 0], drawn.mask[:, None].float())
        return F.avg_pool2d(picture, _SUPER_SAMPLING)[0]

    def _picture_size(self, camera: Camera | None) -> tuple[int, int]:
        if camera is None:
            return self.photo.shape[1], self.photo.shape[2]
        column, row = (2 * camera.principal_point[0]).round().int().tolist()
        return _height_width((row, column))

    @torch.no_grad()
    def relight(self, light: Light) -> Float[Tensor, "3 height width"]:
        """The photo with the face under another light: each pixel times new over fitted shading.

        What the model does not explain (beard, glasses, the skin's finest detail) stays; so does all outside the face,
        towards whose rim the new light fades.

        Args:
            light: as in ``render``.
        """
        height, width = self.photo.shape[1:]
        camera = self.crop.camera_to_photo(self.face.camera)
        lights = torch.cat([self._light(light), self.face.sh_coefficients])
        white = torch.ones(1, 1, 3, *self.model.template.uv_size)
        both = camera[[0, 0]]
        vertices = self.geometry.vertices_final.expand(2, -1, -1)
        drawn = render_textures(vertices, white, both, lights, self.model.surface, (height, width), "none")
        new, fitted = drawn.images[:, 0].clamp_min(_LEAST_SHADING)
        share = _feathered(drawn.mask[0].numpy(), _FEATHER * self.crop.size / self.crop.scale)
        gain = 1 + share * ((new / fitted).clamp(max=_MOST_GAIN) - 1)
        return light_albedo(self.photo, gain, self.model.config.shading_space).clamp(0, 1)

    def turntable(
        self,
        path: str | Path,
        *,
        frames: int = 72,
        size: int = 384,
        degrees: float = 60.0,
        light: Light | None = None,
        frames_per_second: float = 24.0,
    ) -> Path:
        """Write a film of the head that turns to both sides and back, ready to repeat: .mp4 or .gif.

        Args:
            size: side of the square picture, px, even.
            degrees: how far it turns; the back of a face model is hollow.
            light: as in ``render``; it stays where it is while the head turns.

        Raises:
            OutputError: another suffix, or the file cannot be written.
            ConfigError: a number out of range.
            BackendError: OpenCV cannot write MP4 on this machine.
        """
        check_range("frames", frames, 2, 10_000)
        check_range("size", size, 16, 4096)
        check_range("degrees", degrees, 0, 180)
        fastest = 50 if Path(path).suffix.lower() == ".gif" else 240  # viewers slow faster GIFs down
        check_range("frames_per_second", frames_per_second, 1, fastest)
        size += size % 2
        coefficients = self._light(light)[0]

        def pictures() -> Iterator[Tensor]:
            for k in range(frames):
                yaw = degrees * math.sin(2 * math.pi * k / frames)
                yield self.render(self.view(yaw, size=size), coefficients, size)

        write_video(path, pictures(), frames_per_second)
        return Path(path)

    def _light(self, light: Light | None) -> Float[Tensor, "1 3 9"]:
        return self.face.sh_coefficients if light is None else light_from(light)[None]

    def _fitted(self, height: int, width: int) -> Camera:
        """The fitted camera, whose square fills the middle of a picture."""
        side = min(height, width)
        factor = side / self.crop.size
        margin = self.face.camera.scale.new_tensor([(width - side) / 2, (height - side) / 2])
        return zoom(self.face.camera, factor, -margin / factor)


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    check_range("size", height, 1, 16384)
    check_range("size", width, 1, 16384)
    return height, width


def _feathered(mask: np.ndarray, radius: float) -> Float[Tensor, "height width"]:
    """0 outside the mask and at its rim, 1 from ``radius`` px inwards."""
    padded = np.pad(mask.astype(np.uint8), 1)
    inwards = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    share = torch.from_numpy(inwards / max(radius, 1.0)).clamp(0, 1)
    return share * share * (3 - 2 * share)
