"""Every solver against diffusers' schedulers, and against the formulas of k-diffusion, on the same noise."""

from itertools import pairwise
from math import exp, expm1, log, sqrt

import diffusers
import numpy as np
import pytest
import torch

from ldm.schedulers import CLEAN, EPS, Level, Schedule, sampler
from ldm.schedulers.spacing import SPACINGS, Path, beta_quantiles, karras, linspace
from tests.reference.peers import SCHEDULE as CONFIG
from tests.tiny import error, unit_noise

SCHEDULE = Schedule()
SHAPE = (2, 4, 6, 6)
LEAD = {"timestep_spacing": "leading", "steps_offset": 1}
TRAIL, SPACED = {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"}
MULTISTEP = "DPMSolverMultistepScheduler"
PEERS = [  # our name, theirs, options, whether their sample is x / alpha
    ("heun", "HeunDiscreteScheduler", LEAD, True),
    ("heun", "HeunDiscreteScheduler", SPACED | {"use_karras_sigmas": True}, True),
    ("dpm_2", "KDPM2DiscreteScheduler", LEAD, True),
    ("dpm_2", "KDPM2DiscreteScheduler", SPACED, True),
    ("plms", "PNDMScheduler", LEAD | {"skip_prk_steps": True}, False),
    ("dpmpp_2m", MULTISTEP, LEAD | {"lower_order_final": False}, False),
    ("dpmpp_2m", MULTISTEP, SPACED | {"use_karras_sigmas": True}, False),
    ("dpmpp_2m", MULTISTEP, TRAIL, False),
    ("dpmpp_2m_sde", MULTISTEP, LEAD | {"algorithm_type": "sde-dpmsolver++"}, False),
    ("dpmpp_2m_sde", MULTISTEP, SPACED | {"algorithm_type": "sde-dpmsolver++"}, False),
    ("uni_pc", "UniPCMultistepScheduler", LEAD, False),
    ("uni_pc", "UniPCMultistepScheduler", SPACED | {"use_karras_sigmas": True}, False),
    ("lcm", "LCMScheduler", {}, False),
]


def eps(x, t):
    """What a network might say: bounded, far from linear, and hearing t."""
    return torch.sin(2 * x) * (0.6 + 0.4 * t / 1000) + 0.3 * torch.cos(5 * x)


def denoise(x, level):
    return EPS.x0(x, eps(x, level.t), level)


def path_of(scheduler, own):
    """The levels that a scheduler of diffusers visits, in float64."""
    if own == "plms":
        times = [int(t) for t in scheduler.timesteps]
        del times[1]  # visited twice
        return Path((*map(SCHEDULE.at, times), SCHEDULE.at(0)), SCHEDULE)
    if own == "lcm":
        return Path((*(SCHEDULE.at(int(t)) for t in scheduler.timesteps), CLEAN), SCHEDULE)
    times, sigmas = scheduler.timesteps.double().tolist(), scheduler.sigmas.double().tolist()
    if own in ("heun", "dpm_2"):  # each level but the first is there twice
        times, sigmas = [times[0], *times[2 if own == "dpm_2" else 1 :: 2]], [sigmas[0], *sigmas[1::2]]
    levels = [
        Level(t, 1 / sqrt(1 + s * s), s / sqrt(1 + s * s)) for t, s in zip(times, sigmas, strict=False) if s
    ]
    return Path((*levels, CLEAN), SCHEDULE)


@pytest.mark.parametrize(("own", "peer", "options", "karras_y"), PEERS, ids=lambda v: str(v)[:60])
def test_solvers_of_diffusers(own, peer, options, karras_y):
    scheduler = getattr(diffusers, peer)(**CONFIG, **options)
    scheduler.set_timesteps(12)
    path = path_of(scheduler, own)
    x, draws = unit_noise(0, *SHAPE).double(), unit_noise(1, 40, *SHAPE).double()
    theirs = x / path[0].alpha if karras_y else x
    rest, generator = iter(draws), torch.Generator()
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(theirs, t)
        extra = {}
        if own == "dpmpp_2m_sde":
            extra = {"variance_noise": next(rest)}
        if own == "lcm":
            extra = {"generator": generator.manual_seed(int(t))}
        theirs = scheduler.step(eps(seen, float(t)), t, theirs, **extra).prev_sample
    rest = iter(draws)
    if own == "lcm":
        times = iter(path)
        rest = (
            torch.randn(SHAPE, generator=generator.manual_seed(int(level.t)), dtype=torch.float64)
            for level in times
        )
    *_, (ours, _) = sampler(own).solve(denoise, x, path, lambda: next(rest))
    assert error(ours, theirs) <= 1e-5
    wrong = Path((path[0]._replace(t=path[0].t - 1), *path[1:]), SCHEDULE)
    rest = iter(draws)
    *_, (other, _) = sampler(own).solve(denoise, x, wrong, lambda: next(rest))
    assert error(other, theirs) > 1e-5


# k-diffusion's formulas in its own coordinates: y = x / alpha, and t = -log(sigma / alpha).


def walk(name, path, x, draws):
    rest = iter(draws)
    *_, (ours, _) = sampler(name).solve(denoise, x, path, lambda: next(rest))
    return ours


def seen(y, ratio):
    """The denoised y at a noise level of the schedule."""
    level = SCHEDULE.at_lam(-log(ratio))
    return denoise(level.alpha * y, level)


def ancestral_step(now, nxt, eta=1.0):
    up = min(nxt, eta * sqrt(nxt**2 * (now**2 - nxt**2) / now**2))
    return sqrt(nxt**2 - up**2), up


PATHS = [linspace(SCHEDULE, 9), karras(SCHEDULE, 12)]


@pytest.fixture(params=PATHS, ids=["linspace", "karras"])
def start(request):
    path = request.param
    x, draws = unit_noise(0, *SHAPE).double(), unit_noise(1, 40, *SHAPE).double()
    return path, x, x / path[0].alpha, [level.ratio for level in path], draws


def test_lms_integrates_the_polynomial_through_the_last_four_slopes(start):
    path, x, y, ratios, draws = start
    slopes = []
    for i, (now, nxt) in enumerate(pairwise(ratios)):
        slopes.append((y - seen(y, now)) / now)
        order = min(i + 1, 4)
        for j in range(order):
            product = np.poly1d([1.0])
            for k in range(order):
                if k != j:
                    product *= np.poly1d([1.0, -ratios[i - k]]) / (ratios[i - j] - ratios[i - k])
            whole = product.integ()
            y = y + (whole(nxt) - whole(now)) * slopes[-1 - j]
    assert error(walk("lms", path, x, draws), y) <= 1e-10


def test_dpmpp_sde_is_k_diffusions(start):
    path, x, y, ratios, draws = start
    rest = iter(draws)
    for now, nxt in pairwise(ratios):
        clean = seen(y, now)
        if nxt == 0:
            y = clean
            break
        t, h = -log(now), log(now / nxt)
        s, r = t + h / 2, 1 / 2
        fac = 1 / (2 * r)
        down, up = ancestral_step(now, exp(-s))
        s_ = -log(down)
        mid = exp(-s_) / exp(-t) * y - expm1(t - s_) * clean + next(rest) * up
        clean_2 = seen(mid, exp(-s))
        down, up = ancestral_step(now, nxt)
        t_ = -log(down)
        clean_d = (1 - fac) * clean + fac * clean_2
        y = exp(-t_) / exp(-t) * y - expm1(t - t_) * clean_d + next(rest) * up
    assert error(walk("dpmpp_sde", path, x, draws), y) <= 1e-10


def test_dpmpp_2m_sde_is_k_diffusions(start):
    path, x, y, ratios, draws = start
    rest, old, h_last = iter(draws), None, None
    for now, nxt in pairwise(ratios):
        clean = seen(y, now)
        if nxt == 0:
            y = clean
            break
        h = log(now / nxt)
        y = nxt / now * exp(-h) * y - expm1(-2 * h) * clean
        if old is not None:
            y = y + 0.5 * -expm1(-2 * h) * (h / h_last) * (clean - old)
        y = y + next(rest) * nxt * sqrt(-expm1(-2 * h))
        old, h_last = clean, h
    assert error(walk("dpmpp_2m_sde", path, x, draws), y) <= 1e-10


def test_dpmpp_3m_sde_is_k_diffusions(start):
    path, x, y, ratios, draws = start
    rest = iter(draws)
    clean_1 = clean_2 = h_1 = h_2 = None
    for now, nxt in pairwise(ratios):
        clean = seen(y, now)
        if nxt == 0:
            y = clean
            break
        h = log(now / nxt)
        h_eta = 2 * h
        y = exp(-h_eta) * y - expm1(-h_eta) * clean
        if h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (clean - clean_1) / r0, (clean_1 - clean_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            phi_2 = expm1(-h_eta) / h_eta + 1
            phi_3 = phi_2 / h_eta - 0.5
            y = y + phi_2 * d1 - phi_3 * d2
        elif h_1 is not None:
            phi_2 = expm1(-h_eta) / h_eta + 1
            y = y + phi_2 * (clean - clean_1) / (h_1 / h)
        y = y + next(rest) * nxt * sqrt(-expm1(-2 * h))
        clean_1, clean_2, h_1, h_2 = clean, clean_1, h, h_1
    assert error(walk("dpmpp_3m_sde", path, x, draws), y) <= 1e-10


def test_a_schedule_without_signal_at_its_end_is_that_of_lin_et_al():
    options = CONFIG | {"rescale_betas_zero_snr": True}
    theirs = diffusers.DDIMScheduler(**options).alphas_cumprod.double().numpy()
    ours = Schedule(zero_snr=True).alpha_bar
    assert ours[-1] == 0 and ours[0] == pytest.approx(Schedule().alpha_bar[0], rel=1e-12)
    assert np.abs(ours - theirs).max() < 1e-6
    assert np.abs(Schedule().alpha_bar - theirs).max() > 1e-3


@pytest.mark.parametrize(("name", "table"), [("", "StableDiffusion"), ("_xl", "StableDiffusionXL")])
def test_the_steps_of_align_your_steps_are_the_published_ones(name, table):
    from diffusers.schedulers import AysSchedules

    path = SPACINGS[f"align_your_steps{name}"](SCHEDULE, 10)
    published = AysSchedules[f"{table}Sigmas"]
    assert [level.ratio for level in path] == pytest.approx(published, rel=1e-4)
    times = AysSchedules[f"{table}Timesteps"]  # rounded, by another table
    assert max(abs(level.t - t) for level, t in zip(path, times, strict=False)) < 7
    twenty = SPACINGS[f"align_your_steps{name}"](SCHEDULE, 19)
    assert [level.ratio for level in twenty[:-1:2]] == pytest.approx(published[:-1], rel=1e-4)


def test_simple_and_sgm_uniform_are_those_of_comfyui_and_of_stability():
    sigmas = [SCHEDULE.at(t).ratio for t in range(1000)]
    simple = [sigmas[-(1 + int(i * len(sigmas) / 12))] for i in range(12)]
    assert [level.ratio for level in SPACINGS["simple"](SCHEDULE, 12)[:-1]] == pytest.approx(simple)
    uniform = np.linspace(999, 0, 13)[:-1]
    assert [level.t for level in SPACINGS["sgm_uniform"](SCHEDULE, 12)[:-1]] == pytest.approx(uniform)


def test_beta_spacing_has_the_quantiles_of_the_beta_distribution():
    """Its distribution function at the times is the share; the incomplete integral by another rule."""
    from scipy.stats import beta

    shares = 1 - np.linspace(0, 1, 20, endpoint=False)
    assert beta_quantiles(shares, 0.6, 0.6) == pytest.approx(beta.ppf(shares, 0.6, 0.6), abs=1e-6)
    times = np.rint(beta.ppf(shares, 0.6, 0.6) * 999)
    assert [level.t for level in SPACINGS["beta"](SCHEDULE, 20)[:-1]] == times.tolist()
