"""Draw on the surface of a face template: the face unwrapped on a vertical cylinder is the sheet of paper.

Every shape is given in millimetres of that sheet (or of the object frame), sampled several times per texel and
averaged, so a hair thinner than a texel becomes a faint texel instead of an aliased one, and any topology gets the
same face.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nl3dmm.assets import FaceTemplate

CYLINDER_RADIUS = 80.0  # mm, about the radius of a head at the cheekbones: keeps the sheet's scale within 20 % of true
PIXELS_PER_MM = 4.0  # of the canvas on which strokes are drawn
SAMPLE_SPACING = 0.6  # mm between samples of a texel, at most about this
SUBPIXEL_BITS = 4
NOISE_REACH = 160.0  # mm around the tip of the nose; the same for all templates so that a seed means the same noise

Canvas = Float[np.ndarray, "canvas_rows canvas_columns"]
Samples = Float[np.ndarray, "sample_rows sample_columns"]
Points = Float[np.ndarray, "points 2"]


class FaceSurface:
    """The mean face of a template as a drawing surface.

    Attributes:
        positions: object-frame positions (mm) of all samples, ``oversampling`` squared per texel.
        sheet: the samples on the unwrapped sheet (mm): arc length towards the subject's left, height y.
        landmarks: the 68 landmarks on the sheet (mm).
        landmark_positions: the 68 landmarks in the object frame (mm).
    """

    def __init__(self, template: FaceTemplate):
        positions, mask = _texel_positions(template)
        spacing = np.median(np.linalg.norm(np.diff(positions, axis=0), axis=-1)[mask[1:] & mask[:-1]])
        self.oversampling = int(np.clip(np.ceil(spacing / SAMPLE_SPACING), 2, 5))
        self.uv_size = mask.shape
        rows, columns = mask.shape
        fine_size = (columns * self.oversampling, rows * self.oversampling)
        self.positions = cv2.resize(positions, fine_size, interpolation=cv2.INTER_LINEAR)
        self.landmark_positions = template.landmarks(template.vertices[None])[0].double().cpu().numpy()
        self._axis_depth = float(self.landmark_positions[27, 2]) - CYLINDER_RADIUS
        self.sheet = self.unwrap(self.positions)
        self.landmarks = self.unwrap(self.landmark_positions)
        inside = self.unwrap(positions)[mask]
        self._half_width = float(np.ceil(np.abs(inside[:, 0]).max())) + 3.0
        self._bottom, self._top = float(np.floor(inside[:, 1].min())) - 3.0, float(np.ceil(inside[:, 1].max())) + 3.0
        self._pixels = self._canvas_pixels(self.sheet).astype(np.float32)

    def unwrap(self, positions: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 2"]:
        """Object frame (mm) -> sheet (mm)."""
        arc = CYLINDER_RADIUS * np.arctan2(positions[..., 0], positions[..., 2] - self._axis_depth)
        return np.stack([arc, positions[..., 1]], axis=-1)

    def canvas(self) -> np.ndarray:
        """An empty 8-bit canvas, row 0 on top; the middle of its columns is the middle of the face."""
        rows = int((self._top - self._bottom) * PIXELS_PER_MM) + 1
        return np.zeros((rows, int(2 * self._half_width * PIXELS_PER_MM) + 1), np.uint8)

    def average(self, samples: Samples) -> Float[Tensor, "uv_height uv_width"]:
        """Mean over the samples of each texel."""
        size = (self.uv_size[1], self.uv_size[0])
        return torch.from_numpy(cv2.resize(samples.astype(np.float32), size, interpolation=cv2.INTER_AREA))

    def pull(self, canvas: Canvas, mirrored: bool = False) -> Float[Tensor, "uv_height uv_width"]:
        """Canvas -> texels; ``mirrored`` exchanges left and right."""
        canvas = np.ascontiguousarray(canvas[:, ::-1]) if mirrored else canvas
        columns, rows = self._pixels[..., 0], self._pixels[..., 1]
        return self.average(cv2.remap(canvas.astype(np.float32), columns, rows, cv2.INTER_LINEAR))

    def fixed_point(self, points: Float[np.ndarray, "*batch 2"]) -> Int[np.ndarray, "*batch 2"]:
        """Sheet (mm) -> canvas pixels in OpenCV's fixed-point format."""
        return np.round(self._canvas_pixels(points) * (1 << SUBPIXEL_BITS)).astype(np.int32)

    def noise(self, rng: np.random.Generator, feature_mm: float, octaves: int = 1) -> Samples:
        """Smooth noise with features of about ``feature_mm`` and half of it per further octave; mean 0, deviation 1."""
        total = np.zeros(self.sheet.shape[:2], np.float32)
        from_nose = (self.sheet - self.landmarks[30]).astype(np.float32)
        for octave in range(octaves):
            cell = feature_mm / 2**octave
            side = int(2 * NOISE_REACH / cell) + 4
            lattice = rng.standard_normal((side, side), dtype=np.float32)
            place = ((from_nose + NOISE_REACH) / cell + rng.uniform(1, 2, 2)).astype(np.float32)
            columns, rows = place[..., 0], place[..., 1]
            total += 0.6**octave * cv2.remap(lattice, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        return (total - total.mean()) / max(float(total.std()), 1e-6)

    def bump(self, centre: tuple[float, float], sigma: tuple[float, float], tilt_rad: float = 0.0) -> Samples:
        """Gaussian of unit height on the sheet; ``centre`` and ``sigma`` in mm."""
        x, y = self.sheet[..., 0] - centre[0], self.sheet[..., 1] - centre[1]
        across, along = np.cos(tilt_rad) * x + np.sin(tilt_rad) * y, -np.sin(tilt_rad) * x + np.cos(tilt_rad) * y
        return np.exp(-0.5 * ((across / sigma[0]) ** 2 + (along / sigma[1]) ** 2))

    def bumps(self, centre: tuple[float, float], sigma: tuple[float, float], tilt_rad: float = 0.0) -> Samples:
        """``bump`` and its mirror image."""
        return self.bump(centre, sigma, tilt_rad) + self.bump((-centre[0], centre[1]), sigma, -tilt_rad)

    def _canvas_pixels(self, points: np.ndarray) -> np.ndarray:
        columns, rows = points[..., 0] + self._half_width, self._top - points[..., 1]
        return np.stack([columns, rows], axis=-1) * PIXELS_PER_MM


def draw_bank(
    surface: FaceSurface,
    count: int,
    draw: Callable[[FaceSurface, np.random.Generator], np.ndarray],
    key: list[int],
    mirror: bool = True,
) -> Float[Tensor, "variants uv_height uv_width"]:
    """``count`` random canvases as texel layers; ``mirror`` adds the mirror image of each."""
    layers = []
    for variant in range(count):
        canvas = draw(surface, np.random.default_rng([*key, variant]))
        layers += [surface.pull(canvas, mirrored) for mirrored in ((False, True) if mirror else (False,))]
    return torch.stack(layers)


def smooth_step(distance: np.ndarray) -> np.ndarray:
    """0 far below zero, 1 far above, soft over about +-2 units: the edge of a shape whose signed distance is given."""
    return 0.5 + 0.5 * np.tanh(0.5 * distance)


def smooth_curve(points: Points, count: int, closed: bool = False) -> Float[np.ndarray, "count 2"]:
    """``count`` points on the Catmull-Rom curve through ``points``."""
    ends = (points[-1:], points[:2]) if closed else (2 * points[:1] - points[1:2], 2 * points[-1:] - points[-2:-1])
    controls = np.concatenate([ends[0], points, ends[1]])
    segments = len(controls) - 3
    place = np.linspace(0, segments, count, endpoint=not closed)
    first = np.minimum(place.astype(int), segments - 1)
    t = (place - first)[:, None]
    p0, p1, p2, p3 = (controls[first + shift] for shift in range(4))
    return 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)


def draw_lines(surface: FaceSurface, curves: list[Float[np.ndarray, "_ 2"]], width_mm: float, soft_mm: float) -> Canvas:
    """Open curves of the given width, blurred by ``soft_mm`` (Gaussian sigma)."""
    canvas = surface.canvas()
    lines = [surface.fixed_point(curve) for curve in curves]
    width = max(1, round(width_mm * PIXELS_PER_MM))
    cv2.polylines(canvas, lines, False, 255, width, cv2.LINE_AA, SUBPIXEL_BITS)
    return _soften(canvas, soft_mm)


def draw_polygon(surface: FaceSurface, polygon: Points, soft_mm: float) -> Canvas:
    canvas = surface.canvas()
    cv2.fillPoly(canvas, [surface.fixed_point(polygon)], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    return _soften(canvas, soft_mm)


def draw_spots(
    surface: FaceSurface,
    rng: np.random.Generator,
    centres: Points,
    radii_mm: Float[np.ndarray, " points"],
    strengths: Float[np.ndarray, " points"],
    soft_mm: float,
) -> Canvas:
    """Slightly oval spots; ``strengths`` in [0, 1], a later spot covers an earlier one."""
    canvas = surface.canvas()
    stretch = rng.uniform(0.75, 1.3, len(centres))
    radii = np.stack([radii_mm * stretch, radii_mm / stretch], axis=-1) * PIXELS_PER_MM * (1 << SUBPIXEL_BITS)
    for centre, axes, angle, strength in zip(
        surface.fixed_point(centres).tolist(),
        np.round(radii).astype(int).tolist(),
        rng.uniform(0, 180, len(centres)),
        strengths,
        strict=True,
    ):
        cv2.ellipse(canvas, centre, axes, angle, 0, 360, int(255 * strength), -1, cv2.LINE_AA, SUBPIXEL_BITS)
    return _soften(canvas, soft_mm)


def draw_hairs(
    surface: FaceSurface,
    rng: np.random.Generator,
    roots: Points,
    angles_rad: Float[np.ndarray, " points"],
    lengths_mm: Float[np.ndarray, " points"],
) -> Canvas:
    """Hairs of one canvas pixel width, curled a little at random, in four strengths."""
    canvas = surface.canvas()
    bend = angles_rad[:, None] + rng.normal(0, 0.3, (len(roots), 1)) * np.linspace(0, 1, 4)
    steps = np.stack([np.cos(bend), np.sin(bend)], axis=-1) * (lengths_mm[:, None, None] / 4)
    hairs = np.concatenate([roots[:, None], roots[:, None] + np.cumsum(steps, axis=1)], axis=1)  # (points, 5, 2)
    for part, strength in zip(np.array_split(surface.fixed_point(hairs), 4), (110, 160, 210, 255), strict=True):
        cv2.polylines(canvas, list(part), False, strength, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    return _soften(canvas, 0.15)


def _soften(canvas: np.ndarray, soft_mm: float) -> Canvas:
    return cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), soft_mm * PIXELS_PER_MM)


def _texel_positions(template: FaceTemplate) -> tuple[np.ndarray, np.ndarray]:
    """Position (mm) of every texel, continued outside the mask from its nearest neighbours, and the mask."""
    triangle = template.texel_triangle.cpu()
    mask = (triangle >= 0).numpy()
    corners = template.vertices.cpu()[template.triangles.cpu()[triangle.clamp(min=0)]]  # (rows, columns, 3, 3)
    positions = (corners * template.texel_barycentric.cpu()[..., None]).sum(-2).numpy().astype(np.float32)
    positions[~mask] = 0.0
    known = mask.astype(np.float32)
    filled = positions.copy()
    while not known.all():
        total = cv2.blur(filled * known[..., None], (3, 3), borderType=cv2.BORDER_CONSTANT)
        count = cv2.blur(known, (3, 3), borderType=cv2.BORDER_CONSTANT)
        new = (known == 0) & (count > 1e-6)
        filled[new] = total[new] / count[new][:, None]
        known[new] = 1.0
    return filled, mask
