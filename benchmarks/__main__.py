"""``python -m benchmarks [--only NAME] [-o FILE]``: medians over repetitions, as JSON with machine and commit."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results"


def measure(task: Callable[[], int], repetitions: int) -> dict[str, float]:
    """Median and spread of ms per item, after two calls of warm-up."""
    for _ in range(2):
        task()
    samples = []
    for _ in range(repetitions):
        started = time.perf_counter()
        items = task()
        samples.append((time.perf_counter() - started) * 1e3 / items)
    return {
        "median_ms": statistics.median(samples),
        "min_ms": min(samples),
        "max_ms": max(samples),
        "runs": repetitions,
    }


def machine() -> dict[str, str]:
    """What the numbers belong to."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit,
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=sorted(WORKLOADS), help="one workload")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "cpu.json")
    options = parser.parse_args()
    results = {}
    for name, build in WORKLOADS.items():
        if options.only in (None, name):
            results[name] = {case: measure(task, options.repetitions) for case, task in build().items()}
            for case, figures in results[name].items():
                print(f"{name:12} {case:32} {figures['median_ms']:9.2f} ms/item", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
