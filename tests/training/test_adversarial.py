"""The discriminator, its losses and the weight of its judgement."""

from math import exp, log

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.training import HINGE, NON_SATURATING, PatchGAN, adaptive_weight
from tests.tiny import unit_noise

REAL, FAKE = unit_noise(0, 3, 1, 4, 5), unit_noise(1, 3, 1, 4, 5)


def means(rows):
    return pytest.approx([sum(row) / len(row) for row in rows], rel=1e-5)


def pairs():
    return [
        list(zip(r.flatten().tolist(), f.flatten().tolist(), strict=True))
        for r, f in zip(REAL, FAKE, strict=True)
    ]


def test_the_hinge_losses_by_hand():
    hinge = [[(max(0, 1 - r) + max(0, 1 + f)) / 2 for r, f in row] for row in pairs()]
    assert HINGE.discriminator(REAL, FAKE).tolist() == means(hinge)
    assert HINGE.generator(FAKE).tolist() == means([[-f for _, f in row] for row in pairs()])


def test_the_non_saturating_losses_by_hand():
    """Of probabilities D = 1 / (1 + exp(-logit)): -(log D(x) + log(1 - D(y))) / 2 and -log D(y)."""
    d = lambda logit: 1 / (1 + exp(-logit))  # noqa: E731
    cross = [[-(log(d(r)) + log(1 - d(f))) / 2 for r, f in row] for row in pairs()]
    assert NON_SATURATING.discriminator(REAL, FAKE).tolist() == means(cross)
    assert NON_SATURATING.generator(FAKE).tolist() == means([[-log(d(f)) for _, f in row] for row in pairs()])


@pytest.mark.parametrize("adversarial", [HINGE, NON_SATURATING])
def test_the_two_pull_apart(adversarial):
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    adversarial.discriminator(real, fake).sum().backward()
    assert (real.grad <= 0).all() and (fake.grad >= 0).all() and real.grad.any() and fake.grad.any()
    lied = FAKE.clone().requires_grad_()
    adversarial.generator(lied).sum().backward()
    assert (lied.grad < 0).all()


def test_logits_far_off_stay_finite():
    far = torch.full((1, 1, 2, 2), 1e4)
    for adversarial in (HINGE, NON_SATURATING):
        assert (
            adversarial.discriminator(-far, far).isfinite().all() and adversarial.generator(-far).isfinite()
        )


def test_patch_gan_has_the_published_size():
    """Convolutions of 4 × 4, widths 64 to 512: pix2pix's 70 × 70 discriminator, for 3 channels."""
    convs = [3 * 64, 64 * 128, 128 * 256, 256 * 512, 512]
    expected = 16 * sum(convs) + 64 + 2 * (128 + 256 + 512) + 1
    assert sum(p.numel() for p in PatchGAN().parameters()) == expected == 2_765_633


def small():
    torch.manual_seed(0)
    return PatchGAN(channels=2, width=4)


@pytest.mark.parametrize("side, logits", [(256, 30), (64, 6), (70, 6), (32, 2)])
def test_a_logit_stands_for_each_patch(side, logits):
    assert small()(torch.zeros(1, 2, side, side)).shape == (1, 1, logits, logits)


def test_a_logit_sees_70_pixels():
    net, images = small().eval(), unit_noise(0, 1, 2, 128, 128).requires_grad_()
    logits = net(images)
    logits[0, 0, 7, 7].backward()
    rows, columns = images.grad[0].abs().sum(dim=0).nonzero().T
    assert int(rows.max() - rows.min()) + 1 == int(columns.max() - columns.min()) + 1 == 70


def test_it_begins_with_the_spread_it_says():
    torch.manual_seed(0)
    net = PatchGAN()
    widest = net.blocks[2][0].weight.detach()
    assert float(widest.std()) == pytest.approx(0.02, rel=0.01) and abs(float(widest.mean())) < 1e-4
    assert float(net.blocks[2][1].weight.detach().mean()) == pytest.approx(
        1.0, abs=0.004
    )  # 512 of 0.02: ± 0.0009
    assert net.blocks[0][0].bias is None


def test_the_weight_is_the_ratio_of_gradients_at_the_last_layer():
    """Against gradients written out: y = h W, rec = mean (y - x)², adv = -mean y q."""
    h, x, q = unit_noise(0, 6, 3), unit_noise(1, 6, 2), unit_noise(2, 6, 2)
    last = unit_noise(3, 3, 2).requires_grad_()
    y = h @ last
    rec, adv = (y - x).square().mean(), -(y * q).mean()
    of_rec, of_adv = h.T @ (2 * (y.detach() - x)) / 12, -h.T @ q / 12
    found = adaptive_weight(rec, adv, last)
    assert float(found) == pytest.approx(float(of_rec.norm() / (of_adv.norm() + 1e-4)), rel=1e-5)
    assert not found.requires_grad and last.grad is None


def test_with_the_weight_both_pull_equally_and_the_graphs_are_kept():
    conv, images = nn.Conv2d(2, 2, 3, padding=1), unit_noise(0, 2, 2, 32, 32)
    y, judge = conv(images), small().eval()
    rec, adv = F.l1_loss(y, images), HINGE.generator(judge(y)).mean()
    weight = adaptive_weight(rec, adv, conv.weight)
    (weight * adv).backward(retain_graph=True)
    of_adv, conv.weight.grad = conv.weight.grad, None
    rec.backward()
    raw = of_adv.norm() / weight
    assert float(of_adv.norm()) == pytest.approx(
        float(conv.weight.grad.norm() * raw / (raw + 1e-4)), rel=1e-4
    )


def test_the_weight_is_clamped_and_finite():
    last = torch.ones(2, requires_grad=True)
    assert float(adaptive_weight(100 * last.sum(), 0 * last.sum(), last)) == pytest.approx(1e4)
    assert float(adaptive_weight(0 * last.sum(), last.sum(), last)) == 0
    rec, adv = 1e-6 * last.sum(), 0 * last.sum()
    assert float(adaptive_weight(rec, adv, last)) == pytest.approx(2**0.5 * 1e-6 / 1e-4, rel=1e-4)
