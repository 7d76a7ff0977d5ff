"""One door to all templates."""

from pathlib import Path

from nl3dmm.assets.bfm2009 import import_bfm2009
from nl3dmm.assets.bfm2017 import import_bfm2017
from nl3dmm.assets.embedded import embedded_template
from nl3dmm.assets.flame import import_flame
from nl3dmm.assets.gnm import import_gnm
from nl3dmm.assets.ict import import_ict
from nl3dmm.assets.locations import asset_folder
from nl3dmm.assets.storage import read_template
from nl3dmm.assets.template import FaceTemplate
from nl3dmm.errors import AssetError

DEFAULT_UV_SIZE = (64, 80)
IMPORTERS = {
    "ict": import_ict,
    "bfm2009": import_bfm2009,
    "bfm2017": import_bfm2017,
    "flame": import_flame,
    "gnm": import_gnm,
}


def load_template(
    name: str | Path = "embedded", path: str | Path | None = None, uv_size: tuple[int, int] | None = None
) -> FaceTemplate:
    """A template by name or from a file.

    Args:
        name: ``embedded``, the kind of the face model in ``path`` (``ict``, ``bfm2009``, ``bfm2017``, ``flame``,
            ``gnm``), or the path of a saved template or ICT file itself.
        path: a saved template (.safetensors), or the model's own file.
        uv_size: rows, columns; by default the file's own, or (64, 80).

    Raises:
        AssetError: unknown name, missing or damaged file, or a file of another ``uv_size``.
    """
    if Path(name).suffix in (".safetensors", ".npz"):
        name, path = ("ict" if Path(name).suffix == ".npz" else "file"), name
    if name == "embedded" and path is None:
        return _embedded(uv_size or DEFAULT_UV_SIZE)
    if path is None:
        raise AssetError(f"template: got {str(name)!r}; expected 'embedded', or a name with a path. Give a path.")
    if name in IMPORTERS and Path(path).suffix != ".safetensors":
        return IMPORTERS[str(name)](path, uv_size or DEFAULT_UV_SIZE)
    template = read_template(path)
    if uv_size not in (None, template.uv_size):
        raise AssetError(f"uv_size: got {uv_size}; expected {template.uv_size}, of {path}. Change it or import again.")
    return template


def _embedded(uv_size: tuple[int, int]) -> FaceTemplate:
    """The shipped file where there is one (same bits on every machine), else built."""
    shipped = asset_folder("uv_assets") / "embedded_{}x{}.safetensors".format(*uv_size)
    return read_template(shipped) if shipped.is_file() else embedded_template(uv_size)
