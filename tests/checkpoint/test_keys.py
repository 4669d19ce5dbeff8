"""Every tensor of a model is found exactly once, or the model is refused and the tensor named."""

import gzip
import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

import ldm
from ldm import CheckpointError
from ldm.checkpoint import plan, written
from ldm.checkpoint.files import write
from ldm.families import SD1
from ldm.unet import UNet, UNetConfig
from tests import tiny
from tests.reduced import REDUCED, saved
from tests.tiny import DATA, header_of, hollow, read_all

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def unpacked(name):
    return json.loads(gzip.decompress((DATA / name).read_bytes()))


@cache
def manifest():
    """Name -> dtype and shape of the published single file."""
    return {name: tuple(line) for name, line in unpacked("sd-v1.json.gz")["tensors"].items()}


def published_folder(path, vae="vae"):
    """The published folder, its tensors holes, its JSON files those we write."""
    parts = unpacked("sd-v1-5-folder.json.gz")
    for name, config in written.write(SD1).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(config))
    for part, stem in PARTS.items():
        hollow(path / part / f"{stem}.safetensors", parts[vae if part == "vae" else part])
    return path


def test_the_unet_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(UNetConfig()).parameters()) == 859_520_964


def test_the_published_file_matches_key_for_key(tmp_path):
    report = ldm.inspect(hollow(tmp_path / "sd.safetensors", manifest()))
    assert report.family == "sd1" and report.prediction == "eps" and report.layout == "original"
    assert report.missing == report.unexpected == report.mismatched == [] and not report.problems
    assert report.parts == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    tables = [name for name in manifest() if not name.startswith(("model.", "first_stage_", "cond_stage_"))]
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    assert sorted(report.ignored) == sorted([*tables, positions])


def test_the_published_sizes_are_read_off_the_tensors(tmp_path):
    assert plan.make_plan(hollow(tmp_path / "sd.safetensors", manifest())).family == SD1


@pytest.mark.parametrize("vae", ["vae", "vae@legacy-attn"])
def test_the_published_folder_matches_key_for_key(tmp_path, vae):
    report = ldm.inspect(published_folder(tmp_path, vae))
    assert report.family == "sd1" and report.layout == "diffusers" and not report.problems
    assert report.ignored == ["text_encoder/text_model.embeddings.position_ids"]


def test_the_tables_of_a_saved_file_are_those_of_the_published_one(bare_file):
    ours = header_of(bare_file)
    for name, (dtype, shape) in manifest().items():
        if not name.startswith(("model.", "first_stage_", "cond_stage_model.", "model_ema")):
            assert ours[name] == (dtype, shape)


def test_each_of_our_tensors_has_one_name_in_the_file_and_each_name_one_tensor(bare_file):
    found = plan.make_plan(bare_file)
    keys = [source.key for part in found.parts for source in part.table.values()]
    assert len(keys) == len(set(keys))
    assert set(keys) | set(found.report.ignored) == set(header_of(bare_file))


# One fault in one key of a model whose sizes are told by its tensors alone


@pytest.fixture(scope="module")
def header(bare_file):
    return header_of(bare_file)


@pytest.fixture(scope="module")
def needed(bare_file):
    found = plan.make_plan(bare_file)
    return sorted(source.key for part in found.parts for source in part.table.values())


def missing(header, key):
    return {name: line for name, line in header.items() if name != key}, key


def renamed(header, key):
    return {name + ".x" if name == key else name: line for name, line in header.items()}, key


def longer(header, key):
    dtype, shape = header[key]
    return header | {key: (dtype, [*shape, 1])}, key


def larger(header, key):
    dtype, (first, *rest) = header[key]
    return header | {key: (dtype, [first + 1, *rest])}, key


def smaller(header, key):
    dtype, (first, *rest) = header[key]
    return header | {key: (dtype, [first - 1 or 2, *rest])}, key


def turned(header, key):
    """As many numbers in another shape."""
    dtype, shape = header[key]
    return header | {key: (dtype, shape[::-1] if shape != shape[::-1] else [*shape, 1])}, key


def whole_numbers(header, key):
    return header | {key: ("I64", header[key][1])}, key


def eight_bits(header, key):
    return header | {key: ("F8_E4M3", header[key][1])}, key


FAULTS = (missing, renamed, longer, larger, smaller, turned, whole_numbers, eight_bits)


def refused(path, header, key, fault):
    faulty, name = fault(header, key)
    try:
        problems = ldm.inspect(hollow(path, faulty)).problems
    except CheckpointError as error:
        problems = str(error)
    return name in problems


@pytest.mark.slow
def test_a_key_is_missed_when_something_is_wrong_with_it(header, needed, tmp_path, monkeypatch):
    """Every third key with one of the faults in turn; each with all of them in the slow run."""
    tiny.swift(monkeypatch)
    silent = [
        (key, fault.__name__)
        for i, key in enumerate(needed[::3])
        for fault in (FAULTS[i % len(FAULTS)],)
        if not refused(tmp_path / "a.safetensors", header, key, fault)
    ]
    assert silent == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_key_is_missed_whatever_is_wrong_with_it(header, needed, tmp_path, monkeypatch, fault):
    tiny.swift(monkeypatch)
    path = tmp_path / "a.safetensors"
    assert [key for key in needed if not refused(path, header, key, fault)] == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_keys_of_the_published_file_are_missed(tmp_path, monkeypatch, fault):
    """Every sixteenth key, others for each fault."""
    tiny.swift(monkeypatch)
    names = [name for name in manifest() if name.startswith(("model.diff", "first_stage_", "cond_stage_"))]
    names = [name for name in names if not name.endswith("position_ids")]
    path, first = tmp_path / "a.safetensors", FAULTS.index(fault)
    assert [key for key in names[first::16] if not refused(path, manifest(), key, fault)] == []


def test_a_faulty_model_is_not_loaded(header, tmp_path, needed):
    for fault in FAULTS:
        faulty, key = fault(header, needed[7])
        with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
            ldm.load(hollow(tmp_path / "a.safetensors", faulty))


@pytest.mark.parametrize(
    "key",
    [
        "extra.weight",
        "model.diffusion_model.input_blocks.0.0.weigth",
        "first_stage_model.encoder.conv_in.weight.0",
        "cond_stage_model.logit_scales",
        "model_emb.x",
        "betas2",
    ],
)
def test_a_key_that_nothing_knows_is_refused_by_name(header, tmp_path, key):
    path = hollow(tmp_path / "a.safetensors", header | {key: ("F32", [3])})
    assert ldm.inspect(path).unexpected == [key]
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        ldm.load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_weight_that_is_not_finite_is_refused_by_name(file, tmp_path, value, dtype):
    key = "first_stage_model.decoder.mid.block_1.conv1.bias"
    tensors = read_all(file)
    tensors[key] = tensors[key].to(dtype)
    tensors[key][3] = value
    metadata = ldm.checkpoint.files.File.open(file).metadata
    write(tmp_path / "a.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")) as caught:
        ldm.load(tmp_path / "a.safetensors")
    assert "1 values" in str(caught.value)


def test_large_but_finite_weights_are_loaded(file, tmp_path):
    key = "first_stage_model.decoder.mid.block_1.conv1.bias"
    tensors = read_all(file)
    tensors[key] = torch.full_like(tensors[key], 3e38)  # of which the sum is infinite
    write(tmp_path / "a.safetensors", tensors, ldm.checkpoint.files.File.open(file).metadata)
    assert float(ldm.load(tmp_path / "a.safetensors").vae.decoder.mid[0].conv1.bias[0]) == pytest.approx(3e38)


def test_inspecting_reads_no_weights(file, tmp_path):
    report = ldm.inspect(hollow(tmp_path / "a.safetensors", manifest()))
    assert report.parameters == 1_066_235_307 and report.dtypes["F32"] == 1143
    assert "859,520,964" in str(report) and "sd1" in str(report)


def test_a_reduced_file_is_inspected_with_its_own_sizes(bare_file):
    report = ldm.inspect(str(bare_file))
    counts = [sum(p.numel() for p in network.parameters()) for network in tiny.make(tiny.BARE).networks()]
    assert list(report.parts.values()) == counts and report.parameters == sum(counts)


def test_two_tokens_more_than_the_vocabulary_are_refused(header, tmp_path):
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    path = hollow(tmp_path / "a.safetensors", header | {key: ("F32", [49410, 48])})
    with pytest.raises(CheckpointError, match="token_embedding"):
        ldm.load(Path(path))


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCED)
def test_keys_of_every_family_are_missed(name, tmp_path, monkeypatch):
    """Every sixteenth key with one of the faults in turn; where tensors cannot tell, the family is said."""
    tiny.swift(monkeypatch)
    file = saved(name, tmp_path / "model.safetensors")
    header, found = header_of(file), plan.make_plan(file, name)
    keys = sorted({source.key for part in found.parts for source in part.table.values()})
    path = tmp_path / "a.safetensors"
    silent = []
    for i, key in enumerate(keys[::16]):
        faulty, wrong = FAULTS[i % len(FAULTS)](header, key)
        try:
            problems = plan.make_plan(hollow(path, faulty), name).report.problems
        except CheckpointError as error:
            problems = str(error)
        silent += [] if wrong in problems else [(key, FAULTS[i % len(FAULTS)].__name__)]
    assert silent == []


def doubled(path: Path, key: str) -> Path:
    """The file with a key in its header a second time."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + length]
    again = json.dumps({key: json.loads(text)[key]}).encode()[:-1] + b"," + text.lstrip()[1:]
    out = path.with_name("doubled.safetensors")
    out.write_bytes(len(again).to_bytes(8, "little") + again + raw[8 + length :])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCED)
def test_keys_that_are_doubled_or_not_finite(name, tmp_path):
    """Some keys of every family; the last of a tensor's numbers."""
    file = saved(name, tmp_path / "model.safetensors")
    tensors, found = read_all(file), plan.make_plan(file, name)
    keys = sorted({source.key for part in found.parts for source in part.table.values()})
    for key in keys[:: len(keys) // 4]:
        with pytest.raises(CheckpointError, match=re.escape(key)):
            ldm.load(doubled(file, key), family=name)
        bad = tensors[key].clone()
        bad.view(-1)[-1] = float("nan")
        write(tmp_path / "a.safetensors", tensors | {key: bad}, {})
        with pytest.raises(CheckpointError, match=rf"{re.escape(key)} has 1 values"):
            ldm.load(tmp_path / "a.safetensors", family=name)
