"""Time of a fit at the paper's size: ``python -m benchmarks.fit_speed -o FILE``.

Networks, maps and pictures of ``configs/highfidelity.yaml`` (UV 192 x 224, 224 px, latents 320), weights at random:
time does not depend on them. Photo: the astronaut, with its landmarks. Encoder alone, the default fit, and one of three
times as many steps, for float32 and bfloat16 networks, one photo and eight.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.report import machine
from nl3dmm.assets.load import load_template
from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.data.images import read_image
from nl3dmm.data.landmark_files import read_landmarks
from nl3dmm.fitting.photos import DEFAULT_STEPS, fit_latent
from nl3dmm.run_config import run_config
from nl3dmm.systems.highfidelity import HighFidelity

_ROOT = Path(__file__).parents[1]
_PHOTO = _ROOT / "tests" / "data" / "astronaut.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit_speed", description=__doc__)
    parser.add_argument("--config", type=Path, default=_ROOT / "configs" / "highfidelity.yaml")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    trained = untrained(chosen.config)
    rows = []
    for precision in chosen.precision:
        trained.system.model.network_dtype = getattr(torch, precision)
        measure(trained, 1, 5)  # compiles and warms up
        for batch in chosen.batch:
            for steps in (0, DEFAULT_STEPS, 3 * DEFAULT_STEPS) if batch == 1 else (0, DEFAULT_STEPS):
                row = {"precision": precision, "batch": batch, "steps": steps, **measure(trained, batch, steps)}
                print(row, flush=True)
                rows.append(row)
    facts = {
        "machine": {**machine([]), "command": " ".join(["python -m benchmarks.fit_speed", *sys.argv[1:]])},
        "threads": chosen.threads,
    }
    if chosen.output:
        text = json.dumps(facts | {"config": chosen.config.name, "fits": rows}, indent=1)
        chosen.output.write_text(text + "\n", encoding="utf-8")


def untrained(config_file: Path) -> TrainedSystem:
    """A system of a config with weights as they are before training."""
    torch.manual_seed(0)
    config = run_config([], config_file)
    template = load_template(config.template, config.template_path, config.uv_size)
    return TrainedSystem(HighFidelity(config.highfidelity, template).eval(), config, template, 0, config_file)


def measure(trained: TrainedSystem, batch: int, steps: int) -> dict:
    """Seconds per photo, with reading and cropping but without the search for a face."""
    photo, landmarks = read_image(_PHOTO), read_landmarks(_PHOTO.with_suffix(".json"))
    started = time.perf_counter()
    results = fit_latent([photo] * batch, model=trained, landmarks=[landmarks] * batch, steps=steps, progress=False)
    seconds = time.perf_counter() - started
    return {
        "seconds_per_photo": round(seconds / batch, 3),
        "seconds": round(seconds, 2),
        "photometric": round(results[0].final_error, 5),
    }


if __name__ == "__main__":
    main()
