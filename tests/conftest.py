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


@pytest.fixture(scope="session")
def true_face(template):
    """``true_face(camera)``: a synthetic face of quickstart size as if a perfect fit had found it in a photo.

    Its 128 px picture, at half size, is a part of the photo.
    """
    from functools import cache

    from nl3dmm.data.crop import Crop
    from nl3dmm.model import Face, FaceModel, Geometry, ModelConfig
    from nl3dmm.nn.encoder import EncoderConfig
    from nl3dmm.nn.uv_decoder import DecoderConfig
    from nl3dmm.reconstruction import Reconstruction
    from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig
    from nl3dmm.types import Latents, UVMaps

    small = EncoderConfig(width=4, stages=4), DecoderConfig(width=4, up_samplings=4)
    model = FaceModel(ModelConfig(128, 8, 8, *small), template).eval()

    @cache
    def reconstruction(camera: str = "weak_perspective") -> Reconstruction:
        world = SyntheticWorld(template, WorldConfig(camera=camera, noise=0.0, occlusion=0.0, yaw=25.0), 128)
        batch = world.sample(torch.tensor([5]))
        shape = model.surface.to_uv_map(batch.vertices - template.vertices)
        photo = torch.nn.functional.interpolate(batch.image, scale_factor=0.5, mode="area")
        return Reconstruction(
            photo=torch.nn.functional.pad(photo, (20, 12, 10, 6), mode="replicate")[0],
            crop=Crop(left=20.0, top=10.0, scale=2.0, size=128),
            model=model,
            face=Face(Latents(torch.zeros(1, 8), torch.zeros(1, 8)), batch.camera, batch.sh_coefficients),
            geometry=Geometry(UVMaps(shape, shape, batch.albedo, batch.albedo), batch.vertices, batch.vertices),
            losses={},
            start_error=0.0,
            final_error=0.0,
            model_error=0.0,
            converged=False,
            seconds=0.0,
        )

    return reconstruction


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
