"""What only a GPU can show: TRITON_INTERPRET=0 python -m pytest tests/kernels/test_gpu.py"""

import gc
import threading

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from ldm_kernels import backend, choice, ways
from ldm_kernels.steps import Captured

import ldm
from ldm.once import Once
from tests import reduced
from tests.tiny import error, unit_noise

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or choice.INTERPRETED, reason="there is no GPU, or kernels are interpreted"
)
TYPES = (torch.float16, torch.bfloat16)
ROUNDED = {torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of a norm: a few roundings by 2^-11, 2^-8
DEEP = 5e-2  # through a network in bfloat16
OPTIONS = {"seed": 3, "num_inference_steps": 4, "output_type": "latent", "progress": False}
SHAPES = [(2, 8, 4096, 40), (2, 8, 256, 160), (2, 10, 1024, 64), (1, 1, 4096, 512)]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def on_gpu(dtype, *shape, seed=0):
    return unit_noise(seed, *shape).to("cuda", dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("m", [None, 77])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_by_each_way(shape, m, dtype):
    b, h, n, d = shape
    q, k, v = (on_gpu(dtype, b, length, 3 * h * d, seed=i) for i, length in enumerate((n, m or n, m or n)))
    q, k, v = (x[..., h * d : 2 * h * d].unflatten(2, (h, d)).transpose(1, 2) for x in (q, k, v))
    wanted = backend.plain(*(x.double() for x in (q, k, v)))
    assert error(backend.forward(q, k, v), wanted) < ROUNDED[dtype]
    assert error(backend.run(q, k, v), wanted) < ROUNDED[dtype]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("c", "side"), [(320, 64), (1920, 16), (1280, 8), (128, 512)])
def test_norms_and_sums(c, side, dtype):
    x, z = (on_gpu(dtype, 2, c, side, side, seed=i).to(memory_format=torch.channels_last) for i in range(2))
    w, bias, added = (on_gpu(dtype, *size, seed=7) for size in ((c,), (c,), (2, c)))
    film = on_gpu(dtype, 2, 2 * c)
    exact = [
        y if isinstance(y, float | int | bool) else y.double()
        for y in (x, 32, w, bias, 1e-5, True, added, film)
    ]
    found = ways.group_norm(x, 32, w, bias, 1e-5, True, added, film)
    assert error(found, ways.plain_group_norm(*exact)) < ROUNDED[dtype]
    tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
    wanted = F.layer_norm(tokens.double(), (c,), w.double(), bias.double())
    assert error(ways.layer_norm(tokens, w, bias), wanted) < ROUNDED[dtype]
    assert error(ways.geglu(tokens), ways.plain_geglu(tokens.double())) < ROUNDED[dtype]
    wanted = ways.plain_joined(x.double(), z.double(), bias.double())
    assert error(ways.joined(x, z, bias), wanted) < ROUNDED[dtype]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd-x4-upscaler", "ldm-celeba256", "ldm-churches256"])
def test_networks_are_what_they_were(name, dtype):
    exact, fast = reduced.make(name).to("cuda"), reduced.make(name).to("cuda", dtype)
    fast.pack()
    config, b = exact.unet.config, 2
    x = on_gpu(torch.float32, b, config.in_channels, 16, 16)
    context = on_gpu(torch.float32, b, 77, config.context_dim) if config.context_dim else None
    vector = on_gpu(torch.float32, b, config.vector_dim) if config.vector_dim else None
    label = torch.tensor([3, 20], device="cuda") if config.labels else None
    t = torch.tensor([3.0, 900.0], device="cuda")
    wanted = exact.unet(x, t, context, vector, label)
    narrow = [y if y is None else y.to(dtype) for y in (context, vector)]
    for _ in range(4):  # as ever, recorded, repeated twice
        time = Once(fast.unet.embed(t, narrow[1], label))
        heard = None if narrow[0] is None else Once(narrow[0])
        assert error(fast.unet(x.to(dtype), time, heard), wanted) < DEEP
    z = on_gpu(torch.float32, 1, exact.vae.config.latent_channels, 16, 16)
    assert error(fast.decode(z), exact.decode(z)) < DEEP


def captured(pipe: ldm.Pipeline) -> Captured:
    """The graphs of a packed UNet."""
    (found,) = pipe.unet.forward.more
    return found


@pytest.fixture(scope="module")
def pipe():
    made = reduced.make("sd1").to("cuda", torch.bfloat16).pack()
    made("a cat", **OPTIONS)
    return made


def test_paths_from_graphs_are_what_they_are_without(pipe):
    found = [pipe(prompt, **OPTIONS).latents for prompt in ("a cat", "a dog", "a cat")]
    assert captured(pipe).graphs
    with torch.no_grad():
        hook = pipe.unet.conv_in.register_forward_hook(lambda *_: None)  # as ever
        wanted = [pipe(prompt, **OPTIONS).latents for prompt in ("a cat", "a dog", "a cat")]
        hook.remove()
    assert all(error(a, b) < 1e-2 for a, b in zip(found, wanted, strict=True))
    assert error(found[0], found[1]) > 2e-2 and torch.equal(found[0], found[2])


def test_texts_from_graphs_are_what_they_are_without():
    fast, plain = (reduced.make("sdxl").to("cuda", torch.bfloat16) for _ in range(2))
    fast.pack()
    for encoder, own in zip(fast.text_encoders, plain.text_encoders, strict=True):
        for seed in range(4):  # as ever, recorded, repeated twice
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(0, own.config.vocab, (2, own.config.length), generator=generator).cuda()
            for found, wanted in zip(encoder.pooled(ids), own.pooled(ids), strict=True):
                assert found is wanted is None or error(found, wanted) < 1e-2
        assert len(encoder.pooled.graphs) == 1
        for network in (encoder, own):  # and back, to where it may not have lain
            for weight in network.to("cpu").parameters():
                weight.mul_(1.1)
        held = torch.full((2**22,), float("nan"), device="cuda")
        for network in (encoder, own):
            network.to("cuda")
        assert error(encoder.pooled(ids)[0], own.pooled(ids)[0]) < 1e-2 and held.isnan().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_on_a_gpu_that_is_not_the_current_one():
    def latents(device):
        pipe = reduced.make("sdxl").to(device, torch.bfloat16).pack()
        return [pipe(prompt, **OPTIONS).latents.cpu() for prompt in ("a", "a", "a cat", "red", "a")]

    for one, other in zip(latents("cuda:0"), latents("cuda:1"), strict=True):
        assert error(one, other) < 1e-2


def test_the_host_waits_for_nothing(pipe):
    x, context = (
        on_gpu(torch.bfloat16, 1, 4, 8, 8),
        Once(on_gpu(torch.bfloat16, 1, 77, pipe.unet.config.context_dim)),
    )
    times = [Once(pipe.unet.embed(torch.tensor([t], device="cuda"))) for t in (900.0, 500.0, 100.0)]
    for time in times:
        pipe.unet(x, time, context)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for time in times:
            pipe.unet(x, time, context)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_threads_with_streams_of_their_own(pipe):
    prompts, found = ["a cat", "red", "a dog", "blue"], {}

    def work(prompt):
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            found[prompt] = [pipe(prompt, **OPTIONS).latents.cpu() for _ in range(5)]

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in prompts:
        wanted = pipe(prompt, **OPTIONS).latents.cpu()
        assert all(torch.equal(each, wanted) for each in found[prompt])


def test_graphs_of_a_network_that_is_gone_are_not_missed():
    def drawn(pipe):
        return pipe("a cat", **OPTIONS).latents

    one, other = (reduced.make("sd1").to("cuda", torch.bfloat16).pack() for _ in range(2))
    drawn(one)
    drawn(other)
    wanted = drawn(other)  # all of it from graphs
    del one
    gc.collect()
    torch.cuda.empty_cache()
    filled = [torch.full((2**20,), float("nan"), device="cuda") for _ in range(64)]  # where it was
    assert torch.equal(drawn(other), wanted) and torch.isfinite(wanted).all()
    del filled


def test_a_wide_head_takes_little_memory():
    q, k, v = (on_gpu(torch.bfloat16, 1, 1, 16384, 512, seed=i) for i in range(3))
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    backend.run(q, k, v)
    assert torch.cuda.max_memory_allocated() - before < 0.95e9


def test_an_autoencoder_in_float32_decodes_in_bfloat16_if_it_may(caplog):
    fast = reduced.make("sdxl").to("cuda", torch.float16)
    assert fast.vae.decoder.conv_in.weight.dtype == torch.float32
    fast.pack()
    stays = "the autoencoder decodes in torch.float32" in caplog.text
    assert (fast.vae.decoder.conv_in.weight.dtype == torch.float32) == stays
    assert fast.vae.encoder.conv_in.weight.dtype == torch.float32
    assert torch.isfinite(fast.decode(unit_noise(0, 1, 4, 16, 16))).all()
    assert torch.isfinite(fast.encode(torch.tanh(unit_noise(1, 1, 3, 64, 64)))).all()
