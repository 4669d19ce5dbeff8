"""Laws of what is computed once and remembered."""

import logging
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ldm.clip import CLIPConfig
from ldm.conditioning import encode_ids
from ldm.errors import CheckpointError, InputError
from ldm.families import SDXL
from ldm.training.cache import Latents, Texts, cached, fill, fingerprint, posterior, sample
from ldm.training.data import Batches
from ldm.training.framing import Frame, Source, digest
from ldm.training.images import Images
from ldm.unet import UNetConfig
from ldm.vae import VAEConfig
from tests import tiny
from tests.training.albums import album, png, write

KEY = digest([b"a key"])
FOUND = {
    "x": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "half": torch.randn(7, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "n": torch.tensor([1, 2**40]),
    "nothing": torch.empty(0, 4),
}


def never():
    raise AssertionError("it is there already")


def file_of(folder: Path, key: str = KEY) -> Path:
    return folder / key[:2] / f"{key}.safetensors"


def test_what_is_remembered_is_what_was_computed_bit_for_bit(tmp_path):
    assert tiny.same(cached(tmp_path, KEY, lambda: FOUND), FOUND)
    assert tiny.same(cached(tmp_path, KEY, never), FOUND)
    assert tiny.same(tiny.read_all(file_of(tmp_path)), FOUND)  # nothing but safetensors
    assert [path.name for path in tmp_path.rglob("*.*")] == [file_of(tmp_path).name]  # and nothing beside it


def damaged(data: bytes) -> dict[str, bytes]:
    changed = bytearray(data)
    changed[-3] ^= 1
    return {"cut": data[:-9], "no data": data[:40], "empty": b"", "zeros": bytes(len(data)),
            "one bit": bytes(changed), "a pickle": b"\x80\x04N.", "longer": data + b"x"}  # fmt: skip


@pytest.mark.parametrize("case", damaged(bytes(9)))
def test_a_damaged_file_is_made_anew(tmp_path, case, caplog):
    cached(tmp_path, KEY, lambda: FOUND)
    path = file_of(tmp_path)
    path.write_bytes(damaged(path.read_bytes())[case])
    with caplog.at_level(logging.WARNING, "ldm"):
        assert tiny.same(cached(tmp_path, KEY, lambda: FOUND), FOUND)
    assert f"made anew: {path}" in caplog.text
    assert tiny.same(cached(tmp_path, KEY, never), FOUND)


def test_a_file_of_someone_else_is_refused_by_name_and_stays(tmp_path):
    path = file_of(tmp_path)
    path.parent.mkdir()
    save_file(FOUND, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=rf"{path.name} was not written by this cache; move it"):
        cached(tmp_path, KEY, lambda: FOUND)
    assert path.read_bytes() == before
    other = file_of(tmp_path, digest([b"another"]))
    other.parent.mkdir(exist_ok=True)
    cached(tmp_path / "two", KEY, lambda: FOUND)
    file_of(tmp_path / "two").rename(other)  # ours, but of another key
    with pytest.raises(CheckpointError, match="was not written by this cache"):
        cached(tmp_path, digest([b"another"]), lambda: FOUND)


def test_an_error_while_computing_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError):
        cached(tmp_path, KEY, never)
    assert not list(tmp_path.rglob("*"))


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be made: "):
        cached(tmp_path / "file", KEY, lambda: FOUND)


def work(folder: Path) -> list[torch.Tensor]:
    keys = [digest([bytes([i])]) for i in range(20)]
    return [cached(folder, key, lambda i=i: {"x": torch.full((1000,), i)})["x"] for i, key in enumerate(keys)]


@pytest.mark.slow
def test_several_processes_fill_one_folder(tmp_path):
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(work, [tmp_path] * 3))
    assert all(torch.equal(x, torch.full((1000,), i)) for run in runs for i, x in enumerate(run))
    assert len(list(tmp_path.rglob("*.*"))) == 20


# keys


def test_the_fingerprint_follows_weights_dtype_names_and_config():
    def net(seed: int = 0, width: int = 4) -> nn.Module:
        return tiny.randomise(nn.Linear(4, width), seed)

    marks = [fingerprint(n) for n in (net(), net(1), net(width=5), net().bfloat16(), nn.Sequential(net()))]
    assert len(set(marks)) == len(marks)
    assert fingerprint(net()) == marks[0]
    one_bit = net()
    with torch.no_grad():
        one_bit.bias[0] = torch.nextafter(one_bit.bias[0], torch.tensor(9.0))
    assert fingerprint(one_bit) != marks[0]
    model, other = tiny.make(), tiny.make()
    other.vae.config = replace(other.vae.config, scale=1.0)
    assert fingerprint(model.vae) != fingerprint(other.vae)


def test_a_source_s_key_follows_its_bytes_and_its_frame_alone():
    one = Source(png(0), Frame((16, 16)), "a text", "a.png")
    others = [Frame((16, 24)), Frame((16, 16), u=0.4), Frame((16, 16), v=0.4), Frame((16, 16), mirrored=True)]
    keys = [one.key, one._replace(data=png(1)).key, *(one._replace(frame=frame).key for frame in others)]
    assert len(set(keys)) == len(keys)
    assert one._replace(prompt=None, name="b.png").key == one.key
    old = digest([one.data, repr(tuple(one.frame)).encode()])  # of pixels that were rounded otherwise
    assert one.key != old


def test_where_parts_of_a_key_end_matters():
    assert digest([b"ab", b"c"]) != digest([b"a", b"bc"]) != digest([b"abc"])


# latents


def test_latents_are_the_posterior_of_the_image(pipe, tmp_path):
    images = Images(album(tmp_path / "album", 3), size=16, flip=0.5)
    latents = Latents(pipe, tmp_path / "cache")
    for index in range(3):
        item = images.item(0, index)
        x = item.image[None]
        mean, logvar = pipe.vae.moments(x)
        wanted = torch.cat([mean, (logvar / 2).exp()], dim=1) * pipe.vae.config.scale
        first, again = (latents(images.source(0, index)) for _ in range(2))
        assert torch.equal(first.image, wanted[0].detach())
        assert torch.equal(again.image, first.image)
        assert first[1:] == again[1:] == item[1:]
    eps = tiny.unit_noise(0, 1, 4, 8, 8)
    assert torch.equal(sample(posterior(pipe, x), 0 * eps), pipe.encode(x))
    mean, std = posterior(pipe, x).chunk(2, dim=1)
    assert torch.equal(sample(posterior(pipe, x), eps), mean + std * eps)


@pytest.mark.parametrize("held", [1, 3 * 16 * 16])
def test_how_many_are_encoded_at_once_changes_nothing(pipe, monkeypatch, held):
    x = tiny.unit_noise(0, 5, 3, 16, 16).clamp(-1, 1)
    together = posterior(pipe, x)
    monkeypatch.setattr("ldm.training.cache.HELD", held)
    assert tiny.error(posterior(pipe, x), together) <= 1e-6  # sums of a batch may be split otherwise


def test_a_vq_latent_has_no_deviation():
    family = replace(tiny.TINY, vae=VAEConfig(channels=(32, 64), res_blocks=1, latent_channels=4, codes=16))
    model = tiny.make(family)
    x = tiny.unit_noise(0, 1, 3, 16, 16).clamp(-1, 1)
    mean, std = posterior(model, x).chunk(2, dim=1)
    assert torch.equal(mean, model.encode(x)) and not std.any()


def test_remembered_latents_need_no_network(pipe, tmp_path, monkeypatch):
    images = Images(album(tmp_path / "album", 4), size=16, flip=0.5)
    latents = Latents(pipe, tmp_path / "cache")
    first = list(islice(Batches(images, 4, made=latents), 3))
    assert first[0].images.shape == (4, 8, 8, 8)
    monkeypatch.setattr(pipe.vae, "moments", never)
    again = list(islice(Batches(images, 4, made=latents), 3))
    assert all(torch.equal(a.images, b.images) and a[1:] == b[1:] for a, b in zip(first, again, strict=True))


def test_other_weights_have_other_latents(tmp_path):
    images = Images(album(tmp_path / "album", 1), size=16)
    found = [Latents(tiny.make(seed=seed), tmp_path / "cache")(images.source(0, 0)).image for seed in (0, 1)]
    assert not torch.equal(*found)
    assert len(list((tmp_path / "cache").rglob("*.*"))) == 2


def test_a_size_that_the_autoencoder_does_not_take_is_refused(pipe, tmp_path):
    images = Images(album(tmp_path / "album", 1), size=15)
    with pytest.raises(InputError, match="both sides must be multiples of 2"):
        Latents(pipe, tmp_path / "cache")(images.source(0, 0))


def test_such_a_size_is_not_told_as_damage(pipe, tmp_path, caplog):
    images = Images(album(tmp_path / "album", 3), size=15)
    latents = Latents(pipe, tmp_path / "cache")
    for ask in (lambda: Batches(images, 3, made=latents)[0], lambda: fill(images, latents, progress=False)):
        with pytest.raises(InputError, match=r"^images of 15×15 pixels: both sides must be multiples"):
            ask()
    assert "passed over" not in caplog.text


def test_random_cuts_are_refused_and_leave_nothing(pipe, tmp_path):
    """They would be other files in each epoch; mirrored or not is two."""
    folder, cache = album(tmp_path / "album", 3), tmp_path / "cache"
    images, latents = Images(folder, size=16, crop="random"), Latents(pipe, cache)
    for ask in (lambda: next(iter(Batches(images, 3, made=latents))), lambda: fill(images, latents)):
        with pytest.raises(InputError, match=r"^0\d\.png is cut at random, .* give crop center, or no"):
            ask()
    assert not cache.exists()
    list(islice(Batches(Images(folder, size=16, flip=0.5), 3, made=latents), 12))
    assert 3 < len(list(cache.rglob("*.*"))) <= 6


# texts


def test_text_features_are_the_encoder_s(pipe, tmp_path):
    heard = Texts(pipe, tmp_path)
    prompts = ["a corgi", "", "a (red) cat", "a corgi"]
    wanted = torch.cat([encode_ids(pipe.tokenizers[0]([text]), pipe.text_encoders[0])[0] for text in prompts])
    for _ in range(2):
        context, pooled = heard(prompts)
        assert torch.equal(context, wanted.detach()) and pooled is None
    assert len(list(tmp_path.rglob("*.*"))) == 3
    assert not context.requires_grad


def test_long_texts_are_cut_and_short_ones_filled_up(pipe, tmp_path):
    heard = Texts(pipe, tmp_path)
    length = pipe.tokenizers[0].length
    context, _ = heard(["a corgi", "word " * 2 * length])
    chunks, rest = divmod(context.shape[1], length)
    assert chunks > 1 and rest == 0
    short, _ = heard("a corgi")
    empty, _ = heard("")
    assert torch.equal(context[:1], torch.cat([short, *[empty] * (chunks - 1)], dim=1))


def small_sdxl():
    one = CLIPConfig(width=24, layers=2, heads=2, hidden=48, vocab=714, length=20)
    both = zip(SDXL.texts, (one, replace(one, projection=24)), strict=True)
    unet = UNetConfig(channels=(32, 64), depth=(1, 1), res_blocks=1, context_dim=48, vector_dim=24 + 6 * 8)
    texts = tuple(replace(text, config=config) for text, config in both)
    return tiny.make(replace(SDXL, unet=unet, vae=tiny.AUTOENCODER, texts=texts, size=16))


def test_the_pooled_text_of_sdxl_is_remembered_too(tmp_path):
    model = small_sdxl()
    for _ in range(2):
        context, pooled = Texts(model, tmp_path)(["a corgi", "a cat"])
        assert context.shape == (2, 20, 48) and pooled.shape == (2, 24)
    wanted = encode_ids(model.tokenizers[1](["a corgi", "a cat"]), model.text_encoders[1])[1]
    assert torch.allclose(pooled, wanted, atol=1e-5)
    assert not torch.equal(*pooled)


def test_texts_of_other_encoders_are_others(tmp_path):
    found = [Texts(tiny.make(seed=seed), tmp_path)("a corgi")[0] for seed in (0, 1)]
    assert not torch.equal(*found)


# filling


def test_filling_leaves_nothing_to_compute(pipe, tmp_path, monkeypatch, caplog):
    folder = write(album(tmp_path / "album", 5), {"03.png": b"x"})
    images = Images(folder, size=16, flip=0.5)
    latents, heard = Latents(pipe, tmp_path / "a"), Texts(pipe, tmp_path / "b")
    for rank in range(2):
        with caplog.at_level(logging.WARNING, "ldm"):
            bad = fill(images, latents, heard, epochs=2, rank=rank, world=2, progress=False)
        assert set(bad) == ({"03.png"} if rank else set())
    monkeypatch.setattr(pipe.vae, "moments", never)
    monkeypatch.setattr(type(pipe.text_encoders[0]), "forward", never)
    for batch in islice(Batches(images, 5, made=latents), 2):
        heard(batch.prompts)
    assert len(list((tmp_path / "b").rglob("*.*"))) == 5


def test_filling_shows_a_bar_that_can_be_silenced(pipe, tmp_path, capsys):
    images = Images(album(tmp_path / "album", 1), size=16)
    fill(images, Latents(pipe, tmp_path / "a"), progress=False)
    assert capsys.readouterr().err == ""
    fill(images, Latents(pipe, tmp_path / "a"))
    assert "latents" in capsys.readouterr().err
