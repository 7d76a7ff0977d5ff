"""Strict configs: what loads, and one-line errors for what does not."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nl3dmm.config import (
    check_range,
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    fill_placeholders,
    load_config,
    read_yaml,
)
from nl3dmm.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    steps: int = 5
    names: tuple[str, ...] = ("a", "b")

    def __post_init__(self) -> None:
        check_range("inner.rate", self.rate, 0, 1)


@dataclass(frozen=True)
class Outer:
    title: str = "plain"
    size: tuple[int, int] = (3, 4)
    path: str | None = None
    on: bool = True
    inner: Inner = field(default_factory=Inner)


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> Path:
        (tmp_path / "some.yaml").write_text(text)
        return tmp_path / "some.yaml"

    return write


def error_of(files=(), overrides=()) -> str:
    """The message, which must be one line."""
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, files, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults():
    assert load_config(Outer) == Outer()


def test_files_then_overrides(file):
    path = file("title: from file\ninner: {rate: 0.5, steps: 7}\nsize: [1, 2]\n")
    config = load_config(Outer, [path], ["inner.rate=1e-4", "on=false", "inner.names=[x,y,z]"])
    expected = Outer("from file", (1, 2), None, False, Inner(1e-4, 7, ("x", "y", "z")))
    assert config == expected
    assert isinstance(config.size, tuple)
    assert isinstance(config.inner.names, tuple)


def test_later_files_win(tmp_path):
    for name, steps in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"inner: {{steps: {steps}}}")
    assert load_config(Outer, [tmp_path / "a.yaml", tmp_path / "b.yaml"]).inner.steps == 2


def test_a_file_changes_its_base(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "first.yaml").write_text("title: first\ninner: {rate: 0.5, steps: 1}\n")
    (tmp_path / "second.yaml").write_text("base: first.yaml\ninner: {steps: 2}\n")
    (tmp_path / "deep" / "third.yaml").write_text("path: here\nbase: ../second.yaml\nsize: [1, 2]\n")
    config = load_config(Outer, [tmp_path / "deep" / "third.yaml"], ["inner.names=[x]"])
    assert config == Outer("first", (1, 2), "here", True, Inner(0.5, 2, ("x",)))


def test_wrong_keys_of_a_base_name_its_file(tmp_path):
    (tmp_path / "first.yaml").write_text("titel: x")
    (tmp_path / "second.yaml").write_text("base: first.yaml")
    assert "first.yaml: Key 'titel'" in error_of([tmp_path / "second.yaml"])


@pytest.mark.parametrize("base", ["some.yaml", "../{folder}/some.yaml", "[a.yaml]", "3", "{a: b}"])
def test_wrong_bases(file, tmp_path, base):
    message = error_of([file(f"base: {base.replace('{folder}', tmp_path.name)}")])
    assert "some.yaml: base: got " in message
    assert "expected another YAML file, not itself. Change it." in message


def test_bases_in_a_circle(tmp_path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}.yaml")
    assert "c.yaml: base: got 'a.yaml'" in error_of([tmp_path / "a.yaml"])


def test_missing_base(file):
    assert "none.yaml, which does not exist" in error_of([file("base: none.yaml")])


@pytest.fixture
def three_files(tmp_path, monkeypatch):
    """``root.yaml``, ``deep/middle.yaml`` that changes it, and ``own.yaml``; the working folder is theirs."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "root.yaml").write_text("title: root\npath: root\ninner: {rate: 0.5, steps: 1}\n")
    (tmp_path / "deep" / "middle.yaml").write_text("base: ../root.yaml\npath: middle\ninner: {steps: 2}\n")
    (tmp_path / "own.yaml").write_text("inner: {steps: 3}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_base_on_the_command_line_comes_before_all_files(three_files):
    config = load_config(Outer, ["own.yaml"], ["on=false", "base=deep/middle.yaml"], default="none.yaml")
    assert config == Outer("root", (3, 4), "middle", False, Inner(0.5, 3))


def test_a_base_on_the_command_line_replaces_the_default_file(three_files):
    assert load_config(Outer, default="own.yaml").inner.steps == 3
    assert load_config(Outer, ["root.yaml"], default="own.yaml").inner.steps == 1
    assert load_config(Outer, overrides=["base=deep/middle.yaml"], default="own.yaml").inner.steps == 2


@pytest.mark.parametrize("nothing", ["base=None", "base=null"])
def test_a_base_may_be_none(three_files, nothing):
    assert load_config(Outer, overrides=[nothing], default="own.yaml").inner.steps == 3


def test_the_last_base_counts(three_files):
    assert load_config(Outer, overrides=["base=none.yaml", "base=own.yaml"]).inner.steps == 3


@pytest.mark.parametrize("override", ["base=", "base=none.yaml", "base=[own.yaml]", "base=deep"])
def test_wrong_bases_on_the_command_line(three_files, override):
    assert "which does not exist; expected a YAML file" in error_of(overrides=[override])


def test_base_without_value():
    assert "Write base=VALUE." in error_of(overrides=["base"])


def test_placeholders_become_values():
    assert fill_placeholders("output", "runs/{seed}/x-{seed}", {"seed": 3}) == "runs/3/x-3"
    assert fill_placeholders("output", "runs/x", {"seed": 3}) == "runs/x"


@pytest.mark.parametrize("text", ["{sed}", "{}", "{seed", "seed}", "{seed:03d}", "{{seed}}", "{seed.real}"])
def test_wrong_placeholders(text):
    with pytest.raises(ConfigError, match=r"^output: got '.*'; expected braces around seed only\. Change it\.$"):
        fill_placeholders("output", f"runs/{text}", {"seed": 3})


def test_yaml_of_other_kinds_keeps_its_macros(file):
    values = read_yaml(file("command: ['${env}', '${args}']\nrates: [1e-4, None, null]\n"))
    assert values == {"command": ["${env}", "${args}"], "rates": [1e-4, "None", None]}


def test_empty_file_changes_nothing(file):
    assert load_config(Outer, [file("")]) == Outer()


@pytest.mark.parametrize("text", ["path=null", "path=None"])
def test_none_may_be_written_as_yaml_or_as_python(file, text):
    assert load_config(Outer, [file("path: somewhere")], [text]).path is None


def test_values_may_contain_equal_signs():
    assert load_config(Outer, overrides=["title=a=b"]).title == "a=b"


@pytest.mark.parametrize("override", ["inner.rat=0.5", "titel=x", "extra.deep=1"])
def test_unknown_keys_are_named(override):
    assert override.partition("=")[0].split(".")[0] in error_of(overrides=[override])


@pytest.mark.parametrize(
    ("override", "suggestion"), [("inner.rat=0.5", "'rate'"), ("titel=x", "'title'"), ("iner.rate=0.5", "'inner'")]
)
def test_unknown_keys_suggest_the_nearest(override, suggestion):
    assert suggestion in error_of(overrides=[override])


def test_unknown_key_in_a_file_suggests_the_nearest(file):
    message = error_of([file("inner: {stepz: 3}")])
    assert message.startswith("config file ")
    assert "some.yaml: inner.stepz: Key 'stepz' not in 'Inner'. Did you mean: 'steps'?" in message


@pytest.mark.parametrize("override", ["inner.steps=many", "inner.steps=1.5", "on=perhaps", "size=[1,x]", "inner=3"])
def test_wrong_types_name_the_key(override):
    assert error_of(overrides=[override]).startswith(override.partition("=")[0] + ": ")


@pytest.mark.parametrize("override", ["title=[1", "title={a: b", "title='x", "size=[1,]]"])
def test_overrides_that_are_not_yaml(override):
    assert error_of(overrides=[override]).startswith(override.partition("=")[0] + ": got ")


@pytest.mark.parametrize("override", ["inner.rate=2", "inner.rate=-0.1", "inner.rate=nan", "inner.rate=.inf"])
def test_values_out_of_range(override):
    message = error_of(overrides=[override])
    assert message.startswith("inner.rate: got ")
    assert "expected 0 to 1" in message


@pytest.mark.parametrize(
    ("override", "hint"),
    [("--inner.rate=1", "Write inner.rate=1."), ("--on", "Write on=VALUE."), ("title", "Write title=VALUE.")],
)
def test_option_style_overrides_are_explained(override, hint):
    message = error_of(overrides=[override])
    assert f"got {override!r}; expected key=value" in message
    assert hint in message


def test_missing_file(tmp_path):
    message = error_of([tmp_path / "none.yaml"])
    assert message.startswith("config file: got ")
    assert "which does not exist; expected a YAML file" in message


@pytest.mark.parametrize("text", ["inner: {rate: 1", "a: b: c", "\tx: 1"])
def test_broken_yaml(file, text):
    assert "not valid YAML" in error_of([file(text)])


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just text\n", "5\n"])
def test_yaml_that_is_not_a_mapping(file, text):
    error_of([file(text)])


def test_binary_files_are_not_yaml(tmp_path):
    (tmp_path / "some.yaml").write_bytes(bytes(range(128, 256)))
    assert "not valid YAML" in error_of([tmp_path / "some.yaml"])


def test_files_are_utf8_wherever_they_are_read(tmp_path, monkeypatch):
    """Also in a process whose own encoding is another one; and they are read once."""
    path = tmp_path / "some.yaml"
    path.write_bytes("title: Gesichtsausdr\u00fccke \u9854".encode())
    read, encodings = Path.read_text, []

    def noted(self, encoding=None, errors=None):
        encodings.append(encoding)
        return read(self, encoding, errors)

    monkeypatch.setattr(Path, "read_text", noted)
    assert load_config(Outer, [path]).title == "Gesichtsausdr\u00fccke \u9854"
    assert encodings == ["utf-8"]


def test_interpolation_is_refused(file, monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    assert "got an interpolation" in error_of([file("title: ${oc.env:SECRET}")])
    message = error_of(overrides=["title=${oc.env:SECRET}"])
    assert "interpolation" in message
    assert "hidden" not in message


def test_yaml_and_dict_round_trips(file):
    config = Outer("x", (9, 8), "p", False, Inner(0.25, 1, ("q",)))
    assert load_config(Outer, [file(config_to_yaml(config))]) == config
    assert config_from_dict(Outer, config_to_dict(config)) == config
    assert config_to_dict(config)["size"] == [9, 8]


@pytest.mark.parametrize("values", [{"inner": {"rate": 7.0}}, {"inner": {"rat": 0.5}}, {"size": "wide"}])
def test_stored_dicts_are_read_strictly(values):
    with pytest.raises(ConfigError) as caught:
        config_from_dict(Outer, values)
    assert "\n" not in str(caught.value)


def test_check_range_includes_its_ends():
    check_range("x", 0, 0, 1)
    check_range("x", 1.0, 0, 1)
    with pytest.raises(ConfigError, match=r"x: got nan; expected 0 to 1\. Change it\."):
        check_range("x", float("nan"), 0, 1)
