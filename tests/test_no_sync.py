"""Within a step the host never waits for a GPU: what it reads, it reads after the last one.

Shown without a GPU on two devices: on the CPU every operation is seen; on meta, which has no values, whatever
would read one fails, and what the host sends is seen as well.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldm import noise, philox, pipeline, walk
from tests import tiny
from tests.test_pipeline import SAMPLERS, half_mask, picture

DEVICES = ("cpu", "meta")
STEPS = 4
OPTIONS = {
    "prompt": "a cat", "seed": 1, "num_inference_steps": STEPS, "progress": False, "output_type": "latent",
}  # fmt: skip
PAINTED = {"image": picture(), "mask_image": half_mask(), "strength": 0.75}
VARIED = {"variation_seed": 5, "variation_strength": 0.3}
CALLS = {
    **{name: {"sampler": name} for name in SAMPLERS},
    "rescale": {"guidance_rescale": 0.7},
    "interval": {"guidance_interval": (0.3, 5)},
    "threshold": {"dynamic_threshold": 0.9},
    "no guidance": {"guidance_scale": 1.0},
    "image": {"image": picture(), "strength": 0.75},
    "mask": PAINTED | {"sampler": "euler_ancestral"},
    "mask and motion": PAINTED | {"sampler": "dpmpp_sde"},
    "philox": {"noise": "philox", "sampler": "euler_ancestral"},
    "variation": VARIED | {"sampler": "ddpm"},
    "variation and motion": VARIED | {"sampler": "dpmpp_sde"},
    "lengths": {"prompt": ["a cat", " ".join(["a cat"] * 30), "red"], "sampler": "uni_pc"},
    "callback": {"callback": lambda step, level, x, x0: x.add(x0)},
}

aten = torch.ops.aten
WAITING = (
    aten._local_scalar_dense,  # item, bool, float
    aten.is_nonzero, aten.equal, aten.allclose,
    aten.nonzero, aten.masked_select,  # of what size?
    aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten.index, aten.index_put, aten.index_put_,  # by a mask, or by a list, which is sent
    aten.lift_fresh,  # a tensor of numbers, which are sent
)  # fmt: skip


class Watch(TorchDispatchMode):
    """Within it nothing may be done that makes the host wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in WAITING, f"{func} makes the host wait"
        out = func(*args, **kwargs or {})
        if func.overloadpacket in (aten._to_copy, aten.copy_):
            devices = {x.device for x in (out, *args) if isinstance(x, torch.Tensor)}
            assert len(devices) == 1, f"{func} from {devices} makes the host wait"
        return out


def on(device):
    """A pipeline on the CPU or on meta."""
    pipe = tiny.make()
    for network in pipe.networks():
        network.to(device)
    return pipe


@pytest.fixture(scope="module", params=DEVICES)
def pipe(request):
    pipe = on(request.param)
    pipe.unet.forward = lambda x, t, context, vector, label: x / 2  # the network itself is watched once
    return pipe


@pytest.fixture
def call(pipe, monkeypatch):
    """A call whose steps are watched, from before the first to after the last; gives back how many."""
    read = []

    def run(*args):
        with Watch():
            return walk.run(*args)

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(walk, "check_finite", lambda finite, stage: read.extend(finite))
    monkeypatch.setattr(philox, "normal", lambda seed, shape, offset: torch.ones(shape))  # no numpy to lift
    if pipe.device.type == "meta":  # past the doors that refuse it
        monkeypatch.setattr(pipeline, "encode", lambda model, images, tile: model.vae.encode(images))
        for module in (noise, philox):
            monkeypatch.setattr(module, "sent", lambda x, device: torch.empty_like(x, device=device))

    def call(**options):
        pipe(**OPTIONS | options)
        return len(read)

    return call


@pytest.mark.parametrize("name", CALLS)
def test_the_host_waits_for_nothing_within_a_step(call, name):
    assert call(**CALLS[name]) == STEPS * CALLS[name].get("strength", 1)


@pytest.mark.parametrize("device", DEVICES)
def test_nor_within_the_network(device):
    shapes = (2, 4, 8, 8), (2,), (2, 20, tiny.UNET.context_dim)
    unet, given = on(device).unet, [torch.ones(shape, device=device) for shape in shapes]
    with Watch(), torch.no_grad():
        assert unet(*given).shape == shapes[0]


LOOKS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.isfinite().all()),
    "mask": lambda x: x[x > 0],
    "list": lambda x: x[[0]],
    "nonzero": torch.nonzero,
    "equal": lambda x: torch.equal(x, x),
    "unique": torch.unique,
    "select": lambda x: torch.masked_select(x, x > 0),
    "numbers": lambda x: x + torch.tensor([1.0], device="cpu").to(x.device),
    "recording": None,
}


@pytest.mark.parametrize("name", LOOKS)
def test_who_looks_is_caught(call, pipe, name):
    look = LOOKS[name]
    if look is None and pipe.device.type == "cpu":
        pytest.skip("from the CPU to the CPU nothing is sent")
    told = {"record": True} if look is None else {"callback": lambda step, level, x, x0: look(x)}
    with pytest.raises((AssertionError, NotImplementedError)):
        call(**told)


class Told:
    """A tensor that notes what is done with it."""

    def __init__(self):
        self.done = []

    def pin_memory(self):
        self.done.append("pinned")
        return self

    def to(self, device, non_blocking):
        self.done.append((str(device), non_blocking))
        return self


def test_cuda_fetches_noise_from_pinned_memory():
    for device in ("cuda", torch.device("cuda", 1)):
        assert noise.sent(Told(), device).done == ["pinned", (str(device), True)]
    x = torch.ones(3)
    assert noise.sent(x, "cpu") is x and noise.sent(Told(), "cpu").done == [("cpu", False)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", CALLS)
def test_cuda_says_so_too(monkeypatch, name):
    pipe = tiny.make().to("cuda")

    def run(start, path, steps, *rest):
        def strict():
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield from steps
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return walk.run(start, path, strict(), *rest)

    monkeypatch.setattr(pipeline, "run", run)
    pipe(**OPTIONS | CALLS[name])
