"""Other differentiable CPU rasterisers, measured where they are installed; none is a dependency.

DEODR (``pip install deodr trimesh``) works in float64, one image at a time, interpolates without perspective and takes
one shading value per vertex. Both sides get clip positions, UV, shading and texture and return gradients of the clip
positions (DEODR: of pixels), shading and texture, antialiased silhouettes included.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module, util

import numpy as np
import torch

from benchmarks.measure import Stopwatch
from benchmarks.scenes import Scene, leaf
from nl3dmm.geometry.camera import clip_from_object, project, rotate
from nl3dmm.geometry.lighting import shade
from nl3dmm.geometry.mesh import vertex_normals
from nl3dmm.render import antialias, interpolate, rasterize, texture


def timed_nl3dmm(watch: Stopwatch, scene: Scene, mode: str) -> None:
    """Vertex shading and UV interpolated, texture fetched, multiplied, antialiased."""
    triangles, uv = scene.surface.triangles, scene.surface.uv
    clip = leaf(clip_from_object(scene.camera, scene.vertices, scene.image_size))
    shading, tex = leaf(_shading(scene)), leaf(scene.texture)
    with watch.phase("forward"):
        rast, _ = rasterize(None, clip, triangles, scene.image_size)
        values, _ = interpolate(torch.cat([uv.expand(len(clip), -1, -1), shading], -1), rast, triangles)
        albedo = texture(tex, values[..., :2], boundary_mode="clamp", mask=rast[..., 3] > 0)
        image = antialias(albedo * values[..., 2:], rast, clip, triangles, mode=mode)
    with watch.phase("backward"):
        torch.autograd.grad(image, (clip, shading, tex), torch.ones_like(image))


def timed_deodr(watch: Stopwatch, scene: Scene) -> None:
    """Its own forward and adjoint, image after image; which edges are silhouettes is found anew for each image."""
    if util.find_spec("deodr") is None:
        raise ImportError("not installed (pip install deodr trimesh)")
    pixels, depths = project(scene.camera, scene.vertices)
    shading = _shading(scene).mean(-1)
    for number in range(len(scene.vertices)):
        parts = (value[number].double().numpy() for value in (pixels, depths, shading, scene.texture))
        drawing, silhouette = _deodr_scene(scene, *parts)
        with watch.phase("forward"):
            drawing.edgeflags = silhouette()
            image, _ = drawing.render(1.0)
        with watch.phase("backward"):
            drawing.clear_gradients()
            drawing.render_backward(np.ones_like(image), make_copies=False)


def _shading(scene: Scene) -> torch.Tensor:
    normals = rotate(scene.camera, vertex_normals(scene.vertices, scene.surface.triangles))
    return shade(normals, scene.light)


def _deodr_scene(scene: Scene, pixels: np.ndarray, depths: np.ndarray, shading: np.ndarray, tex: np.ndarray):
    """DEODR's scene, and the function that finds its silhouette edges."""
    deodr = import_module("deodr")
    triangles = scene.surface.triangles.numpy().astype(np.uint32)
    count, (height, width) = len(triangles), scene.image_size
    drawing = deodr.Scene2D(
        faces=triangles,
        faces_uv=triangles,
        ij=pixels,
        depths=depths - depths.min() + 1,
        textured=np.ones(count, bool),
        uv=scene.surface.uv.double().numpy() * tex.shape[0] - 0.5,  # texel centres at whole numbers
        shade=shading,
        colors=np.zeros((len(pixels), 3)),
        shaded=np.ones(count, bool),
        edgeflags=np.zeros((count, 3), bool),
        height=height,
        width=width,
        nb_colors=3,
        texture=tex,
        background_color=np.zeros(3),
        backface_culling=True,
        integer_pixel_centers=False,
    )
    edges = _adjacency(scene.surface.triangles)
    return drawing, lambda: np.asarray(edges.edge_on_silhouette(pixels))


@lru_cache(maxsize=1)
def _adjacency(triangles: torch.Tensor):
    return import_module("deodr.triangulated_mesh").TriMeshAdjacencies(triangles.numpy())


PEERS: dict[str, Callable[[Stopwatch, Scene], None]] = {"deodr": timed_deodr}
