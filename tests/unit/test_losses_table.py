"""``docs/losses.md`` says what the code does: terms, default weights, what is rendered, a config that loads."""

import re
from dataclasses import asdict
from pathlib import Path

from nl3dmm.config import load_config
from nl3dmm.settings import RunConfig
from nl3dmm.systems.weights import RENDERED_TERMS, LossWeights

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)`( R)? \|.*\| ([\d.]+) \|$", PAGE, re.MULTILINE)


def test_the_table_has_every_term_with_its_default_weight():
    assert {name: float(weight) for name, _, weight in ROWS} == asdict(LossWeights())
    assert [name for name, _, _ in ROWS] == list(asdict(LossWeights()))


def test_the_table_marks_what_is_rendered():
    assert {name for name, rendered, _ in ROWS if rendered} == set(RENDERED_TERMS)


def test_the_config_of_the_page_loads(tmp_path):
    (tmp_path / "code.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    loss = load_config(RunConfig, [tmp_path / "code.yaml"]).loss
    assert (loss.landmark_reaches, loss.finetune.albedo_pairs, loss.pretrain.albedo_pairs) == ("encoder", 20, 0)
