"""Laws of the loss of a diffusion model: that of the papers, of what is drawn for each image by itself."""

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.details import Details
from ldm.errors import InputError
from ldm.hearing import condition
from ldm.schedulers import EPS, X0, V
from ldm.training.cache import Latents, Texts, fingerprint
from ldm.training.data import Batch, Batches
from ldm.training.diffusion import Diffusion, changed
from ldm.training.draws import of_rows
from ldm.training.images import Images
from ldm.training.settings import DiffusionSettings
from tests import tiny
from tests.reduced import make as reduced
from tests.tiny import error, unit_noise
from tests.training.albums import album
from tests.training.runs import SMALL, frozen, gradients

MANY = 64  # rows, for what is drawn
NONE = torch.zeros(MANY, dtype=torch.bool)


def batch_of(family, b=4, prompts=None, first=0):
    """Noise as pictures, of half a latent's unit more than the least; each is told something else."""
    side = family.unit * 8 if family.size < 64 else family.size
    images = unit_noise(first, b, 3, side, side).clamp(-1, 1)
    texts = [f"a text of {n} dogs" for n in range(first, first + b)]
    names, prompts = [f"{n}.png" for n in range(b)], texts if prompts is None else prompts
    originals = [(100 + 3 * n, 200 + 5 * n) for n in range(b)]
    corners = [(n, 2 * n) for n in range(b)]
    return Batch(images, prompts, names, originals, corners, {})


def rows_of(batch: Batch, *rows: int) -> Batch:
    lists = ([each[row] for row in rows] for each in batch[1:5])
    return Batch(batch.images[list(rows)], *lists, {})


def small(prediction=EPS, zero_snr=False, seed=0):
    family = replace(SMALL, prediction=prediction, schedule=replace(SMALL.schedule, zero_snr=zero_snr))
    pipe = frozen(tiny.make(family, seed))
    pipe.unet.requires_grad_(True)
    return pipe


# the loss, by hand


def alphas(schedule) -> tuple[np.ndarray, np.ndarray]:
    """Of the scaled linear betas, and rescaled to end without signal (Lin et al. 2024, alg. 1); float64."""
    betas = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, schedule.steps) ** 2
    alpha = np.sqrt(np.cumprod(1 - betas))
    if schedule.zero_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return alpha, np.sqrt(1 - alpha**2)


def weight_by_hand(settings, prediction, alpha: float, sigma: float) -> float:
    """Hang et al. 2023, sec. 3.4: min(SNR, gamma) on x0, over SNR on eps, over SNR + 1 on v."""
    if settings.weighting == "uniform":
        return 1.0
    snr = alpha**2 / sigma**2
    return min(snr, settings.gamma) / {"eps": max(snr, 1e-300), "v": snr + 1, "x0": 1.0}[prediction.name]


def t_by_hand(settings, row: int, u: float, steps: int) -> int:
    if settings.times == "stratified":
        i = row % settings.batch
        (first,) = of_rows(settings.seed, [row - i], 1)[0].double().flatten().tolist()
        u = (first + i / settings.batch) % 1
    if settings.times == "logit_normal":
        u = float(torch.sigmoid(torch.special.ndtri(torch.tensor(u, dtype=torch.float64))))
    return min(int(u**settings.power * steps), steps - 1)


@torch.no_grad()
def by_hand(pipe, settings, batch: Batch, rows) -> Tensor:
    """Everything in float64, image by image."""
    family, wide = pipe.family, {}
    for name, network in pipe.named_networks().items():
        wide[name] = copy.deepcopy(network).double()
    alpha, sigma = alphas(family.schedule)
    found = []
    for i, row in enumerate(rows):
        mean, logvar = wide["vae"].moments(batch.images[i][None].double())
        shape = mean.shape[1:]
        (u,), (at, eps, shift) = of_rows(settings.seed, [row], 2, shape, shape, shape[:1])
        x0 = (mean + (logvar / 2).exp() * at.double()) * family.vae.scale
        noise = eps.double() + settings.offset * shift.double()[:, :, None, None]
        t = t_by_hand(settings, row, float(u[0]), family.schedule.steps)
        a, s = float(alpha[t]), float(sigma[t])
        text = "" if float(u[1]) < settings.drop else batch.prompts[i]
        context = wide["text_encoder"](pipe.tokenizers[0]([text]))
        out = wide["unet"](a * x0 + s * noise, torch.tensor([t]), context)
        target = {"eps": noise, "v": a * noise - s * x0, "x0": x0}[family.prediction.name]
        found.append(weight_by_hand(settings, family.prediction, a, s) * (out - target).square().mean())
    return torch.stack(found)


LOSSES = {
    "eps": ({}, EPS, False),
    "v": ({}, V, False),
    "x0": ({}, X0, False),
    "offset": ({"offset": 0.1}, EPS, False),
    "eps min_snr": ({"weighting": "min_snr"}, EPS, False),
    "v min_snr": ({"weighting": "min_snr", "gamma": 1.0, "times": "stratified"}, V, False),
    "x0 min_snr": ({"weighting": "min_snr", "times": "logit_normal"}, X0, False),
    "zero snr": ({"power": 0.01}, V, True),
    "zero snr min_snr": ({"power": 0.01, "weighting": "min_snr", "times": "stratified"}, V, True),
    "all": ({"drop": 0.5, "offset": 0.3, "times": "stratified", "power": 0.7, "seed": 5}, V, False),
}


@pytest.mark.parametrize("case", LOSSES)
def test_the_loss_is_the_papers(case):
    """float32 rounds a network of some thirty layers to about 1e-5; each choice moves the loss far more."""
    options, prediction, zero = LOSSES[case]
    pipe, settings = small(prediction, zero), DiffusionSettings(**{"batch": 4, "drop": 0.3} | options)
    batch, rows = batch_of(pipe.family), range(8, 12)
    found = Diffusion(pipe, settings)(batch, rows)
    expected = by_hand(pipe, settings, batch, rows)
    assert found.dtype == torch.float32 and found.shape == (4,) and found.requires_grad
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-7), (found, expected)
    plain = by_hand(small(), DiffusionSettings(batch=4, drop=0.0), batch, rows)
    assert case == "eps" or error(found.detach(), plain) > 1e-3


def test_without_signal_v_is_learnt_at_the_last_step():
    """There t is the last, x_t is noise alone, and the target -x0."""
    pipe = small(V, zero_snr=True)
    diffusion, batch, seen = Diffusion(pipe, DiffusionSettings(drop=0.0, power=0.01)), batch_of(SMALL), []
    with tiny.hooked(pipe.unet, lambda _, args, out: seen.append((args[0], args[1], out))):
        found = diffusion(batch, range(4)).detach()
    ((x, t, out),) = seen
    last = [i for i, at in enumerate(t.tolist()) if at == 999]
    assert last
    shape = x.shape[1:]
    _, (at, eps, _) = of_rows(0, range(4), 2, shape, shape, shape[:1])
    mean, std = diffusion.moments(batch).chunk(2, dim=1)
    for i in last:
        assert torch.equal(x[i], eps[i])
        assert float(found[i]) == pytest.approx(
            float((out[i] + (mean + std * at)[i]).detach().square().mean()), 1e-5
        )


def test_eps_without_signal_is_refused():
    with pytest.raises(InputError, match="give prediction=v with zero_snr"):
        changed(SMALL, DiffusionSettings(zero_snr=True))
    family = changed(SMALL, DiffusionSettings(zero_snr=True, prediction="v"))
    assert family.prediction is V and family.schedule.zero_snr and family.schedule.alphas[-1] == 0
    assert changed(SMALL, DiffusionSettings(prediction="x0")).prediction is X0
    assert changed(SMALL, DiffusionSettings()) == SMALL


# what is drawn


def steps_of(settings, rows, schedule=SMALL.schedule):
    """The t of rows, as the network is told them."""
    pipe = tiny.make(SMALL)
    told, real = [], pipe.unet.forward
    pipe.unet.forward = lambda x, t, **more: (told.append(t), 0 * x)[1]
    batch = batch_of(SMALL, 1)
    many = rows_of(batch, *[0] * len(rows))
    with torch.no_grad():
        Diffusion(pipe, settings)(many, rows)
    pipe.unet.forward = real
    return told[0]


@pytest.mark.parametrize("b", [4, 8, 20])
def test_stratified_steps_lie_one_in_each_part_of_the_schedule(b):
    settings = DiffusionSettings(times="stratified", batch=b, drop=0.0)
    t = steps_of(settings, range(3 * b, 8 * b))
    parts = (t * b // 1000).reshape(5, b)
    assert all(sorted(step) == list(range(b)) for step in parts.tolist())
    halves = [steps_of(settings, rows) for rows in (range(3 * b, 4 * b, 2), range(3 * b + 1, 4 * b, 2))]
    assert torch.equal(torch.stack(halves, 1).flatten(), t[:b])  # on two ranks, or in two parts
    free = steps_of(replace(settings, times="uniform"), range(3 * b, 8 * b))
    assert not all(sorted(step) == list(range(b)) for step in (free * b // 1000).reshape(5, b).tolist())


@pytest.mark.parametrize(("times", "power"), [("uniform", 1.0), ("stratified", 1.0), ("stratified", 0.5)])
def test_all_of_the_schedule_is_seen(times, power):
    """The share of steps below x is x^(1 / power), within 4 deviations of a mean of independent draws."""
    t = steps_of(DiffusionSettings(times=times, power=power, batch=8), range(800)).double() / 1000
    for x in (0.1, 0.25, 0.5, 0.9):
        share = x ** (1 / power)
        assert abs(float((t < x).double().mean()) - share) < 4 * (share * (1 - share) / len(t)) ** 0.5
    assert t.min() < (0.02 if power == 1 else 0.15) and t.max() > 0.98


@pytest.mark.parametrize("options", [{}, {"times": "stratified", "batch": 6, "offset": 0.1, "drop": 0.5}])
def test_a_batch_is_its_rows_one_by_one(options):
    """Whatever the batch, the part of it or the rank: within rounding, for sums run in another order."""
    diffusion, batch = Diffusion(small(), DiffusionSettings(**options)), batch_of(SMALL, 6)
    rows = range(12, 18)
    with torch.no_grad():
        whole = diffusion(batch, rows)
        alone = torch.cat([diffusion(rows_of(batch, i), [row]) for i, row in enumerate(rows)])
        turned = diffusion(rows_of(batch, 5, 0, 3), [17, 12, 15])
        others = diffusion(batch, range(18, 24))
        reseeded = Diffusion(small(), DiffusionSettings(**options | {"seed": 1}))(batch, rows)
    assert torch.allclose(whole, alone, rtol=1e-5) and torch.allclose(whole[[5, 0, 3]], turned, rtol=1e-5)
    assert all(error(x, whole) > 1e-3 for x in (others, reseeded))


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5, 1.0])
def test_texts_are_dropped_as_often_as_asked(drop):
    """Four deviations of a mean of 1000 draws; and the rows are not those that see much noise."""
    u = of_rows(0, range(1000), 2)[0]
    silent = u[:, 1] < drop
    assert abs(float(silent.double().mean()) - drop) <= 4 * (drop * (1 - drop) / 1000) ** 0.5
    assert abs(float(torch.corrcoef(u.T)[0, 1])) < 4 / 1000**0.5
    pipe, batch = tiny.make(SMALL), batch_of(SMALL, MANY)
    diffusion, seen = Diffusion(pipe, DiffusionSettings(drop=drop)), []
    pipe.unet.forward = lambda x, t, context, vector: (seen.append(context), x)[1]
    with torch.no_grad():
        diffusion(batch, range(MANY))
    for i, context in enumerate(seen[0]):
        said = "" if silent[i] else batch.prompts[i]
        assert torch.allclose(context, condition(pipe, [said]).context[0], atol=1e-5), i


# what is heard


def heard(name_or_pipe, prompts, silent, **options):
    pipe = frozen(reduced(name_or_pipe) if isinstance(name_or_pipe, str) else name_or_pipe)
    batch = batch_of(pipe.family, len(prompts), prompts)
    with torch.no_grad():
        found = Diffusion(pipe, DiffusionSettings(**options)).heard(batch, torch.tensor(silent))
    return pipe, batch, *found


@pytest.mark.parametrize("name", ["sdxl", pytest.param("sdxl-refiner", marks=pytest.mark.slow)])
def test_sdxl_is_told_each_image_s_own_size_and_corner(name):
    pipe, batch, context, vector = heard(name, ["a dog", "a cat", "a dog"], [False, False, True])
    side, pooled = pipe.family.size, pipe.family.texts[-1].pooled
    for i in (0, 1):
        details = Details(batch.originals[i], batch.corners[i], (side, side))
        wanted = condition(pipe, [batch.prompts[i]], details)
        assert error(context[i], wanted.context[0]) < 1e-5 and error(vector[i], wanted.vector[0]) < 1e-5
        assert error(vector[i], condition(pipe, [batch.prompts[i]]).vector[0]) > 1e-2  # of a whole picture
    assert error(vector[0, pooled:], vector[1, pooled:]) > 1e-2
    quiet = condition(pipe, [""], Details(batch.originals[2], batch.corners[2], (side, side)))
    if pipe.family.blank:  # zeros for the text, but the sizes are told
        assert not context[2].any() and not vector[2, :pooled].any()
        assert error(vector[2, pooled:], quiet.vector[0, pooled:]) < 1e-6
    else:
        assert error(context[2], quiet.context[0]) < 1e-5 and error(vector[2], quiet.vector[0]) < 1e-5


def test_classes_are_heard_and_the_empty_one_where_they_are_dropped():
    pipe, _, context, vector = heard("ldm-cin256", [7, 0, 999], [False, True, False])
    classes = pipe.text_encoders[0].classes.weight
    assert vector is None and torch.equal(context[:, 0], classes[[7, 1000, 999]])


def test_classes_without_an_empty_one_are_not_dropped():
    pipe = reduced("ldm-cin256-vq-f8")
    with pytest.raises(InputError, match=r"no class that stands for none; give drop=0"):
        Diffusion(pipe, DiffusionSettings())
    batch = batch_of(pipe.family, 2, [1, 2])
    assert torch.isfinite(Diffusion(pipe, DiffusionSettings(drop=0.0))(batch, range(2))).all()


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_a_long_caption_has_as_many_chunks_as_asked_and_is_cut_after(chunks):
    pipe, room = tiny.make(SMALL), 18  # tokens of a chunk between start and end
    words = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(2 * room + 5)]
    long = "! " * (2 * room + 5)  # each one token
    _, _, context, _ = heard(pipe, [long, "! " * (chunks * room), "", words[0]], [False] * 4, chunks=chunks)
    assert context.shape[1] == 20 * chunks
    if chunks < 3:
        assert torch.equal(context[0], context[1])  # the rest is not heard
    else:
        assert not torch.equal(context[0], context[1])
    empty = condition(pipe, [""]).context[0]
    for a, b in pairwise(range(0, 20 * chunks + 1, 20)):
        assert torch.allclose(context[2, a:b], empty, atol=1e-6)
        assert a == 0 or torch.allclose(context[3, a:b], empty, atol=1e-6)


WRONG = {
    "no caption": (SMALL, None, "1.png has no caption, but sd1 hears one"),
    "a class": (SMALL, 3, "the caption of 1.png must be a str"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_prompt_of_another_kind_names_its_image(case):
    family, prompt, words = WRONG[case]
    with pytest.raises(InputError, match=words):
        heard(tiny.make(family), ["a dog", prompt], [False, False])


@pytest.mark.parametrize("prompt", ["a dog", None, 1001, -1, True])
def test_a_model_of_classes_hears_only_them(prompt):
    with pytest.raises(InputError, match=r"1\.png"):
        heard("ldm-cin256", [3, prompt], [False, False])


FAMILIES = ("sd2-v", "sdxl", "ldm-cin256", "ldm-text2img", "ldm-churches256")
SLOW = ("sd1", "sd2", "sdxl-refiner", "ldm-celeba256", "ldm-cin256-vq-f8", "sdxl-turbo", "sd-turbo")


@pytest.mark.parametrize("name", [*FAMILIES[:3], *(pytest.param(n, marks=pytest.mark.slow) for n in
                                                  (*FAMILIES[3:], *SLOW))])  # fmt: skip
def test_every_family_is_trained_to_its_last_weight(name):
    """Each weight of the UNet has a gradient, and no other network has one."""
    pipe = frozen(reduced(name))
    pipe.unet.requires_grad_(True)
    prompts = {"texts": None, "classes": [1, 2]}["classes" if "cin" in name else "texts"]
    drop = 0.0 if name == "ldm-cin256-vq-f8" else 0.5
    losses = Diffusion(pipe, DiffusionSettings(drop=drop))(batch_of(pipe.family, 2, prompts), range(2))
    losses.mean().backward()
    assert torch.isfinite(losses).all() and losses.shape == (2,)
    found = gradients(pipe.unet)
    assert found.keys() == dict(pipe.unet.named_parameters()).keys()
    assert [key for key, grad in found.items() if not grad.any()] == []
    assert not any(gradients(network) for network in (pipe.vae, *pipe.text_encoders))


@pytest.mark.parametrize("name", ["sd1-inpaint", "sd2-depth", "sd-x4-upscaler"])
def test_a_model_that_sees_a_picture_is_refused(name):
    with pytest.raises(InputError, match="sees pictures beside the latent; train a text to image model"):
        Diffusion(reduced(name), DiffusionSettings())


# remembered latents and texts


@pytest.mark.parametrize("b", [1, 4])
def test_what_is_remembered_trains_alike(tmp_path, b):
    """Bit for bit where a batch has one row, as each is encoded alone; else to the rounding of a batch."""
    pipe = small()
    images = Images(album(tmp_path / "album", 5), size=16, flip=0.5)
    settings, rows = DiffusionSettings(drop=0.3), range(b)
    plain, batch = Diffusion(pipe, settings), Batches(images, b)[0]
    remembered = Diffusion(pipe, settings, Texts(pipe, tmp_path / "texts", 1))
    latents = Batches(images, b, made=Latents(pipe, tmp_path / "latents"))[0]
    assert latents.images.shape == (b, 8, 8, 8)
    losses = [plain(batch, rows), remembered(latents, rows), remembered(latents, rows)]
    assert torch.equal(losses[1], losses[2])
    assert torch.equal(*losses[:2]) if b == 1 else torch.allclose(*losses[:2], rtol=1e-5)
    at = [one.at(each, rows, torch.full((b,), 500)) for one, each in ((plain, batch), (remembered, latents))]
    assert torch.allclose(*at, rtol=1e-5)


def test_what_is_remembered_under_autocast_is_no_other(tmp_path):
    """A cache that bf16 filled is what fp32 would have put there, or a later run would go wrong."""
    pipe, batch = small(), batch_of(SMALL)
    for precision in ("bf16", "fp32"):
        texts = Texts(pipe, tmp_path / precision, 1)
        Diffusion(pipe, DiffusionSettings(precision=precision), texts)(batch, range(4))
    files = [{p.name: p.read_bytes() for p in (tmp_path / kind).rglob("*.*")} for kind in ("bf16", "fp32")]
    assert files[0] == files[1] and len(files[0]) == 4


# precision, and what is trained


def test_autocast_is_near_and_leaves_weights_as_they_are():
    """bfloat16 has 8 bits: a rounding is 2^-9, of which some thirty add up, and the loss squares them."""
    pipe, batch = small(V), batch_of(SMALL)
    mark, found = fingerprint(pipe.unet), {}
    for precision in ("fp32", "bf16"):
        loss = Diffusion(pipe, DiffusionSettings(precision=precision))(batch, range(4))
        loss.mean().backward()
        found[precision] = loss.detach(), torch.cat([g.flatten() for g in gradients(pipe.unet).values()])
    (loss, grad), (rough, steep) = found["fp32"], found["bf16"]
    assert rough.dtype == steep.dtype == torch.float32
    assert 0 < error(rough, loss) < 2e-2 and 0 < error(steep, grad) < 0.1
    assert fingerprint(pipe.unet) == mark
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}


@pytest.mark.parametrize("trained", [("unet",), ("unet", "text_encoder"), ("text_encoder",)])
def test_what_is_to_be_trained_has_gradients_and_nothing_else(trained):
    pipe = frozen(tiny.make(SMALL))
    named = pipe.named_networks()
    for name in trained:
        named[name].requires_grad_(True)
    Diffusion(pipe, DiffusionSettings(drop=0.0))(batch_of(SMALL), range(4)).mean().backward()
    found = {name: gradients(network) for name, network in named.items()}
    assert {name for name, grads in found.items() if grads} == set(trained)
    for name in trained:
        assert found[name].keys() == dict(named[name].named_parameters()).keys()
        assert all(grad.any() for grad in found[name].values())


WRONG_SETTINGS = {
    "weighting": "nothing", "times": "now", "power": 0.0, "gamma": -1.0, "drop": 1.5, "offset": 2.0,
    "chunks": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_settings_that_make_no_sense_are_refused(name):
    with pytest.raises(InputError, match=f"{name} must be"):
        Diffusion(tiny.make(SMALL), DiffusionSettings(**{name: WRONG_SETTINGS[name]}))
