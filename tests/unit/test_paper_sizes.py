"""The paper's sizes (192 x 224, 224 px, latents of 320): parameters, boxes, and meshes of its vertex counts.

Numbers come from the layer tables of Tran, Liu, Liu (CVPR19) and of its released code.
"""

import time

import numpy as np
import pytest
import torch
from torch import nn

from nl3dmm.assets.ict import texel_tables
from nl3dmm.assets.landmarks import MIRROR_68, PATHWAYS, landmark_uv, pathway_boxes
from nl3dmm.geometry.uv import fill_outwards, sample_uv_map
from nl3dmm.nn.encoder import Encoder, EncoderConfig, count_parameters
from nl3dmm.nn.uv_decoder import DecoderConfig, UVDecoder
from nl3dmm.render.scene import Surface

UV_SIZE = (192, 224)
# row, column, height, width
PAPER_BOXES = {
    "left_eye": (38, 116, 40, 48),
    "right_eye": (38, 60, 40, 48),
    "nose": (46, 88, 56, 48),
    "mouth": (96, 63, 64, 96),
}
# Texels (first and last row, first and last column) of landmarks on the paper's map, about its axis, column 111. Eyes,
# tip of the nose and mouth are measured; root and wings of the nose follow from the cylinder that made the map.
PAPER_AREAS = {
    range(36, 42): (58, 64, 69, 89),
    range(42, 48): (58, 64, 131, 153),
    range(27, 36): (57, 100, 100, 122),
    range(48, 68): (106, 129, 88, 132),
}


def paper_landmarks() -> np.ndarray:
    """The embedded face's landmarks, each part stretched to where it lies on the paper's map."""
    uv = landmark_uv().copy()
    for ids, (top, bottom, left, right) in PAPER_AREAS.items():
        part = uv[list(ids)]
        unit = (part - part.min(0)) / np.ptp(part, 0)
        low, high = np.array([left + 0.5, top + 0.5]), np.array([right + 0.5, bottom + 0.5])
        uv[list(ids)] = (low + unit * (high - low)) / (UV_SIZE[1], UV_SIZE[0])
    return uv


def decoder(latent: int = 320, boxes: dict = PAPER_BOXES, **changes) -> UVDecoder:
    return UVDecoder(DecoderConfig(**changes), latent, UV_SIZE, boxes)


def millions(module: nn.Module) -> float:
    """As the sheet counts: without scale and shift of the norms behind the linear layers."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d)]
    return (count_parameters(module) - sum(count_parameters(norm) for norm in norms)) / 1e6


@pytest.mark.parametrize(("latent", "expected", "wider_heads"), [(160, 3.05, 0.187), (320, 3.70, 0.0)])
def test_encoder(latent, expected, wider_heads):
    """640 features are latents of 320. With 320 the released camera and light heads have 64 channels, ours 128."""
    encoder = Encoder(EncoderConfig(), 224, latent, latent, camera_logits=8)
    assert millions(encoder.trunk) == pytest.approx(2.404, abs=0.0005)
    assert millions(encoder) == pytest.approx(expected + wider_heads, abs=0.005)


def test_shape_decoder_and_its_pathways():
    whole = decoder()
    expected = {"left_eye": 1.59, "right_eye": 1.59, "nose": 2.09, "mouth": 4.31}
    assert {name: millions(part) for name, part in whole.local_pathways.items()} == pytest.approx(expected, abs=0.005)
    assert millions(whole.global_pathway) == pytest.approx(3.08, abs=0.005)
    assert millions(whole) == pytest.approx(12.68, abs=0.005)
    assert millions(decoder(160)) == pytest.approx(7.55, abs=0.005)


def test_albedo_decoder_as_released():
    """Its first layer is half as wide and it has no pathway for the nose; the paper has four for both decoders."""
    without_nose = {name: box for name, box in PAPER_BOXES.items() if name != "nose"}
    assert millions(decoder(boxes=without_nose, first_layer=5)) == pytest.approx(10.39, abs=0.005)
    assert millions(decoder(160, boxes=without_nose, first_layer=5)) == pytest.approx(6.12, abs=0.005)


def test_single_decoder_of_cvpr18():
    """It ends in one convolution to 3 channels (867 parameters); ours has an end's hidden layer before it."""
    alone = decoder(160, width=32, first_layer=5, local_pathways=False, proxy=False)
    assert millions(alone) - millions(alone.proxy_end) + 867e-6 == pytest.approx(5.03, abs=0.005)
    assert millions(alone) == pytest.approx(5.03, rel=0.005)


def test_forward_and_backward():
    """One image through encoder and shape decoder: features 7 x 7, maps 192 x 224, a gradient everywhere."""
    encoder, decode = Encoder(EncoderConfig(), 224, 320, 320).eval(), decoder().eval()
    nn.init.normal_(decode.residual_end[-1].weight, std=0.1)
    image = torch.rand(1, 3, 224, 224)
    assert encoder.trunk(image).shape == (1, 160, 7, 7)
    proxy, final = decode(encoder(image).shape_latent)
    assert proxy.shape == final.shape == (1, 3, *UV_SIZE)
    (proxy.square().mean() + final.square().mean()).backward()
    used = [*decode.parameters(), *encoder.trunk.parameters(), *encoder.shape_head.parameters()]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in used)


def test_the_papers_landmarks_give_the_papers_boxes():
    boxes = pathway_boxes(paper_landmarks(), UV_SIZE)
    assert set(boxes) == set(PAPER_BOXES)
    for name, (row, column, height, width) in PAPER_BOXES.items():
        box = boxes[name]
        assert (box.height, box.width) == (height, width)
        assert abs(box.row - row) <= 1
        assert abs(box.column - column) <= 1  # the mouth's, which the table places one column left of the axis


@pytest.mark.parametrize("uv_size", [(64, 80), (96, 112), (192, 224), (384, 448)])
def test_boxes_keep_their_place_at_other_sizes(uv_size):
    boxes = pathway_boxes(paper_landmarks(), uv_size)
    points = (paper_landmarks() + paper_landmarks()[MIRROR_68] * (-1, 1) + (1, 0)) / 2 * (uv_size[1], uv_size[0])
    for name, box in boxes.items():
        assert box.height % 8 == box.width % 8 == 0
        centre = np.array([box.column + box.width / 2, box.row + box.height / 2]) / (uv_size[1], uv_size[0])
        paper = boxes_centre(PAPER_BOXES[name])
        assert np.abs(centre - paper).max() <= 0.5 / min(uv_size) + 0.006
        part = points[list(PATHWAYS[name].landmarks)]
        assert (part >= (box.column - 0.5, box.row - 0.5)).all()
        assert (part <= (box.column + box.width + 0.5, box.row + box.height + 0.5)).all()


def boxes_centre(box: tuple[int, int, int, int]) -> np.ndarray:
    row, column, height, width = box
    return np.array([(column + width / 2) / UV_SIZE[1], (row + height / 2) / UV_SIZE[0]])


def scattered_mesh(vertices: int) -> tuple[torch.Tensor, torch.Tensor]:
    """UV and triangles: a shaken grid, somewhat larger than the map as the Basel model's neck and ears are."""
    rows = int(vertices**0.5)
    columns = vertices // rows
    v, u = torch.meshgrid(torch.linspace(-0.02, 1.01, rows), torch.linspace(-0.1, 1.08, columns), indexing="ij")
    grid = torch.stack([u, v], -1).view(-1, 2)
    grid = grid + torch.rand_like(grid) * 0.3 / rows
    loose = torch.rand(vertices - len(grid), 2)  # in no triangle
    a = (torch.arange(rows - 1)[:, None] * columns + torch.arange(columns - 1)).flatten()
    b, c, d = a + 1, a + columns, a + columns + 1
    return torch.cat([grid, loose]), torch.cat([torch.stack([a, c, b], 1), torch.stack([b, c, d], 1)])


@pytest.fixture(scope="module", params=[39111, 53215])
def surface(request) -> Surface:
    torch.manual_seed(0)
    uv, triangles = scattered_mesh(request.param)
    assert len(uv) == request.param
    tables = fill_outwards(*texel_tables(uv, triangles, UV_SIZE))
    return Surface(triangles, uv, UV_SIZE, *tables)


def linear_map() -> torch.Tensor:
    """u, v and a constant at texel centres."""
    v, u = torch.meshgrid((torch.arange(192) + 0.5) / 192, (torch.arange(224) + 0.5) / 224, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)])[None]


def test_vertices_are_bilinear_samples_clamped_at_the_border(surface):
    values = surface.to_vertices(linear_map())[0]
    low, high = torch.tensor([0.5 / 224, 0.5 / 192]), torch.tensor([223.5 / 224, 191.5 / 192])
    expected = surface.uv.maximum(low).minimum(high)
    assert (expected != surface.uv).any(1).sum() > 1000
    torch.testing.assert_close(values[:, :2], expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(values[:, 2], torch.ones(len(values)))


def test_vertices_and_map_are_inverse_inside_the_border(surface):
    uv_map = linear_map()
    back = surface.to_uv_map(surface.to_vertices(uv_map))
    snap = 1 / 16 / 192  # the rasteriser that finds a texel's triangle works on a grid of 1/16 texel
    torch.testing.assert_close(back[..., 2:-2, 2:-2], uv_map[..., 2:-2, 2:-2], atol=snap, rtol=0)


def test_gradients_are_the_transpose_of_the_sampling(surface):
    """<sample(map), g> = <map, transpose(g)>; every vertex hands out a weight of 1, also beyond the border."""
    uv_map = torch.randn(2, 3, *UV_SIZE, dtype=torch.float64, requires_grad=True)
    uv = surface.uv.double()
    sampled = sample_uv_map(uv_map, uv)
    towards = torch.randn_like(sampled)
    (gradient,) = torch.autograd.grad(sampled, uv_map, towards, retain_graph=True)
    torch.testing.assert_close((gradient * uv_map).sum(), (towards * sampled).sum())
    (ones,) = torch.autograd.grad(sampled, uv_map, torch.ones_like(sampled))
    torch.testing.assert_close(ones.sum((2, 3)), torch.full((2, 3), float(len(uv)), dtype=torch.float64))
    assert ones.min() >= 0


def test_sampling_takes_milliseconds(surface, record_property):
    uv_map = torch.randn(4, 3, *UV_SIZE, requires_grad=True)
    surface.to_vertices(uv_map)
    started = time.perf_counter()
    vertices = surface.to_vertices(uv_map)
    forward = time.perf_counter()
    vertices.sum().backward()
    seconds = {"forward": forward - started, "backward": time.perf_counter() - forward}
    for name, value in seconds.items():
        record_property(f"{len(surface.uv)} vertices, {name}, ms per face", value * 250)
    assert sum(seconds.values()) < 4
