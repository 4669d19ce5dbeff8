"""Saving what was loaded gives back every tensor, bit for bit."""

import json
import shutil

import pytest
import torch

import ldm
from ldm.checkpoint.files import write
from ldm.clip import Tokenizer
from tests import tiny
from tests.tiny import read_all, same

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
OPTIONS = {"seed": 1, "progress": False, "output_type": "latent"}


def read_folder(path):
    return {
        f"{part}/{name}": tensor
        for part, stem in PARTS.items()
        for name, tensor in read_all(path / part / f"{stem}.safetensors").items()
    }


def weights_of(pipe):
    names = ("unet", "vae", "text")
    return {
        f"{n}.{k}": v for n, m in zip(names, pipe.networks(), strict=True) for k, v in m.state_dict().items()
    }


@pytest.fixture(scope="module")
def official(file):
    """The tensors of an official file, with all that such files carry beside the networks."""
    tensors = read_all(file)
    unet = {k: v for k, v in tensors.items() if k.startswith("model.diffusion_model.")}
    ema = {"model_ema." + k.removeprefix("model.").replace(".", ""): v + 1 for k, v in unet.items()}
    counters = {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
    }
    return tensors | ema | counters


def test_an_official_file_comes_back_whole(official, tmp_path, file):
    metadata = ldm.checkpoint.files.File.open(file).metadata | {"modelspec.title": "é"}
    write(tmp_path / "a.safetensors", official, metadata)
    pipe = ldm.load(tmp_path / "a.safetensors")
    ldm.save(pipe, tmp_path / "b.safetensors")
    assert same(read_all(tmp_path / "b.safetensors"), official)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    ignored = ldm.inspect(tmp_path / "a.safetensors").ignored
    assert {
        "betas",
        "model_ema.decay",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    } <= {*ignored}


def test_what_training_left_in_a_file_comes_back(file, tmp_path):
    left = ["logvar", "lvlb_weights", "ddim_sigmas", "ddim_alphas_prev", "denoiser.sigmas", "model_ema.x"]
    left += ["first_stage_model.model_ema.decay", "first_stage_model.loss.logvar"]
    left += ["cond_stage_model.logit_scale", "cond_stage_model.transformer.logit_scale"]
    left += ["cond_stage_model.transformer.text_projection.weight"]
    tensors = read_all(file) | {name: torch.full((3,), 1.5 + i) for i, name in enumerate(left)}
    write(tmp_path / "a.safetensors", tensors, ldm.checkpoint.files.File.open(file).metadata)
    assert {*left} <= {*ldm.inspect(tmp_path / "a.safetensors").ignored}
    ldm.save(ldm.load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert same(read_all(tmp_path / "b.safetensors"), tensors)


def test_moving_averages_are_not_what_is_loaded(official, tmp_path, pipe, file):
    write(tmp_path / "a.safetensors", official, ldm.checkpoint.files.File.open(file).metadata)
    assert same(weights_of(ldm.load(tmp_path / "a.safetensors")), weights_of(pipe))


def test_a_folder_comes_back_whole(folder, tmp_path):
    ldm.save(ldm.load(folder), tmp_path / "copy")
    assert same(read_folder(tmp_path / "copy"), read_folder(folder))
    for path in folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / "copy" / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


def test_a_folders_ignored_tensors_come_back(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a")
    path = tmp_path / "a/text_encoder/model.safetensors"
    write(
        path,
        read_all(path)
        | {
            "text_model.embeddings.position_ids": torch.arange(20)[None],
            "logit_scale": torch.tensor(2.5),
            "text_projection.weight": torch.ones(48, 48),
        },
        {"format": "pt"},
    )
    ldm.save(ldm.load(tmp_path / "a"), tmp_path / "b")
    assert same(read_folder(tmp_path / "b"), read_folder(tmp_path / "a"))


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_made_model_is_loaded_as_it_was(pipe, layout, tmp_path):
    ldm.save(pipe, tmp_path / "a", layout=layout)
    found = ldm.load(tmp_path / "a")
    assert same(weights_of(found), weights_of(pipe))
    assert found.tokenizers[0].vocab == pipe.tokenizers[0].vocab
    assert found.family.unet == pipe.family.unet and found.family.vae == pipe.family.vae
    assert found.family.texts == pipe.family.texts and found.family.schedule == pipe.family.schedule
    assert torch.equal(
        found("a cat", **OPTIONS, num_inference_steps=2).latents,
        pipe("a cat", **OPTIONS, num_inference_steps=2).latents,
    )


def test_single_to_folder_to_single_changes_no_tensor(file, tmp_path):
    ldm.save(ldm.load(file), tmp_path / "folder", layout="diffusers")
    ldm.save(ldm.load(tmp_path / "folder"), tmp_path / "b.safetensors", layout="original")
    assert same(read_all(tmp_path / "b.safetensors"), read_all(file))


def test_folder_to_single_to_folder_changes_no_tensor(folder, tmp_path):
    ldm.save(ldm.load(folder), tmp_path / "a.safetensors", layout="original")
    ldm.save(ldm.load(tmp_path / "a.safetensors"), tmp_path / "b", layout="diffusers")
    assert same(read_folder(tmp_path / "b"), read_folder(folder))


def in_dtypes(tensors, choose):
    return {
        k: v.to(choose(i)) if v.is_floating_point() else v for i, (k, v) in enumerate(sorted(tensors.items()))
    }


DTYPES = {
    "fp32": lambda i: torch.float32,
    "fp16": lambda i: torch.float16,
    "bf16": lambda i: torch.bfloat16,
    "mixed": lambda i: (torch.float32, torch.float16, torch.bfloat16)[i % 3],
}


@pytest.mark.parametrize("kind", DTYPES)
def test_any_dtype_comes_back_and_is_computed_in_float32(file, tmp_path, kind):
    tensors = in_dtypes(read_all(file), DTYPES[kind])
    write(tmp_path / "a.safetensors", tensors, ldm.checkpoint.files.File.open(file).metadata)
    pipe = ldm.load(tmp_path / "a.safetensors")
    assert {p.dtype for n in pipe.networks() for p in n.parameters()} == {torch.float32}
    ldm.save(pipe, tmp_path / "b.safetensors")
    assert same(read_all(tmp_path / "b.safetensors"), tensors)


@pytest.mark.parametrize("kind", DTYPES)
def test_any_dtype_of_a_folder_comes_back(folder, tmp_path, kind):
    shutil.copytree(folder, tmp_path / "a")
    for part, stem in PARTS.items():
        path = tmp_path / "a" / part / f"{stem}.safetensors"
        write(path, in_dtypes(read_all(path), DTYPES[kind]), {"format": "pt"})
    ldm.save(ldm.load(tmp_path / "a"), tmp_path / "b")
    assert same(read_folder(tmp_path / "b"), read_folder(tmp_path / "a"))


def test_changed_weights_are_not_narrowed_to_the_files_dtype(file, tmp_path):
    tensors = in_dtypes(read_all(file), DTYPES["fp16"])
    write(tmp_path / "a.safetensors", tensors, ldm.checkpoint.files.File.open(file).metadata)
    pipe = ldm.load(tmp_path / "a.safetensors")
    with torch.no_grad():
        pipe.unet.conv_out.bias += 1e-7
    ldm.save(pipe, tmp_path / "b.safetensors")
    assert same(weights_of(ldm.load(tmp_path / "b.safetensors")), weights_of(pipe))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_saving_in_a_dtype_writes_that_dtype(pipe, tmp_path, dtype, layout):
    ldm.save(pipe, tmp_path / "a", layout=layout, dtype=dtype)
    found = ldm.load(tmp_path / "a", dtype=dtype)
    expected = {name: weight.to(dtype) for name, weight in weights_of(pipe).items()}
    assert same(weights_of(found), expected)


def test_loading_in_a_dtype_gives_that_dtype(file, pipe):
    found = ldm.load(file, dtype=torch.bfloat16)
    assert same(weights_of(found), {k: v.bfloat16() for k, v in weights_of(pipe).items()})


def test_old_names_of_text_encoders_come_back(file, tmp_path):
    prefix = "cond_stage_model.transformer."
    tensors = {k.replace(prefix + "text_model.", prefix): v for k, v in read_all(file).items()}
    write(tmp_path / "a.safetensors", tensors, ldm.checkpoint.files.File.open(file).metadata)
    pipe = ldm.load(tmp_path / "a.safetensors")
    assert same(weights_of(pipe), weights_of(ldm.load(file)))
    ldm.save(pipe, tmp_path / "b.safetensors")
    assert same(read_all(tmp_path / "b.safetensors"), tensors)


def test_old_names_of_vae_attention_come_back(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a")
    path = tmp_path / "a/vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in read_all(path).items():
        for new, was in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        tensors[name] = tensor
    assert any(".proj_attn." in name for name in tensors)
    write(path, tensors, {"format": "pt"})
    pipe = ldm.load(tmp_path / "a")
    assert same(weights_of(pipe), weights_of(ldm.load(folder)))
    ldm.save(pipe, tmp_path / "b")
    assert same(read_folder(tmp_path / "b"), read_folder(tmp_path / "a"))


def test_saving_over_the_loaded_file_is_safe(file, tmp_path):
    path = tmp_path / "a.safetensors"
    shutil.copy(file, path)
    pipe = ldm.load(path)
    before = {k: v.clone() for k, v in weights_of(pipe).items()}
    for _ in range(2):
        ldm.save(pipe, path)
    assert same(weights_of(pipe), before) and path.read_bytes() == file.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_saving_over_the_loaded_folder_is_safe_and_keeps_other_files(folder, tmp_path):
    path = tmp_path / "a"
    shutil.copytree(folder, path)
    (path / "README.md").write_text("mine")
    pipe = ldm.load(path)
    before = {k: v.clone() for k, v in weights_of(pipe).items()}
    for _ in range(2):
        ldm.save(pipe, path)
    assert same(weights_of(pipe), before) and same(read_folder(path), read_folder(folder))
    assert (path / "README.md").read_text() == "mine" and list(tmp_path.iterdir()) == [path]


def test_tensors_of_the_wanted_dtype_share_the_file(file):
    pipe = ldm.load(file)
    spans = [
        (w.data_ptr(), w.data_ptr() + w.nbytes) for n in pipe.networks() for w in n.state_dict().values()
    ]
    assert max(end for _, end in spans) - min(start for start, _ in spans) <= file.stat().st_size


def test_a_copy_outlives_a_file_overwritten_in_place(file, tmp_path):
    path = tmp_path / "a.safetensors"
    shutil.copy(file, path)
    pipe = ldm.load(path, copy=True)
    with path.open("rb+") as out:
        out.write(b"\xff" * path.stat().st_size)
    assert same(weights_of(pipe), weights_of(ldm.load(file)))
    ldm.save(pipe, tmp_path / "b.safetensors")
    assert same(read_all(tmp_path / "b.safetensors"), read_all(file))


def test_training_a_loaded_model_never_reaches_its_file(file, tmp_path):
    path = tmp_path / "a.safetensors"
    shutil.copy(file, path)
    pipe = ldm.load(path)
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.add_(1)
    assert path.read_bytes() == file.read_bytes()


def test_a_model_with_openais_vocabulary_and_known_shapes_needs_no_notes(bare_file):
    texts = ldm.checkpoint.files.File.open(bare_file).metadata
    assert {name.split(".")[0] for name in texts} == {"format", "modelspec"}
    found = ldm.load(bare_file)
    assert found.family == tiny.BARE and found.tokenizers[0].merges == Tokenizer.openai().merges


def test_what_tensors_cannot_tell_is_told_by_the_notes(file):
    pipe = ldm.load(file)
    assert pipe.family == tiny.TINY
    assert pipe.tokenizers[0].vocab == tiny.make().tokenizers[0].vocab


def test_v_prediction_and_another_schedule_survive_both_layouts(tmp_path):
    from dataclasses import replace

    schedule = ldm.Schedule(0.0001, 0.02, 500, ldm.schedulers.linear)
    family = replace(tiny.TINY, prediction=ldm.V, schedule=schedule)
    ldm.save(tiny.make(family), tmp_path / "a.safetensors")
    ldm.save(ldm.load(tmp_path / "a.safetensors"), tmp_path / "b", layout="diffusers")
    ldm.save(ldm.load(tmp_path / "b"), tmp_path / "c.safetensors", layout="original")
    for name in ("a.safetensors", "b", "c.safetensors"):
        found = ldm.load(tmp_path / name).family
        assert found.prediction is ldm.V and found.schedule == schedule
        assert ldm.inspect(tmp_path / name).prediction == "v"


def test_the_json_we_write_is_sorted_and_ends_with_a_line_break(folder):
    text = (folder / "unet/config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
