"""Triton's attention under its interpreter, whose bfloat16 products are wrong, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from ldm_kernels import backend, choice
from ldm_kernels.attention import forward
from ldm_kernels.tiles import MOST_RESIDENT, Tiles, tiles_for, two_parts

import ldm
from tests.tiny import unit_noise

# Of outputs that are means of v: float32 rounds scores of about 1 ten times or so; float16 rounds p and the
# output, each by 2^-11 of values up to 5
BOUNDS = {torch.float32: 4e-6, torch.float16: 5e-3}


def exact(q, k, v):
    scores = torch.einsum("bhnd,bhmd->bhnm", q.double(), k.double()) / q.shape[3] ** 0.5
    return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), v.double())


def inputs(b, h, n, m, d, dtype, layout, seed=0):
    """q [b h n d], k and v [b h m d], as parts of one projection, as tensors of their own, or with gaps."""
    if layout == "fused":
        n = m
        x = unit_noise(seed, b, n, 3 * h * d).to(dtype)
        return tuple(part.unflatten(2, (h, d)).transpose(1, 2) for part in x.chunk(3, dim=2))
    found = [unit_noise(seed + i, b, h, length, 2 * d).to(dtype) for i, length in enumerate((n, m, m))]
    return tuple(x[..., d:] if layout == "gaps" else x[..., :d].contiguous() for x in found)


@settings(max_examples=20, deadline=None)
@given(
    b=st.integers(1, 2), h=st.integers(1, 3), n=st.integers(1, 300), m=st.integers(1, 300),
    d=st.integers(8, 160), dtype=st.sampled_from(list(BOUNDS)),
    layout=st.sampled_from(["fused", "gaps", "plain"]),
)  # fmt: skip
def test_any_shape_is_attention(b, h, n, m, d, dtype, layout):
    q, k, v = inputs(b, h, n, m, d, dtype, layout)
    out = forward(q, k, v)
    assert out.shape == q.shape and out.dtype == dtype
    assert float((out.double() - exact(q, k, v)).abs().max()) < BOUNDS[dtype]


HEADS = {"SD 1": (40, 80, 160), "SD 2 and SDXL": (64,), "an autoencoder": (512,)}


@pytest.mark.parametrize("d", [d for widths in HEADS.values() for d in widths])
@pytest.mark.parametrize("m", [77, 154, 200])
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
def test_heads_of_the_families(d, m, dtype):
    q, k, v = inputs(1, 1, 40, m, d, dtype, "plain")
    assert float((forward(q, k, v).double() - exact(q, k, v)).abs().max()) < BOUNDS[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("m", [5, 77, 160])
def test_both_kernels_and_all_tiles_agree(m):
    q, k, v = inputs(2, 2, 70, m, 40, torch.float32, "gaps")
    wanted = exact(q, k, v)
    for tiles in (Tiles(32, 0, 4), Tiles(16, 0, 4, turns=3), Tiles(64, 16, 4), Tiles(16, 64, 4)):
        assert float((forward(q, k, v, tiles) - wanted).abs().max()) < BOUNDS[torch.float32]


def test_the_bound_would_see_a_key_left_out():
    q, k, v = inputs(1, 1, 20, 77, 40, torch.float16, "plain")
    out = forward(q, k[:, :, :76], v[:, :, :76])
    assert float((out.double() - exact(q, k, v)).abs().max()) > 2 * BOUNDS[torch.float16]


@pytest.mark.parametrize("scale", [30.0, 1e-4])
def test_scores_of_any_size(scale):
    q, k, v = inputs(1, 2, 33, 130, 64, torch.float32, "plain")
    assert float((forward(q * scale, k, v) - exact(q * scale, k, v)).abs().max()) < 1e-4


def test_lengths_in_two_parts():
    found = {length: two_parts(length) for length in (8, 16, 40, 64, 77, 80, 100, 154, 160, 512)}
    assert found == {
        8: (16, 0), 16: (16, 0), 40: (32, 16), 64: (64, 0), 77: (64, 16), 80: (64, 16), 100: (128, 0),
        154: (128, 32), 160: (128, 32), 512: (512, 0),
    }  # fmt: skip
    for length in range(1, 600):
        first, second = two_parts(length)
        assert first + second >= length and second < first
    assert tiles_for(4096, 77, 40).resident and not tiles_for(4096, MOST_RESIDENT + 1, 40).resident


# as a backend


def test_networks_attend_through_it(tiny_unet):
    unet, x, context = tiny_unet
    with torch.no_grad():
        wanted = unet(x, torch.tensor([500.0]), context)
        with ldm.attention_backend("triton"):
            found = unet(x, torch.tensor([500.0]), context)
    assert not torch.equal(found, wanted) and float((found - wanted).abs().max()) < 1e-5


@pytest.fixture
def tiny_unet():
    from tests.tiny import make

    pipe = make()
    config = pipe.unet.config
    return pipe.unet, unit_noise(0, 1, config.in_channels, 8, 8), unit_noise(1, 1, 7, config.context_dim)


def test_what_the_kernels_do_not_know_is_pytorchs(monkeypatch):
    monkeypatch.setitem(backend.run.ways, "triton", lambda *_: pytest.fail("a kernel ran"))
    q, k, v = inputs(1, 2, 20, 20, 16, torch.float32, "plain")
    wide = inputs(1, 1, 4, 4, 600, torch.float32, "plain")
    with ldm.attention_backend("triton"):
        ldm.attention(q, k, v, causal=True)
        ldm.attention(*wide)
        ldm.attention(q[..., ::2], k[..., ::2], v[..., ::2])


def test_gradients_are_those_of_attention():
    given = [x.requires_grad_() for x in inputs(1, 2, 20, 30, 40, torch.float32, "plain")]
    with ldm.attention_backend("triton"):
        out = ldm.attention(*given)
    wanted = ldm.attention(*given)
    weight = unit_noise(9, *out.shape)
    pairs = zip(
        torch.autograd.grad((out * weight).sum(), given),
        torch.autograd.grad((wanted * weight).sum(), given),
        strict=True,
    )
    assert all(float((a - b).abs().max()) < 1e-5 for a, b in pairs)


def test_without_a_gpu_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr(choice, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ldm.LdmError, match="needs a GPU") as caught, ldm.attention_backend("triton"):
        pass
    assert str(caught.value).count("\n") == 0
