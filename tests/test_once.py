"""What does not change from step to step is computed once, and is the same as each time anew."""

from collections import Counter

import pytest
import torch
from torch import nn

import ldm
from ldm.once import Once, by, plain
from ldm.schedulers.solvers import Denoise
from tests import reduced
from tests.tiny import error, unit_noise

LEVELS = [ldm.Schedule().at(t) for t in (999, 700, 431, 60)]


def test_each_layer_is_asked_once_of_the_whole():
    asked = Counter()

    def layer(x):
        asked["layer"] += 1
        return 2 * x

    x = Once(unit_noise(0, 6, 3))
    parts = [by(layer, x.at(slice(i, i + 2))) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), 2 * x.whole)
    assert asked["layer"] == 1
    assert torch.equal(plain(x.at(slice(2, 4))), x.whole[2:4])
    assert torch.equal(by(layer, plain(x)), 2 * x.whole)
    assert asked["layer"] == 2


def denoiser(pipe: ldm.Pipeline, ts: list[float], guidance: float = 3.0) -> Denoise:
    """Two images' own."""
    heard = [pipe.condition(prompts) for prompts in (["a cat", "red"], ["", "b"])]
    return ldm.Denoiser(pipe.unet, pipe.family.prediction, *heard, guidance, ts=ts)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_path_whose_levels_are_known_is_what_its_steps_are_alone(name):
    """Rows of one product instead of products of their own: float32 rounding through the network."""
    pipe = reduced.make(name)
    x = unit_noise(1, 2, 4, 8, 8)
    with torch.no_grad():
        known = denoiser(pipe, [level.t for level in LEVELS])
        for level in (*LEVELS, ldm.Schedule().at(500), *LEVELS[:1]):  # one that was not foreseen, one again
            alone = plainly(pipe, x, level)
            assert error(known(x, level), alone) <= 2e-6
            assert error(known(x, level), plainly(pipe, x, ldm.Schedule().at(level.t - 1))) > 1e-4


def plainly(pipe: ldm.Pipeline, x: torch.Tensor, level: ldm.Level) -> torch.Tensor:
    """A step computed by tensors alone."""
    with torch.enable_grad():  # where nothing is kept
        return denoiser(pipe, [])(x, level).detach()


def test_who_looks_at_the_network_or_stands_in_for_it_is_given_tensors():
    pipe, seen = reduced.make("sdxl"), []
    note = lambda *given: seen.append(given)  # noqa: E731
    options = {"num_inference_steps": 2, "progress": False, "output_type": "latent", "seed": 1}
    wanted = pipe("a cat", **options).latents
    hook = pipe.unet.register_forward_hook(lambda unet, given, out: note(*given))
    hooked = pipe("a cat", **options).latents
    hook.remove()
    run = pipe.unet.forward
    pipe.unet.forward = lambda *given: (note(*given), run(*given))[1]
    replaced = pipe("a cat", **options).latents
    assert error(hooked, wanted) <= 1e-5 and torch.equal(hooked, replaced)
    assert len(seen) == 4
    for x, t, context, vector, label in seen:
        assert all(isinstance(tensor, torch.Tensor) for tensor in (x, t, context, vector)) and label is None


@pytest.mark.parametrize("sampler", ["ddim", "dpm_2"])  # the second asks between the path's levels too
@pytest.mark.parametrize("packed", [True, False])
def test_texts_pass_through_their_layers_once_a_prompt_and_levels_once_a_path(sampler, packed, monkeypatch):
    """Where nothing is packed each level is embedded alone, as it would be in a loop of one's own."""
    pipe = reduced.make("sd1")
    monkeypatch.setattr("ldm.pipeline.is_packed", lambda unet: packed)
    asked, hooks = Counter(), []
    for name, module in pipe.unet.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("cross_attn.k", "cross_attn.v", ".time")):
            note = lambda *_, name=name: asked.update([name])  # noqa: E731
            hooks.append(module.register_forward_hook(note))
    pipe("a cat", num_inference_steps=4, sampler=sampler, progress=False, output_type="latent")
    for hook in hooks:
        hook.remove()
    texts = {name: count for name, count in asked.items() if "cross_attn" in name}
    levels = {name: count for name, count in asked.items() if name not in texts}
    between = 3 if sampler == "dpm_2" else 0
    assert len(texts) > 5 and set(texts.values()) == {1}
    assert len(levels) > 5 and set(levels.values()) == {(1 if packed else 4) + between}


def test_a_loop_of_ones_own_is_the_pipelines_bit_for_bit():
    pipe = reduced.make("sd1")
    family, ddim = pipe.family, ldm.sampler("ddim")
    noise = ldm.Noise([3], (family.vae.latent_channels, 8, 8))
    path = ddim.path(family.schedule, 4, family.spacing, family.last)
    said = [pipe.condition([prompt]) for prompt in ("a cat", "")]
    denoise = ldm.Denoiser(pipe.unet, family.prediction, *said, 3.0)
    with torch.no_grad():
        *_, (x, _) = ddim.solve(denoise, noise(), path, noise)
    f = 8 * family.vae.factor
    options = {"height": f, "width": f, "guidance_scale": 3.0, "num_inference_steps": 4, "seed": 3}
    same = pipe("a cat", sampler=ddim, output_type="latent", progress=False, **options).latents
    assert torch.equal(x, same)


def test_many_images_and_steps_are_embedded_in_parts(monkeypatch):
    monkeypatch.setattr("ldm.denoiser.AHEAD", 8)
    pipe = reduced.make("sd1")
    x = unit_noise(1, 2, 4, 8, 8)
    with torch.no_grad():
        known = denoiser(pipe, [level.t for level in LEVELS])
        for level in LEVELS:
            assert error(known(x, level), plainly(pipe, x, level)) <= 2e-6
        assert len(known.heard.times) == 2  # 8 rows are two levels of 4
