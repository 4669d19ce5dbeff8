"""LoRAs in the namings in use, against the same changes made by hand in the networks of diffusers."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ldm
from ldm import CheckpointError, InputError
from tests.reduced import make
from tests.reference.test_family_pipelines import ours, peer_of, theirs
from tests.tiny import error, same

BOUND = 1e-4
RANK = 3
WORDS = ("to_q", "to_out.0", "ff.net.2", "proj_in", "conv1", "q_proj", "mlp.fc1")  # of changed modules


@pytest.fixture(scope="module", params=["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def place(request, tmp_path_factory: pytest.TempPathFactory):
    """A folder of a family, and changes of modules of diffusers' networks, by component and module."""
    path = tmp_path_factory.mktemp(request.param) / "folder"
    ldm.save(make(request.param), path, layout="diffusers")
    peer = peer_of(path)
    parts = ["unet", "text_encoder"] + (["text_encoder_2"] if request.param == "sdxl" else [])
    generator = torch.Generator().manual_seed(0)
    changes = {}
    for part in parts:
        for name, module in getattr(peer, part).named_modules():
            wanted = isinstance(module, (nn.Linear, nn.Conv2d)) and any(
                word in name
                for word in ("to_q", "to_out.0", "ff.net.2", "proj_in", "conv1", "q_proj", "mlp.fc1")
            )
            if wanted:
                w = module.weight
                down = torch.randn(RANK, *w.shape[1:], generator=generator) / w[0].numel() ** 0.5
                up = torch.randn(len(w), RANK, *(1,) * (w.ndim - 2), generator=generator) * 0.5
                changes[part, name] = (down, up)
    assert len(changes) > 20
    return path, changes


def kohya(changes: dict, alpha: float | None = None) -> dict[str, torch.Tensor]:
    several = any(part == "text_encoder_2" for part, _ in changes)
    short = {"unet": "unet", "text_encoder": "te1" if several else "te", "text_encoder_2": "te2"}
    out = {}
    for (part, name), (down, up) in changes.items():
        module = f"lora_{short[part]}_{name.replace('.', '_')}"
        out |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
        out |= {} if alpha is None else {f"{module}.alpha": torch.tensor(alpha)}
    return out


def peft(changes: dict, ends: tuple[str, str] = ("lora_A", "lora_B")) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}.{end}.weight": half
        for (part, name), halves in changes.items()
        for end, half in zip(ends, halves, strict=True)
    }


@torch.no_grad()
def changed(path, changes: dict, scale: float):
    """diffusers' pipeline with W + scale up down in place of W."""
    peer = peer_of(path)
    for (part, name), (down, up) in changes.items():
        weight = getattr(peer, part).get_submodule(name).weight
        weight += scale * torch.einsum("or,r...->o...", up.flatten(1), down)
    return peer


FORMATS = {
    "kohya": (lambda changes: kohya(changes, alpha=1.5), 1.5 / RANK),
    "kohya without alpha": (kohya, 1.0),
    "peft": (peft, 1.0),
    "early diffusers": (lambda changes: peft(changes, ("lora.down", "lora.up")), 1.0),
}


@pytest.mark.parametrize("form", FORMATS)
def test_a_lora_is_the_change_it_says(place, tmp_path, form: str):
    path, changes = place
    write, scale = FORMATS[form]
    save_file(write(changes), tmp_path / "style.safetensors")
    pipe = ldm.load(path)
    plain = ours(pipe)
    assert pipe.load_lora(tmp_path / "style.safetensors", weight=0.7) == "style"
    found = ours(pipe)
    expected = theirs(changed(path, changes, 0.7 * scale), prompt="a café, 猫 😀 on “the” moon")
    assert error(found, expected) <= BOUND
    assert error(found, plain) > 100 * BOUND
    pipe.unload_lora()
    assert torch.equal(ours(pipe), plain)


def test_several_at_once_and_off_again_in_any_order(place, tmp_path):
    path, changes = place
    a, b = (dict(list(changes.items())[i::2] + list(changes.items())[:5]) for i in range(2))
    save_file(kohya(a), tmp_path / "a.safetensors")
    save_file(peft(b), tmp_path / "b.safetensors")
    pipe = ldm.load(path)
    before = [dict(network.state_dict()) for network in pipe.networks()]
    pipe.load_lora(tmp_path / "a.safetensors", 0.5)
    alone = ours(pipe)
    pipe.load_lora(tmp_path / "b.safetensors", -0.3, name="other")
    both = ours(pipe)
    pipe.adapters.weigh("other", 2.0)
    assert error(ours(pipe), both) > 100 * BOUND
    pipe.adapters.weigh("other", -0.3)
    assert torch.equal(ours(pipe), both)
    pipe.unload_lora("other")
    assert torch.equal(ours(pipe), alone)
    pipe.unload_lora("a")
    assert all(same(dict(n.state_dict()), old) for n, old in zip(pipe.networks(), before, strict=True))


def test_merging_and_saving(place, tmp_path):
    path, changes = place
    save_file(kohya(changes), tmp_path / "a.safetensors")
    pipe = ldm.load(path)
    pipe.load_lora(tmp_path / "a.safetensors")
    found = ours(pipe)
    ldm.save(pipe, tmp_path / "merged")
    assert error(ours(ldm.load(tmp_path / "merged")), found) <= 1e-6
    pipe.merge_lora()
    pipe.unload_lora()
    assert torch.equal(ours(pipe), found)


def test_names_of_the_official_file_are_known(tmp_path):
    """kohya's SDXL LoRAs call modules of the UNet as the official file does."""
    pipe = make("sdxl")
    q = pipe.unet.down[1].attn[0].blocks[0].self_attn.q.weight
    down, up = torch.ones(1, q.shape[1]), torch.ones(q.shape[0], 1)
    module = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}, tmp_path / "a.safetensors"
    )
    before = q.clone()
    pipe.load_lora(tmp_path / "a.safetensors", 0.25)
    assert torch.equal(q, before + 0.25)


def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(place, tmp_path):
    path, changes = place
    pipe = ldm.load(path)
    before = pipe.unet.state_dict()
    good = kohya(changes)
    key = next(iter(good))
    wrong = {
        "lora_unet_nowhere": good | {"lora_unet_nowhere.lora_down.weight": torch.ones(1, 2)},
        "there is only": {name: value for name, value in good.items() if name != key},
        "does not fit": good | {key: torch.ones(3, 7)},
        "nothing": {"a": torch.ones(1)} | {},
        "not finite": good | {key: torch.full_like(good[key], torch.nan)},
    }
    for word, tensors in wrong.items():
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=word if word != "nothing" else "has a,"):
            pipe.load_lora(tmp_path / "a.safetensors")
    save_file(good, tmp_path / "a.safetensors")
    for weight in (float("nan"), "1", True):
        with pytest.raises(InputError, match="weight"):
            pipe.load_lora(tmp_path / "a.safetensors", weight)
    for source in (3, None):
        with pytest.raises(InputError, match="source must be"):
            pipe.load_lora(source)
    with pytest.raises(InputError, match="no LoRA is called"):
        pipe.unload_lora("b")
    assert same(dict(pipe.unet.state_dict()), dict(before)) and not pipe.adapters.changes
    pipe.load_lora(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="taken"):
        pipe.load_lora(tmp_path / "a.safetensors")
