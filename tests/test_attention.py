"""Laws of attention and of its backends."""

import sys
import threading

import pytest
import torch

import ldm
from ldm.attention import sdpa
from tests.tiny import error, unit_noise


def written_out(q, k, v, causal):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_softmax_of_scaled_products(causal):
    q, k, v = (unit_noise(i, 2, 3, 7, 8) for i in range(3))
    assert error(ldm.attention(q, k, v, causal=causal), written_out(q, k, v, causal)) <= 1e-6


def test_a_network_computes_the_same_through_another_backend(pipe):
    options = {"seed": 1, "progress": False, "output_type": "latent"}
    usual = pipe("a cat", **options).latents
    with ldm.attention_backend(written_out):
        other = pipe("a cat", **options).latents
    assert error(other, usual) <= 1e-5


def test_every_attention_of_a_pipeline_goes_through_the_backend(pipe):
    calls = []

    def counted(q, k, v, causal):
        calls.append(causal)
        return sdpa(q, k, v, causal)

    with ldm.attention_backend(counted):
        pipe("a cat", num_inference_steps=1, guidance_scale=1, progress=False)
    text = pipe.family.texts[0].config.layers
    assert calls.count(True) == text  # only the text encoder is causal
    transformers = 2 * 1 + 1 + 2 * 2  # down, middle, up
    assert calls.count(False) == 2 * transformers + 1  # self and cross; one in the decoder


def test_the_backend_is_restored_after_errors_and_in_nesting():
    def first(q, k, v, causal):
        return q + 1

    def second(q, k, v, causal):
        return q + 2

    q = torch.zeros(1, 1, 2, 4)
    with ldm.attention_backend(first):
        with pytest.raises(RuntimeError), ldm.attention_backend(second):
            assert torch.equal(ldm.attention(q, q, q), q + 2)
            raise RuntimeError
        assert torch.equal(ldm.attention(q, q, q), q + 1)
    assert torch.equal(ldm.attention(q, q, q), q)


@pytest.mark.parametrize(("backend", "words"), [
    ("tritn", "'tritn' is none; give 'triton'"), (None, "must be a function"), (3, "must be a function"),
])  # fmt: skip
def test_a_backend_is_a_function_or_known(backend, words):
    with pytest.raises(ldm.InputError, match=words), ldm.attention_backend(backend):
        pass


def test_pytorchs_can_be_asked_for_by_name():
    q = unit_noise(0, 1, 2, 5, 8)
    plain = ldm.attention(q, q, q)
    with ldm.attention_backend(lambda q, k, v, causal: q), ldm.attention_backend("sdpa"):
        assert torch.equal(ldm.attention(q, q, q), plain)


def test_without_triton_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ldm_kernels.backend", None)  # as if its import failed
    words = r"needs Triton .* pip install 'ldm\[triton\]'"
    with pytest.raises(ldm.LdmError, match=words), ldm.attention_backend("triton"):
        pass


def test_one_threads_backend_is_not_anothers():
    q, seen = torch.zeros(1, 1, 2, 4), []
    with ldm.attention_backend(lambda q, k, v, causal: q + 1):
        thread = threading.Thread(target=lambda: seen.append(ldm.attention(q, q, q)))
        thread.start()
        thread.join()
        assert torch.equal(ldm.attention(q, q, q), q + 1)
    assert torch.equal(seen[0], q)
