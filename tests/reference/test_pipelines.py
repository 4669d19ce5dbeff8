"""Whole guided runs give what diffusers' StableDiffusionPipeline gives from the same noise."""

import copy
import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)

import ldm
from ldm.noise import Noise
from ldm.parts import noised, shorten
from tests.reference.peers import peer_pipeline, seeds
from tests.tiny import error, read_all, same, unit_noise

BOUND = 1e-4  # of float32 latents, over several guided steps that amplify differences
STEPS, GUIDANCE, SEED = 5, 4.0, 7
PROMPTS = ["a café, 猫 😀 wow!", "it's an “old” dog's house; très (naïve) — 東京の夜 🏙️ …"]
CLASSES = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
}


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    return peer_pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(peer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    peer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def single(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    ldm.save(ldm.load(folder), path, layout="original")
    return path


@pytest.fixture(scope="module", params=["folder", "single"])
def ours(request, folder, single):
    return ldm.load({"folder": folder, "single": single}[request.param])


@pytest.fixture(scope="module")
def expected(peer):
    """diffusers' latents by sampler, each computed once."""
    kept = {}

    def latents(name):
        if name not in kept:
            kept[name] = run_peer(peer, CLASSES[name])
        return kept[name]

    return latents


@torch.no_grad()
def run_peer(peer, scheduler, prompts=PROMPTS, **options):
    config = dict(peer.scheduler.config)
    peer = StableDiffusionPipeline(
        **peer.components | {"scheduler": scheduler.from_config(config, timestep_spacing="leading")},
        requires_safety_checker=False,
    )
    peer.set_progress_bar_config(disable=True)
    options = {"height": 128, "width": 128, "output_type": "latent"} | options
    generator = seeds(SEED, len(prompts))
    return peer(
        prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator, **options
    ).images


def run_ours(pipe, name, prompts=PROMPTS, **options):
    return pipe(
        prompts,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        seed=SEED,
        sampler=name,
        progress=False,
        **{"output_type": "latent"} | options,
    )


@pytest.mark.parametrize("name", CLASSES)
def test_latents_are_those_of_diffusers(ours, expected, name):
    assert error(run_ours(ours, name).latents, expected(name)) <= BOUND


def test_pixels_are_those_of_diffusers(ours, peer):
    found = run_ours(ours, "ddim", height=64, width=96, output_type="pt").images
    theirs = run_peer(peer, DDIMScheduler, height=64, width=96, output_type="pt")
    assert found.shape == theirs.shape == (2, 3, 64, 96)
    assert error(found, theirs) <= BOUND


def test_negative_prompts_are_those_of_diffusers(ours, peer):
    negative = ["blurry, ugly", ""]
    found = run_ours(ours, "euler", negative_prompt=negative).latents
    assert error(found, run_peer(peer, EulerDiscreteScheduler, negative_prompt=negative)) <= BOUND


def test_ddim_with_eta_draws_diffusers_noise(ours, peer):
    found = run_ours(ours, ldm.sampler("ddim", eta=0.5)).latents
    theirs = run_peer(peer, DDIMScheduler, eta=0.5)
    assert error(found, theirs) <= BOUND
    assert error(found, run_ours(ours, "ddim").latents) > 100 * BOUND


def test_odd_latent_sizes(ours, peer):
    found = run_ours(ours, "ddim", height=72, width=104).latents
    assert error(found, run_peer(peer, DDIMScheduler, height=72, width=104)) <= BOUND


def test_another_prompt_moves_the_result_far_beyond_the_bound(folder):
    pipe = ldm.load(folder)
    one, other = (run_ours(pipe, "ddim", [text]).latents for text in (PROMPTS[0], PROMPTS[0] + " dig"))
    assert error(one, other) > 100 * BOUND


@pytest.mark.parametrize("key", ["mid.attn.blocks.0.cross_attn.v.weight", "conv_out.bias"])
def test_one_moved_weight_breaks_the_bound(folder, expected, key):
    pipe = ldm.load(folder)
    with torch.no_grad():
        pipe.unet.state_dict()[key][0] += 0.5
    assert error(run_ours(pipe, "ddim").latents, expected("ddim")) > BOUND


def test_other_noise_breaks_the_bound(ours, expected):
    noise = Noise([SEED, SEED + 1], (4, 16, 16))()
    close = run_ours(ours, "ddim", latents=noise).latents
    assert error(close, expected("ddim")) <= BOUND
    assert error(run_ours(ours, "ddim", latents=noise * 1.01).latents, expected("ddim")) > BOUND


def test_a_sharded_folder_is_the_same_model(peer, folder, expected, tmp_path):
    peer.save_pretrained(tmp_path, max_shard_size="2MB")
    assert list((tmp_path / "unet").glob("*-00002-of-*.safetensors"))
    assert error(run_ours(ldm.load(tmp_path), "ddim").latents, expected("ddim")) <= BOUND


@pytest.mark.slow
def test_a_half_precision_variant_is_diffusers_in_half_precision_weights(peer, tmp_path):
    half = copy.deepcopy(peer).to(dtype=torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    assert list((tmp_path / "unet").glob("*.fp16.safetensors"))
    rounded = half.to(dtype=torch.float32)
    for found in (ldm.load(tmp_path), ldm.load(tmp_path, variant="fp16")):
        theirs = run_peer(rounded, DDIMScheduler)
        assert error(run_ours(found, "ddim").latents, theirs) <= BOUND


@pytest.mark.slow
def test_v_prediction_is_read_from_the_folder_and_computed_as_diffusers(tmp_path):
    peer = peer_pipeline(tmp_path / "tokenizer", seed=3, prediction_type="v_prediction")
    peer.save_pretrained(tmp_path / "v")
    pipe = ldm.load(tmp_path / "v")
    assert pipe.family.prediction is ldm.V
    ldm.save(pipe, tmp_path / "v.safetensors", layout="original")
    for name in ("ddim", "euler_ancestral"):
        theirs = run_peer(peer, CLASSES[name])
        for source in ("v", "v.safetensors"):
            assert error(run_ours(ldm.load(tmp_path / source), name).latents, theirs) <= BOUND


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
def test_image_to_image_starts_where_diffusers_adds_noise(strength):
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )
    scheduler.set_timesteps(10)
    z, eps = unit_noise(0, 1, 4, 8, 8), unit_noise(1, 1, 4, 8, 8)
    sampler = ldm.sampler("ddim")
    path = shorten(sampler.path(ldm.Schedule(), 10, ldm.schedulers.spacing.leading), strength)
    times = scheduler.timesteps[-int(10 * strength) :]
    assert [level.t for level in path[:-1]] == times.tolist()
    assert error(noised(z, eps, path), scheduler.add_noise(z, eps, times[:1])) <= 1e-6


def test_image_to_image_is_that_of_diffusers(folder, peer):
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe, image = ldm.load(folder), unit_noise(2, 3, 64, 64).clamp(-1, 1)
    found = run_ours(pipe, "ddim", PROMPTS[:1], image=image, strength=0.6, height=64, width=64).latents
    theirs = StableDiffusionImg2ImgPipeline(**peer.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    z = pipe.encode(image[None])  # a latent: of an image diffusers draws from the posterior
    with torch.no_grad():
        latents = theirs(
            PROMPTS[:1],
            image=z,
            strength=0.6,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=seeds(SEED, 1),
            output_type="latent",
        ).images
    assert error(found, latents) <= BOUND


def test_the_folder_we_write_is_the_model_diffusers_wrote(folder, single, tmp_path):
    ldm.save(ldm.load(single), tmp_path / "back", layout="diffusers")
    back = StableDiffusionPipeline.from_pretrained(tmp_path / "back")
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    for name in ("unet", "vae", "text_encoder"):
        assert same(getattr(back, name).state_dict(), getattr(theirs, name).state_dict())
    assert back.tokenizer(PROMPTS).input_ids == theirs.tokenizer(PROMPTS).input_ids
    for field in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset"):
        assert back.scheduler.config[field] == theirs.scheduler.config[field]


def test_the_config_we_write_tells_diffusers_all_it_needs(folder, tmp_path, expected):
    ldm.save(ldm.load(folder), tmp_path / "copy", layout="diffusers")
    copied = StableDiffusionPipeline.from_pretrained(tmp_path / "copy", safety_checker=None)
    assert error(run_peer(copied, DDIMScheduler), expected("ddim")) <= BOUND


def test_saving_a_diffusers_folder_gives_back_its_tensors(folder, tmp_path):
    ldm.save(ldm.load(folder), tmp_path / "copy")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        assert same(read_all(tmp_path / f"copy/{name}.safetensors"), read_all(folder / f"{name}.safetensors"))
    assert json.loads((tmp_path / "copy/model_index.json").read_text())["_class_name"]
