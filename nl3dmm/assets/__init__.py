"""Face templates: the embedded procedural one, importers, storage."""

from nl3dmm.assets.embedded import embedded_template
from nl3dmm.assets.ict import import_ict
from nl3dmm.assets.load import load_template
from nl3dmm.assets.locations import asset_folder
from nl3dmm.assets.storage import read_template, save_template
from nl3dmm.assets.template import Box, FaceTemplate

__all__ = [
    "Box",
    "FaceTemplate",
    "asset_folder",
    "embedded_template",
    "import_ict",
    "load_template",
    "read_template",
    "save_template",
]
