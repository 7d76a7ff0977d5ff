"""``python -m nl3dmm.doctor``: which backends, weights and optional parts are usable here, and why not."""

import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from nl3dmm.cli import Parser, report_errors
from nl3dmm.errors import Nl3dmmError

_PACKAGES = ("torch", "lightning", "torchmetrics", "lpips", "numpy", "opencv-python", "omegaconf", "wandb", "numba")


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    Parser("python -m nl3dmm.doctor", __doc__).parse(arguments)
    checks = {"packages": _packages, "renderer": _renderer, "hardware": _hardware, "assets": _assets}
    checks |= {"weights": _weights, "logging": _logging}
    for title, check in checks.items():
        print(title)
        for name, state in check().items():
            print(f"  {name:24} {state}")
    return 0


def _state(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # a doctor reports what is broken, whatever it is
        first_line = (str(error).splitlines() or [""])[0]
        return (
            f"NOT usable: {first_line if isinstance(error, Nl3dmmError) else f'{type(error).__name__}: {first_line}'}"
        )


def _packages() -> dict[str, str]:
    return {name: _state(lambda name=name: metadata.version(name)) for name in _PACKAGES}


def _renderer() -> dict[str, str]:
    from nl3dmm.render import backends

    return backends()


def _hardware() -> dict[str, str]:
    import torch

    from nl3dmm.settings import TrainingConfig
    from nl3dmm.training.module import network_dtype

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none found; training and fitting run on CPU"
    dtype = str(network_dtype(TrainingConfig())).removeprefix("torch.")
    return {
        "CPU threads": str(torch.get_num_threads()),
        "GPU": gpu,
        "network precision": f"{dtype} (training.precision=auto)",
    }


def _assets() -> dict[str, str]:
    from nl3dmm.assets.load import load_template
    from nl3dmm.assets.locations import asset_folder

    def template() -> str:
        loaded = load_template("embedded")
        return f"usable ({len(loaded.vertices)} vertices, {loaded.hash[:12]})"

    def configs() -> str:
        return ", ".join(sorted(path.name for path in asset_folder("configs").glob("*.yaml")))

    return {"embedded template": _state(template), "configs": _state(configs)}


def _weights() -> dict[str, str]:
    import warnings

    from nl3dmm.nn.perceptual import FeatureNetwork, PerceptualConfig
    from nl3dmm.release import load

    def model() -> str:
        shipped = load(device="cpu")
        return f"usable (step {shipped.step}, template {shipped.template.name}, {shipped.path.name})"

    def vgg() -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = FeatureNetwork(PerceptualConfig(layers=("conv1_1",))).weights_source
        missing = "not found in the torch hub cache: perceptual losses use random features"
        return missing if source == "random" else f"usable ({source})"

    return {
        "VGG-16 (perceptual)": _state(vgg),
        "default model": _state(model),
    }


def _logging() -> dict[str, str]:
    def account() -> str:
        import wandb

        return "account found: online" if wandb.login(prompt=False) else "no account: offline runs (wandb sync later)"

    return {"W&B": _state(account)}


if __name__ == "__main__":
    sys.exit(main())
