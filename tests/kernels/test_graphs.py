"""A UNet's step from graphs is the step itself."""

import threading

import pytest
import torch

pytest.importorskip("triton")

from ldm_kernels import backend, steps

import ldm
from ldm.once import Once
from tests.kernels.graphed import OPTIONS, Graphed, step
from tests.kernels.ways import by_pytorch
from tests.tiny import hooked, unit_noise


@pytest.fixture(autouse=True)
def ways(monkeypatch):
    by_pytorch(monkeypatch)
    with torch.no_grad():
        yield


SLOW = [pytest.param("sdxl", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", ["sd1", "ldm-celeba256", *SLOW])
def test_paths_are_what_they_are_without(name):
    both = Graphed(name)
    calls = [
        {}, {"num_inference_steps": 4, "seed": 5}, {"width": both.plain.family.size // 2},
        {"guidance_scale": 3.0}, {"guidance_scale": 1.0}, {"guidance_interval": (0.5, 4.0)}, {"seed": [1, 2]},
    ]  # fmt: skip
    prompts = ("a cat", "a dog in red")
    if not both.plain.family.texts:
        calls, prompts = calls[:3], (None,)
    for more in calls:
        for prompt in prompts[: 2 - bool(more)]:
            given = [prompt, prompt] if isinstance(more.get("seed"), list) else prompt
            found, wanted = both.both(given, **more)
            assert torch.equal(found, wanted)
    assert both.record.recorded >= 2 and both.record.replayed > both.record.recorded


def test_a_step_that_hears_a_vector():
    both = Graphed("sdxl")
    x, vector = unit_noise(0, 1, 4, 8, 8), unit_noise(2, 1, both.plain.unet.config.vector_dim)
    context = Once(unit_noise(1, 1, 9, both.plain.unet.config.context_dim))
    for i, t in enumerate((900.0, 500.0, 100.0)):
        given = [Once(pipe.unet.embed(torch.tensor([t]), vector + i)) for pipe in (both.pipe, both.plain)]
        assert torch.equal(both.pipe.unet(x, given[0], context), both.plain.unet(x, given[1], context))
    assert both.record.replayed == 1


def test_the_comparison_would_see_an_input_that_stays():
    def stays(function):
        out = function()
        return lambda: out

    both = Graphed("sd1", record=stays)
    found, wanted = both.both("a cat")
    assert not torch.equal(found, wanted)


def test_one_step_is_recorded_and_the_others_repeat_it():
    both = Graphed("sd1")
    first = step(both.pipe.unet, 900.0)
    assert both.record.recorded == 0
    second, *others = (step(both.pipe.unet, t) for t in (700.0, 500.0, 100.0))
    assert (both.record.recorded, both.record.replayed) == (1, 2)
    assert torch.equal(first, step(both.plain.unet, 900.0))
    assert torch.equal(second, step(both.plain.unet, 700.0))
    assert torch.equal(others[0], step(both.plain.unet, 500.0)) and not torch.equal(*others)  # it is a copy


def test_texts_there_and_back(monkeypatch):
    both, copied = Graphed("sd1"), []
    plainly = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda to, new: copied.append(len(to)) or plainly(to, new))
    texts = [Once(unit_noise(i, 1, 9, both.plain.unet.config.context_dim)) for i in range(2)]
    for _ in range(2):
        step(both.pipe.unet, context=texts[0])
    for i in (0, 1, 1, 0, 1):
        found = step(both.pipe.unet, context=texts[i], seed=i)
        assert torch.equal(found, step(both.plain.unet, context=Once(texts[i].whole), seed=i))
    (layers,) = (len(graph.context.made) for graph in both.captured.graphs.values())
    assert copied.count(layers) == 3  # where it is another one than before
    assert copied.count(1) == 5  # all that is heard of a level is one tensor


def test_a_text_that_is_gone_is_not_taken_for_the_next(monkeypatch):
    both = Graphed("sd1")
    width = both.plain.unet.config.context_dim
    for seed in range(4):  # the next is often where the last one was
        found = step(both.pipe.unet, context=Once(unit_noise(seed, 1, 9, width)))
        assert torch.equal(found, step(both.plain.unet, context=Once(unit_noise(seed, 1, 9, width))))
    (graph,) = both.captured.graphs.values()
    assert graph.context.source() is None  # what is made of it is not kept


def test_threads_take_turns():
    both, found = Graphed("sd1"), {}
    prompts = ["a cat", "red", "a dog", "blue"]

    def work(prompt):
        found[prompt] = both.pipe(prompt, **OPTIONS).latents

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[prompt], both.plain(prompt, **OPTIONS).latents) for prompt in prompts)
    assert both.record.recorded == 1


def test_who_looks_in_sees_each_step():
    both, seen = Graphed("sd1"), []
    for _ in range(2):
        step(both.pipe.unet)
    with hooked(both.pipe.unet.mid.attn, lambda *_: seen.append("hook")):
        step(both.pipe.unet)
        step(both.pipe.unet)
    assert seen == ["hook"] * 2 and both.record.replayed == 0
    with ldm.record_attention(both.pipe) as maps:
        both.pipe("a red cat", **OPTIONS)
    assert maps["red"].sum() > 0 and both.record.replayed == 0
    with ldm.attention_backend(lambda q, k, v, causal: seen.append("own") or backend.plain(q, k, v)):
        step(both.pipe.unet)
    assert seen[-1] == "own" and both.record.replayed == 0
    step(both.pipe.unet)
    assert both.record.replayed == 1


def test_named_backends_have_graphs_of_their_own():
    both = Graphed("sd1")
    for name, recorded in (("sdpa", 1), ("triton", 2), ("sdpa", 2)):
        with ldm.attention_backend(name):
            for _ in range(2):
                step(both.pipe.unet)
        assert both.record.recorded == recorded
    step(both.pipe.unet)  # as with "triton"
    assert (both.record.recorded, both.record.replayed) == (2, 3)


@pytest.mark.parametrize("how", ["gradients", "tensors"])
def test_what_is_not_of_a_path_has_no_graph(how):
    both = Graphed("sd1")
    x, context = unit_noise(0, 1, 4, 8, 8), unit_noise(1, 1, 9, both.plain.unet.config.context_dim)
    t = torch.tensor([500.0])
    for _ in range(2):
        with torch.set_grad_enabled(how == "gradients"):
            given = (Once(both.pipe.unet.embed(t)), Once(context)) if how == "gradients" else (t, context)
            found = both.pipe.unet(x, *given)
        assert torch.equal(found, both.plain.unet(x, t, context))
    assert both.record.recorded == 0


def test_a_layer_that_was_not_there_fails():
    held = steps.Held(Once(unit_noise(0, 2, 5)))
    with pytest.raises(RuntimeError):
        held.once.by(torch.nn.Linear(5, 3))


def test_in_inference_mode_and_then_without():
    both = Graphed("sd1")
    with torch.inference_mode():
        found = [step(both.pipe.unet, t) for t in (900.0, 700.0, 500.0)]
    found.append(step(both.pipe.unet, 100.0))
    for t, out in zip((900.0, 700.0, 500.0, 100.0), found, strict=True):
        assert torch.equal(out, step(both.plain.unet, t))
    assert both.record.replayed == 2
