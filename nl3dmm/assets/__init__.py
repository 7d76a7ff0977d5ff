"""Face templates: the embedded procedural one, importers, storage."""

from nl3dmm.assets.bfm2009 import import_bfm2009, read_bfm2009
from nl3dmm.assets.bfm2017 import import_bfm2017, read_bfm2017
from nl3dmm.assets.embedded import embedded_template
from nl3dmm.assets.flame import import_flame, read_flame
from nl3dmm.assets.gnm import import_gnm, read_gnm
from nl3dmm.assets.ict import import_ict
from nl3dmm.assets.linear_model import LinearModel
from nl3dmm.assets.load import load_template
from nl3dmm.assets.locations import asset_folder
from nl3dmm.assets.storage import read_template, save_template
from nl3dmm.assets.template import Box, FaceTemplate

__all__ = [
    "Box",
    "FaceTemplate",
    "LinearModel",
    "asset_folder",
    "embedded_template",
    "import_bfm2009",
    "import_bfm2017",
    "import_flame",
    "import_gnm",
    "import_ict",
    "load_template",
    "read_bfm2009",
    "read_bfm2017",
    "read_flame",
    "read_gnm",
    "read_template",
    "save_template",
]
