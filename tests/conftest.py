"""Shared fixtures. nl3dmm is imported inside them: earlier, and jaxtyping's import hook would miss it."""

import signal

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs deaf to Ctrl-C
    # Lightning uses a private pytree class that newer versions of torch rename.
    config.addinivalue_line("filterwarnings", "ignore:.*LeafSpec.*:FutureWarning")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def template():
    """The embedded face at quickstart size."""
    from nl3dmm.assets.embedded import embedded_template

    return embedded_template((64, 80))


@pytest.fixture(scope="session")
def small_template():
    """The embedded face at its smallest size."""
    from nl3dmm.assets.embedded import embedded_template

    return embedded_template((32, 32))


@pytest.fixture(scope="session")
def small_world(small_template):
    """Synthetic faces of the smallest size, 48 px."""
    from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig

    return SyntheticWorld(small_template, WorldConfig(), image_size=48)


@pytest.fixture(scope="session")
def small_model_config():
    """Networks that fit ``small_template`` and 48 px images."""
    from nl3dmm.model import ModelConfig
    from nl3dmm.nn.encoder import EncoderConfig
    from nl3dmm.nn.uv_decoder import DecoderConfig

    encoder, decoder = EncoderConfig(width=4, stages=4), DecoderConfig(width=4, up_samplings=4)
    return ModelConfig(image_size=48, shape_latent=8, albedo_latent=8, encoder=encoder, decoder=decoder)


@pytest.fixture
def tetrahedron():
    """float64 vertices (batch of one) and triangles, counter-clockwise seen from outside."""
    vertices = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]], dtype=torch.float64)
    return vertices, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


@pytest.fixture
def patch():
    """A gently bent square sheet in float64, a UV grid of 4 x 4: vertices (1, 16, 3) in mm, triangles, uv (16, 2)."""
    v, u = torch.meshgrid(torch.arange(4) / 4 + 0.125, torch.arange(4) / 4 + 0.125, indexing="ij")
    x, y = 80 / 3 * (u - 0.5), 80 / 3 * (0.5 - v)
    z = 2 - 0.02 * x**2 - 0.03 * y**2 + 0.01 * x * y
    index = torch.arange(16).view(4, 4)
    a, b, c, d = (part.flatten() for part in (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
    triangles = torch.cat([torch.stack([a, c, d], 1), torch.stack([a, d, b], 1)])
    return torch.stack([x, y, z], -1).view(1, 16, 3).double(), triangles, torch.stack([u, v], -1).view(16, 2).double()
