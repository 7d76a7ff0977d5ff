"""Which implementation renders which device."""

import os
import re
from importlib import import_module
from types import ModuleType

import torch

from nl3dmm.errors import BackendError
from nl3dmm.render import _nvdr, _torch

VARIABLE = "NL3DMM_RENDER"


def operations(device: torch.device) -> ModuleType:
    """The module with ``rasterize``, ``interpolate`` and ``texture`` for a device."""
    name = backend_for(device)
    if name == "numba":
        return import_module("nl3dmm.render._numba")
    return _nvdr if name == "nvdiffrast" else _torch


def backend_for(device: torch.device | str) -> str:
    """Name of the backend that renders tensors of a device: ``numba``, ``torch`` or ``nvdiffrast``.

    CPU tensors take numba (plain torch where numba cannot be imported), CUDA tensors take nvdiffrast. The environment
    variable NL3DMM_RENDER=numba|torch forces one.

    Raises:
        BackendError: no usable backend, or the forced one is unknown or not usable for this device.
    """
    device = torch.device(device)
    forced = os.environ.get(VARIABLE)
    if forced:
        reason = _obstacle(forced, device.type)
        if reason:
            raise BackendError(f"{VARIABLE}: got {forced!r} for {device}; {reason}. Unset it or change it.")
        return forced
    if device.type == "cuda":
        _nvdr.library()
        return "nvdiffrast"
    if device.type != "cpu":
        raise BackendError(f"device: got {device}; expected cpu or cuda. Move the tensors to the CPU.")
    return "torch" if _obstacle("numba", "cpu") else "numba"


def default_device() -> str:
    """``cuda`` where there is a GPU and nvdiffrast can render on it, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() and not _nvdr.obstacle() else "cpu"


def backends() -> dict[str, str]:
    """Each backend's name -> ``usable``, or why it is not on this machine."""
    devices = {"numba": "cpu", "torch": "cpu", "nvdiffrast": "cuda"}
    return {name: _obstacle(name, device) or "usable" for name, device in devices.items()}


def warmup(dtype: torch.dtype = torch.float32) -> None:
    """Compile the CPU kernels, or load them from the disk cache, so that the first image does not wait for it."""
    if backend_for("cpu") == "numba":
        import_module("nl3dmm.render._numba").warmup(dtype)


def _obstacle(name: str, device: str) -> str | None:
    """Why a backend cannot render tensors of this kind of device, or None."""
    if name == "torch":
        return None if device in ("cpu", "cuda") else "expected a cpu or cuda device"
    if name == "numba":
        return "expected a cpu device" if device != "cpu" else _numba_obstacle()
    if name == "nvdiffrast":
        return "expected a cuda device" if device != "cuda" else _nvdr.obstacle()
    return "expected numba, torch or nvdiffrast"


def _numba_obstacle() -> str | None:
    try:
        import_module("nl3dmm.render._numba")
    except ImportError as error:
        return f"numba cannot be imported ({error})"
    return None


def pick_device(device: str) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as torch names it.

    Raises:
        BackendError: another name, or a GPU that this machine does not have.
    """
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
