"""One tiny run for all system tests: trained by the real command line, at the smallest sizes, in seconds."""

import contextlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

TINY = """
uv_size: [32, 32]
model:
  image_size: 48
  shape_latent: 8
  albedo_latent: 8
  encoder: {width: 4, stages: 4}
  decoder: {width: 4, up_samplings: 4}
loss:
  perceptual: {layers: [conv1_1], weights: random, size: 32}
data: {samples: 16}
training:
  images: 128
  batch_size: 8
  warmup_steps: 2
  checkpoint_every: 4
  panel_every: 16
  precision: float32
  threads: 1
logging: {wandb: disabled, every: 1}
"""
LONGER = (
    "training.images=1600",
    "training.linear_fraction=0.3",
    "training.pretrain_fraction=0.4",
    "training.checkpoint_every=100",
    "training.panel_every=100",
)


@dataclass(frozen=True)
class TinyRun:
    """A finished run: its folder, and what the command printed."""

    folder: Path
    printed: str


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    """Banks go to a temporary cache, and no W&B account of this machine is seen."""
    folder = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NL3DMM_CACHE", str(folder / "cache"))
        patch.setenv("NETRC", str(folder / "netrc"))
        patch.setenv("WANDB_CONFIG_DIR", str(folder / "wandb"))
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing answers there: going online would fail
        patch.delenv("WANDB_API_KEY", raising=False)
        yield


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory) -> Path:
    """YAML of a run of 16 steps; the first 6 are pre-training."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def train(tiny_config) -> Callable[..., int]:
    """``train(folder, "key=value", ...)``: the command line with the tiny config."""
    from nl3dmm.train import main

    def run(folder: Path, *overrides: str) -> int:
        return main(["-c", str(tiny_config), f"output={folder}", *overrides])

    return run


@pytest.fixture(scope="session")
def run(train, tmp_path_factory) -> TinyRun:
    """200 steps on 16 faces: enough to know these faces."""
    torch.manual_seed(0)
    folder, printed = tmp_path_factory.mktemp("tiny") / "run", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert train(folder, *LONGER) == 0
    return TinyRun(folder, printed.getvalue())


@pytest.fixture(scope="session")
def trained(run):
    """The tiny run's system, ready for use."""
    from nl3dmm.checkpoint import load_system

    return load_system(run.folder)


@pytest.fixture
def error(capsys) -> Callable[[int], str]:
    """``error(exit_code)``: the one line on stderr of a command that has just failed."""

    def read(code: int) -> str:
        text = capsys.readouterr().err
        assert code == 1
        assert text.startswith("error: ")
        assert text.count("\n") == 1, text
        assert "Traceback" not in text
        return text.removeprefix("error: ").strip()

    return read


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []


@pytest.fixture
def fit_error(run, tmp_path, error) -> Callable[..., str]:
    """The message of a fit that fails; proves that it wrote nothing of a face."""

    from nl3dmm import fit

    def call(photo: Path, *arguments: str, model: Path | None = None) -> str:
        out = tmp_path / "out"
        code = fit.main([str(photo), "-o", str(out), "--model", str(model or run.folder), "--steps", "30", *arguments])
        assert {path.name for path in files_in(out)} in (set(), {"status.json", "report.html"})
        return error(code)

    return call


@pytest.fixture
def damaged_run(run, tmp_path) -> Path:
    """A copy of the tiny run, to be damaged."""
    return shutil.copytree(run.folder, tmp_path / "damaged")
