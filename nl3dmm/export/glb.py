"""Binary glTF 2.0: one file with mesh, texture, camera and expressions, for Blender, three.js, Unity and the like."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from numpy import ndarray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from nl3dmm.data.images import png_bytes
from nl3dmm.export.glb_file import INDEX_BUFFER, VERTEX_BUFFER, GlbFile
from nl3dmm.export.mesh import FaceMesh, check_mesh, check_suffix
from nl3dmm.machine import package_version
from nl3dmm.outputs import atomic_path
from nl3dmm.render import vertex_normals
from nl3dmm.types import Camera

_M_PER_MM = 1e-3
_LEAST_MOTION, _LEAST_TURN = 1e-3, 1e-3  # mm, rad; what an expression moves or turns by less stays as it is
_ROUGHNESS = 0.6  # of skin
_VIEW_DISTANCE_MM = 1000.0  # where an orthographic camera stands
_DEPTH, _LEAST_DEPTH = 0.5, 0.01  # m that a camera sees before and behind the face's origin; of its near plane
_CLAMP, _LINEAR, _TRILINEAR = 33071, 9729, 9987
_FRONT = (0.0, 0.0, 1.0)


def write_glb(
    path: str | Path,
    mesh: FaceMesh,
    camera: Camera | None = None,
    image_size: tuple[int, int] = (1, 1),
    extras: dict[str, Any] | None = None,
) -> None:
    """Write one file: geometry in metres, albedo as base colour, normal map, camera, expressions as morph targets.

    The axes are ours: +x the subject's left, +y up, +z out of the face; so is UV, whose v glTF also counts from the
    texture's top row. Vertices of no triangle are left out. Morph targets displace this face by what the template's
    expressions displace its mean; their weights are 0.

    Args:
        camera: becomes the node ``camera`` that sees the face as in an image of ``image_size`` (height, width) px.
            glTF's pinhole has its principal point in the middle: where ours has not, its picture is wider, so that the
            image is a part of it.
        extras: of the asset; numbers, texts, lists.

    Raises:
        ShapeError: a value is not finite or a triangle names a vertex that does not exist.
        OutputError: the name does not end in .glb, or the file cannot be written.
    """
    path = check_suffix(path, ".glb")
    check_mesh(mesh.vertices, mesh.triangles, mesh.uv)
    content = _content(_without_strays(mesh), camera, image_size, extras or {})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _content(mesh: FaceMesh, camera: Camera | None, image_size: tuple[int, int], extras: dict[str, Any]) -> bytes:
    file = GlbFile()
    primitive = _primitive(file, mesh)
    asset = {
        "version": "2.0",
        "generator": f"nl3dmm {package_version('nl3dmm')}",
        "extras": {"template": mesh.name} | extras,
    }
    nodes: list[dict[str, Any]] = [{"name": "face", "mesh": 0}]
    document = {"asset": asset, "scene": 0, "nodes": nodes, **_material(file, mesh)}
    document["meshes"] = [{"name": "face", "primitives": [primitive]}]
    if primitive.get("targets"):
        names = {"targetNames": list(mesh.morph_names)}
        document["meshes"][0] |= {"weights": [0.0] * len(mesh.morph_names), "extras": names}
    if camera is not None:
        lens, matrix = _camera(camera, image_size)
        document["cameras"] = [lens | {"name": "camera"}]
        nodes.append({"name": "camera", "camera": 0, "matrix": matrix})
    document["scenes"] = [{"name": "scene", "nodes": list(range(len(nodes)))}]
    return file.content(document)


def _without_strays(mesh: FaceMesh) -> FaceMesh:
    """The mesh without the vertices that no triangle uses."""
    used, triangles = mesh.triangles.unique(return_inverse=True)
    return replace(
        mesh,
        vertices=mesh.vertices[used],
        triangles=triangles,
        uv=mesh.uv[used],
        normals=mesh.normals[used],
        morphs=mesh.morphs[:, used],
        tangents=None if mesh.tangents is None else mesh.tangents[used],
    )


def _primitive(file: GlbFile, mesh: FaceMesh) -> dict[str, Any]:
    attributes = {
        "POSITION": file.add_array(_float32(mesh.vertices * _M_PER_MM), VERTEX_BUFFER, has_bounds=True),
        "NORMAL": file.add_array(_float32(_unit(mesh.normals)), VERTEX_BUFFER),
        "TEXCOORD_0": file.add_array(_float32(mesh.uv), VERTEX_BUFFER),
    }
    if mesh.relief is not None and mesh.tangents is not None:
        attributes["TANGENT"] = file.add_array(_float32(mesh.tangents), VERTEX_BUFFER)
    indices = file.add_array(mesh.triangles.cpu().numpy().astype(np.uint32).reshape(-1), INDEX_BUFFER)
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    return primitive | ({"targets": _targets(file, mesh)} if len(mesh.morphs) else {})


def _targets(file: GlbFile, mesh: FaceMesh) -> list[dict[str, int]]:
    """Positions and normals of each expression, stored where it moves or turns something."""
    moved = torch.where(mesh.morphs.norm(dim=2, keepdim=True) > _LEAST_MOTION, mesh.morphs, 0)
    at_rest, *at_weight_one = vertex_normals(torch.cat([mesh.vertices[None], mesh.vertices + moved]), mesh.triangles)
    targets = []
    for displacement, normals in zip(moved, at_weight_one, strict=True):
        turned = normals - at_rest
        turned = torch.where(turned.norm(dim=1, keepdim=True) > _LEAST_TURN, turned, 0)
        position = file.add_sparse(_float32(displacement * _M_PER_MM), has_bounds=True)
        targets.append({"POSITION": position, "NORMAL": file.add_sparse(_float32(turned))})
    return targets


def _material(file: GlbFile, mesh: FaceMesh) -> dict[str, Any]:
    """Textures and the material that wears them; skin, seen from both sides."""
    pictures = {"albedo": _spread(mesh.albedo, mesh.uv_mask)}
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": _ROUGHNESS, "baseColorTexture": {"index": 0}}
    material = {"name": "skin", "pbrMetallicRoughness": surface, "doubleSided": True}
    if mesh.relief is not None and mesh.tangents is not None:
        pictures["normals"] = mesh.relief / 2 + 0.5
        material["normalTexture"] = {"index": 1}
    images = [
        {"name": name, "mimeType": "image/png", "bufferView": file.add_view(png_bytes(picture))}
        for name, picture in pictures.items()
    ]
    return {
        "materials": [material],
        "images": images,
        "samplers": [{"wrapS": _CLAMP, "wrapT": _CLAMP, "magFilter": _LINEAR, "minFilter": _TRILINEAR}],
        "textures": [{"name": image["name"], "sampler": 0, "source": k} for k, image in enumerate(images)],
    }


def _spread(
    picture: Float[Tensor, "3 uv_height uv_width"], mask: Bool[Tensor, "uv_height uv_width"]
) -> Float[Tensor, "3 uv_height uv_width"]:
    """Texels outside the mask take the nearest colour inside, so that coarse mip levels of a border are skin."""
    nearest = distance_transform_edt(~mask.cpu().numpy(), return_distances=False, return_indices=True)
    rows, columns = torch.from_numpy(np.asarray(nearest)).long()
    return picture.cpu()[:, rows, columns]


def _camera(camera: Camera, image_size: tuple[int, int]) -> tuple[dict[str, Any], list[float]]:
    """Lens, and the column-major matrix of its node; glTF's camera frame is ours (+y up, looks along -z)."""
    height, width = image_size
    scale, nearness = float(camera.scale[0]), float(camera.inverse_distance[0])
    column, row = camera.principal_point[0].tolist()
    x, y = (camera.translation[0] * camera.translation.new_tensor([-1, 1]) / scale).tolist()
    if nearness > 0:  # the eye of ``geometry.camera.perspective``
        half_width, half_height = max(column, width - column), max(row, height - row)
        field = 2 * np.arctan(half_height * nearness / scale)
        kind, lens = "perspective", {"aspectRatio": half_width / half_height, "yfov": float(field)}
        eye = [x, y, 1 / nearness]
    else:  # before the middle of the image
        middle = [x + (width / 2 - column) / scale, y - (height / 2 - row) / scale]
        eye = [*middle, _VIEW_DISTANCE_MM]
        kind, lens = "orthographic", {"xmag": width / 2 / scale * _M_PER_MM, "ymag": height / 2 / scale * _M_PER_MM}
    distance = eye[2] * _M_PER_MM
    depths = {"znear": max(distance - _DEPTH, _LEAST_DEPTH), "zfar": distance + _DEPTH}
    rotation = camera.rotation[0].double()
    position = rotation.T @ rotation.new_tensor(eye) * _M_PER_MM
    matrix = [*(value for axis in rotation.tolist() for value in (*axis, 0.0)), *position.tolist(), 1.0]
    return {"type": kind, kind: lens | depths}, matrix


def _float32(values: Tensor) -> Float32[ndarray, "*shape"]:
    return values.detach().cpu().float().contiguous().numpy()


def _unit(normals: Float[Tensor, "vertices 3"]) -> Float[Tensor, "vertices 3"]:
    """Of unit length, as glTF demands, also where a mesh has collapsed."""
    length = normals.norm(dim=1, keepdim=True)
    return torch.where(length > 0.5, normals / length.clamp_min(0.5), normals.new_tensor(_FRONT))
