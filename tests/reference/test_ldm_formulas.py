"""The models of the latent diffusion paper that no other library runs, against formulas written here anew.

The networks are called as functions; everything around them (conditioning, guidance, path, reverse step,
first stage) is computed in this file from the papers (Rombach et al. 2022, Song et al. 2021) and from the
configs of the official code, point by point, each with what it would be if the point were got wrong.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import ldm
from tests.reduced import make
from tests.tiny import error, read_all, same, unit_noise

BOUND = 5e-5  # of float32, over eight guided steps that amplify differences
STEPS = 7  # 1000 // 7 = 142 gives eight times
CLASSES = torch.tensor([7, 207])


def alpha_bar(start: float, end: float) -> np.ndarray:
    return np.cumprod(1 - np.linspace(start**0.5, end**0.5, 1000) ** 2)


def ddim(eps, x: Tensor, bar: np.ndarray, steps: int = STEPS) -> Tensor:
    """Song et al. 2021, eq. 12 with eta 0, on times 1, 1 + k, … downwards; the last one goes to bar[0]."""
    times = list(range(0, 1000, 1000 // steps))
    for i in reversed(range(len(times))):
        a, before = bar[times[i] + 1], bar[times[i - 1] + 1] if i else bar[0]
        e = eps(x, times[i] + 1)
        x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
        x = before**0.5 * x0 + (1 - before) ** 0.5 * e
    return x


@pytest.fixture(scope="module")
def models():
    kept: dict[str, ldm.Pipeline] = {}

    def get(name: str) -> ldm.Pipeline:
        if name not in kept:
            kept[name] = make(name)
        return kept[name]

    return get


def told(x: Tensor, t: int) -> Tensor:
    return torch.full((len(x),), float(t))


def run(pipe: ldm.Pipeline, prompt=None, **options) -> Tensor:
    options = {"num_inference_steps": STEPS, "output_type": "latent", "progress": False} | options
    return pipe(prompt, **options).latents


def sizes(pipe: ldm.Pipeline) -> dict:
    return {"height": pipe.family.size, "width": pipe.family.size}


def decoded(pipe: ldm.Pipeline, z: Tensor) -> Tensor:
    """The first stage's decoder on the nearest codes of z."""
    vae = pipe.vae
    codes = vae.codebook.codes.weight
    flat = z.permute(0, 2, 3, 1)
    nearest = (flat[..., None, :] - codes).square().sum(-1).argmin(-1)
    return vae.decoder(vae.from_latent(codes[nearest].permute(0, 3, 1, 2)))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "betas"), [("ldm-celeba256", (0.0015, 0.0195)), ("ldm-churches256", (0.0015, 0.0155))]
)
def test_unconditional(models, name: str, betas):
    pipe = models(name)
    side = pipe.family.size // pipe.family.vae.factor
    z = unit_noise(0, 2, pipe.family.vae.latent_channels, side, side)
    expected = ddim(lambda x, t: pipe.unet(x, told(x, t)), z, alpha_bar(*betas))
    found = run(pipe, num_images_per_prompt=2, latents=z, **sizes(pipe))
    assert error(found, expected) <= BOUND
    others = (  # a stride less, another schedule, steps that are not moved by one
        ddim(lambda x, t: pipe.unet(x, told(x, t)), z, alpha_bar(*betas), 8),
        ddim(lambda x, t: pipe.unet(x, told(x, t)), z, alpha_bar(0.00085, 0.012)),
        ddim(lambda x, t: pipe.unet(x, told(x, t - 1)), z, alpha_bar(*betas)),
    )
    assert all(error(found, other) > 30 * BOUND for other in others)


@torch.no_grad()
def test_a_path_has_as_many_steps_as_the_original(models):
    pipe, seen = models("ldm-celeba256"), []
    run(pipe, callback=lambda i, level, x, x0: seen.append(level.t), **sizes(pipe))
    assert seen == [853, 711, 569, 427, 285, 143, 1, 0]


@torch.no_grad()
def test_images_come_from_the_nearest_codes(models):
    pipe = models("ldm-celeba256")
    z = unit_noise(3, 1, 3, 8, 8)
    found, expected = pipe.decode(z), decoded(pipe, z).clamp(-1, 1)
    assert error(found, expected) <= BOUND
    plain = pipe.vae.decoder(pipe.vae.from_latent(z)).clamp(-1, 1)  # codes that are not quantised
    assert error(plain, expected) > 30 * BOUND


@torch.no_grad()
def test_encoding_gives_the_code_before_it_is_quantised(models):
    pipe = models("ldm-celeba256")
    images = unit_noise(4, 1, 3, 32, 32).clamp(-1, 1)
    assert torch.equal(pipe.encode(images), pipe.vae.to_moments(pipe.vae.encoder(images)))


@torch.no_grad()
def test_classes_are_guided_away_from_the_last_one(models):
    pipe, w = models("ldm-cin256"), 3.0
    table = pipe.text_encoders[0].classes.weight

    def eps(x: Tensor, t: int, none: int = 1000) -> Tensor:
        u = pipe.unet(x, told(x, t), table[[none, none]][:, None])
        c = pipe.unet(x, told(x, t), table[CLASSES][:, None])
        return u + w * (c - u)

    z, bar = unit_noise(1, 2, 3, 16, 16), alpha_bar(0.0015, 0.0195)
    found = run(pipe, CLASSES.tolist(), latents=z, guidance_scale=w, **sizes(pipe))
    assert error(found, ddim(eps, z, bar)) <= BOUND
    assert error(found, ddim(lambda x, t: eps(x, t, 999), z, bar)) > 30 * BOUND
    assert error(found, run(pipe, [8, 207], latents=z, guidance_scale=w, **sizes(pipe))) > 30 * BOUND


def test_an_odd_latent_that_residual_blocks_cannot_halve_is_refused(models):
    with pytest.raises(ldm.InputError, match="multiple of 128"):
        models("ldm-churches256")(None, height=64, width=64)


def test_a_model_without_such_a_class_is_not_guided(models):
    pipe = models("ldm-cin256-vq-f8")
    with pytest.raises(ldm.InputError, match="no class that stands for none"):
        pipe(7, guidance_scale=2.0, **sizes(pipe))
    assert pipe.family.guidance == 1.0
    with pytest.raises(ldm.InputError, match="from 0 to 999"):
        pipe(1000, **sizes(pipe))


@torch.no_grad()
def test_what_cannot_be_heard_of_one_token(models):
    """Attention to a single token gives its value whatever the query: q and k have no effect."""
    pipe = models("ldm-cin256")
    x, table = unit_noise(2, 1, 3, 16, 16), pipe.text_encoders[0].classes.weight
    before = pipe.unet(x, told(x, 500), table[[3]][:, None])
    attn = pipe.unet.mid.attn.blocks[0].cross_attn
    kept = attn.q.weight.clone()
    attn.q.weight.copy_(kept + 1)
    after = pipe.unet(x, told(x, 500), table[[3]][:, None])
    attn.q.weight.copy_(kept)
    assert error(after, before) <= BOUND


@torch.no_grad()
def test_super_resolution_sees_the_small_picture_as_it_is(models):
    pipe = models("ldm-sr")
    image, z = unit_noise(5, 1, 3, 16, 16).clamp(-1, 1), unit_noise(6, 1, 3, 16, 16)
    bar = alpha_bar(0.0015, 0.0155)
    expected = ddim(lambda x, t: pipe.unet(torch.cat([x, image], 1), told(x, t)), z, bar)
    found = run(pipe, image=image, latents=z)
    assert error(found, expected) <= BOUND
    swapped = ddim(lambda x, t: pipe.unet(torch.cat([image, x], 1), told(x, t)), z, bar)
    assert error(found, swapped) > 30 * BOUND
    assert pipe(None, image=image, output_type="pt", progress=False).images.shape == (1, 3, 64, 64)


@torch.no_grad()
def test_inpainting_has_a_black_hole_and_the_mask_last(models):
    pipe = models("ldm-inpaint")
    image, z = unit_noise(7, 1, 3, 64, 64).clamp(-1, 1), unit_noise(8, 1, 3, 16, 16)
    mask = (torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    small = F.interpolate(2 * mask - 1, size=(16, 16))  # nearest

    def latents(hole: float, order: str = "cm", mask_code: Tensor = small) -> Tensor:
        filled = torch.where(mask > 0, torch.full_like(image, hole), image)
        parts = {"c": pipe.vae.to_moments(pipe.vae.encoder(filled)), "m": mask_code}
        beside = torch.cat([parts[letter] for letter in order], 1)
        bar = alpha_bar(0.0015, 0.0205)
        return ddim(lambda x, t: pipe.unet(torch.cat([x, beside], 1), told(x, t)), z, bar)

    options = {"image": image, "mask_image": mask, "latents": z, **sizes(pipe)}
    found = run(pipe, **options)
    expected = latents(hole=-1.0)
    assert error(found, expected) <= BOUND
    assert error(found, latents(hole=0.0)) > 30 * BOUND  # as in Stable Diffusion
    assert error(found, latents(hole=-1.0, order="mc")) > 30 * BOUND
    assert error(found, latents(hole=-1.0, mask_code=(small + 1) / 2)) > 30 * BOUND
    images = pipe(None, num_inference_steps=STEPS, output_type="pt", progress=False, **options).images
    pasted = torch.where(mask > 0, decoded(pipe, expected).clamp(-1, 1), image)
    assert error(images, pasted / 2 + 0.5) <= BOUND


@torch.no_grad()
def test_heads_are_a_number_or_a_width(models):
    widths = {"ldm-celeba256": 32, "ldm-sr": 32, "ldm-cin256-vq-f8": 32}
    numbers = {"ldm-churches256": 8, "ldm-inpaint": 8, "ldm-cin256": 1, "ldm-text2img": 8}
    for name in widths | numbers:
        config = models(name).family.unet
        found = {config.heads_at(width) for width in config.channels}
        expected = {width // widths[name] for width in config.channels} if name in widths else {numbers[name]}
        assert found == expected


@torch.no_grad()
def test_the_scale_of_churches_is_in_the_file(models, tmp_path):
    ldm.save(models("ldm-churches256"), tmp_path / "a.safetensors")
    tensors = read_all(tmp_path / "a.safetensors") | {"scale_factor": torch.tensor(0.5)}
    save_file(tensors, tmp_path / "b.safetensors")
    a, b = (ldm.load(tmp_path / f"{letter}.safetensors") for letter in "ab")
    images = unit_noise(9, 1, 3, 64, 64).clamp(-1, 1)
    assert error(b.encode(images), 0.5 * a.encode(images)) <= BOUND
    ldm.save(b, tmp_path / "c.safetensors")
    assert read_all(tmp_path / "c.safetensors")["scale_factor"] == 0.5


@torch.no_grad()
def test_averaged_weights_are_what_is_sampled_with(models, tmp_path):
    ldm.save(models("ldm-sr"), tmp_path / "a.safetensors")
    tensors = read_all(tmp_path / "a.safetensors")
    unet = {k: v for k, v in tensors.items() if k.startswith("model.diffusion_model.")}
    tensors |= {"model_ema." + k[6:].replace(".", ""): v + 0.01 for k, v in unet.items()}
    save_file(tensors, tmp_path / "b.safetensors")
    plain = ldm.load(tmp_path / "b.safetensors", ema=False).unet.conv_in.weight
    mean = ldm.load(tmp_path / "b.safetensors")
    assert torch.equal(mean.unet.conv_in.weight, plain + 0.01)
    ldm.save(mean, tmp_path / "c.safetensors")
    assert same(read_all(tmp_path / "c.safetensors"), tensors)
    with pytest.raises(ldm.CheckpointError, match="no moving averages"):
        ldm.load(tmp_path / "a.safetensors", ema=True)
