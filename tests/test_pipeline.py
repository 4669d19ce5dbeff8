"""Laws of a call: what an image depends on, and what it does not."""

import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.errors import InputError, NumericError
from ldm.noise import Noise
from ldm.pipeline import Pipeline
from tests import tiny
from tests.tiny import PNG_SIDE, error, hooked, unit_noise

SAMPLERS = tuple(ldm.schedulers.samplers.SAMPLERS)
H = W = PNG_SIDE // 2  # of the latent


@pytest.fixture(scope="module")
def latents(pipe):
    def call(prompt="a cat", p=pipe, **options):
        return p(prompt, **{"seed": 3, "progress": False, "output_type": "latent"} | options).latents

    return call


def picture(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (PNG_SIDE, PNG_SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def half_mask():
    mask = Image.new("L", (PNG_SIDE, PNG_SIDE), 0)
    mask.paste(255, (0, 0, PNG_SIDE // 2, PNG_SIDE))
    return mask


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_the_same_alone_and_in_a_batch(latents, name):
    prompts = ["a cat", "two dogs", ""]
    both = latents(prompts, negative_prompt=["", "red", "b"], sampler=name)
    for i, (prompt, negative) in enumerate(zip(prompts, ["", "red", "b"], strict=True)):
        alone = latents(prompt, negative_prompt=negative, seed=3 + i, sampler=name)
        assert error(both[i : i + 1], alone) <= 1e-5


def test_images_of_one_prompt_are_those_of_its_seeds(latents):
    both = latents(num_images_per_prompt=3, seed=10)
    assert error(both[2:], latents(seed=12)) <= 1e-5
    assert error(both, latents(num_images_per_prompt=3, seed=[10, 11, 12])) == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_call_gives_the_same_bits(latents, name):
    assert torch.equal(latents(sampler=name), latents(sampler=name))


def test_another_seed_or_prompt_or_negative_gives_another_image(latents):
    first = latents()
    for other in ({"seed": 4}, {"prompt": "a car"}, {"negative_prompt": "red"}, {"guidance_scale": 3.0}):
        assert error(latents(**other), first) > 0.01


def test_no_seed_is_a_fresh_one_that_is_told(pipe, latents):
    first, second = (pipe("a", progress=False, output_type="latent") for _ in range(2))
    assert first.seeds != second.seeds
    assert torch.equal(latents("a", seed=first.seeds), first.latents)


def test_a_call_leaves_torchs_generator_alone(latents):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    latents(seed=None, sampler="ddpm")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("change", "back"),
    [
        (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
        (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    ],
    ids=["dtype", "device"],
)
def test_torchs_defaults_do_not_matter(pipe, change, back):
    options = {"image": picture(), "mask_image": half_mask(), "sampler": "ddpm", "progress": False}

    def drawn():
        fresh = pipe("a cat", progress=False)
        calls = pipe("a cat", seed=3, progress=False, sampler="ddpm"), pipe("a", seed=3, **options)
        assert np.asarray(fresh[0]).shape == (PNG_SIDE, PNG_SIDE, 3)
        return [call.latents for call in calls] + [torch.from_numpy(np.array(call[0])) for call in calls]

    usual = drawn()
    change()
    try:
        other = drawn()
    finally:
        back()
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(usual, other, strict=True))


def test_a_missing_negative_prompt_is_the_empty_text(latents):
    assert torch.equal(latents(), latents(negative_prompt=""))


def test_latents_are_the_start_unchanged(latents):
    start = Noise([3], (4, H, W))()
    kept = start.clone()
    assert torch.equal(latents(latents=start), latents())
    assert torch.equal(start, kept)


def test_threads_on_one_pipeline_get_what_calls_in_turn_get(latents):
    jobs = [{"prompt": f"thing {i}", "seed": i, "sampler": SAMPLERS[i % 4]} for i in range(4)]
    expected = [latents(**job) for job in jobs]
    found = {}

    def work(i):
        for _ in range(3):
            found.setdefault(i, []).append(latents(**jobs[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, one in enumerate(expected):
        assert len(found[i]) == 3 and all(torch.equal(x, one) for x in found[i])


def count_calls(pipe, **options):
    batches = []
    with hooked(pipe.unet, lambda module, args, out: batches.append(len(args[0]))):
        pipe(**{"prompt": ["a", "b"], "progress": False, "output_type": "latent"} | options)
    return batches


@pytest.mark.parametrize(("guidance", "width"), [(7.5, 4), (1.01, 4), (1, 2), (0.3, 2), (0, 2), (-2, 2)])
def test_guidance_of_one_or_less_runs_the_conditional_branch_alone(pipe, guidance, width):
    assert count_calls(pipe, guidance_scale=guidance, num_inference_steps=3) == [width] * 3


TWICE = {"heun": 11, "dpm_2": 11, "dpmpp_sde": 11, "plms": 7}  # the last step onto a clean level is one call


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_is_called_as_often_as_the_solver_says(pipe, name):
    assert count_calls(pipe, sampler=name, num_inference_steps=6) == [4] * TWICE.get(name, 6)


def test_given_levels_are_the_steps(pipe):
    chosen = ldm.sampler("euler", timesteps=[900, 500, 100])
    assert (
        count_calls(pipe, sampler=chosen)
        == count_calls(pipe, sampler=chosen, num_inference_steps=3)
        == [4] * 3
    )
    with pytest.raises(InputError, match="num_inference_steps 5, but the sampler was given 3"):
        pipe("a cat", sampler=chosen, num_inference_steps=5)


def test_without_guidance_the_negative_prompt_is_nothing(latents):
    assert torch.equal(latents(guidance_scale=1), latents(guidance_scale=0.5, negative_prompt="red"))


def test_one_step_is_linear_in_guidance(latents):
    """x_s is affine in eps, and eps = eps_u + w (eps_c - eps_u)."""
    options = {"num_inference_steps": 1, "sampler": "euler", "negative_prompt": "red"}
    two, four, six = (latents(guidance_scale=w, **options) for w in (2, 4, 6))
    assert error(two + six, 2 * four) <= 1e-5
    assert error(two, four) > 0.001


def test_a_prompt_against_itself_needs_no_guidance(latents):
    guided = latents("a cat", negative_prompt="a cat", guidance_scale=9)
    assert error(guided, latents("a cat", guidance_scale=1)) <= 1e-5


def test_the_callback_sees_every_step_in_order(pipe):
    seen = []
    result = pipe("a", seed=1, progress=False, callback=lambda *step: seen.append(step))
    steps, levels, xs, x0s = zip(*seen, strict=True)
    assert list(steps) == [0, 1, 2, 3]
    assert [level.t for level in levels] == [501, 251, 1, 0]  # where each step arrived
    assert all(x.shape == x0.shape == (1, 4, H, W) for x, x0 in zip(xs, x0s, strict=True))
    assert torch.equal(xs[-1], result.latents)


def test_an_error_in_the_callback_is_the_callers(pipe):
    def stop(*step):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pipe("a", progress=False, callback=stop)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m_sde", "uni_pc"])
def test_ctrl_c_leaves_the_pipeline_as_it_was(pipe, name):
    options = {
        "seed": 1,
        "sampler": name,
        "num_inference_steps": 3,
        "output_type": "latent",
        "progress": False,
    }
    before = pipe("a cat", **options).latents

    def stop(module, args, out):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), hooked(pipe.unet, stop), ldm.record_attention(pipe):
        pipe("a cat", **options)
    assert torch.is_grad_enabled() and not any(m._forward_hooks for m in pipe.unet.modules())
    assert torch.equal(pipe("a cat", **options).latents, before)


@pytest.mark.parametrize("name", ["ddim", "euler_ancestral", "dpmpp_2m", "heun"])
def test_gradients_flow_through_a_call_where_the_start_asks_for_them(pipe, name):
    options = {"seed": 1, "sampler": name, "num_inference_steps": 2, "output_type": "pt", "progress": False}
    start, way = unit_noise(5, 1, 4, H, W), unit_noise(6, 1, 4, H, W)

    def loss(x):
        return pipe("a cat", latents=x, **options).images.double().square().sum()

    asked = start.clone().requires_grad_()
    loss(asked).backward()
    with torch.no_grad():
        slope = (loss(start + 1e-3 * way) - loss(start - 1e-3 * way)) / 2e-3
        assert not loss(asked).requires_grad
    assert float((asked.grad * way).sum()) == pytest.approx(float(slope), rel=0.05)
    plain = pipe("a cat", latents=start, **options)
    assert not plain.latents.requires_grad and not plain.images.requires_grad and torch.is_grad_enabled()
    assert isinstance(pipe("a cat", latents=asked, **options | {"output_type": "pil"})[0], Image.Image)


def test_progress_is_one_bar_that_can_be_silenced(pipe, capsys):
    pipe("a", progress=False)
    assert capsys.readouterr() == ("", "")
    pipe("a")
    out, err = capsys.readouterr()
    assert out == "" and "sampling" in err and "4/4" in err


def test_height_and_width_are_pixels(pipe):
    result = pipe("a", height=12, width=22, progress=False)
    assert result[0].size == (22, 12) and result.latents.shape == (1, 4, 6, 11)


def test_encode_and_decode_are_the_autoencoder_with_its_scale(pipe):
    images = unit_noise(0, 2, 3, PNG_SIDE, PNG_SIDE).clamp(-1, 1)
    with torch.no_grad():
        z, mean = pipe.encode(images), pipe.vae.moments(images)[0]
        assert error(z, mean * pipe.family.vae.scale) == 0
        decoded = pipe.vae.decoder(pipe.vae.from_latent(z / pipe.family.vae.scale)).clamp(-1, 1)
        assert error(pipe.decode(z), decoded) <= 1e-6


def test_decoding_in_parts_is_decoding_at_once(pipe):
    z = unit_noise(0, 3, 4, 64, 64)  # as large as is decoded in one part
    with torch.no_grad():
        together = pipe.decode(z)
        assert error(together, torch.cat([pipe.decode(row[None]) for row in z])) <= 1e-6


def test_one_prompt_is_not_its_letters(pipe):
    assert torch.equal(pipe.condition("a cat").context, pipe.condition(["a cat"]).context)


def test_a_prediction_of_v_and_of_eps_are_two_models(pipe, latents):
    family = replace(pipe.family, prediction=ldm.V)
    other = Pipeline(family, pipe.unet, pipe.vae, pipe.text_encoders, pipe.tokenizers)
    assert error(latents(p=other), latents()) > 0.01


def test_moving_to_another_dtype_keeps_the_image_near(latents):
    moved = tiny.make().to(dtype=torch.bfloat16)
    assert {p.dtype for network in moved.networks() for p in network.parameters()} == {torch.bfloat16}
    options = {"num_inference_steps": 1, "guidance_scale": 1}
    found = latents(p=moved, **options)
    assert found.dtype == torch.float32
    assert 0 < error(found, latents(**options)) < 0.1  # bfloat16 has 8 bits


# Image to image and inpainting


@pytest.mark.parametrize(("strength", "calls"), [(0.25, 1), (0.5, 2), (0.8, 3), (1.0, 4)])
def test_image_to_image_runs_the_last_steps(pipe, strength, calls):
    assert count_calls(pipe, image=picture(), strength=strength) == [4] * calls


def test_a_weaker_strength_stays_nearer(pipe, latents):
    image = picture()
    z = pipe.encode(ldm.image.from_any(image, (PNG_SIDE, PNG_SIDE))).detach()
    near, far = (error(latents(image=image, strength=s, num_inference_steps=20), z) for s in (0.1, 1.0))
    assert near < far


def test_where_the_mask_is_black_pixels_are_the_pictures_own(pipe):
    image, mask = picture(), half_mask()
    result = pipe("a cat", image=image, mask_image=mask, strength=1.0, seed=1, progress=False)
    found, kept = np.asarray(result[0]), np.asarray(mask) == 0
    assert np.array_equal(found[kept], np.asarray(image)[kept])
    assert not np.array_equal(found[~kept], np.asarray(image)[~kept])


def test_where_the_mask_is_black_the_latent_is_the_pictures_own(pipe):
    image = picture()
    z = pipe.encode(ldm.image.from_any(image, (PNG_SIDE, PNG_SIDE))).detach()
    found = pipe("a", image=image, mask_image=half_mask(), sampler="euler", seed=1, progress=False).latents
    assert error(found[..., W // 2 :], z[..., W // 2 :]) <= 1e-5


def test_a_white_mask_is_image_to_image(latents):
    white = Image.new("L", (PNG_SIDE, PNG_SIDE), 255)
    assert torch.equal(latents(image=picture(), mask_image=white), latents(image=picture()))


def test_a_black_mask_gives_back_the_picture(pipe):
    image, black = picture(), Image.new("L", (PNG_SIDE, PNG_SIDE), 0)
    result = pipe("a", image=image, mask_image=black, progress=False)
    assert np.array_equal(np.asarray(result[0]), np.asarray(image))


def test_the_picture_and_mask_handed_in_are_not_touched(pipe):
    image, mask = unit_noise(0, 3, PNG_SIDE, PNG_SIDE).clamp(-1, 1), torch.zeros(PNG_SIDE, PNG_SIDE)
    mask[:4] = 1
    kept = image.clone(), mask.clone()
    pipe("a", image=image, mask_image=mask, progress=False)
    assert torch.equal(image, kept[0]) and torch.equal(mask, kept[1])


# Results that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_named(pipe, value):
    calls = []

    def spoil(module, args, out):
        calls.append(1)
        return out * value if len(calls) == 2 else out

    with hooked(pipe.unet, spoil), pytest.raises(NumericError, match=r"sampling .* step 2 of 4"):
        pipe("a", progress=False)


def test_a_decoder_that_is_not_finite_is_named(pipe):
    spoiled = hooked(pipe.vae.decoder, lambda m, a, out: out * float("nan"))
    with spoiled, pytest.raises(NumericError, match="decoding"):
        pipe("a", progress=False)


def test_a_decoder_that_overflows_is_named(pipe):
    spoiled = hooked(pipe.vae.decoder, lambda m, a, out: out + float("inf"))
    with spoiled, pytest.raises(NumericError, match="decoding"):
        pipe("a", progress=False)
