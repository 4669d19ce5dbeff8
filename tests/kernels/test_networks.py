"""Networks made ready for a GPU compute the same, to rounding, and refuse what they cannot do any more."""

import copy
import gc
from collections import Counter
from dataclasses import replace
from weakref import ref

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from ldm_kernels import backend, choice, networks

import ldm
from ldm.attention import Attention
from ldm.layers import ResBlock
from ldm.unet.blocks import TransformerBlock
from tests import reduced, tiny
from tests.kernels.ways import by_pytorch, packed, told
from tests.tiny import uncollected, unit_noise

BOUND = 1e-5  # of the largest output: float32 sums in another order
FAMILIES = (  # time that is added and that scales, text and none, labels, vectors, codes, attention in a VAE
    "sd1", "sdxl", "sd-x4-upscaler", "ldm-text2img", "ldm-celeba256", "ldm-churches256", "ldm-cin256-vq-f8",
)  # fmt: skip
OPTIONS = {"seed": 3, "num_inference_steps": 2, "output_type": "np", "progress": False}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def error(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_are_what_they_were(name, monkeypatch):
    by_pytorch(monkeypatch)
    plain, fast = reduced.make(name), packed(name)
    x, t, *more = told(plain, side=16)
    wanted, found = plain.unet(x, t, *more), fast.unet(x, t, *more)
    assert error(found, wanted) < BOUND
    assert error(fast.unet(x, t + 20, *more), wanted) > 100 * BOUND
    z, images = (
        unit_noise(3, 2, plain.vae.config.latent_channels, 8, 8),
        torch.tanh(unit_noise(4, 1, 3, 64, 64)),
    )
    assert error(fast.vae.decode(z), plain.vae.decode(z)) < BOUND
    assert error(fast.vae.encode(images), plain.vae.encode(images)) < BOUND
    assert found.is_contiguous(memory_format=torch.channels_last)


FEW = replace(  # groups, each of which takes the interpreter as long as a hundred pixels
    tiny.TINY, unet=replace(tiny.UNET, groups=2), vae=replace(tiny.AUTOENCODER, groups=2)
)


def test_by_the_kernels_too():
    plain, fast = (tiny.make(FEW) for _ in range(2))
    networks.prepare(fast)
    x, t, context, *_ = told(plain)
    z = unit_noise(3, 1, 4, 6, 6)
    for found, wanted in (
        (fast.unet(x, t, context), plain.unet(x, t, context)),
        (fast.vae.decode(z), plain.vae.decode(z)),
    ):
        assert error(found, wanted) < BOUND and not torch.equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "ldm-celeba256"])
def test_families_by_the_kernels(name):
    plain, fast = reduced.make(name), packed(name)
    given = told(plain, side=8)
    assert error(fast.unet(*given), plain.unet(*given)) < BOUND


def test_pictures_are_the_same(monkeypatch):
    by_pytorch(monkeypatch)
    plain, fast = reduced.make("sd1"), packed("sd1")
    for prompt, more in (("a cat", {}), (["a", "b"], {"guidance_scale": 1.0, "num_inference_steps": 1})):
        found, wanted = (pipe(prompt, **OPTIONS | more).images for pipe in (fast, plain))
        assert np.abs(found - wanted).max() < 1e-4
    assert np.abs(fast("a dog", **OPTIONS).images - plain("a cat", **OPTIONS).images).max() > 1e-3


def test_weights_side_by_side_are_there_once(monkeypatch):
    by_pytorch(monkeypatch)
    fast = packed("sd1")
    for block in fast.unet.modules():
        if isinstance(block, TransformerBlock):
            own, text = block.self_attn, block.cross_attn
            assert len({layer.weight.untyped_storage().data_ptr() for layer in (own.q, own.k, own.v)}) == 1
            assert len({layer.weight.untyped_storage().data_ptr() for layer in (text.k, text.v)}) == 1
    times = [block.time for block in fast.unet.modules() if isinstance(block, ResBlock)]
    (storage,) = {layer.weight.untyped_storage().data_ptr() for layer in times}
    whole = times[0].weight.untyped_storage()
    assert whole.data_ptr() == storage and whole.nbytes() == 4 * sum(layer.weight.numel() for layer in times)


def test_layers_still_have_the_weights_that_they_had():
    plain, fast = (tiny.make() for _ in range(2))
    networks.prepare(fast)
    for (name, was), (_, now) in zip(plain.unet.named_modules(), fast.unet.named_modules(), strict=True):
        if isinstance(was, Attention):
            x = unit_noise(0, 3, was.q.in_features)
            assert torch.equal(was.q(x), now.q(x)) and torch.equal(was.v.weight, now.v.weight), name


def test_texts_and_levels_are_heard_once_a_prompt(monkeypatch):
    by_pytorch(monkeypatch)
    fast, asked, product = packed("sd1"), Counter(), networks.Product.__call__

    def counted(self, x):
        asked[self] += 1
        return product(self, x)

    monkeypatch.setattr(networks.Product, "__call__", counted)
    blocks = sum(isinstance(module, TransformerBlock) for module in fast.unet.modules())
    for prompts in (1, 2):
        fast("a cat", **OPTIONS | {"output_type": "latent"})
        often = Counter(asked.values())
        steps = OPTIONS["num_inference_steps"]
        assert often == {prompts: blocks + 1, steps * prompts: blocks}  # text and levels; tokens of pixels


def test_a_backend_in_force_wins(monkeypatch):
    by_pytorch(monkeypatch)
    fast, asked = packed("sd1"), Counter()
    monkeypatch.setattr(backend, "run", lambda *given: asked.update(["ours"]) or backend.plain(*given))
    given = told(fast)

    def own(q, k, v, causal):
        asked["own"] += 1
        return backend.plain(q, k, v)

    fast.unet(*given)
    count = asked["ours"]
    assert count > 10
    with ldm.attention_backend(own):
        fast.unet(*given)
    with ldm.attention_backend("sdpa"):
        fast.unet(*given)
    assert asked == {"ours": count, "own": count}
    with ldm.attention_backend("triton"):
        fast.unet(*given)
    assert asked["ours"] == 2 * count


def test_what_it_attends_to_can_be_watched(monkeypatch):
    by_pytorch(monkeypatch)
    maps = []
    for pipe in (reduced.make("sd1"), packed("sd1")):
        with ldm.record_attention(pipe) as seen:
            pipe("a red cat", **OPTIONS)
        maps.append(torch.as_tensor(seen["red"]))
    assert float((maps[0] - maps[1]).abs().max()) < 1e-4


def test_what_is_packed_goes_with_its_pipeline(monkeypatch):
    by_pytorch(monkeypatch)
    fast = packed("sd1")
    fast.unet(*told(fast))
    fast.vae.decode(unit_noise(0, 1, 4, 8, 8))
    gone = [ref(thing) for thing in (fast.unet, fast.unet.mid, fast.unet.conv_in.weight, fast.vae.decoder)]
    with uncollected():
        del fast
        assert [thing() for thing in gone] == [None] * 4


def test_a_copy_computes_by_itself(monkeypatch):
    by_pytorch(monkeypatch)
    fast = packed("sd1")
    given, z = told(fast), unit_noise(0, 1, 4, 8, 8)
    wanted = fast.unet(*given), fast.vae.decode(z)
    again = copy.deepcopy(fast)
    for p in (*fast.unet.parameters(), *fast.vae.parameters()):
        p.zero_()
    assert not torch.equal(fast.vae.decode(z), wanted[1])
    del fast
    gc.collect()
    assert torch.equal(again.unet(*given), wanted[0]) and torch.equal(again.vae.decode(z), wanted[1])


def test_torch_compile_leaves_it_alone(monkeypatch):
    by_pytorch(monkeypatch)
    fast, graphs = packed("sd1"), []
    given = told(fast)
    wanted = fast.unet(*given)

    def compiler(graph, _):
        graphs.append(graph)
        return graph.forward

    assert torch.equal(torch.compile(fast.unet, backend=compiler)(*given), wanted) and not graphs


# what cannot be


def test_what_is_packed_only_draws(monkeypatch, tmp_path):
    by_pytorch(monkeypatch)
    fast = packed("sd1")
    networks.prepare(fast)  # again: nothing is left to do
    for refused in (
        lambda: ldm.save(fast, tmp_path / "a.safetensors"),
        lambda: fast.to(dtype=torch.float16),
        lambda: fast.load_lora("examples/lora/houses.safetensors"),
    ):
        with pytest.raises(ldm.InputError, match="packed"):
            refused()
    x, *more = told(fast)
    with torch.enable_grad(), pytest.raises(ldm.InputError, match="no gradients"):
        fast.unet(x.requires_grad_(), *more)


def test_on_a_gpu_it_is_of_half_precision(monkeypatch):
    monkeypatch.setattr(choice, "INTERPRETED", False)
    pipe = tiny.make()
    with pytest.raises(ldm.InputError, match=r"float32 on cpu; .* dtype=torch.bfloat16"):
        networks.prepare(pipe)
    assert not getattr(pipe.unet, "packed", False)


def test_pack_of_a_model_on_a_gpu_is_this(monkeypatch):
    seen, pipe = [], tiny.make()
    monkeypatch.setattr(type(pipe), "device", torch.device("cuda"))
    monkeypatch.setattr(networks, "prepare", seen.append)
    assert pipe.pack() is pipe and seen == [pipe]


def test_without_triton_it_is_one_sentence(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'triton'")

    pipe = tiny.make()
    monkeypatch.setattr(type(pipe), "device", torch.device("cuda"))
    monkeypatch.setattr("ldm.model.import_module", missing)
    with pytest.raises(ldm.LdmError, match=r"needs Triton .*ldm\[triton\]") as caught:
        pipe.pack()
    assert str(caught.value).count("\n") == 0
