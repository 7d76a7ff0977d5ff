"""Preparing and reading many photos: ``python -m benchmarks.prep --photos 10000 --kills 20`` (Linux).

Generates photos of synthetic faces, one in a hundred of them broken; prepares them in one go, and again with kills at
random moments, and compares the files; measures memory, photos per second, and how fast batches are read again.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from benchmarks.report import machine
from nl3dmm.assets.load import load_template
from nl3dmm.data.module import StepBatches
from nl3dmm.data.photos import PhotoSet
from nl3dmm.data.shards import ShardSet
from nl3dmm.synthetic.draws import Draws
from nl3dmm.synthetic.scenery import smooth_noise
from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig
from tests.photo_folders import contents, jpeg, write_landmarks

_BASES, _FACE_PX, _PHOTO_PX = 64, 224, (360, 480)
_BROKEN_EVERY = 100
# what is done to a photo -> the reason it must be rejected with
_FAULTS = {
    "cut off": "damaged",
    "empty": "damaged",
    "text": "damaged",
    "points of another photo": "landmarks outside",
    "half a landmark file": "bad landmark file",
    "copy": "duplicate",
}
_BATCH, _IMAGE_PX, _STOPS = 64, 224, 20
_RESULT = Path(__file__).parent / "results" / "prep.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prep", description=__doc__)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--photos-per-shard", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=20, help="of reading, per number of workers (default: 20)")
    parser.add_argument("--folder", type=Path, help="for photos and shards; a temporary one by default")
    parser.add_argument("--shards", type=Path, help="read this folder of shards, nothing else: prep-read.json")
    parser.add_argument("-o", "--output", type=Path)
    chosen = parser.parse_args()
    chosen.output = chosen.output or (_RESULT.with_name("prep-read.json") if chosen.shards else _RESULT)
    torch.set_num_threads(1)
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as temporary:
        results = _reading(chosen.shards, chosen) if chosen.shards else _everything(Path(temporary), chosen)
    words = ["FOLDER" if chosen.shards and word == str(chosen.shards) else word for word in sys.argv[1:]]
    command = " ".join(["python -m benchmarks.prep", *words])
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": {**machine([]), "command": command}, "results": results}, indent=1)
    chosen.output.write_text(text + "\n", encoding="utf-8")
    console.print_json(data=results)


def _everything(temporary: Path, chosen: argparse.Namespace) -> dict:
    folder = chosen.folder or temporary
    expected = generate(folder / "photos", chosen.photos)
    return {
        "photos": chosen.photos,
        "prepare": prepare(folder, chosen, expected),
        "kills": prepare_with_kills(folder, chosen),
        **_reading(folder / "straight", chosen),
        "resume": {f"{workers} workers": resume(folder / "straight", workers) for workers in (0, 2)},
    }


def _reading(shards: Path, chosen: argparse.Namespace) -> dict:
    return {"read": [read(shards, workers, chosen.seconds) for workers in (0, 1, 2)]}


def generate(folder: Path, count: int) -> dict[str, str]:
    """Photos with landmark files beside them; returns the broken ones with the reasons they have to be listed with."""
    world = SyntheticWorld(load_template("embedded", None, (64, 80)), WorldConfig(super_sampling=1), _FACE_PX)
    faces = world.sample(torch.arange(_BASES))
    faults, expected = list(_FAULTS), {}
    shutil.rmtree(folder, ignore_errors=True)
    for number in track(range(count), "drawing photos", transient=True):
        name = f"{number // 1000:03d}/{number:06d}.jpg"
        path, base = folder / name, number % _BASES
        path.parent.mkdir(parents=True, exist_ok=True)
        draws = Draws(0, torch.tensor([number]), 31)
        photo = smooth_noise(draws.uniform(0, 1, 3, 4, 4), max(_PHOTO_PX))[0, :, : _PHOTO_PX[0]]
        shift = (draws.uniform(0, 1, 2)[0] * torch.tensor([_PHOTO_PX[1] - _FACE_PX, _PHOTO_PX[0] - _FACE_PX])).floor()
        left, top = shift.int().tolist()
        photo[:, top : top + _FACE_PX, left : left + _FACE_PX] = faces.image[base]
        data, points = jpeg(photo.clamp(0, 1)), faces.landmarks[base : base + 1] + shift
        if number % _BROKEN_EVERY == _BROKEN_EVERY - 1:
            fault = faults[number // _BROKEN_EVERY % len(faults)]
            expected[name] = _FAULTS[fault]
            data, points = _spoil(fault, data, points, folder / "000" / "000000.jpg")
        path.write_bytes(data)
        write_landmarks(path.with_suffix(".json"), points)
        if expected.get(name) == "bad landmark file":
            path.with_suffix(".json").write_text('{"landmarks": [')
    return expected


def _spoil(fault: str, data: bytes, points: torch.Tensor, other: Path) -> tuple[bytes, torch.Tensor]:
    contents_by_fault = {"cut off": data[: len(data) // 2], "empty": b"", "text": b"This is no image. " * 20}
    if fault == "copy":
        return other.read_bytes(), points
    if fault == "points of another photo":
        return data, points + 1000
    return contents_by_fault.get(fault, data), points


def prepare(folder: Path, chosen: argparse.Namespace, expected: dict[str, str]) -> dict:
    """In one go; memory is the sum over all processes of the command."""
    started = time.perf_counter()
    process = _start(folder / "photos", folder / "straight", chosen)
    memory = []
    while process.poll() is None:
        memory.append((_notes(folder / "straight"), _memory(process.pid)))
        time.sleep(0.2)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"error: the command ended with {process.returncode}: {process.stderr.read()}")
    with (folder / "straight" / "rejected.jsonl").open(encoding="utf-8") as file:
        listed = {line["photo"]: line["reason"] for line in map(json.loads, file)}
    shards = max(number for number, _ in memory)
    working = [(number, mib) for number, mib in memory if number >= 1]
    return {
        "exit": process.returncode,
        "seconds": round(seconds, 1),
        "photos_per_second": round(chosen.photos / seconds, 1),
        "faces": len(ShardSet(folder / "straight")),
        "broken": len(expected),
        "broken_listed_with_the_right_reason": sum(listed.get(name) == reason for name, reason in expected.items()),
        "rejected": dict(Counter(listed.values())),
        "peak_memory_mib": max(mib for _, mib in memory),
        "peak_memory_mib_first_half": max((mib for number, mib in working if number <= shards / 2), default=0),
        "peak_memory_mib_second_half": max((mib for number, mib in working if number > shards / 2), default=0),
    }


def prepare_with_kills(folder: Path, chosen: argparse.Namespace) -> dict:
    """Killed after at least one more shard and a random wait; then to the end."""
    output, moments, done = folder / "killed", random.Random(0), 0
    shutil.rmtree(output, ignore_errors=True)
    for _ in track(range(chosen.kills), "killing", transient=True):
        process, target = _start(folder / "photos", output, chosen), _notes(output) + 1
        while process.poll() is None and _notes(output) < target:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1))
        done += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = _start(folder / "photos", output, chosen)
    process.communicate()
    same = contents(output) == contents(folder / "straight")
    return {"kills": done, "exit": process.returncode, "same_bytes": same}


def read(folder: Path, workers: int, seconds: float) -> dict:
    """Batches decoded, checked, augmented and collated, as training takes them."""
    batches = StepBatches(PhotoSet(ShardSet(folder), _IMAGE_PX), seed=0, batch_size=_BATCH)
    loader = iter(_loader(batches, range(10**9), workers))
    for _ in range(max(1, 2 * workers)):
        next(loader)
    started, cpu, images = time.perf_counter(), _cpu_seconds(), 0
    while time.perf_counter() - started < seconds:
        images += len(next(loader).image)
    rates = {"images_per_second": images / (time.perf_counter() - started)}
    rates["images_per_cpu_second"] = images / (_cpu_seconds() - cpu)  # what other work on the machine does not change
    return {"workers": workers, **{name: round(rate, 1) for name, rate in rates.items()}}


def resume(folder: Path, workers: int) -> str:
    """Runs that go on at a random step, compared with one that was never stopped."""
    batches = StepBatches(PhotoSet(ShardSet(folder), _IMAGE_PX), seed=1, batch_size=16)
    steps = 2 * max(10, len(batches.source) // 16)  # two epochs, so that their border is among the stops
    moments, equal = random.Random(1), 0
    for _ in range(_STOPS):
        stop = moments.randrange(1, steps - 2)
        resumed = _loader(batches, range(stop, stop + 2), workers)
        straight = (batches[step] for step in range(stop, stop + 2))
        pairs = list(zip(resumed, straight, strict=True))
        equal += all(torch.equal(a.index, b.index) and torch.equal(a.image, b.image) for a, b in pairs)
    return f"{equal} of {_STOPS} equal"


def _loader(batches: StepBatches, steps: range, workers: int) -> DataLoader:
    return DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers)


def _start(photos: Path, output: Path, chosen: argparse.Namespace) -> subprocess.Popen:
    options = ["--detector", "none", "--jobs", str(chosen.jobs), "--photos-per-shard", str(chosen.photos_per_shard)]
    command = [sys.executable, "-m", "nl3dmm.prep", str(photos), "-o", str(output), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _notes(output: Path) -> int:
    return len(list((output / "parts").glob("[0-9]*.json")))


def _cpu_seconds() -> float:
    """Of this process and its children."""
    ticks = 0
    for each in (os.getpid(), *_children(os.getpid())):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory(process: int) -> int:
    """Resident MiB of a process and its children; shared pages count in each."""
    pages = 0
    for each in (process, *_children(process)):
        try:
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except OSError:
            continue
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def _children(process: int) -> Iterator[int]:
    try:
        yield from map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    except OSError:
        return


if __name__ == "__main__":
    main()
