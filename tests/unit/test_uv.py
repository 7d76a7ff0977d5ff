"""UV maps: texel centres, sampling, the way back, mirror, erosion."""

import pytest
import torch
from torch.autograd import gradcheck

from nl3dmm.geometry.uv import (
    erode,
    fill_outwards,
    mirror_uv_map,
    sample_uv_map,
    uv_grid,
    uv_map_from_vertices,
    vertices_from_uv_grid,
)

SIZE = (4, 6)


def linear_map(size: tuple[int, int]) -> torch.Tensor:
    """Channel 0 is u, channel 1 is v, at texel centres."""
    return uv_grid(size).T.reshape(1, 2, *size)


def test_texel_centres_and_row_major_order():
    grid = uv_grid(SIZE).view(*SIZE, 2)
    assert grid[0, 0].tolist() == pytest.approx([0.5 / 6, 0.5 / 4])
    assert grid[3, 5].tolist() == pytest.approx([5.5 / 6, 3.5 / 4])
    for row in range(4):
        for column in range(6):
            assert grid[row, column].tolist() == pytest.approx([(column + 0.5) / 6, (row + 0.5) / 4])


def test_maps_have_rows_before_columns_at_the_papers_size():
    from nl3dmm.settings import RunConfig

    assert RunConfig().uv_size == (192, 224)
    assert linear_map((192, 224)).shape == (1, 2, 192, 224)


def test_row_zero_is_the_top_of_the_face_and_u_runs_to_image_right(template):
    grid = template.vertices.view(*template.uv_size, 3)
    assert (grid[0, :, 1] > grid[-1, :, 1] + 100).all()
    assert (grid[:, -1, 0] > grid[:, 0, 0] + 50).all()


def test_samples_at_texel_centres_are_the_texels():
    uv_map = torch.randn(2, 3, *SIZE)
    torch.testing.assert_close(sample_uv_map(uv_map, uv_grid(SIZE)), vertices_from_uv_grid(uv_map))


def test_sampling_is_bilinear_and_clamps_at_the_border():
    uv = torch.tensor([[0.31, 0.62], [0.5, 0.5], [0.0, 1.0], [-3.0, 7.0]])
    sampled = sample_uv_map(linear_map(SIZE), uv)[0]
    torch.testing.assert_close(sampled[:2], uv[:2])
    border = torch.tensor([0.5 / 6, 3.5 / 4])
    torch.testing.assert_close(sampled[2:], border.expand(2, 2))


def test_vertices_from_grid_take_texel_k_for_vertex_k():
    uv_map = torch.arange(2 * 3 * 24.0).view(2, 3, *SIZE)
    vertices = vertices_from_uv_grid(uv_map)
    assert vertices.shape == (2, 24, 3)
    assert vertices[1, 8].tolist() == uv_map[1, :, 1, 2].tolist()


def test_vertices_to_map_and_back_on_a_template(template):
    values = torch.randn(2, len(template.vertices), 3)
    uv_map = uv_map_from_vertices(values, template.triangles, template.texel_triangle, template.texel_barycentric)
    torch.testing.assert_close(sample_uv_map(uv_map, template.uv), values, atol=2e-5, rtol=0)


def test_map_from_vertices_interpolates_and_is_zero_outside():
    triangles, values = torch.tensor([[2, 0, 1]]), torch.tensor([[[1.0], [2.0], [4.0]]])
    texel_triangle = torch.tensor([[0, -1]])
    barycentric = torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]])
    uv_map = uv_map_from_vertices(values, triangles, texel_triangle, barycentric)
    assert uv_map.tolist() == [[[[0.5 * 4 + 0.25 * 1 + 0.25 * 2, 0.0]]]]


def test_mirror_swaps_columns_about_one_half():
    uv_map = linear_map(SIZE)
    mirrored = mirror_uv_map(uv_map)
    torch.testing.assert_close(mirrored[:, 0], 1 - uv_map[:, 0])
    torch.testing.assert_close(mirrored[:, 1], uv_map[:, 1])
    assert mirror_uv_map(mirrored).equal(uv_map)


def test_mirror_of_the_face_is_the_face(template):
    """The symmetry axis is u = 0.5: a mirrored map of positions has the opposite x."""
    positions = template.vertices.T.reshape(1, 3, *template.uv_size)
    flip = torch.tensor([-1.0, 1, 1]).view(3, 1, 1)
    torch.testing.assert_close(mirror_uv_map(positions) * flip, positions, atol=1e-3, rtol=0)


def test_erode_shrinks_by_steps_and_the_outside_is_false():
    mask = torch.ones(7, 9, dtype=torch.bool)
    for steps in (1, 2):
        eroded = erode(mask, steps)
        assert int(eroded.sum()) == (7 - 2 * steps) * (9 - 2 * steps)
        assert eroded[steps, steps]
    mask[3, 4] = False
    assert int(erode(mask).sum()) == 5 * 7 - 9


def test_gradcheck():
    uv_map = torch.randn(2, 2, *SIZE, dtype=torch.float64, requires_grad=True)
    uv = torch.tensor([[0.31, 0.62], [0.1, 0.9], [0.71, 0.44]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(sample_uv_map, (uv_map, uv))
    assert gradcheck(vertices_from_uv_grid, uv_map)
    assert gradcheck(mirror_uv_map, uv_map)
    values = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 2, 3)
    texel_triangle = torch.tensor([[0, -1], [0, 0]])
    assert gradcheck(lambda v: uv_map_from_vertices(v, torch.tensor([[0, 1, 2]]), texel_triangle, weights), values)


def test_empty_texels_repeat_a_nearest_covered_one():
    triangle = torch.full((5, 7), -1)
    barycentric = torch.zeros(5, 7, 3)
    triangle[2, 1], barycentric[2, 1] = 4, torch.tensor([0.2, 0.3, 0.5])
    triangle[2, 5], barycentric[2, 5] = 9, torch.tensor([1.0, 0.0, 0.0])
    filled, weights = fill_outwards(triangle, barycentric)
    assert filled[:, :3].eq(4).all()
    assert filled[:, 4:].eq(9).all()
    torch.testing.assert_close(weights[0, 0], barycentric[2, 1])
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 7))


def test_filling_keeps_covered_texels_and_an_empty_table():
    triangle = torch.randint(0, 5, (4, 4))
    triangle[0] = -1
    barycentric = torch.rand(4, 4, 3)
    filled, weights = fill_outwards(triangle, barycentric)
    assert filled[1:].equal(triangle[1:])
    assert weights[1:].equal(barycentric[1:])
    empty = torch.full((4, 4), -1)
    assert fill_outwards(empty, barycentric)[0].equal(empty)
