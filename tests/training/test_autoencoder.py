"""Autoencoders learn: each player by its own gradient, a discriminator from its step on, and bit for bit."""

import os
import socket
import sys
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ldm.errors import InputError
from ldm.evaluation.shapes.world import draw, training_scenes
from ldm.ranks import Ranks, joined
from ldm.training import config, gaussian_kl, gradient_difference, l1, l2, quantised, sampled
from ldm.training.autoencoder import ADVERSARIALS, Autoencoding, VaeSettings, check
from ldm.training.checkpoints import latest
from ldm.training.data import Batch
from ldm.training.distributed import spread, unsynced
from ldm.training.draws import of_rows
from ldm.training.ema import Average, trained
from ldm.training.loop import Plan, Run, train
from ldm.training.reconstruction import psnr, reconstructed
from ldm.training.settings import Settings
from ldm.vae import VAE, VAEConfig
from tests.tiny import error, same

KL = VAEConfig(channels=(16, 32), res_blocks=1, groups=8, mid_attention=False, scale=1.0)
VQ = replace(KL, codes=32)
SIDE, SIZE = 32, 4  # pixels, images of a step
JUDGED = VaeSettings(batch=SIZE, adversarial=0.7, judge_width=4)
QUIET = VaeSettings(batch=SIZE)


def scenes(number, skip=0):
    """Pictures of the bundled model's world, at half their size. [n 3 32 32] in [-1, 1]."""
    drawn = np.stack([draw(scene) for scene in islice(training_scenes(0), skip, skip + number)])
    return F.avg_pool2d(rearrange(torch.from_numpy(drawn), "b h w c -> b c h w") / 127.5 - 1, 2)


X = scenes(3 * SIZE)


def batch_of(images):
    n = len(images)
    return Batch(images, [None] * n, [""] * n, [(SIDE, SIDE)] * n, [(0, 0)] * n, {})


def objective(shape=KL, settings=JUDGED, **options):
    torch.manual_seed(0)
    return Autoencoding(VAE(shape), settings, **options)


def rows_of(step, size=SIZE):
    return range(step * size, (step + 1) * size)


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def generator_loss(learner, x, rows):
    """rec + perceptual + regularisation, what is judged, and what lambda compares with, written out."""
    vae, settings = learner.vae, learner.settings
    mean, logvar = vae.moments(x)
    if logvar is None:
        z, regular = quantised(vae.codebook, mean, settings.beta)
    else:
        z = sampled(mean, logvar, of_rows(settings.seed, rows, 0, mean.shape[1:])[1][0].double())
        regular = settings.kl * gaussian_kl(mean, logvar) / (3 * SIDE * SIDE)
    y = vae.decoder(vae.from_latent(z))
    near = (l1(x, y) + settings.perceptual_weight * gradient_difference(x, y)).mean()
    return near + regular.mean(), y, near


@pytest.mark.parametrize("shape", [KL, VQ])
@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_one_backward_pass_gives_each_player_its_own_gradient(shape, kind):
    learner = objective(shape, replace(JUDGED, adversarial_loss=kind, kl=0.1)).double()
    x, rows, judge, pair = X[:SIZE].double(), rows_of(5), learner.discriminator, ADVERSARIALS[kind]
    learner(batch_of(x), rows).mean().backward()
    found, told = gradients(learner), learner.told()

    loss, y, near = generator_loss(learner, x, rows)
    adv = pair.generator(judge(y)).mean()
    last = learner.vae.decoder.conv_out.weight
    of_near, of_adv = (torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (near, adv))
    lam = (of_near / (of_adv + 1e-4)).detach()
    generator, mine = loss + 0.7 * lam * adv, list(learner.vae.parameters())
    of_vae = torch.autograd.grad(generator, mine, retain_graph=True)
    disc = pair.discriminator(judge(x), judge(y.detach())).mean()
    of_judge = torch.autograd.grad(disc, list(judge.parameters()))
    expected = {f"vae.{name}": g for (name, _), g in zip(learner.vae.named_parameters(), of_vae, strict=True)}
    names = [name for name, _ in judge.named_parameters()]
    expected |= {f"discriminator.{name}": g for name, g in zip(names, of_judge, strict=True)}
    assert found.keys() == expected.keys()
    assert all(torch.allclose(g, expected[k], rtol=1e-9, atol=1e-13) for k, g in found.items())
    assert told["lambda"] == pytest.approx(float(lam), rel=1e-6) and 0 < float(lam) < 1e4
    assert told["adv"] == pytest.approx(adv.item()) and told["disc"] == pytest.approx(disc.item())

    # each would have the other's in a sum that holds nothing still
    disc = pair.discriminator(judge(x), judge(y)).mean()
    leaky = torch.autograd.grad(generator + disc, mine + list(judge.parameters()))
    for k, g in zip(expected, leaky, strict=True):
        if k in ("vae.decoder.conv_out.weight", "discriminator.conv_in.weight"):
            assert error(g, expected[k]) > 0.01


def test_images_are_trained_on_alone_or_together():
    """Noise is of the row, errors are of the image, and nothing else is drawn."""
    learner, rows = objective(settings=QUIET), [3, 7, 8, 100]
    together = learner(batch_of(X[:4]), rows)
    alone = torch.cat([learner(batch_of(X[i : i + 1]), [row]) for i, row in enumerate(rows)])
    assert together.shape == (4,) and torch.allclose(together, alone, rtol=1e-5)
    moved = learner(batch_of(X[:4]), [3, 7, 8, 101])
    assert torch.equal(moved[:3], together[:3]) and moved[3] != together[3]


def test_the_kl_has_the_paper_s_weight_beside_a_sum_over_the_image():
    learner = objective(settings=replace(QUIET, perceptual="none", reconstruction="l2", kl=1e-3))
    x = X[:4]
    loss = learner(batch_of(x), rows_of(0)).mean()
    told = learner.told()
    assert loss.item() * 3 * SIDE**2 == pytest.approx(told["rec"] * 3 * SIDE**2 + 1e-3 * told["kl"], rel=1e-5)
    mean, logvar = learner.vae.moments(x)
    y = learner.vae.decoder(
        learner.vae.from_latent(sampled(mean, logvar, of_rows(0, range(4), 0, mean.shape[1:])[1][0]))
    )
    assert told == pytest.approx(
        {"rec": l2(x, y).mean().item(), "perceptual": 0.0, "kl": gaussian_kl(mean, logvar).mean().item()}
    )


def run_of(learner, folder, steps, x=X, rate=2e-3, accumulate=1, **plan):
    """A run over the same few images again and again."""
    settings, size = learner.settings, learner.settings.batch // accumulate

    def loss(step, part):
        k = step * accumulate + part
        rows = rows_of(k, size)
        return learner(batch_of(x[[row % len(x) for row in rows]]), rows).mean()

    optimiser = torch.optim.AdamW(
        learner.groups(rate), lr=rate, betas=settings.betas, weight_decay=0.01, fused=True
    )
    plan = Plan(steps, accumulate=accumulate, clip=settings.clip, **{"save_every": 2, "log_every": 1} | plan)
    return Run(learner, optimiser, loss, plan, folder, average=Average(learner, 0.9))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_discriminator_joins_at_its_step(tmp_path, accumulate):
    learner, alone = objective(settings=replace(JUDGED, judged_from=2)), objective(settings=QUIET)
    run, other = (run_of(one, tmp_path, 9, accumulate=accumulate) for one in (learner, alone))
    judge = learner.discriminator
    before = {k: v.clone() for k, v in judge.state_dict().items()}
    for _ in range(2):
        assert run.step()["loss"] == other.step()["loss"]
        assert "adv" not in learner.told() and same(judge.state_dict(), before)
        assert same(learner.vae.state_dict(), alone.vae.state_dict())
    run.step()
    other.step()
    assert learner.told().keys() == {"rec", "perceptual", "kl", "adv", "disc", "lambda"}
    # hinge has no gradient to D's last bias: real and reconstructed patches pull alike, one up and one down
    still = {k for k, p in judge.named_parameters() if torch.equal(p, before[k])}
    assert still <= {"conv_out.bias"}
    assert error(learner.last.detach(), alone.last.detach()) > 1e-5
    # real ones and reconstructed ones, of each part; what the generator hears moves no statistics
    assert judge.get_buffer("blocks.0.1.num_batches_tracked") == 2 * accumulate


@pytest.mark.parametrize("stop", [2, 4])
def test_an_interrupted_run_is_the_one_that_was_not(tmp_path, stop):
    """With the discriminator's weights, moments and running statistics; it joins at step 3."""
    settings = replace(JUDGED, judged_from=3)
    whole, first, second = (objective(settings=replace(settings, seed=0)) for _ in range(3))
    with torch.no_grad():
        for p in second.parameters():
            p.add_(1.0)  # all that it has comes from the checkpoint
    done = run_of(whole, tmp_path / "whole", 6)
    train(done, progress=False)
    train(run_of(first, tmp_path / "a", stop), progress=False)
    again = run_of(second, tmp_path / "a", 6)
    train(again, progress=False)
    assert same(second.state_dict(), whole.state_dict()) and same(again.average.state(), done.average.state())
    for group in ("weights", "optimiser", "ema"):
        assert same(latest(tmp_path / "a").tensors[group], latest(tmp_path / "whole").tensors[group])
    assert float(whole.discriminator.get_buffer("blocks.0.1.running_var").var()) > 0


def test_a_step_that_is_not_finite_spoils_no_running_statistics(tmp_path):
    learner = objective()
    run = run_of(learner, tmp_path, 4)
    run.step()
    before = {k: v.clone() for k, v in learner.discriminator.named_buffers() if "running" in k}
    run.loss = lambda step, part: learner(batch_of(X[:SIZE] * float("nan")), rows_of(step)).mean()
    assert run.step()["bad"] == 1
    after = {k: v for k, v in learner.discriminator.named_buffers() if "running" in k}
    assert same(after, before)
    run.save()


def overfit(learner, tmp_path, steps):
    """PSNR of a batch before and after so many steps on it, and how many codes it is made of."""
    vae, images = learner.vae, X[: learner.settings.batch]
    if vae.codebook is not None:
        # as the published code begins
        nn.init.uniform_(vae.codebook.codes.weight, -1 / VQ.codes, 1 / VQ.codes)
    before = psnr(images, reconstructed(vae, images)).mean().item()
    train(run_of(learner, tmp_path, steps, images, save_every=10**6), progress=False)
    after = psnr(images, reconstructed(vae, images)).mean().item()
    z = rearrange(vae.moments(images)[0], "b c h w -> (b h w) c")
    return before, after, vae.codebook.nearest(z).unique().numel() if vae.codebook is not None else 0


@pytest.mark.parametrize("shape", [KL, VQ])
def test_an_autoencoder_learns_a_batch(tmp_path, shape):
    """From 9 dB to 22 and 17; with other seeds too, to 16 at least, and three of the codes."""
    before, after, codes = overfit(objective(shape, replace(QUIET, batch=2)), tmp_path, 60)
    assert after > before + 5 and codes >= (3 if shape is VQ else 0), (before, after, codes)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [KL, VQ])
def test_an_autoencoder_learns_a_batch_by_heart(tmp_path, shape):
    _, after, codes = overfit(objective(shape, QUIET), tmp_path, 600)
    assert after > 33 and codes >= (24 if shape is VQ else 0), (after, codes)


@pytest.mark.slow
def test_against_a_discriminator_it_learns_too(tmp_path):
    settings = replace(JUDGED, judged_from=150, judge_width=8)
    before, after, _ = overfit(objective(settings=settings), tmp_path, 300)
    assert after > before + 12, (before, after)


def test_the_decoder_alone_is_trained_and_latents_stay(tmp_path):
    for shape in (KL, VQ):
        learner = objective(shape, replace(JUDGED, train="decoder"))
        z = learner.vae.encode(X[:2])
        vae = {k: v.clone() for k, v in learner.vae.state_dict().items()}
        train(run_of(learner, tmp_path / str(shape.codes), 3), progress=False)
        assert torch.equal(learner.vae.encode(X[:2]), z)
        changed = {k for k, v in learner.vae.state_dict().items() if not torch.equal(v, vae[k])}
        assert changed == {k for k in vae if k.startswith(("from_latent.", "decoder."))}
        assert {k.split(".")[0] for k in trained(learner.vae)} == {"from_latent", "decoder"}


def test_frozen_networks_of_a_loaded_model_are_trained():
    vae = VAE(KL).requires_grad_(False)
    assert len(trained(Autoencoding(vae, QUIET))) == len(list(vae.parameters()))


def test_the_discriminator_has_a_rate_of_its_own_and_no_decay():
    learner = objective(settings=replace(JUDGED, judge_rate=0.5))
    vae, judge = learner.groups(2e-4)
    assert (vae["lr"], judge["lr"], judge["weight_decay"]) == (2e-4, 1e-4, 0.0) and "weight_decay" not in vae
    together = [*vae["params"], *judge["params"]]
    assert {id(p) for p in together} == {id(p) for p in learner.parameters()}
    assert len(objective(settings=QUIET).groups(1.0)) == 1


def test_a_seed_makes_a_discriminator_whatever_torch_s_own_is_at():
    vae, judges = VAE(KL), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        judges.append(Autoencoding(vae, replace(JUDGED, seed=5)).discriminator.state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    assert same(*judges)
    other = Autoencoding(vae, replace(JUDGED, seed=6)).discriminator
    assert not torch.equal(other.conv_in.weight, judges[0]["conv_in.weight"])


TWINS = X[:4].repeat_interleave(2, dim=0)  # of which two ranks see the same
CASES = {
    "alone": (KL, replace(QUIET, batch=SIZE), X, 1),
    "judged by norms that see no batch": (KL, replace(JUDGED, batch=SIZE), X, 2),
    "judged, the ranks seeing the same": (VQ, replace(JUDGED, batch=SIZE), TWINS, 1),
}


def trained_in(case, ranks, folder):
    """The weights and gradients of each player in the second step, and each lambda."""
    shape, settings, x, accumulate = CASES[case]
    learner = objective(shape, settings, ranks=ranks)
    if "no batch" in case:
        learner.discriminator.eval()
    wrapped, size = spread(learner, ranks), settings.batch // accumulate

    def loss(step, part):
        k = step * accumulate + part
        rows = range(k * size + ranks.rank, (k + 1) * size, ranks.size)
        return wrapped(batch_of(x[[row % len(x) for row in rows]]), rows).mean()

    run = run_of(learner, folder, 2, accumulate=accumulate)
    run.optimiser = torch.optim.SGD(learner.parameters(), lr=0.05)  # Adam would make rounding errors large
    run.loss, run.ranks, run.unsynced, lams = loss, ranks, partial(unsynced, wrapped), []
    for _ in range(2):
        run.step()
        lams.append(learner.told().get("lambda", 0.0))
    named = {"vae": learner.vae, "judge": learner.discriminator or nn.Module()}
    flat = {
        name: nn.utils.parameters_to_vector(each.parameters())
        for name, each in named.items()
        if trained(each)
    }
    moved = {name: torch.cat([p.grad.flatten() for p in named[name].parameters()]) for name in flat}
    return {name: x.detach() for name, x in flat.items()}, moved, lams


def rank_of_two(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        torch.save({case: trained_in(case, ranks, folder) for case in CASES}, folder / f"{rank}.pt")


def test_the_shares_of_two_ranks_are_the_batch():
    """Without processes: lambda is that of the whole batch, and so is the mean of the gradients."""
    kept = []

    class Shares(Ranks):
        """Ranks that run one after another, twice: what they give is kept, and then each is told the mean."""

        def mean(self, values):
            kept.append(values)
            return values if len(kept) <= 2 else sum(kept[:2]) / 2

    whole, shares = objective(), objective(ranks=Shares(size=2))
    for learner in (whole, shares):
        learner.double().discriminator.eval()  # norms that see no batch
    x, rows = X[:SIZE].double(), rows_of(3)
    whole(batch_of(x), rows).mean().backward()
    parts = [(batch_of(x[rank::2]), rows[rank::2]) for rank in range(2)]
    for part in parts:
        shares(*part)
    for part in parts:
        (shares(*part).mean() / 2).backward()
    assert shares.told()["lambda"] == pytest.approx(whole.told()["lambda"], rel=1e-6)
    found, expected = gradients(shares), gradients(whole)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[k], expected[k], rtol=1e-8, atol=1e-12) for k in found)


@pytest.mark.slow
def test_two_ranks_train_what_one_does(tmp_path):
    """To rounding, but for BatchNorm on the CPU, which sees the images of its own rank alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank_of_two, (port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    for case in CASES:
        (weights, moved, lams), alone = first[case], trained_in(case, Ranks(), tmp_path)
        assert same(weights, second[case][0]) and same(moved, second[case][1]) and lams == second[case][2]
        assert lams == pytest.approx(alone[2], rel=1e-4) and (lams[1] > 0) == ("judged" in case)
        assert weights.keys() == ({"vae", "judge"} if "judged" in case else {"vae"})
        assert all(
            error(weights[k], alone[0][k]) < 1e-5 and error(moved[k], alone[1][k]) < 1e-4 for k in weights
        )


def test_bfloat16_changes_the_loss_a_little():
    batch, settings = batch_of(X[:SIZE]), replace(JUDGED, adversarial_loss="non_saturating")
    full = objective(settings=settings)(batch, rows_of(0))
    half = objective(settings=replace(settings, precision="bf16"))
    found = half(batch, rows_of(0))
    assert found.dtype == torch.float32 and 0 < error(found.detach(), full.detach()) < 0.05
    found.mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in half.parameters())


def test_a_perceptual_distance_may_be_one_s_own_function():
    learner = objective(settings=replace(QUIET, perceptual_weight=3.0), perceptual=l2)
    loss = learner(batch_of(X[:2]), [0, 1]).mean()
    told = learner.told()
    expected = told["rec"] + 3 * told["perceptual"] + 1e-6 * told["kl"] / (3 * SIDE**2)
    assert loss.item() == pytest.approx(expected, rel=1e-5) and told["perceptual"] != told["rec"]


class Features(nn.Module):
    """A network's perceptual distance, with weights and a statistic that training must leave alone."""

    def __init__(self, keep=False):
        super().__init__()
        self.conv, self.norm, self.keep = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), keep

    def forward(self, x, y):
        found = (self.norm(self.conv(x)) - self.norm(self.conv(y))).square()
        return found.mean(dim=(1, 2, 3), keepdim=self.keep)


def test_a_perceptual_network_is_heard_and_not_trained():
    network = Features()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    learner = objective(settings=QUIET, perceptual=network)
    plain = objective(settings=QUIET)
    assert trained(learner).keys() == trained(plain).keys()
    for one in (learner, plain):
        one(batch_of(X[:2]), [0, 1]).mean().backward()
    assert all(p.grad is None for p in network.parameters()) and same(network.state_dict(), before)
    assert error(learner.last.grad, plain.last.grad) > 0.01


def test_a_perceptual_distance_of_another_shape_is_refused():
    learner = objective(settings=QUIET, perceptual=Features(keep=True))
    with pytest.raises(InputError, match=r"one distance for each image, \[2\], not \[2, 1, 1, 1\]"):
        learner(batch_of(X[:2]), [0, 1])


def test_lpips_is_asked_for_as_its_package_wants(monkeypatch):
    made = []

    class LPIPS(Features):
        def __init__(self, net, verbose):
            super().__init__(keep=True)
            made.append((net, verbose))

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=LPIPS))
    learner = objective(settings=replace(QUIET, perceptual="lpips"))
    learner(batch_of(X[:2]), [0, 1]).mean().backward()
    assert made == [("vgg", False)] and learner.told()["perceptual"] > 0


def test_without_its_package_lpips_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=r"needs the package lpips; pip install 'ldm\[lpips\]', or give"):
        objective(settings=replace(QUIET, perceptual="lpips"))


WRONG = {
    "train": ("encoder", "train must be one of both, decoder, not 'encoder'"),
    "reconstruction": ("l3", "reconstruction must be one of l1, l2, not 'l3'"),
    "perceptual": ("vgg", "perceptual must be one of gradients, none, lpips, not 'vgg'"),
    "adversarial_loss": ("wgan", "adversarial_loss must be one of hinge, non_saturating, not 'wgan'"),
    "perceptual_weight": (-1.0, "perceptual_weight must be a number from 0"),
    "kl": (float("nan"), "kl must be a number from 0"),
    "beta": (-0.1, "beta must be a number from 0"),
    "adversarial": (-0.5, "adversarial must be a number from 0"),
    "judged_from": (-1, "judged_from must be from 0"),
    "judge_width": (0, "judge_width must be from 1"),
    "judge_rate": (-1.0, "judge_rate must be a number from 0"),
    "scale_images": (-1, "scale_images must be from 0"),
    "spread": ("fsdp", "an autoencoder needs spread=ddp"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_make_no_sense_are_refused(name):
    value, said = WRONG[name]
    with pytest.raises(InputError, match=said):
        objective(settings=replace(QUIET, **{name: value}))


def test_a_discriminator_that_would_never_join_is_refused():
    check(replace(JUDGED, overfit=True))
    with pytest.raises(InputError, match="overfit repeats step 0, and judged_from 5 comes later"):
        check(replace(JUDGED, overfit=True, judged_from=5))


def test_images_too_small_for_a_discriminator_are_refused():
    with pytest.raises(InputError, match=r"no patch of images of \[16, 32\] pixels; give at least 24"):
        objective()(batch_of(X[:2, :, :16]), [0, 1])
    assert objective()(batch_of(X[:2, :, :24, :24]), [0, 1]).shape == (2,)


def test_settings_are_read_from_words():
    own = {field.name for field in fields(VaeSettings)}
    read = config.read(VaeSettings, None, ["adversarial=0.5", "judged_from=50000", "betas=[0.5, 0.9]"])
    assert (read.adversarial, read.judged_from, read.betas) == (
        0.5,
        50000,
        (0.5, 0.9),
    ) and WRONG.keys() <= own


def test_the_page_explains_every_setting():
    page = (Path(__file__).parents[2] / "docs" / "training-autoencoders.md").read_text("utf-8")
    own = {field.name for field in fields(VaeSettings)} - {field.name for field in fields(Settings)}
    assert len(own) == 12 and [name for name in own if f"`{name}`" not in page] == []
