"""Where the files that come with nl3dmm are: the source checkout's folders, or their copy in an installed wheel."""

from pathlib import Path

from nl3dmm.errors import AssetError


def asset_folder(name: str) -> Path:
    """Folder ``uv_assets`` or ``configs``, in a checkout (also an editable install) or in the installed package."""
    package = Path(__file__).resolve().parents[1]
    is_checkout = (package.parent / "pyproject.toml").is_file()
    folder = package.parent / name if is_checkout else package / "_resources" / name
    if not folder.is_dir():
        raise AssetError(f"name: got {name!r}; expected a folder that comes with nl3dmm. Install nl3dmm again.")
    return folder
