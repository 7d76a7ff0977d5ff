import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
from functools import cache

import pytest
import torch
from render_reference import face

from nl3dmm.errors import BackendError, ShapeError
from nl3dmm.render import (
    antialias,
    antialias_construct_topology_hash,
    backend_for,
    backends,
    interpolate,
    rasterize,
    texture,
    warmup,
)
from nl3dmm.render._jit import kernel
from nl3dmm.render._pool import run_images

CUDA_USABLE = backends()["nvdiffrast"] == "usable"
TRI = torch.tensor([[0, 1, 2]])


@cache
def scene():
    generator = torch.Generator().manual_seed(0)
    pos, tri = face(25)
    pos = torch.stack([pos * (1.5 - 0.2 * i) for i in range(5)])
    attr, tex = torch.rand(1, pos.shape[1], 5, generator=generator), torch.rand(1, 12, 14, 6, generator=generator)
    return tri, [pos, attr, tex]


def outputs_and_gradients(device="cpu", dtype=torch.float32):
    """A batch of five images through all operations and back, with shared attributes and textures."""
    tri, leaves = scene()
    leaves = [leaf.to(device, dtype).requires_grad_() for leaf in leaves]
    tri = tri.to(device)
    rast, _ = rasterize(None, leaves[0], tri, (32, 30))
    out, _ = interpolate(leaves[1], rast, tri)
    image = texture(leaves[2], out[..., :2].contiguous(), boundary_mode="clamp", mask=rast[..., 3] > 0) * out[..., 2:3]
    gradients = torch.autograd.grad(image.square().sum(), leaves)
    return [tensor.detach() for tensor in (rast, out, image, *gradients)]


def fingerprint():
    digest = hashlib.sha256()
    for tensor in outputs_and_gradients():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def send_fingerprint(pipe):
    torch.set_num_threads(2)
    pipe.send(fingerprint())


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_and_two_threads_give_the_same_bits(two_threads):
    several = fingerprint()
    torch.set_num_threads(1)
    assert fingerprint() == several


def test_python_threads_may_render_at_once(two_threads):
    expected, results = fingerprint(), []
    threads = [threading.Thread(target=lambda: results.append(fingerprint())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())))
def test_child_processes_render_the_same_bits(two_threads, method):
    expected = fingerprint()  # before the fork: the parent's pool, and what torch's own OpenMP could not do after it
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_fingerprint, args=(sender,))
    process.start()
    try:
        assert receiver.poll(100), "the child hangs"
        assert receiver.recv() == expected
        process.join(20)
        assert process.exitcode == 0
    finally:
        process.kill()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_pool_runs_each_image_once_and_raises_errors_again(threads):
    done = []
    run_images(done.append, 7, threads)
    assert sorted(done) == list(range(7))
    run_images(done.append, 0, threads)

    def fail(image):
        if image == 3:
            raise ValueError("image 3")

    with pytest.raises(ValueError, match="image 3"):
        run_images(fail, 7, threads)


def test_kernels_work_without_a_folder_for_their_cache():
    namespace = {}
    exec(
        "def double(x):\n    return 2 * x", namespace
    )  # a function without a file, so numba finds no place for its cache
    assert kernel(namespace["double"])(21) == 42


def test_backend_follows_the_device_and_the_environment(monkeypatch):
    monkeypatch.delenv("NL3DMM_RENDER", raising=False)
    assert backend_for("cpu") == "numba"
    assert backend_for(torch.device("cpu")) == "numba"
    for name in ("numba", "torch"):
        monkeypatch.setenv("NL3DMM_RENDER", name)
        assert backend_for("cpu") == name
    assert backend_for("cuda") == "torch"


@pytest.mark.parametrize(
    ("forced", "device", "message"),
    [
        ("opengl", "cpu", "NL3DMM_RENDER: got 'opengl' for cpu; expected numba, torch or nvdiffrast"),
        ("numba", "cuda:0", "NL3DMM_RENDER: got 'numba' for cuda:0; expected a cpu device"),
        ("nvdiffrast", "cpu", "NL3DMM_RENDER: got 'nvdiffrast' for cpu; expected a cuda device"),
        ("", "mps", "device: got mps; expected cpu or cuda. Move the tensors to the CPU"),
    ],
)
def test_backends_that_cannot_serve_are_named(monkeypatch, forced, device, message):
    monkeypatch.setenv("NL3DMM_RENDER", forced)
    with pytest.raises(BackendError, match=message):
        backend_for(device)


@pytest.mark.skipif(CUDA_USABLE, reason="nvdiffrast is installed")
def test_missing_nvdiffrast_is_one_clear_message(monkeypatch):
    monkeypatch.delenv("NL3DMM_RENDER", raising=False)
    with pytest.raises(BackendError, match=r"(?s)nvdiffrast: got .*nvlabs.github.io/nvdiffrast/.*to the CPU"):
        backend_for("cuda")


def test_backends_lists_all_with_reasons():
    found = backends()
    assert list(found) == ["numba", "torch", "nvdiffrast"]
    assert found["numba"] == found["torch"] == "usable"
    assert found["nvdiffrast"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_warmup_leaves_nothing_to_compile(dtype):
    warmup(dtype)
    from nl3dmm.render._numba import interpolation, rasterization, texturing

    kernels = [
        rasterization.visible_triangles,
        rasterization.rasterize_backward,
        interpolation.interpolate_backward,
        texturing.texture_backward,
    ]
    before = [len(kernel.signatures) for kernel in kernels]
    assert min(before) >= 1
    outputs_and_gradients(dtype=dtype)
    assert [len(kernel.signatures) for kernel in kernels] == before


def test_torch_path_never_imports_numba():
    script = (
        "import sys, torch; from nl3dmm.render import rasterize, warmup; warmup();"
        "rasterize(None, torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), (2, 2));"
        "assert 'numba' not in sys.modules"
    )
    environment = {**os.environ, "NL3DMM_RENDER": "torch", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos": torch.zeros(3, 4)}, r"pos: got shape \(3, 4\); expected \(batch, vertices, 4\)"),
        ({"pos": torch.zeros(1, 3, 3)}, r"pos: got shape \(1, 3, 3\); expected \(batch, vertices, 4\)"),
        ({"pos": torch.zeros(1, 3, 4).half()}, "pos: got torch.float16; expected float32 or float64"),
        ({"pos": [[0.0]]}, "pos: got list; expected a tensor"),
        ({"tri": torch.zeros(3, 4, dtype=torch.int64)}, r"tri: got torch.int64 \(3, 4\); expected int32 or int64"),
        ({"tri": torch.zeros(1, 3)}, r"tri: got torch.float32 \(1, 3\); expected int32 or int64"),
        ({"tri": None}, "tri: got NoneType; expected int32 or int64"),
        ({"tri": TRI.to("meta")}, "tri: got device meta; expected cpu"),
        ({"tri": TRI.expand(2**24, 3)}, "tri: got 16777216 triangles; expected at most 16777215"),
        ({"resolution": (0, 4)}, r"resolution: got \(0, 4\); expected two integers"),
        ({"resolution": 4}, "resolution: got 4; expected two integers"),
        ({"resolution": (4.0, 4)}, "expected two integers"),
    ],
)
def test_rasterize_names_wrong_arguments(change, message):
    arguments = {"pos": torch.zeros(1, 3, 4), "tri": TRI, "resolution": (4, 4), **change}
    with pytest.raises(ShapeError, match=message):
        rasterize(None, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rast": torch.zeros(2, 4, 4, 3)}, r"rast: got shape \(2, 4, 4, 3\); expected \(batch, height, width, 4\)"),
        ({"attr": torch.zeros(3)}, r"attr: got shape \(3,\); expected \(batch, vertices, channels\) or"),
        ({"attr": torch.zeros(3, 3, 2)}, r"attr: got batch 3; expected 2 or 1 \(shared\)"),
        ({"attr": torch.zeros(1, 3, 2).double()}, "attr: got torch.float64 on cpu; expected torch.float32 on cpu"),
        ({"attr": torch.zeros(1, 3, 2, device="meta")}, "attr: got torch.float32 on meta; expected torch.float32 on"),
        ({"tri": TRI[0]}, r"tri: got torch.int64 \(3,\); expected int32 or int64 \(triangles, 3\)"),
    ],
)
def test_interpolate_names_wrong_arguments(change, message):
    arguments = {"attr": torch.zeros(1, 3, 2), "rast": torch.zeros(2, 4, 4, 4), "tri": TRI, **change}
    with pytest.raises(ShapeError, match=message):
        interpolate(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uv": torch.zeros(2, 4, 4, 3)}, r"uv: got shape \(2, 4, 4, 3\); expected \(batch, height, width, 2\)"),
        ({"tex": torch.zeros(5, 5, 3)}, r"tex: got shape \(5, 5, 3\); expected \(batch, height, width, channels\)"),
        ({"tex": torch.zeros(3, 5, 5, 3)}, r"tex: got batch 3; expected 2 or 1 \(shared\)"),
        ({"tex": torch.zeros(1, 0, 5, 3)}, r"tex: got shape \(1, 0, 5, 3\); expected at least one texel"),
        ({"tex": torch.zeros(1, 5, 5, 3).double()}, "tex: got torch.float64 on cpu; expected torch.float32 on cpu"),
        (
            {"filter_mode": "cubic"},
            "filter_mode: got 'cubic'; expected one of auto, nearest, linear, linear-mip",
        ),
        ({"boundary_mode": "mirror"}, "boundary_mode: got 'mirror'; expected one of wrap, clamp, zero"),
        ({"mask": torch.ones(2, 4, 4)}, r"mask: got torch.float32 \(2, 4, 4\) on cpu; expected bool \(2, 4, 4\) on"),
        ({"mask": torch.ones(2, 4, 5) > 0}, r"mask: got torch.bool \(2, 4, 5\) on cpu; expected bool \(2, 4, 4\) on"),
        ({"mask": True}, r"mask: got bool; expected bool \(2, 4, 4\) on cpu"),
    ],
)
def test_texture_names_wrong_arguments(change, message):
    arguments = {"tex": torch.zeros(1, 5, 5, 3), "uv": torch.zeros(2, 4, 4, 2), **change}
    with pytest.raises(ShapeError, match=message):
        texture(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"color": torch.zeros(2, 4, 5, 3)},
            r"color: got shape \(2, 4, 5, 3\); expected \(batch, height, width, channels\)",
        ),
        ({"pos": torch.zeros(3, 3, 4)}, r"pos: got batch 3; expected 2 or 1 \(shared\)"),
        ({"pos": torch.zeros(1, 1, 3, 4)}, r"pos: got shape \(1, 1, 3, 4\); expected \(batch, vertices, 4\) or"),
        ({"pos": None}, r"pos: got NoneType; expected a tensor"),
        ({"topology_hash": 3}, r"topology_hash: got int; expected what antialias_construct_topology_hash"),
        (
            {"topology_hash": antialias_construct_topology_hash(TRI.expand(5, 3))},
            r"topology_hash: got one of 5 triangles on cpu; expected 1 on cpu",
        ),
        ({"mode": "soft"}, "mode: got 'soft'; expected one of exact, edge"),
    ],
)
def test_antialias_names_wrong_arguments(change, message):
    image, rast = torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 4, 4)
    arguments = {"color": image, "rast": rast, "pos": torch.zeros(1, 3, 4), "tri": TRI, **change}
    with pytest.raises(ShapeError, match=message):
        antialias(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ranges": torch.zeros(2, 3, dtype=torch.int32)},
            r"ranges: got torch.int32 \(2, 3\); expected int32 \(batch, 2\)",
        ),
        (
            {"ranges": torch.tensor([[0, 2]])},
            r"ranges: got \[0, 2\] for image 0; expected starts and counts within 1 triangles",
        ),
        ({"ranges": torch.tensor([[-1, 1]])}, "expected starts and counts within 1 triangles"),
        ({"ranges": torch.tensor([[2**62, 2**62]])}, "expected starts and counts within 1 triangles"),
        ({"pos": torch.zeros(1, 3, 4)}, r"pos: got shape \(1, 3, 4\); expected \(vertices, 4\) with ranges"),
    ],
)
def test_range_mode_names_wrong_arguments(change, message):
    arguments = {"pos": torch.zeros(3, 4), "tri": TRI, "resolution": (4, 4), "ranges": torch.tensor([[0, 1]]), **change}
    with pytest.raises(ShapeError, match=message):
        rasterize(None, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diff_attrs": [2]}, r"diff_attrs: got \[2\]; expected 'all' or a list of channels of 2"),
        ({"diff_attrs": "some"}, "diff_attrs: got 'some'; expected 'all' or a list"),
        ({"diff_attrs": "all", "rast_db": None}, "rast_db: got NoneType; expected a tensor"),
        ({"diff_attrs": "all", "rast_db": torch.zeros(2, 4, 4, 0)}, r"rast_db: got shape \(2, 4, 4, 0\); expected"),
    ],
)
def test_derivatives_name_wrong_arguments(change, message):
    attr, rast = torch.zeros(1, 3, 2), torch.zeros(2, 4, 4, 4)
    with pytest.raises(ShapeError, match=message):
        interpolate(**{"attr": attr, "rast": rast, "tri": TRI, "rast_db": rast, **change})


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA_USABLE, reason=backends()["nvdiffrast"])
def test_nvdiffrast_agrees_with_the_cpu():
    on_cpu, on_cuda = outputs_and_gradients("cpu"), [tensor.cpu() for tensor in outputs_and_gradients("cuda")]
    same = on_cpu[0][..., 3] == on_cuda[0][..., 3]
    assert same.double().mean() >= 0.999
    for one, other in zip(on_cpu[1:3], on_cuda[1:3], strict=True):
        torch.testing.assert_close(one[same], other[same], atol=1e-4, rtol=0)
    for one, other in zip(on_cpu[3:], on_cuda[3:], strict=True):
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_torch_path_gives_the_same_ids_on_cuda(monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", "torch")
    on_cpu, on_cuda = outputs_and_gradients("cpu"), [tensor.cpu() for tensor in outputs_and_gradients("cuda")]
    assert torch.equal(on_cpu[0][..., 3], on_cuda[0][..., 3])
    for one, other in zip(on_cpu, on_cuda, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
