"""THE page: image -> latents, camera, light -> UV maps -> meshes -> four renderings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nl3dmm.assets.template import FaceTemplate
from nl3dmm.config import check_range
from nl3dmm.errors import ConfigError
from nl3dmm.geometry.camera import (
    CAMERA_LOGITS,
    FACE_FILL,
    MATRIX_LOGITS,
    camera_from_logits,
    camera_from_matrix,
)
from nl3dmm.geometry.lighting import Encoding, white_light
from nl3dmm.nn.encoder import Encoder, EncoderConfig
from nl3dmm.nn.principal import MapChunks, PrincipalUVDecoder, principal_components
from nl3dmm.nn.uv_decoder import DecoderConfig, UVDecoder
from nl3dmm.render.scene import Rendering, render_textures
from nl3dmm.types import Camera, Latents, TensorFields, UVMaps, concatenate

_SHAPE_UNIT_MM = 10.0  # one unit of the raw shape map (paper: 1e4 um)
_SHAPE_LIMIT_MM = 60.0  # offsets saturate softly here
_LARGEST = 0.9999  # fraction of a bound that a linear model reaches
CAMERAS = ("weak_perspective", "free")


@dataclass(frozen=True)
class ModelConfig:
    """Defaults are the paper's sizes."""

    image_size: int = 224
    shape_latent: int = 320
    albedo_latent: int = 320
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    camera: str = "weak_perspective"  # free: the nearest one to a free 2 x 4 matrix, the released code's head
    encoding: str = "srgb"  # none: texture = albedo * shading on image values (paper); srgb: in linear light

    def __post_init__(self) -> None:
        check_range("model.image_size", self.image_size, 32, 4096)
        check_range("model.shape_latent", self.shape_latent, 1, 65536)
        check_range("model.albedo_latent", self.albedo_latent, 1, 65536)
        if self.camera not in CAMERAS:
            raise ConfigError(f"model.camera: got {self.camera!r}; expected one of {CAMERAS}. Choose one.")
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
        latents = config.shape_latent, config.albedo_latent
        camera_logits = MATRIX_LOGITS if config.camera == "free" else CAMERA_LOGITS
        self.encoder = Encoder(config.encoder, config.image_size, *latents, camera_logits)
        self.shape_decoder = _decoder(config.decoder, latents[0], template, _raw_from_mm)
        self.albedo_decoder = _decoder(config.decoder, latents[1], template, _raw_from_albedo)
        self.mean_scale = _mean_scale(template, config.image_size)
        self.network_dtype = torch.float32  # bfloat16: convolutions only; geometry and losses stay float32
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device  # linear decoders alone have buffers only

    def _apply(self, fn, recurse=True):
        """Move the template along with the parameters."""
        module = super()._apply(fn, recurse)
        self.template = self.template.to(self.device)
        self.surface = self.surface.to(self.device)
        return module

    def networks(self) -> torch.autocast:
        """Where convolutions run in ``network_dtype``."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.network_dtype == torch.bfloat16)

    def encode(self, image: Float[Tensor, "batch 3 height width"]) -> Face:
        """Feed-forward estimate; image RGB in [0, 1] of ``image_size``."""
        with self.networks():
            output = self.encoder(image.contiguous(memory_format=torch.channels_last))
        size = (image.shape[-2], image.shape[-1])
        camera = camera_from_matrix if self.config.camera == "free" else camera_from_logits
        return Face(
            latents=Latents(output.shape_latent, output.albedo_latent),
            camera=camera(output.camera_logits, size, self.mean_scale),
            sh_coefficients=white_light(1, 0.8).to(image.device) + output.sh_logits,
        )

    def decode(self, latents: Latents) -> Geometry:
        """UV maps and meshes of proxies and finals."""
        return self.decode_with(self.shape_decoder, self.albedo_decoder, latents)

    def decode_with(self, shape_decoder: nn.Module, albedo_decoder: nn.Module, latents: Latents) -> Geometry:
        """``decode`` with other decoders: modules from a latent to raw proxy and raw final maps."""
        with self.networks():
            raw_shapes = shape_decoder(latents.shape_latent)
            raw_albedos = albedo_decoder(latents.albedo_latent)
        shapes, albedos = _for_both(_bounded_mm, raw_shapes), _for_both(torch.sigmoid, raw_albedos)
        return Geometry(UVMaps(*shapes, *albedos), *_for_both(self.vertices_from_map, shapes))

    @property
    def linear_decoders(self) -> tuple[PrincipalUVDecoder, PrincipalUVDecoder] | None:
        """Of shape and albedo: the decoders themselves or what they are based on, if they are linear in either way."""
        shape, albedo = (getattr(decoder, "base", decoder) for decoder in (self.shape_decoder, self.albedo_decoder))
        if isinstance(shape, PrincipalUVDecoder) and isinstance(albedo, PrincipalUVDecoder):
            return shape, albedo
        return None

    def fit_linear(self, shape_maps: MapChunks, albedo_maps: MapChunks) -> tuple[float, float]:
        """Fill the linear decoders with the principal components of labels; before training, once.

        Args:
            shape_maps: offsets from the template's mean in mm.
            albedo_maps: in [0, 1].

        Returns:
            The fractions of the labels' variance that the latents can express.
        """
        if self.linear_decoders is None:
            raise ConfigError("model.decoder: got no linear part; expected kind=linear or linear_base=true. Change it.")
        explained = []
        for decoder, maps in zip(self.linear_decoders, (shape_maps, albedo_maps), strict=True):
            components = principal_components(maps, len(decoder.basis))
            decoder.fill(components)
            explained.append(components.explained)
        return explained[0], explained[1]

    def vertices_from_map(
        self, shape_map: Float[Tensor, "batch 3 uv_height uv_width"]
    ) -> Float[Tensor, "batch vertices 3"]:
        """Mean shape plus the offsets of a UV map."""
        return self.template.vertices + self.surface.to_vertices(shape_map)

    def render_four(self, face: Face, geometry: Geometry, image_size: tuple[int, int]) -> FourRenderings:
        """Both shapes with both albedos: two meshes, one batched rasterisation (paper figure 2).

        Where proxies and finals are the same tensors, as in decoders with one end, it is one picture.
        """
        maps = geometry.maps
        if geometry.vertices_final is geometry.vertices_proxy and maps.albedo_final is maps.albedo_proxy:
            one = self.render_final(face, geometry, image_size)
            image, mask = one.images[:, 0], one.mask
            return FourRenderings(image, image, image, image, mask, mask, one.shading, one.normals)
        drawn = self.render(
            concatenate([face, face]),
            torch.cat([geometry.vertices_proxy, geometry.vertices_final]),
            torch.stack([maps.albedo_proxy, maps.albedo_final], 1),
            image_size,
        )
        # chunk and unbind, in the order of the memory: their backward copies each gradient once to its place, while
        # that of an index would fill a tensor of the size of all images
        of_proxy, of_final = drawn.images.permute(0, 3, 4, 1, 2).chunk(2)
        proxy_proxy, proxy_final = (image.permute(0, 3, 1, 2) for image in of_proxy.unbind(3))
        final_proxy, final_final = (image.permute(0, 3, 1, 2) for image in of_final.unbind(3))
        proxy_mask, final_mask = drawn.mask.chunk(2)
        batch = len(geometry.vertices_proxy)
        return FourRenderings(
            *(proxy_proxy, proxy_final, final_proxy, final_final),
            *(proxy_mask, final_mask, drawn.shading[:batch], drawn.normals[:batch]),
        )

    def render_final(self, face: Face, geometry: Geometry, image_size: tuple[int, int]) -> Rendering:
        """(S, A) alone: one texture per face."""
        return self.render(face, geometry.vertices_final, geometry.maps.albedo_final[:, None], image_size)

    def render(
        self,
        face: Face,
        vertices: Float[Tensor, "batch vertices 3"],
        albedos: Float[Tensor, "maps textures 3 uv_height uv_width"],
        image_size: tuple[int, int],
    ) -> Rendering:
        """Draw meshes with several albedo maps under the face's camera and light; mesh i wears map ``i % maps``."""
        return render_textures(
            vertices, albedos, face.camera, face.sh_coefficients, self.surface, image_size, self.config.shading_space
        )


def _decoder(
    config: DecoderConfig, latent: int, template: FaceTemplate, raw_from_map: Callable[[Tensor], Tensor]
) -> UVDecoder | PrincipalUVDecoder:
    linear = PrincipalUVDecoder(latent, template.uv_size, raw_from_map)
    if config.kind == "linear":
        return linear
    base = linear if config.linear_base else None
    return UVDecoder(config, latent, template.uv_size, template.boxes, base=base)


def _for_both(function: Callable[[Tensor], Tensor], pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of proxy and final; once where they are the same tensor, as in decoders with one end."""
    proxy = function(pair[0])
    return proxy, proxy if pair[1] is pair[0] else function(pair[1])


def _bounded_mm(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return _SHAPE_LIMIT_MM * torch.tanh(raw * (_SHAPE_UNIT_MM / _SHAPE_LIMIT_MM))


def _raw_from_mm(offsets: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Inverse of ``_bounded_mm``."""
    limited = (offsets / _SHAPE_LIMIT_MM).clamp(-_LARGEST, _LARGEST)
    return torch.atanh(limited) * (_SHAPE_LIMIT_MM / _SHAPE_UNIT_MM)


def _raw_from_albedo(albedo: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Inverse of the sigmoid; colours outside [0, 1] are clipped."""
    return torch.logit(albedo, eps=1 - _LARGEST)


def _mean_scale(template: FaceTemplate, image_size: int) -> float:
    """px per mm when the mean face is framed as crops and synthetic faces are."""
    landmarks = template.landmarks(template.vertices[None])[0, :, :2]
    extent = (landmarks.amax(0) - landmarks.amin(0)).max()
    return FACE_FILL * image_size / float(extent)
