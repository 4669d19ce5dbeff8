"""Whole runs of every family that diffusers has, with the same random weights, from a folder that we wrote.

The folder is loaded by diffusers' from_pretrained, so it is shown too that what we write is what they read.
"""

import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionDepth2ImgPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

import ldm
from tests.reduced import each, make
from tests.reference.peers import seeds
from tests.tiny import error, unit_noise

BOUND = 1e-4  # of float32 latents, over several guided steps that amplify differences
SEED, STEPS, GUIDANCE, SIDE = 5, 4, 4.0, 128
PROMPT, OTHER = "a café, 猫 😀 on “the” moon", "a hat"
RNG = np.random.default_rng(0)


def picture(side: int) -> torch.Tensor:
    """[1 3 H W] in [-1, 1]."""
    return torch.from_numpy(RNG.random((1, 3, side, side), dtype=np.float32)) * 2 - 1


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    """Family -> ours from a file, ours from a folder, diffusers' from that folder."""
    kept = {}

    def get(name: str):
        if name not in kept:
            place = tmp_path_factory.mktemp(name)
            pipe = make(name)
            ldm.save(pipe, place / "model.safetensors")
            ldm.save(pipe, place / "folder", layout="diffusers")
            kept[name] = (
                ldm.load(place / "model.safetensors", family=name),
                ldm.load(place / "folder"),
                peer_of(place / "folder"),
            )
        return kept[name]

    return get


def peer_of(folder) -> DiffusionPipeline:
    kind = (folder / "model_index.json").read_text()
    extra = {"depth_estimator": None, "feature_extractor": None} if "Depth2Img" in kind else {}
    cls = StableDiffusionDepth2ImgPipeline if extra else DiffusionPipeline
    extra |= {"safety_checker": None} if "safety_checker" in kind else {}
    peer = cls.from_pretrained(folder, **extra)
    peer.set_progress_bar_config(disable=True)
    return peer


@pytest.fixture(autouse=True)
def posterior_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours encodes to the mean of the posterior; diffusers draws from it."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@torch.no_grad()
def theirs(peer: DiffusionPipeline, **options) -> torch.Tensor:
    known = inspect.signature(peer.__call__).parameters
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"} | options
    options = {"generator": seeds(SEED, 1), "height": SIDE, "width": SIDE} | options
    return peer(**{name: value for name, value in options.items() if name in known}).images


def ours(pipe: ldm.Pipeline, prompt: str = PROMPT, **options) -> torch.Tensor:
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"} | options
    if pipe.family.beside != "upscale":
        options |= {"height": SIDE, "width": SIDE}
    return pipe(prompt, seed=SEED, progress=False, **options).latents


def compare(models, name: str, mine: dict, peers: dict) -> None:
    """Both of ours against theirs, and that another prompt makes a difference."""
    single, folder, peer = models(name)
    expected = theirs(peer, prompt=PROMPT, **peers)
    for pipe in (single, folder):
        assert error(ours(pipe, **mine), expected) <= BOUND
    assert error(ours(single, prompt=OTHER, **mine), expected) > 30 * BOUND


@pytest.mark.parametrize("name", each(["sd2", "sd2-v", "sdxl"]))
def test_text_to_image(models, name: str):
    compare(models, name, {}, {})
    compare(models, name, {"negative_prompt": "fog"}, {"negative_prompt": "fog"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo"])
@pytest.mark.parametrize("steps", [1, 3])
def test_turbo(models, name: str, steps: int):
    """diffusers starts trailing paths from sigma z, the official code from hypot(1, sigma) z."""
    options = {"num_inference_steps": steps, "guidance_scale": 0.0}
    z, ratio = unit_noise(2, 1, 4, 16, 16), models(name)[0].family.schedule.at(999).ratio
    start = z * (1 + ratio**2) ** 0.5 / ratio
    compare(models, name, options | {"latents": z}, options | {"latents": start})


def test_sizes_that_sdxl_is_told(models):
    told = {"original_size": (100, 200), "crops_coords_top_left": (8, 16), "target_size": (50, 40)}
    compare(models, "sdxl", told, told)
    plain = ours(models("sdxl")[0])
    assert error(ours(models("sdxl")[0], **told), plain) > 30 * BOUND


@pytest.mark.parametrize("name", each(["sd1", "sd2-v", "sdxl"]))
def test_skipped_layers_of_clip(models, name: str):
    """diffusers leaves layers out of the prompt alone, not of a negative one; SDXL's missing one is zeros."""
    options = {"guidance_scale": 4.0 if name == "sdxl" else 1.0, "clip_skip": 1}
    compare(models, name, options, options)
    assert error(ours(models(name)[0], **options | {"clip_skip": 0}), ours(models(name)[0], **options)) > 1e-2


@pytest.mark.parametrize("name", each(["sd1-inpaint", "sd2-inpaint", "sdxl-inpaint"]))
@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_inpainting(models, name: str, strength: float):
    image, mask = picture(SIDE), torch.from_numpy(RNG.random((1, 1, SIDE, SIDE))).round().float()
    steps = {"num_inference_steps": 5}
    mine = {"image": image, "mask_image": mask, "strength": strength} | steps
    peers = {"image": (image + 1) / 2, "mask_image": mask, "strength": strength}
    compare(models, name, mine, peers | steps)


@pytest.mark.slow
def test_editing(models):
    image = picture(SIDE)
    options = {"image_guidance_scale": 1.7}
    compare(models, "sd1-pix2pix", {"image": image} | options, {"image": (image + 1) / 2} | options)


@pytest.mark.slow
def test_depth(models):
    image, depths = picture(SIDE), torch.from_numpy(RNG.random((1, SIDE, SIDE))).float()
    options = {"strength": 0.8, "num_inference_steps": 5}
    mine = {"image": image, "depth_map": depths} | options
    compare(models, "sd2-depth", mine, {"image": (image + 1) / 2, "depth_map": depths} | options)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 20, 350])
def test_upscaling(models, level: int):
    image = picture(16)
    compare(
        models, "sd-x4-upscaler", {"image": image, "noise_level": level},
        {"image": (image + 1) / 2, "noise_level": level, "generator": seeds(SEED, 1)[0]},
    )  # fmt: skip


@pytest.mark.slow
def test_refining_a_picture(models):
    image = picture(SIDE)
    options = {"strength": 0.5, "num_inference_steps": 8, "aesthetic_score": 7.0}
    compare(models, "sdxl-refiner", {"image": image} | options, {"image": (image + 1) / 2} | options)


@pytest.mark.slow
def test_the_refiner_goes_on_where_the_base_stopped(models):
    base, _, peer_base = models("sdxl")
    refiner, _, peer_refiner = models("sdxl-refiner")
    steps = {"num_inference_steps": 10}
    half = ours(base, denoising_end=0.6, **steps)
    their_half = theirs(peer_base, prompt=PROMPT, denoising_end=0.6, **steps)
    level = base.family.spacing(base.family.schedule, 10)[6]
    assert error(half, their_half * level.alpha) <= BOUND  # theirs are x / alpha
    done = ours(refiner, latents=half, denoising_start=0.6, **steps)
    their_done = theirs(peer_refiner, prompt=PROMPT, image=their_half, denoising_start=0.6, **steps)
    assert error(done, their_done) <= BOUND


def test_ldm_text_to_image(models):
    single, folder, peer = models("ldm-text2img")
    noise = unit_noise(1, 1, 4, 16, 16)
    with torch.no_grad():
        expected = peer(
            PROMPT, height=SIDE, width=SIDE, latents=noise, num_inference_steps=STEPS,
            guidance_scale=GUIDANCE, output_type="np",
        ).images  # fmt: skip
    for pipe in (single, folder):
        found = pipe(
            PROMPT, latents=noise, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np",
            progress=False, height=SIDE, width=SIDE,
        ).images  # fmt: skip
        assert error(torch.from_numpy(found), torch.from_numpy(expected)) <= BOUND


@pytest.mark.parametrize("name", ["ldm-celeba256", pytest.param("ldm-sr", marks=pytest.mark.slow)])
@pytest.mark.parametrize("offset", [0, 1])
def test_of_quantised_latents(models, tmp_path, name: str, offset: int):
    """diffusers counts times from 0 where a scheduler does not say; the original code from 1."""
    single, folder, peer = models(name)
    if offset == 0:
        peer.save_pretrained(tmp_path)
        file = tmp_path / "scheduler" / "scheduler_config.json"
        said = json.loads(file.read_text())
        file.write_text(json.dumps({key: said[key] for key in said if key != "steps_offset"}))
        folder, peer = ldm.load(tmp_path), peer_of(tmp_path)
    mine = {"num_inference_steps": STEPS, "progress": False, "output_type": "np", "seed": SEED}
    more = {}
    if name == "ldm-sr":
        image = picture(folder.family.size // folder.family.vae.factor)
        more = {"image": image}
    else:
        mine |= {"height": folder.family.size, "width": folder.family.size}
    expected = torch.from_numpy(
        peer(num_inference_steps=STEPS, generator=seeds(SEED, 1)[0], output_type="np", **more).images
    )
    assert error(torch.from_numpy(folder(None, **mine, **more).images), expected) <= BOUND
    found = torch.from_numpy(single(None, **mine, **more).images)
    assert error(found, expected) <= BOUND if offset else error(found, expected) > 30 * BOUND


@pytest.mark.slow
def test_the_schedulers_of_the_folders(models):
    kinds = {
        "sd2": DDIMScheduler,
        "sdxl": EulerDiscreteScheduler,
        "sdxl-turbo": EulerAncestralDiscreteScheduler,
    }
    for name, kind in kinds.items():
        assert type(models(name)[2].scheduler) is kind
