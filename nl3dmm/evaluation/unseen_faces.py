"""Faces that no training run has seen, from wherever they come: what the measurements of representation run on."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.data.aflw2000 import AnnotatedPhotos, is_aflw2000_folder
from nl3dmm.data.truth import TRUTH_FILE, TruthFaces
from nl3dmm.errors import AssetError
from nl3dmm.evaluation.accuracy import Protocol, test_world, training_world
from nl3dmm.evaluation.latent_search import LandmarkTarget, MeshTarget, ShapeTarget, fit_shape
from nl3dmm.evaluation.measures import WORLD
from nl3dmm.geometry.camera import weak_perspective
from nl3dmm.geometry.similarity import Similarity
from nl3dmm.model import FaceModel
from nl3dmm.synthetic.world import SyntheticWorld, mean_face
from nl3dmm.types import Camera, FaceBatch

LANDMARK_STEPS = 100  # for the shape and camera of photos, which are held fixed afterwards
_YAW_BINS = {"yaw 0-30": (0.0, 30.0), "yaw 30-60": (30.0, 60.0), "yaw 60-90": (60.0, 181.0)}  # the last is open
_PSEUDO_TRUTH = (
    "pseudo: 68 points of a Basel-model fit to each photo, compared after a similarity of the inner 51; for textures "
    f"this model's own final shape and a weak-perspective camera, fitted to them in {LANDMARK_STEPS} steps; no albedo; "
    "occluders and hair unknown: all of the visible mesh counts"
)


@typing.runtime_checkable
class FaceSource(typing.Protocol):
    """Images whose camera, mesh and mask are known; everything is on the model's device."""

    @property
    def name(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def truth(self) -> str:
        """What camera, mesh and mask rest on."""
        ...

    @property
    def mean_albedo(self) -> Float[Tensor, "3 uv_height uv_width"] | None:
        """Of the average face; ``None`` where albedo and light are not known."""
        ...

    def sample(self, indices: Int[Tensor, " batch"]) -> FaceBatch:
        """For textures: with mask, camera, vertices; albedo and light where the source knows them."""
        ...

    def target(self, indices: Int[Tensor, " batch"]) -> ShapeTarget:
        """For shapes."""
        ...

    def groups(self) -> Mapping[str, Int[Tensor, " members"]]:
        """Parts that are reported apart, too; empty ones are left out."""
        ...


@dataclass(frozen=True)
class ExactFaces:
    """Drawn faces, of which everything is known."""

    name: str
    count: int
    source: SyntheticWorld | TruthFaces
    mean_albedo: Float[Tensor, "3 uv_height uv_width"]
    model: FaceModel
    truth: str = "exact"

    def sample(self, indices: Int[Tensor, " batch"]) -> FaceBatch:
        return self.source.sample(indices).to(self.model.device)

    def target(self, indices: Int[Tensor, " batch"]) -> MeshTarget:
        return MeshTarget(self.model.template, self.source.vertices(indices).to(self.model.device))

    def groups(self) -> Mapping[str, Int[Tensor, " members"]]:
        return {}


@dataclass(frozen=True)
class PhotoFaces:
    """Photos with 68 points in space; camera and mesh are the model's own, fitted to these points."""

    name: str
    count: int
    photos: AnnotatedPhotos
    model: FaceModel
    truth: str = _PSEUDO_TRUTH
    mean_albedo: None = None

    def sample(self, indices: Int[Tensor, " batch"]) -> FaceBatch:
        target = self.target(indices)
        vertices = fit_shape(self.model, target, LANDMARK_STEPS)
        batch = self.photos.sample(indices).to(self.model.device)
        return replace(batch, vertices=vertices, camera=_camera(target.similarity(vertices)))

    def target(self, indices: Int[Tensor, " batch"]) -> LandmarkTarget:
        return LandmarkTarget(self.model.template, self.photos.points(indices).to(self.model.device))

    def groups(self) -> Mapping[str, Int[Tensor, " members"]]:
        """By the annotated yaw, as results on AFLW2000-3D are given."""
        yaw = self.photos.yaw(torch.arange(self.count)).abs()
        bins = {name: ((yaw >= low) & (yaw < high)).nonzero()[:, 0] for name, (low, high) in _YAW_BINS.items()}
        return {name: members for name, members in bins.items() if len(members)}


def is_face_folder(path: str | Path) -> bool:
    """Whether ``open_faces`` knows what kind of folder this is."""
    return (Path(path) / TRUTH_FILE).is_file() or is_aflw2000_folder(path)


def open_faces(trained: TrainedSystem, protocol: Protocol, data: str | Path = WORLD) -> FaceSource:
    """The synthetic world under the protocol's seed, a folder with ``truth.npz``, or one of AFLW2000-3D.

    Raises:
        AssetError: none of them, or a folder of another topology than the model's.
    """
    model, name = trained.system.model, Path(data).resolve().name
    if str(data) == WORLD:
        mean = mean_face(training_world(trained))[1].to(model.device)
        return ExactFaces(WORLD, protocol.faces, test_world(trained, protocol), mean, model)
    if (Path(data) / TRUTH_FILE).is_file():
        faces = TruthFaces(data, trained.template, model.config.image_size)
        mean = faces.mean_albedo().to(model.device)
        return ExactFaces(name, min(protocol.faces, len(faces)), faces, mean, model)
    if is_aflw2000_folder(data):
        photos = AnnotatedPhotos(data, model.config.image_size)
        return PhotoFaces(name, min(protocol.faces, len(photos)), photos, model)
    raise AssetError(
        f"data: got {data}; expected 'world', a folder with {TRUTH_FILE}, or one of AFLW2000-3D (.mat). Check the path."
    )


def _camera(placed: Similarity) -> Camera:
    """From the object frame to pixels, where the points' frame is that of the pixels with y up."""
    top_left = placed.translation[:, :2] * placed.translation.new_tensor([1, -1])
    return weak_perspective(placed.rotation, top_left, placed.scale, torch.zeros_like(top_left))
