"""Nonlinear 3D morphable face models in UV space.

Data flow: photo -> data -> nn: encoder -> latents, camera, light; nn: UV decoders -> shape and albedo maps
-> geometry: vertices, normals -> render: four images -> losses -> objective.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nl3dmm.assets.load import load_template
    from nl3dmm.assets.template import FaceTemplate
    from nl3dmm.data.images import read_image
    from nl3dmm.data.landmark_files import read_landmarks
    from nl3dmm.errors import Nl3dmmError
    from nl3dmm.fitting.photos import FitFailure, PhotoInput, fit_latent
    from nl3dmm.reconstruction import Reconstruction
    from nl3dmm.release import load

try:
    __version__ = version("nl3dmm")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

# Imported on first use: torch and lightning take seconds, and `import nl3dmm` should not.
_PUBLIC = {
    "FaceTemplate": "nl3dmm.assets.template",
    "FitFailure": "nl3dmm.fitting.photos",
    "Nl3dmmError": "nl3dmm.errors",
    "PhotoInput": "nl3dmm.fitting.photos",
    "Reconstruction": "nl3dmm.reconstruction",
    "fit_latent": "nl3dmm.fitting.photos",
    "load": "nl3dmm.release",
    "load_template": "nl3dmm.assets.load",
    "read_image": "nl3dmm.data.images",
    "read_landmarks": "nl3dmm.data.landmark_files",
}
__all__ = [  # noqa: RUF022 (the order of a first session)
    "load_template",
    "FaceTemplate",
    "load",
    "fit_latent",
    "PhotoInput",
    "Reconstruction",
    "FitFailure",
    "read_image",
    "read_landmarks",
    "Nl3dmmError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nl3dmm' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
