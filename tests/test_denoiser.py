"""Guidance and what tempers it, against formulas written out here."""

import math

import pytest
import torch

import ldm
from ldm.denoiser import Guidance, rescaled, thresholded
from ldm.errors import InputError
from tests.tiny import error, unit_noise

LEVEL = ldm.Schedule().at(500)


@pytest.fixture(scope="module")
def parts(pipe):
    """A denoiser's ingredients, and what it makes of x for some guidance."""
    cond, uncond = pipe.condition(["a cat", "red"]), pipe.condition(["", "b"])
    x = unit_noise(0, 2, 4, 8, 8)

    def see(guidance, **options):
        with torch.no_grad():
            return ldm.Denoiser(pipe.unet, pipe.family.prediction, cond, uncond, guidance, **options)(
                x, LEVEL
            )

    return see, x


def outs(parts):
    """The network's outputs alone, eps_c and eps_u, read back out of x0."""
    see, x = parts
    back = lambda x0: (x - LEVEL.alpha * x0) / LEVEL.sigma  # noqa: E731
    cond = back(see(1.0))
    both = back(see(2.0))  # 2 c - u
    return cond, 2 * cond - both


def test_guidance_is_the_line_through_both_outputs(parts):
    cond, uncond = outs(parts)
    see, x = parts
    out = uncond + 7.5 * (cond - uncond)
    assert error(see(7.5), ldm.EPS.x0(x, out, LEVEL)) <= 1e-5


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_rescaling_gives_back_the_spread(parts, share):
    cond, uncond = outs(parts)
    see, x = parts
    out = uncond + 7.5 * (cond - uncond)
    whole = torch.stack([row * c.std() / row.std() for row, c in zip(out, cond, strict=True)])
    wanted = ldm.EPS.x0(x, share * whole + (1 - share) * out, LEVEL)
    assert error(see(Guidance(7.5, rescale=share)), wanted) <= 1e-5
    assert torch.allclose(rescaled(out, cond, 1.0).std((1, 2, 3)), cond.std((1, 2, 3)), rtol=1e-5)


def test_outside_its_interval_there_is_no_guidance(parts):
    see, _ = parts
    ratio = LEVEL.ratio
    assert torch.equal(see(Guidance(7.5, interval=(ratio * 1.01, 99))), see(1.0))
    assert torch.equal(see(Guidance(7.5, interval=(0, ratio * 0.99))), see(1.0))
    assert torch.equal(see(Guidance(7.5, interval=(ratio, ratio))), see(7.5))


def test_where_no_signal_is_left_there_is_guidance_too():
    nothing = ldm.Level(999, 0.0, 1.0)
    assert Guidance(7.5).acts(nothing) and not Guidance(1.0).acts(nothing)
    assert not Guidance(7.5, interval=(0, 5)).acts(nothing)


def test_thresholding_cuts_what_guidance_adds(parts):
    see, _ = parts
    cond, full = see(1.0), see(9.0)
    found = see(Guidance(9.0, threshold=0.9))
    for row, c, f in zip(found, cond, full, strict=True):
        limit, most = (float(v.abs().flatten().quantile(0.9)) for v in (c, f))
        assert float(row.abs().max()) == pytest.approx(limit, rel=1e-5)
        assert torch.allclose(row, f.clamp(-most, most) * limit / most, atol=1e-5)
    assert torch.equal(see(Guidance(9.0, threshold=1.0)), full)


def test_thresholding_in_minus_one_to_one_is_imagens():
    x0 = 3 * unit_noise(3, 2, 1, 16, 16)
    inside = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16).expand(2, -1, -1, -1)
    for row, found in zip(x0, thresholded(x0, inside, 0.995), strict=True):
        s = max(1.0, float(row.abs().flatten().quantile(0.995)))
        limit = float(inside[0].abs().flatten().quantile(0.995))
        assert torch.allclose(found, row.clamp(-s, s) / s * limit, atol=2e-3)
    calm = 0.1 * x0
    assert torch.allclose(thresholded(calm, inside, 0.995), calm)  # nothing surpasses: nothing is done


def test_a_call_takes_them_and_tells_them(pipe):
    options = {"seed": 1, "progress": False, "output_type": "latent"}
    plain = pipe("a cat", **options).latents
    for name, value in (
        ("guidance_rescale", 0.7), ("guidance_interval", (0.3, 5)), ("dynamic_threshold", 0.9),
    ):  # fmt: skip
        result = pipe("a cat", **{name: value}, **options)
        assert error(result.latents, plain) > 1e-4 and result.parameters[name] == value
    assert torch.equal(pipe("a cat", guidance_interval=(0, 1e6), **options).latents, plain)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance_rescale", 1.5), ("guidance_rescale", -0.1), ("guidance_rescale", "1"),
        ("guidance_interval", 3), ("guidance_interval", (5, 1)), ("guidance_interval", (0, math.nan)),
        ("dynamic_threshold", 2), ("dynamic_threshold", math.nan),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(pipe, name, value):
    with pytest.raises(InputError, match=name):
        pipe("a cat", **{name: value})
