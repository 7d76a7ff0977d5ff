"""YAML and ``key=value`` overrides -> frozen dataclass, strictly. OmegaConf never leaves this file."""

import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from nl3dmm.errors import ConfigError

C = TypeVar("C")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def load_config(
    schema: type[C],
    files: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    default: str | Path | None = None,
) -> C:
    """Merge YAML files, then ``key.sub=value`` overrides, into the defaults of a dataclass.

    A file may name another one that it changes: ``base: other.yaml``, relative to its own folder. So may an override:
    ``base=FILE``, relative to the working folder, comes before all files.

    Args:
        default: the file that is read where neither ``files`` nor an override names one.

    Raises:
        ConfigError: unknown key (with a suggestion), wrong type, value out of range, unreadable file.
    """
    base, overrides = _split_base(overrides)
    files = [*base, *files] or ([default] if default else [])
    sources = [source for file in files for source in _read_with_bases(Path(file))]
    sources += [(override.partition("=")[0], _read_override(override)) for override in overrides]
    return _merge(schema, sources)


def config_from_dict(schema: type[C], values: Mapping[str, Any]) -> C:
    """Rebuild a config that ``config_to_dict`` stored, with the same strictness."""
    return _merge(schema, [("stored config", dict(values))])


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of numbers, strings, lists: safe in checkpoints and YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def config_to_yaml(config: Any) -> str:
    """YAML text that ``load_config`` reads back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config)))


def read_yaml(path: str | Path) -> Any:
    """Plain numbers, strings, lists and dicts of a YAML file that is no config; ``${...}`` stays text.

    Raises:
        ConfigError: unreadable file.
    """
    from omegaconf import OmegaConf

    _, loaded = _load_yaml(Path(path))
    return OmegaConf.to_container(loaded, resolve=False) if OmegaConf.is_config(loaded) else loaded


def fill_placeholders(name: str, text: str, values: Mapping[str, Any]) -> str:
    """``{key}`` in a value of a config becomes what ``values`` says.

    Raises:
        ConfigError: another key, or a brace that belongs to none.
    """
    filled = _PLACEHOLDER.sub(lambda match: str(values.get(match[1], match[0])), text)
    if "{" in filled or "}" in filled:
        known = ", ".join(values) or "nothing"
        raise ConfigError(f"{name}: got {text!r}; expected braces around {known} only. Change it.")
    return filled


def check_range(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """For ``__post_init__`` of configs; NaN is out of every range."""
    if not low <= value <= high:
        raise ConfigError(f"{name}: got {value}; expected {low} to {high}. Change it.")


def _merge(schema: type[C], sources: Sequence[tuple[str, Any]]) -> C:
    """Later sources win; an error names its source, which is a file or the key of an override."""
    from omegaconf import OmegaConf

    config = OmegaConf.structured(schema)
    for source, values in sources:
        with _explained(source):
            config = OmegaConf.merge(config, values)
    with _explained("config"):
        return OmegaConf.to_object(config)  # type: ignore[return-value]


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """OmegaConf's errors become one line that names the source."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except ConfigError:
        raise
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        message = _one_line(error)
        raise ConfigError(message if message.startswith(f"{source}:") else f"{source}: {message}") from error


def _read_override(override: str) -> Any:
    from omegaconf import OmegaConf

    key, separator, value = override.partition("=")
    if not separator or override.startswith("-"):
        hint = override.lstrip("-")
        raise ConfigError(
            f"override: got {override!r}; expected key=value. Write {hint if '=' in hint else hint + '=VALUE'}."
        )
    if "${" in override:
        raise ConfigError(f"{key}: got an interpolation ${{...}}; expected a plain value. Write the value.")
    try:
        # W&B passes None as text; YAML calls it null.
        return OmegaConf.from_dotlist([f"{key}=null" if value == "None" else override])
    except Exception as error:
        raise ConfigError(f"{key}: got {value!r}, not valid YAML ({_one_line(error)}). Quote the value.") from error


def _split_base(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The file of ``base=FILE``, if any, and the other overrides; the last one counts, as for every key."""
    named = [text.removeprefix("base=") for text in overrides if text.startswith("base=")][-1:]
    others = [text for text in overrides if not text.startswith("base=")]
    return [file for file in named if file not in ("None", "null")], others


def _read_with_bases(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[str, Any]]:
    """The values of a file after those of its base, with their sources."""
    source, values = f"config file {path}", _read_yaml(path)
    base = values.pop("base") if isinstance(values, MutableMapping) and "base" in values else None
    if base is None:
        return [(source, values)]
    if not isinstance(base, str) or (path.parent / base).resolve() in (*above, path.resolve()):
        raise ConfigError(f"{source}: base: got {base!r}; expected another YAML file, not itself. Change it.")
    return [*_read_with_bases(path.parent / base, (*above, path.resolve())), (source, values)]


def _read_yaml(path: Path) -> Any:
    text, loaded = _load_yaml(path)
    if "${" in text:
        raise ConfigError(f"config file {path}: got an interpolation ${{...}}; expected plain values. Write the value.")
    return loaded


def _load_yaml(path: Path) -> tuple[str, Any]:
    """Text and content of a file."""
    from omegaconf import OmegaConf

    if not path.is_file():
        raise ConfigError(f"config file: got {path}, which does not exist; expected a YAML file. Check the path.")
    try:
        text = path.read_text(encoding="utf-8")
        return text, OmegaConf.load(io.StringIO(text))
    except Exception as error:
        raise ConfigError(f"config file {path}: not valid YAML ({_one_line(error)}). Fix the file.") from error


def _one_line(error: Exception) -> str:
    """OmegaConf's message without its trailing object dump, with the full key."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    full_key = next((line.partition(":")[2].strip() for line in lines if line.startswith("full_key:")), "")
    message = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=")))
    message = message.replace("Value '$VALUE' of type '$VALUE_TYPE'", "an element")
    return f"{full_key}: {message}" if full_key and full_key not in message else message
