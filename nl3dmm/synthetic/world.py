"""The synthetic world: endless faces with exact truth, each a function of ``(seed, index)``."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.assets.template import FaceTemplate
from nl3dmm.config import check_range
from nl3dmm.errors import ConfigError, ShapeError
from nl3dmm.geometry.camera import FACE_FILL, project, rotation_from_euler, zoom
from nl3dmm.geometry.lighting import Encoding, directional_light, white_light
from nl3dmm.render.scene import render_textures
from nl3dmm.synthetic.draws import Draws
from nl3dmm.synthetic.scenery import Surroundings, add_objects, backgrounds
from nl3dmm.synthetic.skin import SkinSampler
from nl3dmm.types import Camera, FaceBatch

CAMERAS = ("weak_perspective", "perspective", "mixed")
_HAIR_SHARE = 5.0
_SALTS = {"shape": 1, "camera": 2, "light": 3, "scenery": 4, "sensor": 5, "expression": 6}
# Movements go together on real faces (names of the ARKit set); the first is neutral.
_EXPRESSIONS: tuple[dict[str, float], ...] = (
    {},
    {"mouthSmile": 0.7, "cheekSquint": 0.4, "mouthStretch": 0.2},
    {"mouthSmile": 0.9, "jawOpen": 0.3, "cheekSquint": 0.6, "mouthUpperUp": 0.3, "eyeSquint": 0.3},
    {"jawOpen": 0.5, "browInnerUp": 0.7, "browOuterUp": 0.6, "eyeWide": 0.7},
    {"jawOpen": 0.35, "mouthLowerDown": 0.4},
    {"mouthPucker": 0.8, "mouthFunnel": 0.3, "eyeBlink": 0.4},
    {"browDown": 0.8, "mouthFrown": 0.6, "noseSneer": 0.5},
    {"eyeBlink": 0.9},
)


@dataclass(frozen=True)
class WorldConfig:
    """How varied the synthetic faces are. Angles in degrees, distances in mm."""

    camera: str = "mixed"  # weak_perspective | perspective | mixed (half of each)
    distance_mm: tuple[float, float] = (400.0, 1500.0)
    yaw: float = 40.0  # uniform in +-yaw
    pitch: float = 15.0
    roll: float = 12.0
    identity: float = 0.9  # deviation of the identity coefficients
    expression: float = 1.0  # scale of the expression activations
    occlusion: float = 0.15  # probability of an object before the face; hair falls over it five times as often
    noise: float = 0.02  # largest deviation of the sensor noise
    super_sampling: int = 2

    def __post_init__(self) -> None:
        if self.camera not in CAMERAS:
            raise ConfigError(f"world.camera: got {self.camera!r}; expected one of {CAMERAS}. Choose one.")
        near, far = self.distance_mm
        check_range("world.distance_mm", near, 200, far)
        check_range("world.yaw", self.yaw, 0, 90)
        check_range("world.pitch", self.pitch, 0, 90)
        check_range("world.roll", self.roll, 0, 180)
        check_range("world.identity", self.identity, 0, 10)
        check_range("world.expression", self.expression, 0, 10)
        check_range("world.occlusion", self.occlusion, 0, 1)
        check_range("world.noise", self.noise, 0, 1)
        check_range("world.super_sampling", self.super_sampling, 1, 4)


class SyntheticWorld:
    """Draws faces of one template; the same ``(seed, index)`` is the same face in any batch and process."""

    def __init__(
        self,
        template: FaceTemplate,
        config: WorldConfig,
        image_size: int,
        seed: int = 0,
        encoding: Encoding = "srgb",
    ):
        self.template = template
        self.config = config
        self.image_size = image_size
        self.seed = seed
        self.encoding: Encoding = encoding
        self.surface = template.surface()
        self.skin = SkinSampler(template)
        with self.device:
            self._identity_basis = without_similarity(template.identity_basis, template.vertices)
            self._expressions = _usual_expressions(template.expression_names)

    @property
    def device(self) -> torch.device:
        """Where the faces are drawn: that of the template."""
        return self.template.vertices.device

    def sample(
        self,
        indices: Int[Tensor, " batch"],
        light_indices: Int[Tensor, " _"] | None = None,
        camera_indices: Int[Tensor, " _"] | None = None,
        scenery_indices: Int[Tensor, " _"] | None = None,
        expression_indices: Int[Tensor, " _"] | None = None,
    ) -> FaceBatch:
        """Images and everything that is true of them; ``mask`` leaves out what occluders hide.

        Args:
            indices: the persons, with their expressions.
            light_indices: the faces whose light they stand in; their own by default.
            camera_indices: the faces whose pose and framing they take.
            scenery_indices: the faces whose background, hair, occluders and sensor noise they have.
            expression_indices: the faces whose expression they wear; with equal ``indices``, frames of one person.

        Raises:
            ShapeError: the indices are not equally many.
        """
        others = {"light": light_indices, "camera": camera_indices, "scenery": scenery_indices}
        others |= {"sensor": scenery_indices, "expression": expression_indices}
        draws = {name: self._draws(name, indices, others.get(name)) for name in _SALTS}
        albedo = self.skin.albedo(self.seed, indices)
        with self.device:  # all constants are made there
            vertices = self._vertices_from(draws["shape"], draws["expression"])
            camera = self._camera(vertices, draws["camera"])
            return self._picture(indices, vertices, camera, _light(draws["light"]), albedo, draws)

    def _draws(self, name: str, indices: Tensor, others: Tensor | None) -> Draws:
        if others is not None and len(others) != len(indices):
            raise ShapeError(f"{name}_indices: got {len(others)}; expected {len(indices)}, one per face. Repeat some.")
        return Draws(self.seed, indices if others is None else others, _SALTS[name], self.device)

    def camera(self, indices: Int[Tensor, " batch"]) -> Camera:
        """The cameras alone; what ``sample`` returns without drawing a picture."""
        with self.device:
            return self._camera(self.vertices(indices), self._draws("camera", indices, None))

    def vertices(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch vertices 3"]:
        """The meshes alone, mm; what ``sample`` returns without drawing a picture."""
        return self._vertices_from(*(self._draws(name, indices, None) for name in ("shape", "expression")))

    def _vertices_from(self, shape: Draws, expression: Draws) -> Float[Tensor, "batch vertices 3"]:
        coefficients = shape.normal(self.config.identity, 2.5, len(self._identity_basis))
        identity = torch.einsum("bk,kvc->bvc", coefficients, self._identity_basis)
        return self.template.morph(expression=self._expression(expression)) + identity

    def _expression(self, draws: Draws) -> Float[Tensor, "batch expressions"]:
        """A quarter is neutral; the others wear one of the usual expressions, more or less, with some of their own."""
        count = len(self.template.expression_names)
        kind = (draws.uniform(0, len(self._expressions)).long()).clamp_max(len(self._expressions) - 1)
        usual = self._expressions[kind] * draws.uniform(0.3, 1.0, 1) * draws.uniform(0.75, 1.15, count)
        own = draws.chance(0.06, count) * draws.uniform(0, 0.5, count)
        lively = 1 - draws.chance(0.25, 1)
        return (usual + own * lively) * self.config.expression

    def _camera(self, vertices: Float[Tensor, "batch vertices 3"], draws: Draws) -> Camera:
        """Frames the landmarks as ``data.crop`` frames a photo, up to some jitter."""
        config, batch = self.config, len(vertices)
        radian = math.pi / 180
        rotation = rotation_from_euler(
            draws.uniform(-config.pitch, config.pitch) * radian,
            draws.uniform(-config.yaw, config.yaw) * radian,
            draws.normal(config.roll / 2, config.roll) * radian,
        )
        pinhole = {"weak_perspective": 0.0, "perspective": 1.0, "mixed": 0.5}[config.camera]
        near, far = config.distance_mm
        inverse_distance = draws.chance(pinhole) / draws.uniform(near, far)
        unit = Camera(rotation, torch.zeros(batch, 2), torch.ones(batch), inverse_distance, torch.zeros(batch, 2))
        pixels, _ = project(unit, self.template.landmarks(vertices))
        low, high = pixels.amin(1), pixels.amax(1)
        scale = FACE_FILL * self.image_size / (high - low).amax(1) * draws.uniform(0.9, 1.1)
        jitter = draws.normal(0.03, 0.08, 2) * self.image_size
        principal_point = self.image_size / 2 + jitter - scale[:, None] * (low + high) / 2
        return Camera(rotation, torch.zeros(batch, 2), scale, inverse_distance, principal_point)

    def _picture(self, indices, vertices, camera, light, albedo, draws) -> FaceBatch:
        size, factor = self.image_size, self.config.super_sampling
        large, large_size = zoom(camera, factor), (size * factor, size * factor)
        drawn = render_textures(vertices, albedo[:, None], large, light, self.surface, large_size, self.encoding)
        covered = F.avg_pool2d(drawn.mask[:, None].float(), factor)
        colour = F.avg_pool2d(drawn.images[:, 0].clamp(0, 1) * drawn.mask[:, None], factor)
        landmarks, _ = project(camera, self.template.landmarks(vertices))
        scenery = draws["scenery"]
        skin = (albedo * self.template.uv_mask).mean((2, 3)) / self.template.uv_mask.float().mean()
        around = Surroundings(camera, light, size, self.encoding, scenery)
        picture = colour + around.behind(backgrounds(scenery, size), skin) * (1 - covered)
        picture, hair = around.before(picture, min(1.0, _HAIR_SHARE * self.config.occlusion))
        picture, hidden = add_objects(picture, around.seen, landmarks, scenery, self.config.occlusion)
        hidden = hidden | (hair[:, 0] > 0)
        sensor = draws["sensor"]
        grain = sensor.normal(1.0, 3.0, 3, size, size) * sensor.uniform(0, self.config.noise, 1, 1, 1)
        return FaceBatch(
            image=(picture + grain).clamp(0, 1),
            index=indices.to(self.device),
            landmarks=landmarks,
            mask=(covered[:, 0] > 0.5) & ~hidden,
            camera=camera,
            sh_coefficients=light,
            vertices=vertices,
            albedo=albedo,
        )


def _light(draws: Draws) -> Float[Tensor, "batch 3 9"]:
    """Ambient light and two distant lamps of slightly different tints; mean shading about 0.8."""

    def tint() -> Tensor:
        return torch.exp(draws.normal(0.06, 0.15, 3))

    def direction() -> Tensor:
        """Mostly from the front and above."""
        toward = torch.stack([draws.uniform(-1.2, 1.2), draws.uniform(-0.5, 1.2), draws.uniform(0.1, 1.2)], -1)
        return F.normalize(toward, dim=-1)

    batch = len(draws.uniform(0, 1))
    ambient = white_light(batch) * (draws.uniform(0.25, 0.65, 1) * tint())[:, :, None]
    key = directional_light(direction(), draws.uniform(0.1, 0.75, 1) * tint())
    fill = directional_light(direction(), draws.uniform(0.0, 0.3, 1) * tint())
    return (ambient + key + fill) * torch.exp(draws.normal(0.12, 0.3, 1, 1))


def _usual_expressions(names: tuple[str, ...]) -> Float[Tensor, "kinds expressions"]:
    """Activations of the expressions in ``_EXPRESSIONS``; a movement stands for its left and right side alike."""
    plain = [name.removesuffix("_L").removesuffix("_R") for name in names]
    return torch.tensor([[kind.get(name, 0.0) for name in plain] for kind in _EXPRESSIONS])


def without_similarity(
    basis: Float[Tensor, "identity vertices 3"], vertices: Float[Tensor, "vertices 3"]
) -> Float[Tensor, "identity vertices 3"]:
    """The basis less what moves, turns or scales the whole face, as Procrustes alignment does to first order.

    No picture shows that part: a larger face further away looks the same. Left in the labels it is noise, and it
    hides the camera's scale behind the face's size.
    """
    centred = (vertices - vertices.mean(0)).double()
    turns = [torch.linalg.cross(axis.expand_as(centred), centred) for axis in torch.eye(3, dtype=torch.double)]
    moves = [axis.expand_as(centred) for axis in torch.eye(3, dtype=torch.double)]
    generators = torch.stack([centred, *turns, *moves]).flatten(1)
    orthonormal = torch.linalg.qr(generators.T).Q
    flat = basis.double().flatten(1)
    return (flat - (flat @ orthonormal) @ orthonormal.T).to(basis.dtype).view_as(basis)


def mean_face(
    world: SyntheticWorld, samples: int = 256
) -> tuple[Float[Tensor, "vertices 3"], Float[Tensor, "3 uv_height uv_width"]]:
    """Mean vertices and albedo of the world's faces: what a model that looks at no image would give."""
    chunks = torch.arange(samples).split(32)
    albedo = torch.cat([world.skin.albedo(world.seed, chunk) for chunk in chunks]).mean(0)
    return torch.cat([world.vertices(chunk) for chunk in chunks]).mean(0), albedo
