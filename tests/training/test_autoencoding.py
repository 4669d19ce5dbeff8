"""The losses of the autoencoder against their closed forms."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence

from ldm.errors import InputError
from ldm.training import gaussian_kl, gradient_difference, l1, l2, quantised, sampled, scale_of
from ldm.vae.quantize import Codebook
from tests.tiny import error, unit_noise

X, Y = unit_noise(0, 3, 3, 16, 24), unit_noise(1, 3, 3, 16, 24)


def test_l1_and_l2_are_means_over_each_image():
    assert l1(X, Y).tolist() == pytest.approx([float(F.l1_loss(x, y)) for x, y in zip(X, Y, strict=True)])
    assert l2(X, Y).tolist() == pytest.approx([float(F.mse_loss(x, y)) for x, y in zip(X, Y, strict=True)])


def test_the_kl_is_that_of_the_distributions():
    mean, logvar = unit_noise(0, 3, 4, 5, 6).double(), unit_noise(1, 3, 4, 5, 6).double()
    q = Independent(Normal(mean, (logvar / 2).exp()), 3)
    p = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 3)
    found = gaussian_kl(mean, logvar)
    assert torch.allclose(found, kl_divergence(q, p), rtol=1e-12)
    assert not torch.allclose(found, kl_divergence(p, q), rtol=0.01)
    assert gaussian_kl(0 * mean, 0 * logvar).tolist() == [0, 0, 0]


def test_samples_have_the_mean_and_variance_they_are_drawn_with():
    mean, logvar = torch.full((1, 1, 300, 300), 0.7), torch.full((1, 1, 300, 300), -1.2)
    z = sampled(mean, logvar, unit_noise(0, 1, 1, 300, 300)).double()
    # 90000 numbers of deviation 0.55: the mean ± 0.002, the variance ± 0.0014; four of them
    assert float(z.mean()) == pytest.approx(0.7, abs=0.008)
    assert float(z.var()) == pytest.approx(float(torch.tensor(-1.2).exp()), abs=0.006)


def test_the_gradient_of_a_sample_reaches_mean_and_variance():
    mean, logvar, eps = (unit_noise(i, 2, 1, 2, 2).requires_grad_(i < 2) for i in range(3))
    sampled(mean, logvar, eps).sum().backward()
    assert torch.equal(mean.grad, torch.ones_like(mean))
    assert torch.allclose(logvar.grad, eps * (logvar / 2).exp() / 2)


def codebook_and_codes():
    """A codebook, latents, and for each place the nearest code by trying all."""
    codebook, z = Codebook(7, 4), unit_noise(0, 2, 4, 3, 5)
    with torch.no_grad():
        codebook.codes.weight.copy_(unit_noise(1, 7, 4))
    away = (z[:, None] - codebook.codes.weight[None, :, :, None, None]).square().sum(dim=2)
    return codebook, z.requires_grad_(), away.argmin(dim=1)


@pytest.mark.parametrize("beta", [0.25, 1.0, 3.0])
def test_codes_and_latents_are_drawn_to_one_another(beta):
    """|sg(z) - e|² pulls e with 2 (e - z), beta |z - sg(e)|² pulls z with 2 beta (z - e), both over c h w."""
    codebook, z, nearest = codebook_and_codes()
    e = codebook.codes.weight.detach()[nearest].permute(0, 3, 1, 2)
    _, loss = quantised(codebook, z, beta)
    assert torch.allclose(loss, (1 + beta) * (z - e).square().mean(dim=(1, 2, 3)))
    loss.sum().backward()
    of_z = 2 * (z - e).detach() / e[0].numel()
    assert torch.allclose(z.grad, beta * of_z, atol=1e-7)
    of_codes = torch.stack([-(of_z * (nearest == k)[:, None]).sum(dim=(0, 2, 3)) for k in range(7)])
    assert torch.allclose(codebook.codes.weight.grad, of_codes, atol=1e-6)


def test_the_gradient_goes_straight_through_the_codes():
    codebook, z, nearest = codebook_and_codes()
    codes, _ = quantised(codebook, z)
    assert error(codes.detach(), codebook.codes.weight.detach()[nearest].permute(0, 3, 1, 2)) < 1e-6
    pull = unit_noise(3, *codes.shape)
    (codes * pull).sum().backward()
    assert torch.equal(z.grad, pull) and codebook.codes.weight.grad is None


def test_beta_is_a_quarter_unless_told():
    codebook, z, _ = codebook_and_codes()
    assert torch.equal(quantised(codebook, z)[1], quantised(codebook, z, 0.25)[1])


def test_gradient_differences_by_hand():
    """A step of 2 between two columns: 4 of 12 differences along rows, none along columns."""
    x, y = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    x[..., 2:] = 2.0
    once = (0 + 2 * 4 / 12) / 2
    halved = (0 + 2 * 2 / 2) / 2  # 2 × 2: both differences along rows are 2
    assert gradient_difference(x, y, scales=1).tolist() == pytest.approx([once])
    assert gradient_difference(x, y, scales=2).tolist() == pytest.approx([(once + halved) / 2])


def test_halving_takes_means():
    """Stripes 0 1 1 0 are grey at half their size, so the coarser scale adds nothing."""
    stripes = torch.tensor([0.0, 1, 1, 0, 0, 1, 1, 0]).expand(1, 1, 8, 8)
    found = [float(gradient_difference(stripes, 0 * stripes, scales)) for scales in (1, 2)]
    assert found == pytest.approx([2 / 7, 1 / 7])


def test_gradient_differences_see_edges_and_no_shade():
    assert float(gradient_difference(X, X + 0.3).max()) < 1e-6  # rounding
    assert torch.allclose(gradient_difference(X, Y), gradient_difference(Y, X))
    blurred = F.avg_pool2d(X, 3, stride=1, padding=1)
    far, near = gradient_difference(X, blurred), gradient_difference(X, (X + blurred) / 2)
    assert (far > 1.9 * near).all() and (near > 0).all()
    alone = torch.cat([gradient_difference(X[i : i + 1], Y[i : i + 1]) for i in range(3)])
    assert torch.allclose(gradient_difference(X, Y), alone)


def test_small_images_have_few_scales():
    small = torch.zeros(1, 3, 7, 32)
    assert gradient_difference(small, small, scales=2).tolist() == [0]
    with pytest.raises(InputError, match=r"\[7, 32\] pixels have no 3 scales"):
        gradient_difference(small, small)


def test_the_scale_brings_latents_to_unit_variance():
    z = 3 + 5.5 * unit_noise(0, 50, 4, 8, 8)
    scale = scale_of([z[:30], z[30:49], z[49:]])
    assert scale == pytest.approx(1 / float(z.double().std(correction=0)), rel=1e-10)
    assert float((z * scale).var()) == pytest.approx(1, abs=1e-3)


def test_the_scale_does_not_depend_on_how_data_are_cut_or_how_far_off_their_mean_is():
    z = 1e4 + unit_noise(0, 64, 4, 4, 4)
    whole, cut = scale_of([z]), scale_of(z.split([1, 20, 43]))
    assert cut == pytest.approx(whole, rel=1e-12) and whole == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("batches", [[], [torch.zeros(1, 1, 1, 1)], [torch.ones(2, 4, 8, 8)] * 2])
def test_there_is_no_scale_without_variance(batches):
    with pytest.raises(InputError, match="the scale needs latents that differ"):
        scale_of(batches)


@pytest.mark.parametrize("loss", [l1, l2, gradient_difference, partial(gradient_difference, scales=1)])
def test_a_distance_is_per_image_and_has_a_gradient(loss):
    y = Y.clone().requires_grad_()
    found = loss(X, y)
    assert found.shape == (3,)
    found[1].backward()
    assert y.grad[1].any() and not y.grad[0].any() and not y.grad[2].any()
