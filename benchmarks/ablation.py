"""``python -m benchmarks.ablation SWEEP...``: measurements of sweeps beside the paper's, in ``results/ablation.*``.

``ablation_without_base.*`` are of decoders that start as nothing, as the paper's (``--name`` wrote them).

Before it: ``python -m nl3dmm.sweep configs/sweep/ablation.yaml``. Measurements on other data than the synthetic world
(``python -m nl3dmm.evaluate texture RUN --data FOLDER``) are found where they are stored, beside the checkpoints.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev

from nl3dmm.outputs import atomic_path

MODELS = {
    "linear": "linear",
    "nonlinear": "nonlinear",
    "global_local": "nonlinear+gl",
    "proxy": "nonlinear+gl+proxy",
}
# Section 4.2; the linear model's texture is a published fit there, its shape the Basel model.
PAPER = {
    "texture": {"linear": 0.1287, "nonlinear": 0.0427, "nonlinear+gl": 0.0386, "nonlinear+gl+proxy": 0.0363},
    "shape": {"linear": 0.0241, "nonlinear": 0.0146, "nonlinear+gl+proxy": 0.0139},
}
FIGURES = {
    "texture": ("l21", "detail_recovered"),
    "shape": ("nme", "distance_mm"),
    "disentangle": (
        "encoder: albedo over input difference",
        "encoder: light over person",
        "encoder: photo of final over proxy",
        "fitted: photo of final over proxy",
        "encoder: detail of final over proxy",
        "residual: hidden over visible",
    ),
}
RESULTS = Path(__file__).parent / "results"
Row = dict[str, str | int | float]


def collect(sweeps: Sequence[Path]) -> dict[str, list[Row]]:
    """Measurement -> one row per model, seed, template and data set, although several sweeps may hold it."""
    rows: dict[str, dict[tuple, Row]] = {measure: {} for measure in FIGURES}
    for sweep in sweeps:
        for run in json.loads((sweep / "results.json").read_text(encoding="utf-8"))["runs"]:
            for measure in FIGURES:
                for stored in _stored(Path(run["checkpoint"]), measure):
                    identity: Row = {"model": MODELS.get(run["setting"], run["setting"]), "seed": run["seed"]}
                    identity |= {"template": stored["template"], "data": stored["protocol"]["data"]}
                    rows[measure].setdefault(tuple(identity.values()), _row(measure, identity, stored))
    return {measure: list(found.values()) for measure, found in rows.items()}


def _row(measure: str, identity: Row, stored: dict) -> Row:
    figures = stored["ratios"] if measure == "disentangle" else stored["errors"]["final"]
    protocol = {name: stored["protocol"][name] for name in ("faces", "latent_steps")}
    return identity | {name: figures[name] for name in FIGURES[measure] if name in figures} | protocol


def _stored(checkpoint: Path, measure: str) -> Iterator[dict]:
    for file in sorted(checkpoint.parent.glob(f"{checkpoint.stem}.{measure}.*.json")):
        yield json.loads(file.read_text(encoding="utf-8"))


def markdown(rows: dict[str, list[Row]]) -> str:
    """A table per measurement and data: the paper's figure, ours as mean and deviation over seeds."""
    parts = []
    for measure, found in rows.items():
        for template, data in dict.fromkeys((row["template"], row["data"]) for row in found):
            names = FIGURES[measure]
            lines = [
                f"## {measure}: {data}, template {template}",
                "",
                f"| model | paper | {' | '.join(names)} | seeds |",
            ]
            lines.append("|---" * (len(names) + 3) + "|")
            chosen = [row for row in found if (row["template"], row["data"]) == (template, data)]
            for model in dict.fromkeys(row["model"] for row in chosen):
                own = [row for row in chosen if row["model"] == model]
                cells = [_mean([float(row[name]) for row in own if name in row]) for name in names]
                paper = PAPER.get(measure, {}).get(str(model), "-")
                lines.append(f"| {model} | {paper} | {' | '.join(cells)} | {len(own)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _mean(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("sweep", nargs="+", type=Path, help="folders of finished sweeps")
    parser.add_argument("--name", default="ablation", help="of the files in benchmarks/results (default: ablation)")
    options = parser.parse_args()
    sweeps = options.sweep
    rows = collect(sweeps)
    stored = [json.loads((sweep / "results.json").read_text(encoding="utf-8")) for sweep in sweeps]
    facts = {key: "; ".join(dict.fromkeys(each[key] for each in stored)) for key in ("machine", "commit", "command")}
    with atomic_path(RESULTS / f"{options.name}.json") as temporary:
        temporary.write_text(json.dumps({**rows, **facts}, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(["# Ablation", "", *(f"- {key}: {value}" for key, value in facts.items()), "", markdown(rows)])
    with atomic_path(RESULTS / f"{options.name}.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
