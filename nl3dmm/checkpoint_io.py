"""Training state on disk: written atomically, proven by a sha256 file beside it, loaded without running code."""

import hashlib
import re
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from nl3dmm.errors import CheckpointError, OutputError
from nl3dmm.outputs import atomic_path, prepare_output_folder

_HASH_LINE = re.compile(r"([0-9a-f]{64})  .+")


def save_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write ``path`` and ``path + ".sha256"`` (readable by ``sha256sum -c``).

    A kill at any moment leaves the old checkpoint or the new one, and it loads: while the file is replaced the sha256
    file names both.

    Raises:
        OutputError: a file cannot be written.
        CheckpointError: the content is not plain (numbers, strings, lists, dicts, tensors) and would not load again.
    """
    path = Path(path).absolute()
    prepare_output_folder(path.parent)
    with atomic_path(path) as temporary:
        try:
            torch.save(checkpoint, temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise OutputError(
                f"checkpoint: got {path}, which cannot be written ({error}); expected room for it. Free disk space."
            ) from error
        except Exception as error:
            raise _not_plain(path, error) from error
        new_hash = _check_loadable(temporary, path)
        _write_hashes(path, [new_hash, *_known_hashes(path)])
    _write_hashes(path, [new_hash])


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Load after the sha256 is verified; nothing in the file can run code.

    Raises:
        CheckpointError: missing, damaged, without its sha256 file, or not a plain checkpoint.
    """
    path = Path(path).resolve()  # a link such as last.ckpt has its sha256 beside the file it points to
    try:
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: got {path}, which cannot be read ({error}); expected a .ckpt file. Check the path."
        ) from error
    with file:
        _verify(path, file)
        file.seek(0)
        return _load(file, path, map_location)


class VerifiedCheckpointIO(CheckpointIO):
    """``Trainer(plugins=[VerifiedCheckpointIO()])``: every checkpoint of a run goes through this module."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """See ``save_checkpoint``; ``storage_options`` has no meaning for local files."""
        save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See ``load_checkpoint``; to the CPU by default, and never with ``weights_only=False``."""
        return load_checkpoint(path, "cpu" if map_location is None else map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the file, then its sha256 file; missing ones are no error."""
        Path(path).unlink(missing_ok=True)
        _hash_path(Path(path)).unlink(missing_ok=True)


def _hash_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(file: BufferedReader) -> str:
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _known_hashes(path: Path) -> list[str]:
    """The hashes that the sha256 file allows; empty when it is missing or damaged."""
    try:
        lines = _hash_path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [match[1] for match in map(_HASH_LINE.fullmatch, lines) if match]


def _write_hashes(path: Path, hashes: list[str]) -> None:
    with atomic_path(_hash_path(path)) as temporary:
        temporary.write_text("".join(f"{value}  {path.name}\n" for value in hashes), encoding="utf-8", newline="\n")


def _check_loadable(temporary: Path, path: Path) -> str:
    """Hash what is on disk, and read its structure (no tensor data) as loading will."""
    with temporary.open("rb") as file:
        try:
            torch.load(file, map_location="meta", weights_only=True)
        except Exception as error:
            raise _not_plain(path, error) from error
        file.seek(0)
        return _sha256(file)


def _reason(error: Exception) -> str:
    """The class or function a restricted load refuses, without torch's advice to load it unrestricted."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    return refused[1] if refused else f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _not_plain(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint: got content for {path} that would not load again ({_reason(error)}); expected numbers, strings, "
        "lists, dicts and tensors. Convert configs and other objects to these before saving."
    )


def _verify(path: Path, file: BufferedReader) -> None:
    allowed = _known_hashes(path)
    if not allowed:
        raise CheckpointError(
            f"checkpoint: got {path} without a valid {_hash_path(path).name}; expected it in the same folder. "
            "Copy both files from where the checkpoint was made."
        )
    if (actual := _sha256(file)) not in allowed:
        raise CheckpointError(
            f"checkpoint: got {path} with sha256 {actual[:12]}; expected {allowed[0][:12]}. The file is damaged: "
            "copy it again or use the previous checkpoint."
        )


def _load(file: BufferedReader, path: Path, map_location: Any) -> dict[str, Any]:
    try:
        checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint: got {path}, which is no plain checkpoint or contains code ({_reason(error)}); expected "
            "tensors and plain values. Do not use this file unless you made it; then save it again with nl3dmm."
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"checkpoint: got {path} with a {type(checkpoint).__name__}; expected a dict. Use a checkpoint of nl3dmm."
        )
    return checkpoint
