"""The benchmark of a GPU, its pieces at a small size on a CPU: what runs there has run somewhere."""

import sys
from functools import partial

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("diffusers")

from ldm_kernels import backend, networks

from benchmarks import __main__, gpu, gpu_attention, peers
from benchmarks.gpu import Goals, Step
from benchmarks.gpu_attention import SHAPES, Shape, exact, inputs, right, told
from benchmarks.peers import Place
from benchmarks.table import Row
from tests import reduced
from tests.kernels.ways import by_pytorch

CPU = Place(layout=torch.channels_last)


def clock(contestants, rounds):
    """Runs each, and says that it took as many seconds as there were before it."""
    return {name: (call(), float(i))[1] for i, (name, call) in enumerate(contestants.items(), start=1)}


@pytest.fixture(autouse=True)
def ways(monkeypatch):
    by_pytorch(monkeypatch)
    with torch.no_grad():
        yield


def test_without_a_gpu_it_ends_with_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds none; nothing was measured"):
        next(gpu.rows())


def test_parts_are_benchmarks_of_their_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "device", lambda: "a GPU")
    assert {"gpu", "gpu-attention", "gpu-steps", "gpu-compiled"} <= set(__main__.BENCHMARKS)
    seen, before = [], torch.backends.cudnn.benchmark

    def part():
        seen.append(torch.backends.cudnn.benchmark)
        yield Row("a part", 1.0)

    assert [row.what for row in gpu.rows(part, part)] == ["device", "a part", "a part"]
    assert seen == [True, True] and torch.backends.cudnn.benchmark == before


def test_what_was_found_is_written_before_the_end(monkeypatch, tmp_path):
    def breaks():
        yield Row("the first", 1.0)
        raise RuntimeError("broken")

    monkeypatch.setitem(__main__.BENCHMARKS, "gpu", breaks)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--out", str(tmp_path / "out.md")])
    with pytest.raises(RuntimeError, match="broken"):
        __main__.main()
    assert "| the first " in (tmp_path / "out.md").read_text(encoding="utf-8")


def test_the_shapes_are_those_asked_for():
    found = {shape[1:3] and (shape.b * shape.h, *shape[3:6]) for shape in SHAPES}
    own = {
        (16, 4096, 4096, 40), (16, 1024, 1024, 80), (16, 256, 256, 160), (10, 9216, 9216, 64),
        (20, 2304, 2304, 64), (20, 4096, 4096, 64), (40, 1024, 1024, 64),
    }  # fmt: skip
    text = {(heads, n, 77, d) for heads, n, _, d in own}
    assert found == own | text | {(1, 16384, 16384, 512)} and len(SHAPES) == 15


@pytest.mark.parametrize("m", [33, 7])
def test_attention_is_compared_with_float64(m, monkeypatch):
    shape = Shape("small", 1, 2, 33, m, 24, (("best", 1.5),))
    given = inputs(shape, "cpu", torch.float32)
    wanted = torch.nn.functional.scaled_dot_product_attention(*(x.double() for x in given))
    monkeypatch.setattr(gpu_attention, "AT_ONCE", 100)
    assert torch.allclose(exact(*given), wanted)
    assert (given[0].stride(2) == 3 * 48) == (m == 33)  # parts of one projection
    (row,) = gpu_attention.rows("cpu", clock, [shape])  # PyTorch's kernels are for GPUs: there is no best
    assert row.ours == 2.0 and row.theirs is None  # plain's own
    assert row.note.startswith("by plain; triton 1000000.0 µs (")
    assert "flash: none" in row.note and "plain 2000000.0 µs (" in row.note


def test_what_is_not_attention_is_not_timed():
    given = inputs(Shape("small", 1, 1, 9, 9, 16), "cpu", torch.float32)
    with pytest.raises(AssertionError, match="not the same function"):
        right({"triton": lambda q, k, v: 1.02 * exact(q, k, v)}, given)
    with pytest.raises(RuntimeError, match="broken"):  # a kernel of this project must run
        right({"triton": failing}, given)


def test_a_kernel_that_is_wrong_has_no_figures(monkeypatch):
    monkeypatch.setitem(backend.run.ways, "triton", lambda q, k, v: 1.02 * exact(q, k, v).float())
    shape = Shape("small", 1, 1, 9, 9, 16)
    for row in gpu_attention.rows("cpu", clock, [shape, shape]):
        assert row.what == shape.said and row.ours is None
        assert row.note.startswith("not measured: 2.0e-02 from attention in float64")


def failing(q, k, v):
    raise RuntimeError("broken")


def test_rows_of_an_attention():
    shape = Shape("SD", 2, 8, 64, 64, 40, (("flash", 1.3), ("best", 3.0), ("cudnn", 1.05)))
    times = {"triton": 2.0, "flash": 3.0, "efficient": 5.0}
    first, *others = told(shape, times, dict.fromkeys(times, 1e-3), "triton")
    assert (first.what, first.ours, first.theirs, first.ratio) == (
        "attention, SD (16, 64, 64, 40)",
        2.0,
        3.0,
        0.98,
    )
    assert "cudnn: none" in first.note and first.met
    assert [(row.theirs, row.ratio, row.met) for row in others] == [(3.0, 1.3, True), (3.0, 3.0, False)]
    times["plain"] = 2.5
    row, *_ = told(shape, times, dict.fromkeys(times, 1e-3), "plain")
    assert (row.ours, row.theirs) == (2.5, 3.0)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_steps_of_small_networks(name):
    family = reduced.REDUCED[name]
    peer = peers.diffusers_unet(family, CPU)
    step = Step(family, 2 ** len(family.unet.channels), CPU)
    rows = list(gpu.steps(step, peer, Goals(1.0, 3.0, 1.4), clock))
    assert [(row.ours, row.theirs, row.ratio, row.most) for row in rows] == [
        (1.0, None, None, 1.0), (1.0, 3.0, 3.0, None),
    ]  # fmt: skip
    assert rows[0].note.startswith("plain 2e+03 ms; from eager's output: ours ")


def test_a_step_of_another_network_is_not_timed(monkeypatch):
    family = reduced.REDUCED["sd1"]
    peer = peers.diffusers_unet(family, CPU)
    right = gpu.peer_step
    monkeypatch.setattr(gpu, "peer_step", lambda *given: 1.1 * right(*given))
    (row,) = gpu.steps(Step(family, 16, CPU), peer, Goals(1.0, 3.0, 1.4), clock)
    assert row.ours is None and row.note.startswith("not measured: ") and "not the same function" in row.note


def test_a_step_under_torch_compile(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, mode: network)
    family = reduced.REDUCED["sd1"]
    monkeypatch.setattr(gpu, "SD1", family)
    peer = peers.diffusers_unet(family, CPU)
    rows = list(gpu.compiled_steps(Step(family, 16, CPU), peer, Goals(1.0, 3.0, 1.4), clock))
    assert [(row.ours, row.theirs, row.ratio) for row in rows] == [(1.0, 2.0, 1.4), (1.0, 2.0, None)]
    assert ["without fuse_qkv_projections" in row.note for row in rows] == [True, False]


def test_networks_are_channels_last_ours_too():
    family = reduced.REDUCED["sd1"]
    peer = peers.diffusers_unet(family, CPU)
    ours = peers.our_unet(family, peer)
    theirs, own = peer.conv_in.weight, ours.conv_in.weight
    assert theirs.data_ptr() == own.data_ptr()
    assert own.is_contiguous(memory_format=torch.channels_last) and not own.is_contiguous()


def test_what_torch_compile_cannot_has_no_figures():
    calls = {"ours": lambda: torch.ones(2), "theirs": partial(failing, 1, 2, 3)}
    (row,) = gpu.against("a step", calls, clock, 1.4)
    assert (row.ours, row.theirs, row.met) == (None, None, None)
    assert row.note == "not measured: torch.compile: broken"
    calls["theirs"] = lambda: torch.ones(2) * 1.001
    (row,) = gpu.against("a step", calls, clock, 1.4)
    assert row.met
    calls["theirs"] = lambda: torch.ones(2) * 2
    (row,) = gpu.against("a step", calls, clock, 1.4)
    assert row.ours is None and "not the same function" in row.note


def test_decodings_of_a_small_autoencoder():
    family = reduced.REDUCED["sd1"]
    vae = peers.diffusers_vae(family, CPU)
    (row,) = gpu.decodings(family, vae, CPU, sides=(4,), clock=clock)
    assert (row.ours, row.theirs) == (1.0, 3.0) and row.what.endswith(f"{4 * family.vae.factor}²")


def test_an_image_of_small_networks(monkeypatch):
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    family = reduced.REDUCED["sdxl"]
    unet, vae = peers.diffusers_unet(family, CPU), peers.diffusers_vae(family, CPU)
    pipe = peers.pipeline(family, unet, vae, CPU)
    networks.prepare(pipe)
    row = gpu.image(pipe, {"num_inference_steps": 1, "height": family.size, "width": family.size}, 60.0)
    assert row.met and row.what == f"image of sdxl, {family.size}², steps: 1"
