"""FaceTemplate and the embedded face: conventions, landmarks, boxes, densities, fields."""

import time

import numpy as np
import pytest
import torch

from nl3dmm.assets import Box, embedded_template
from nl3dmm.assets.fields import monotone_cubic, profile, smooth_maximum
from nl3dmm.assets.landmarks import MIRROR_68, landmark_uv, pathway_boxes
from nl3dmm.assets.template import grid_point, grid_triangles
from nl3dmm.errors import AssetError
from nl3dmm.geometry.mesh import triangle_normals, vertex_normals

FLIP = torch.tensor([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def template():
    return embedded_template((64, 80))


@pytest.fixture(scope="module")
def landmarks(template):
    return template.landmarks(template.vertices[None])[0]


def test_frame_is_millimetres_with_left_up_and_out_positive(template, landmarks):
    size = template.vertices.amax(0) - template.vertices.amin(0)
    assert 130 < float(size[0]) < 160
    assert 170 < float(size[1]) < 210
    assert landmarks[45, 0] > 40  # outer corner of the subject's left eye
    assert landmarks[27, 1] > landmarks[33, 1] > landmarks[8, 1]
    assert int(landmarks[:, 2].argmax()) == 30  # nose tip


def test_uv_rows_go_down_and_columns_to_the_image_right(template):
    grid = template.vertices.reshape(64, 80, 3)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    expected = torch.stack([(columns + 0.5) / 80, (rows + 0.5) / 64], -1).reshape(-1, 2)
    torch.testing.assert_close(template.uv, expected)
    assert bool((grid[0, :, 1] > grid[-1, :, 1]).all())
    assert bool((grid[:, 1:, 0] > grid[:, :-1, 0])[:, 5:-5].all())


def test_vertices_are_texels(template):
    assert template.is_uv_grid
    corners = template.vertices[template.triangles[template.texel_triangle]]
    gathered = (corners * template.texel_barycentric[..., None]).sum(2)
    torch.testing.assert_close(gathered.reshape(-1, 3), template.vertices)


def test_triangles_wind_outward(template):
    normals = triangle_normals(template.vertices[None], template.triangles)[0]
    centers = template.vertices[template.triangles].mean(1)
    outward = (normals * (centers - torch.tensor([0.0, 0.0, 30.0]))).sum(1)
    # Nostrils and the step into the mouth face inwards by nature.
    assert float((outward > 0).float().mean()) > 0.97
    assert bool((normals.norm(dim=1) > 1e-3).all())
    assert (
        float(vertex_normals(template.vertices[None], template.triangles)[0, template.landmark_vertices[8, 0], 2]) > 0
    )


def test_mirror_is_the_column_flip_and_exact(template):
    flipped = torch.arange(64 * 80).reshape(64, 80).flip(1).reshape(-1)
    assert torch.equal(template.mirror, flipped)
    assert float((template.vertices[template.mirror] * FLIP - template.vertices).abs().max()) < 1e-4
    for name in ("eyes", "brows", "nose", "nostrils", "lips", "mouth", "skin", "face"):
        assert float((template.regions[name] - template.regions[name].flip(1)).abs().max()) < 2e-3
    assert float((template.regions["left_eye"] - template.regions["right_eye"].flip(1)).abs().max()) < 2e-3


def test_regions_are_soft_masks_in_their_places(template):
    for region in template.regions.values():
        assert float(region.min()) >= 0
        assert float(region.max()) <= 1
        assert float(region.max()) > 0.9
    columns = torch.arange(80)
    assert float((template.regions["left_eye"].sum(0) * columns).sum() / template.regions["left_eye"].sum()) > 40
    parts = ("left_eye", "right_eye", "brows", "nostrils", "lips", "mouth")
    total = template.regions["skin"] + sum(template.regions[name] for name in parts)
    assert float((total - 1).abs().max()) < 0.3  # soft edges overlap a little


def test_landmarks_are_symmetric_ordered_and_differentiable(template, landmarks):
    assert float((landmarks[MIRROR_68] * FLIP - landmarks).abs().max()) < 0.3
    assert bool((landmarks[:8, 0] < 0).all())
    assert bool((landmarks[36:42, 0] < 0).all())
    assert bool((landmarks[:17, 0].diff() > 0).all())
    torch.testing.assert_close(template.landmark_weights.sum(1), torch.ones(68))
    assert float(template.landmark_weights.min()) >= -1e-6
    vertices = template.vertices[None].clone().requires_grad_()
    template.landmarks(vertices).sum().backward()
    assert float(vertices.grad.sum()) == pytest.approx(68 * 3, rel=1e-4)


def test_jaw_landmarks_lie_on_the_visible_contour(template, landmarks):
    """In the frontal view no point of the face at the same height is much farther out."""
    grid = template.vertices
    for k in range(9):
        inside = landmarks[k, :2] / landmarks[k, :2].norm()  # radially from the middle of the nose
        along = (grid[:, :2] * inside).sum(1)
        near = (grid[:, :2] - along[:, None] * inside).norm(dim=1) < 3
        assert float(along[near].max() - landmarks[k, :2].norm()) < 5.5


def test_densities_agree():
    places = []
    for size in ((64, 80), (96, 112), (192, 224)):
        places.append(_landmarks_only(size))
    assert float((places[0] - places[2]).norm(dim=1).max()) < 1.0
    assert float((places[1] - places[2]).norm(dim=1).max()) < 1.0


def _landmarks_only(uv_size):
    from nl3dmm.assets.layout import chart, texel_centers
    from nl3dmm.assets.surface import face_surface

    vertices = torch.from_numpy(face_surface(*chart(*texel_centers(uv_size)))).reshape(-1, 3)
    corners, weights = zip(*(grid_point(float(u), float(v), uv_size) for u, v in landmark_uv()), strict=True)
    return (vertices[torch.tensor(corners)] * torch.tensor(weights, dtype=torch.float64)[..., None]).sum(1)


def test_boxes_at_the_papers_size_come_close_to_the_papers():
    boxes = pathway_boxes(landmark_uv(), (192, 224))
    paper = {"left_eye": (38, 116, 40, 48), "right_eye": (38, 60, 40, 48), "nose": (46, 88, 56, 48)}
    for name, (row, _, height, width) in paper.items():
        assert (boxes[name].height, boxes[name].width) == (height, width)
        assert abs(boxes[name].row - row) <= 16
    assert boxes["mouth"].width == 96


@pytest.mark.parametrize("uv_size", [(32, 32), (64, 80), (96, 112), (192, 224), (66, 82)])
def test_boxes_fit_and_mirror(uv_size):
    boxes = pathway_boxes(landmark_uv(), uv_size)
    for box in boxes.values():
        assert box.height % 8 == box.width % 8 == 0
        assert box.row >= 0
        assert box.column >= 0
        assert box.row + box.height <= uv_size[0]
        assert box.column + box.width <= uv_size[1]
    left, right = boxes["left_eye"], boxes["right_eye"]
    assert (left.row, left.height, left.width) == (right.row, right.height, right.width)
    assert left.column == uv_size[1] - right.column - right.width
    for name in ("nose", "mouth"):
        assert 2 * boxes[name].column + boxes[name].width == uv_size[1]
    assert Box(1, 2, 8, 16).slices == (slice(1, 9), slice(2, 18))


def test_boxes_contain_their_landmarks(template):
    uv = landmark_uv() * (80, 64)
    for name, ids in (("left_eye", range(42, 48)), ("nose", range(28, 36)), ("mouth", range(48, 68))):
        box = template.boxes[name]
        for column, row in uv[list(ids)]:
            assert box.row <= row <= box.row + box.height
            assert box.column <= column <= box.column + box.width


def test_identity_fields_are_mirrored_and_of_human_size(template):
    basis = template.identity_basis
    mirrored = basis[:, template.mirror] * FLIP
    symmetric = (mirrored - basis).abs().amax((1, 2)) < 0.02
    antisymmetric = (mirrored + basis).abs().amax((1, 2)) < 0.02
    assert bool((symmetric | antisymmetric).all())
    assert int(antisymmetric.sum()) == 5
    coefficients = torch.randn(16, len(basis), generator=torch.Generator().manual_seed(0))
    face = template.regions["face"].reshape(-1) > 0.5
    distances = [
        _aligned_distance(face_vertices, template.vertices[face])
        for face_vertices in template.morph(coefficients)[:, face]
    ]
    assert 2.3 < float(torch.stack(distances).mean()) < 3.7


def _aligned_distance(points, target):
    """Mean distance after the best similarity transform (Umeyama)."""
    source, goal = points - points.mean(0), target - target.mean(0)
    left, values, right = torch.linalg.svd(source.T @ goal)
    scale = values.sum() / source.square().sum()
    return (scale * source @ left @ right - goal).norm(dim=1).mean()


def test_expression_pairs_mirror_each_other(template):
    index = {name: k for k, name in enumerate(template.expression_names)}
    pairs = [name for name in index if name.endswith("_L")]
    assert len(pairs) >= 10
    for name in pairs:
        left, right = template.expression_basis[index[name]], template.expression_basis[index[name[:-2] + "_R"]]
        assert float((left[template.mirror] * FLIP - right).abs().max()) < 0.02
        assert float(left.norm(dim=1).max()) > 1.0


def test_jaw_opens_the_mouth_and_keeps_upper_face_and_chin(template, landmarks):
    activation = torch.zeros(1, len(template.expression_names))
    activation[0, template.expression_names.index("jawOpen")] = 1.0
    opened = template.morph(None, activation)
    moved = template.landmarks(opened)[0]
    assert float((moved[17:48] - landmarks[17:48]).norm(dim=1).max()) < 0.5
    assert 25 < float((moved[62] - moved[66]).norm()) < 60
    chin = slice(6, 11)
    before, after = torch.pdist(landmarks[chin]), torch.pdist(moved[chin])
    assert float((after / before - 1).abs().max()) < 0.1  # bone does not stretch


def test_blink_closes_the_left_eye_only(template, landmarks):
    activation = torch.zeros(1, len(template.expression_names))
    activation[0, template.expression_names.index("eyeBlink_L")] = 1.0
    closed = template.landmarks(template.morph(None, activation))[0]
    assert float((closed[43] - closed[47]).norm()) < 4.8
    assert float((landmarks[43] - landmarks[47]).norm()) > 9.0
    torch.testing.assert_close(closed[:42], landmarks[:42])


def test_morph_is_linear_and_differentiable(template):
    identity = torch.zeros(2, len(template.identity_basis), requires_grad=True)
    vertices = template.morph(identity)
    torch.testing.assert_close(vertices[0], template.vertices)
    vertices.sum().backward()
    torch.testing.assert_close(identity.grad[1], template.identity_basis.sum((1, 2)), rtol=1e-3, atol=0.05)
    assert template.morph().shape == (1, 64 * 80, 3)


def test_small_template_builds_fast_and_bad_sizes_are_refused():
    start = time.perf_counter()
    embedded_template((32, 40))
    assert time.perf_counter() - start < 3
    for size in ((30, 80), (64, 81)):
        with pytest.raises(AssetError, match=r"uv_size: got .* expected even numbers"):
            embedded_template(size)


def test_grid_point_interpolates_linear_functions():
    size = (6, 8)
    u, v = np.meshgrid((np.arange(8) + 0.5) / 8, (np.arange(6) + 0.5) / 6)
    values = (3 * u - 2 * v).reshape(-1)
    triangles = {tuple(sorted(t)) for t in grid_triangles(torch.ones(size, dtype=torch.bool)).tolist()}
    for a, b in np.random.default_rng(0).uniform(0.1, 0.9, (50, 2)):
        corners, weights = grid_point(float(a), float(b), size)
        assert tuple(sorted(corners)) in triangles
        assert float(np.dot(values[corners], weights)) == pytest.approx(3 * a - 2 * b)
        assert min(weights) >= -1e-9


def test_grid_triangles_respect_the_mask():
    mask = torch.ones(3, 4, dtype=torch.bool)
    assert grid_triangles(mask).shape == (12, 3)
    mask[0, 0] = False
    assert grid_triangles(mask).shape == (10, 3)
    assert not bool((grid_triangles(mask) == 0).any())


def test_profile_is_a_smoothed_polyline():
    knots, values = np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 0.0])
    x = np.array([-20.0, 2.0, 10.0, 18.0, 30.0])
    result = profile(x, knots, values, 1.0)
    np.testing.assert_allclose(result[[0, 1, 3, 4]], [-20, 2, 2, -10], atol=1e-5)
    assert result[2] == pytest.approx(10 - 2 / np.sqrt(2 * np.pi))


def test_monotone_cubic_passes_its_knots_without_overshoot():
    knots, values = np.array([0.0, 1.0, 3.0, 4.0]), np.array([10.0, 9.0, 2.0, 0.0])
    np.testing.assert_allclose(monotone_cubic(knots, knots, values), values)
    assert bool((np.diff(monotone_cubic(np.linspace(-1, 5, 200), knots, values)) <= 0).all())
    assert smooth_maximum(np.zeros(1), np.full(1, 50.0), 1.0)[0] == pytest.approx(50.0)


def test_to_moves_everything(template):
    moved = template.to("meta")
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    assert moved.regions.keys() == template.regions.keys()
