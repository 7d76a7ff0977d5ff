"""THE page: image -> latents, camera, light -> UV maps -> meshes -> four renderings."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nl3dmm.assets.template import FaceTemplate
from nl3dmm.config import check_range
from nl3dmm.errors import ConfigError
from nl3dmm.geometry.camera import FACE_FILL, camera_from_logits
from nl3dmm.geometry.lighting import Encoding, white_light
from nl3dmm.nn.encoder import Encoder, EncoderConfig
from nl3dmm.nn.uv_decoder import DecoderConfig, UVDecoder
from nl3dmm.render.scene import Rendering, render_textures
from nl3dmm.types import Camera, Latents, TensorFields, UVMaps, concatenate

_SHAPE_UNIT_MM = 10.0  # one unit of the raw shape map (paper: 1e4 um)
_SHAPE_LIMIT_MM = 60.0  # offsets saturate softly here


@dataclass(frozen=True)
class ModelConfig:
    """Defaults are the paper's sizes."""

    image_size: int = 224
    shape_latent: int = 320
    albedo_latent: int = 320
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    encoding: str = "srgb"  # none: texture = albedo * shading on image values (paper); srgb: in linear light

    def __post_init__(self) -> None:
        check_range("model.image_size", self.image_size, 32, 4096)
        check_range("model.shape_latent", self.shape_latent, 1, 65536)
        check_range("model.albedo_latent", self.albedo_latent, 1, 65536)
        if self.encoding not in ("none", "srgb"):
            raise ConfigError(f"model.encoding: got {self.encoding!r}; expected 'none' or 'srgb'. Choose one.")

    @property
    def shading_space(self) -> Encoding:
        """``encoding`` as the renderer's type."""
        return "srgb" if self.encoding == "srgb" else "none"


@dataclass(frozen=True)
class Face(TensorFields):
    """Everything a rendering needs: what the encoder starts and what fitting optimises."""

    latents: Latents
    camera: Camera
    sh_coefficients: Float[Tensor, "batch 3 9"]


@dataclass(frozen=True)
class Geometry(TensorFields):
    """Decoded maps and their meshes, mm in the object frame."""

    maps: UVMaps
    vertices_proxy: Float[Tensor, "batch vertices 3"]
    vertices_final: Float[Tensor, "batch vertices 3"]


@dataclass(frozen=True)
class FourRenderings(TensorFields):
    """The pairs of (shape, albedo); only the first three carry a loss (paper equation 15)."""

    proxy_proxy: Float[Tensor, "batch 3 height width"]
    proxy_final: Float[Tensor, "batch 3 height width"]
    final_proxy: Float[Tensor, "batch 3 height width"]
    final_final: Float[Tensor, "batch 3 height width"]
    proxy_mask: Bool[Tensor, "batch height width"]
    final_mask: Bool[Tensor, "batch height width"]
    proxy_shading: Float[Tensor, "batch vertices 3"]
    proxy_normals: Float[Tensor, "batch vertices 3"]  # camera frame


class FaceModel(nn.Module):
    """Fitting network and face model over one template."""

    def __init__(self, config: ModelConfig, template: FaceTemplate):
        super().__init__()
        self.config = config
        self.template = template
        self.surface = template.surface()
        self.encoder = Encoder(config.encoder, config.image_size, config.shape_latent, config.albedo_latent)
        boxes = {name: (box.row, box.column, box.height, box.width) for name, box in template.boxes.items()}
        self.shape_decoder = UVDecoder(config.decoder, config.shape_latent, template.uv_size, boxes)
        self.albedo_decoder = UVDecoder(config.decoder, config.albedo_latent, template.uv_size, boxes)
        self.mean_scale = _mean_scale(template, config.image_size)
        self.network_dtype = torch.float32  # bfloat16: convolutions only; geometry and losses stay float32
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def _apply(self, fn, recurse=True):
        """Move the template along with the parameters."""
        module = super()._apply(fn, recurse)
        self.template = self.template.to(self.device)
        self.surface = self.surface.to(self.device)
        return module

    def _networks(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.network_dtype == torch.bfloat16)

    def encode(self, image: Float[Tensor, "batch 3 height width"]) -> Face:
        """Feed-forward estimate; image RGB in [0, 1] of ``image_size``."""
        with self._networks():
            output = self.encoder(image.contiguous(memory_format=torch.channels_last))
        size = (image.shape[-2], image.shape[-1])
        return Face(
            latents=Latents(output.shape_latent, output.albedo_latent),
            camera=camera_from_logits(output.camera_logits, size, self.mean_scale),
            sh_coefficients=white_light(1, 0.8).to(image.device) + output.sh_logits,
        )

    def decode(self, latents: Latents) -> Geometry:
        """UV maps and meshes of proxies and finals."""
        return self.decode_with(self.shape_decoder, self.albedo_decoder, latents)

    def decode_with(self, shape_decoder: nn.Module, albedo_decoder: nn.Module, latents: Latents) -> Geometry:
        """``decode`` with other decoders: modules from a latent to raw proxy and raw final maps."""
        with self._networks():
            raw_shapes = shape_decoder(latents.shape_latent)
            raw_albedos = albedo_decoder(latents.albedo_latent)
        shape_proxy, shape_final = (_bounded_mm(raw) for raw in raw_shapes)
        albedo_proxy, albedo_final = (raw.sigmoid() for raw in raw_albedos)
        maps = UVMaps(shape_proxy, shape_final, albedo_proxy, albedo_final)
        return Geometry(maps, self.vertices_from_map(shape_proxy), self.vertices_from_map(shape_final))

    def vertices_from_map(
        self, shape_map: Float[Tensor, "batch 3 uv_height uv_width"]
    ) -> Float[Tensor, "batch vertices 3"]:
        """Mean shape plus the offsets of a UV map."""
        return self.template.vertices + self.surface.to_vertices(shape_map)

    def render_four(self, face: Face, geometry: Geometry, image_size: tuple[int, int]) -> FourRenderings:
        """Both shapes with both albedos: two meshes, one batched rasterisation (paper figure 2)."""
        maps = geometry.maps
        drawn = self.render(
            concatenate([face, face]),
            torch.cat([geometry.vertices_proxy, geometry.vertices_final]),
            torch.stack([maps.albedo_proxy, maps.albedo_final], 1).repeat(2, 1, 1, 1, 1),
            image_size,
        )
        images = drawn.images.unflatten(0, (2, -1))  # (shape, batch, albedo, 3, height, width)
        masks, half = drawn.mask.unflatten(0, (2, -1)), slice(0, len(geometry.vertices_proxy))
        return FourRenderings(
            *(images[0, :, 0], images[0, :, 1], images[1, :, 0], images[1, :, 1]),
            *(masks[0], masks[1], drawn.shading[half], drawn.normals[half]),
        )

    def render_final(self, face: Face, geometry: Geometry, image_size: tuple[int, int]) -> Rendering:
        """(S, A) alone: one texture per face."""
        return self.render(face, geometry.vertices_final, geometry.maps.albedo_final[:, None], image_size)

    def render(
        self,
        face: Face,
        vertices: Float[Tensor, "batch vertices 3"],
        albedos: Float[Tensor, "batch textures 3 uv_height uv_width"],
        image_size: tuple[int, int],
    ) -> Rendering:
        """Draw meshes with several albedo maps under the face's camera and light."""
        return render_textures(
            vertices, albedos, face.camera, face.sh_coefficients, self.surface, image_size, self.config.shading_space
        )


def _bounded_mm(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return _SHAPE_LIMIT_MM * torch.tanh(raw * (_SHAPE_UNIT_MM / _SHAPE_LIMIT_MM))


def _mean_scale(template: FaceTemplate, image_size: int) -> float:
    """px per mm when the mean face is framed as crops and synthetic faces are."""
    landmarks = template.landmarks(template.vertices[None])[0, :, :2]
    extent = (landmarks.amax(0) - landmarks.amin(0)).max()
    return FACE_FILL * image_size / float(extent)
