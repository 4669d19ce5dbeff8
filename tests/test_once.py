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


def test_texts_and_levels_pass_through_their_layers_once_a_path():
    pipe = reduced.make("sd1")
    asked, hooks = Counter(), []
    for name, module in pipe.unet.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("cross_attn.k", "cross_attn.v", ".time")):
            note = lambda *_, name=name: asked.update([name])  # noqa: E731
            hooks.append(module.register_forward_hook(note))
    pipe("a cat", num_inference_steps=4, progress=False, output_type="latent")
    for hook in hooks:
        hook.remove()
    assert len(asked) > 10
    assert set(asked.values()) == {1}


def test_many_images_and_steps_are_embedded_in_parts(monkeypatch):
    monkeypatch.setattr("ldm.denoiser.AHEAD", 8)
    pipe = reduced.make("sd1")
    x = unit_noise(1, 2, 4, 8, 8)
    with torch.no_grad():
        known = denoiser(pipe, [level.t for level in LEVELS])
        for level in LEVELS:
            assert error(known(x, level), plainly(pipe, x, level)) <= 2e-6
        assert len(known.heard.times) == 2  # 8 rows are two levels of 4
