"""``fit_latent``: photos in, faces out."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.config import check_range
from nl3dmm.data.images import ImageSource
from nl3dmm.errors import Nl3dmmError, ShapeError
from nl3dmm.fitting.free_face import check_shared
from nl3dmm.fitting.located_face import Box, Landmarks, LocatedFace, PhotoInput, locate_face, profile_warnings
from nl3dmm.fitting.optimise import FitResult, Progress, optimise_faces
from nl3dmm.fitting.photometric import landmark_region, photometric_errors
from nl3dmm.fitting.pose import pose_faces
from nl3dmm.fitting.stages import photo_config
from nl3dmm.fitting.terms import FitTarget, add_albedo_detail
from nl3dmm.geometry.camera import at_distance, rotate, yaw_degrees
from nl3dmm.model import Face, FaceModel
from nl3dmm.reconstruction import Reconstruction
from nl3dmm.release import DEFAULT, load

DEFAULT_STEPS = 200
BATCH = 8  # photos that are optimised together


@dataclass(frozen=True)
class FitFailure:
    """A photo of several that no face came out of, and why."""

    source: str
    status: str  # no_face, bad_image, bad_input, not_finite or not_written
    message: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FitPlan:
    """How photos are fitted."""

    steps: int = DEFAULT_STEPS  # 0: the encoder's estimate
    shared: tuple[str, ...] = ()  # of fitting.SHAREABLE: what the photos, then all of one person, have in common

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 0, 100_000)
        check_shared(self.shared)


def fit_latent(
    images: ImageSource | PhotoInput | Sequence[ImageSource | PhotoInput],
    *,
    model: str | Path | TrainedSystem = DEFAULT,
    landmarks: Landmarks | Sequence[Landmarks | None] | None = None,
    box: Box | Sequence[Box | None] | None = None,
    shared: str | Sequence[str] = (),
    steps: int | None = None,
    device: str = "auto",
    progress: bool | Progress = True,
) -> Any:
    """Reconstruct the face of a photo, or of each of several, by optimising latents, camera and light.

    Args:
        images: path, bytes, PIL image, array or tensor; see ``data.images.read_image``. Or a list of them, or a tensor
            (batch, 3, height, width). A ``PhotoInput`` carries along what is known: landmarks, box, the camera's
            distance, a mask of what hides the face.
        model: see ``nl3dmm.load``: the model that comes with the package, a run folder, a checkpoint, a loaded system.
        landmarks: 68 points in photo pixels, or a .pts, .npy or .json file; they frame the crop and guide the pose.
            Without them and without a box those of the largest face are found. For a list of photos: a list.
        box: left, top, right, bottom of the face (brows to chin) in photo pixels; used without landmarks.
        shared: latents, of "shape" and "albedo", that the photos of one person have in common. What each photo adds to
            the albedo as a free residual is its own.
        steps: optimisation steps, by default 200; 0 gives the encoder's estimate.
        progress: show a bar, or call ``progress(step, steps, loss)`` instead.

    Returns:
        A ``Reconstruction``. For a list of photos a list with one for each, or a ``FitFailure`` where a photo has no
        face or cannot be read: both have ``source``, ``status`` and ``warnings``.

    Raises:
        ImageError: a single photo that is unreadable; ``NoFaceError``: no face found in it.
        ShapeError: wrong landmarks, box or mask.
        ConfigError: unknown name in ``shared``, or steps out of range.
        CheckpointError: no trained model, or a damaged one.
    """
    plan = FitPlan(DEFAULT_STEPS if steps is None else steps, (shared,) if isinstance(shared, str) else tuple(shared))
    trained = load(model, device)
    several = _several(images)
    if several is None:
        photos = [_input(images, landmarks, box)]
    else:
        known = (_each("landmarks", landmarks, several), _each("box", box, several))
        photos = [_input(*values) for values in zip(several, *known, strict=True)]
    with _reported(progress) as report:
        faces = locate_faces(photos, trained, strict=several is None)
        done = dict(fit_located(faces, trained, plan, report))
    results = [done[position] for position in range(len(photos))]
    return results if several is not None else results[0]


def locate_faces(
    photos: Sequence[PhotoInput], trained: TrainedSystem, strict: bool = False
) -> list[LocatedFace | FitFailure]:
    """Crops as the system's encoder sees them; without ``strict`` a photo that has none is no error."""
    return [_located(photo, trained.config.model.image_size, strict) for photo in photos]


def _located(photo: PhotoInput, size: int, strict: bool) -> LocatedFace | FitFailure:
    try:
        return locate_face(photo, size)
    except (Nl3dmmError, OSError) as error:  # OSError: names and rights that the file system refuses
        if strict:
            raise
        kind = {"NoFaceError": "no_face", "ImageError": "bad_image"}.get(type(error).__name__, "bad_input")
        return FitFailure(photo.name, kind, str(error))


def fit_located(
    faces: Sequence[LocatedFace | FitFailure],
    trained: TrainedSystem,
    plan: FitPlan,
    progress: Progress = lambda step, steps, loss: None,
) -> Iterator[tuple[int, Reconstruction | FitFailure]]:
    """Positions and results, as soon as each batch is done; failures first.

    Raises:
        ShapeError: photos that share something, of which some have landmarks and others a box alone.
    """
    yield from ((position, face) for position, face in enumerate(faces) if isinstance(face, FitFailure))
    located = [(position, face) for position, face in enumerate(faces) if isinstance(face, LocatedFace)]
    chunks = list(_chunks(located, bool(plan.shared)))
    for number, chunk in enumerate(chunks):

        def advance(step: int, steps: int, loss: float, number: int = number) -> None:
            progress(number * steps + step, len(chunks) * steps, loss)

        results = _fit([face for _, face in chunk], trained, plan, advance)
        for position, _ in chunk:
            yield position, results.pop(0)  # pictures that it draws of itself go with it


def _chunks(located: list[tuple[int, LocatedFace]], is_shared: bool) -> Iterator[list[tuple[int, LocatedFace]]]:
    """What is optimised together: all that share something, else equally guided ones."""
    groups, size = [located], max(1, len(located))
    if not is_shared:
        groups = [[item for item in located if (item[1].points is None) == unguided] for unguided in (False, True)]
        size = BATCH
    for group in groups:
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _fit(faces: list[LocatedFace], trained: TrainedSystem, plan: FitPlan, progress: Progress) -> list[Reconstruction]:
    """One batch."""
    started = time.perf_counter()
    network = trained.system.model
    target = _target(faces, network, bool(plan.shared))
    with torch.no_grad():
        start = network.encode(target.image)
    result, contradicted = _optimise(network, target, start, faces, plan, progress)
    with torch.no_grad():
        plain = network.decode(result.face.latents)
        geometry = add_albedo_detail(plain, result.albedo_detail)
        estimates = [(start, network.decode(start.latents)), (result.face, geometry), (result.face, plain)]
    errors = photometric_errors(network, target.image, estimates, landmark_region(target), target.mask)
    fitted, shapes = result.face.to("cpu"), geometry.to("cpu")
    seconds = (time.perf_counter() - started) / len(faces)
    return [
        Reconstruction(
            photo=face.photo,
            crop=face.crop,
            model=trained.cpu_model,
            face=fitted[i],
            geometry=shapes[i],
            losses=result.curves[i],
            start_error=float(errors[0][i]),
            final_error=float(errors[1][i]),
            model_error=float(errors[2][i]),
            converged=result.converged[i],
            seconds=seconds,
            source=face.source,
            landmark_source=face.landmark_source,
            warnings=(*face.warnings, *_late_warnings(face, fitted[i], contradicted[i])),
        )
        for i, face in enumerate(faces)
    ]


def _target(faces: Sequence[LocatedFace], network: FaceModel, is_shared: bool) -> FitTarget:
    """What the faces of a batch are compared with."""
    picture = torch.stack([face.picture for face in faces]).to(network.device)
    guided = [face.crop.points_to_crop(face.points) for face in faces if face.points is not None]
    if is_shared and 0 < len(guided) < len(faces):
        raise ShapeError(
            f"landmarks: got them for {len(guided)} of {len(faces)} photos that share latents; expected all or none. "
            "Give no box where landmarks are found."
        )
    points = torch.stack(guided).to(picture) if len(guided) == len(faces) else None
    return FitTarget(picture, points, _masks(faces, picture))


def _masks(
    faces: Sequence[LocatedFace], picture: Float[Tensor, "batch 3 size size"]
) -> Bool[Tensor, "batch size size"] | None:
    """What of each picture is seen; nothing where no mask was given."""
    if all(face.visible is None for face in faces):
        return None
    everything = torch.ones(picture.shape[-2:], dtype=torch.bool)
    visible = [everything if face.visible is None else face.visible for face in faces]
    return torch.stack(visible).to(picture.device)


def _optimise(
    model: FaceModel, target: FitTarget, start: Face, faces: Sequence[LocatedFace], plan: FitPlan, progress: Progress
) -> tuple[FitResult, list[bool]]:
    """The fit, and whose landmarks the photo contradicted."""
    nobody = [False] * len(faces)
    if plan.steps == 0:
        return FitResult.unfitted(start, model.template.uv_size, plan.shared), nobody
    config = photo_config(plan.steps, guided=target.landmarks is not None)
    start = _from_distance(model, start, target.image.new_tensor([face.distance_mm for face in faces]))
    if config.landmark_steps == 0:
        return optimise_faces(model, target, start, config, plan.shared, progress=progress), nobody
    found = torch.tensor([face.is_found for face in faces], device=model.device)
    posed = pose_faces(model, target, start, found, config, lambda step, _, loss: progress(step, plan.steps, loss))
    done = config.landmark_steps
    config = replace(config, steps=plan.steps - done, landmark_steps=0)
    result = optimise_faces(
        *(model, posed.target, posed.start, config, plan.shared),
        progress=lambda step, _, loss: progress(done + step, plan.steps, loss),
    )
    return result, posed.contradicted.tolist()


@torch.no_grad()
def _from_distance(model: FaceModel, face: Face, distance_mm: Float[Tensor, " batch"]) -> Face:
    """Seen by a pinhole camera; the landmarks stay in place on average."""
    landmarks = model.template.landmarks(model.decode(face.latents).vertices_final)
    plane = rotate(face.camera, landmarks)[..., 2].mean(1)
    return replace(face, camera=at_distance(face.camera, distance_mm, plane))


def _late_warnings(located: LocatedFace, fitted: Face, contradicted: bool) -> list[str]:
    """What only the fit shows; without landmarks, which say more of it, also how the face is turned."""
    if contradicted:
        return ["landmarks left out: the photo contradicts those that were found; give landmarks if the fit is wrong"]
    if located.points is not None:
        return []
    return profile_warnings(float(yaw_degrees(fitted.camera)))


def _input(image: Any, landmarks: Any, box: Any) -> PhotoInput:
    if not isinstance(image, PhotoInput):
        return PhotoInput(image, landmarks, box)
    if landmarks is not None or box is not None:
        raise ShapeError("landmarks, box: got them beside a PhotoInput, which has its own; expected them there alone.")
    return image


def _several(images: Any) -> list[ImageSource | PhotoInput] | None:
    """The photos, or nothing if it is one."""
    if isinstance(images, (list, tuple)):
        return list(images)
    return list(images) if isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4 else None


def _each(name: str, values: Any, photos: list) -> list:
    if values is None:
        return [None] * len(photos)
    if isinstance(values, (str, Path, Tensor)) or len(values) != len(photos) or isinstance(values[0], float | int):
        raise ShapeError(f"{name}: got one for {len(photos)} photos; expected a list of as many. Use None for unknown.")
    return list(values)


@contextmanager
def _reported(progress: bool | Progress) -> Iterator[Progress]:
    """What ``progress=True`` means: a bar where somebody sees it."""
    if callable(progress):
        yield progress
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not progress or not console.is_terminal:
        yield lambda step, steps, loss: None
        return
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("fitting", total=None)
        yield lambda step, steps, loss: bar.update(task, completed=step, total=steps)
