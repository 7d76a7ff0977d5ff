"""Files that other programs open."""

from nl3dmm.export.arrays import write_npz
from nl3dmm.export.glb import write_glb
from nl3dmm.export.mesh import FaceMesh
from nl3dmm.export.obj import write_obj
from nl3dmm.export.ply import write_ply
from nl3dmm.export.video import write_video

__all__ = ["FaceMesh", "write_glb", "write_npz", "write_obj", "write_ply", "write_video"]
