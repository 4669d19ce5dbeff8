"""One network of a model alone: from a file or folder of its own, or out of a whole model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ldm.checkpoint import configs, diffusers, original, sizes
from ldm.checkpoint.evidence import Shapes, UntoldError, under, vote
from ldm.checkpoint.fields import Json, real, whole
from ldm.checkpoint.files import File
from ldm.checkpoint.folder import Store, open_component, read_json
from ldm.checkpoint.load import fill
from ldm.checkpoint.paths import source_path
from ldm.checkpoint.plan import make_plan
from ldm.checkpoint.report import Part, compare, shapes_in
from ldm.checkpoint.table import Rule, table
from ldm.clip import CLIPConfig, TextEncoder
from ldm.devices import check_dtype, find_device, hollow
from ldm.errors import CheckpointError
from ldm.families import SD1
from ldm.families import family as family_named
from ldm.family import Family, Text
from ldm.unet import UNet
from ldm.vae import VAE

UNETS = {  # width of the tokens that a UNet hears, to the family of the usual sizes
    768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner", 512: "ldm-cin256",
}  # fmt: skip
TEXTS = (  # prefixes of text encoders, the longest first
    "text_model.", original.CLIP, original.SGM_CLIP, original.OPENCLIP, original.SGM_SECOND, original.SGM, "",
)  # fmt: skip
IGNORED = (
    *original.IGNORED,
    r".*embeddings\.position_ids",
    r".*logit_scale",
    r".*text_projection(\.weight)?",
)


class Alone(NamedTuple):
    """What a network is and by what names its tensors go."""

    family: Family
    model: Callable[[], nn.Module]
    rules: list[Rule]


def load_vae(source: str | Path, *, family: str | None = None, **options: Any) -> VAE:
    """An autoencoder, from a file or folder of its own or out of a whole model.

    family   whose scale of latents to take where nothing says it; None: SD 1's, or 1 of quantised latents
    options  dtype, device, variant and copy as in `load`
    Raises CheckpointError for what holds no autoencoder.
    """
    return load_part(source, "vae", vae_alone, family, **options)


def load_unet(source: str | Path, *, family: str | None = None, **options: Any) -> UNet:
    """A UNet, else as `load_vae`; family: whose heads to take where the sizes are unusual."""
    return load_part(source, "unet", unet_alone, family, **options)


def load_text_encoder(source: str | Path, *, family: str | None = None, **options: Any) -> TextEncoder:
    """A CLIP text encoder, of several the first, else as `load_vae`; family: whose heads to take."""
    return load_part(source, "text_encoder", text_alone, family, **options)


def load_part(
    source: str | Path,
    kind: str,
    read: Callable[[Shapes, Family | None, Json], Alone],
    name: str | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    variant: str | None = None,
    copy: bool = False,
) -> Any:
    """The network of a kind in a source, wherever it is."""
    path, target = source_path(source), find_device(device)
    check_dtype(dtype)
    preset = None if name is None else family_named(name)
    if is_whole(path):
        plan = make_plan(path, name, variant, numbers=True)
        parts, problems = plan.parts, plan.report.problems
        found = next((part for part in parts if part.name.startswith(kind)), None)
        if found is None:
            raise CheckpointError(f"{path} is of the family {plan.family.name}, which has no {kind}")
    else:
        found, problems = part_alone(path, kind, read, preset, variant)
    if problems:
        raise CheckpointError(f"{path} cannot be loaded as a {kind}: {problems}; get the whole file again")
    return fill(found, dtype, target, copy=copy)


def is_whole(path: Path) -> bool:
    """Whether a source is a whole model."""
    if path.is_dir():
        return (path / "model_index.json").is_file()
    names = File.open(path).entries
    return all(any(name.startswith(prefix) for name in names) for prefix in (original.UNET, original.VAE))


def part_alone(
    path: Path,
    kind: str,
    read: Callable[[Shapes, Family | None, Json], Alone],
    preset: Family | None,
    variant: str | None,
) -> tuple[Part, str]:
    """A network in a file or folder of its own, and what is wrong with it."""
    store = open_component(path, variant, kind) if path.is_dir() else Store((File.open(path),))
    said = read_json(path / "config.json") if path.is_dir() else {}
    try:
        alone = read(shapes_in(store.entries), preset, said)
    except UntoldError:
        raise CheckpointError(f"{path} holds no {kind}; ldm.inspect says what it is") from None
    with hollow():
        model = alone.model()
    part = Part(kind, model, table(model.state_dict(), alone.rules), store)
    return part, compare(path, "original", alone.family, [part], IGNORED, []).problems


def vae_alone(shapes: Shapes, preset: Family | None, said: Json) -> Alone:
    """An autoencoder by its tensors, in any of three namings."""
    family = preset or SD1
    prefix = prefix_of(shapes, (original.VAE, ""))
    inner = under(shapes, prefix)
    if any(key.startswith("encoder.down_blocks.") for key in inner):
        config = diffusers.vae_config(inner, family.vae)
        rules = diffusers.vae_rules(diffusers.attention_of(inner))
    else:
        config = sizes.vae_config(inner, family.vae)
        rules = original.vae_rules(config, prefix)
    if config.codes and preset is None:
        config = replace(config, scale=1.0)
    config = replace(
        config,
        groups=whole("config.json", said, "norm_num_groups", config.groups),
        scale=real("config.json", said, "scaling_factor", config.scale, 0, configs.MOST_SCALE),
    )
    return Alone(replace(family, vae=config), lambda: VAE(config), rules)


def unet_alone(shapes: Shapes, preset: Family | None, said: Json) -> Alone:
    """A UNet by its tensors, in either naming."""
    prefix = prefix_of(shapes, (original.UNET, ""))
    inner = under(shapes, prefix)
    outputs = vote(inner, r"(out\.2|conv_out)\.(weight|bias)")
    inputs = vote(inner, r"(input_blocks\.0\.0|conv_in)\.weight", axis=1)
    texts = any(".attn2." in key for key in inner)
    hears = vote(inner, r".*\.attn2\.to_[kv]\.weight", axis=1) if texts else None
    if preset is None and not said and hears not in UNETS:
        heard = f"tokens {hears} wide" if hears else "no tokens"
        raise CheckpointError(f"a UNet that hears {heard} is of no known family; pass family=…")
    family = preset or family_named(UNETS.get(hears, "sd1") if hears else "ldm-celeba256")
    base = replace(family.unet, in_channels=inputs, out_channels=outputs)
    if any(key.startswith("down_blocks.") for key in inner):
        config = diffusers.unet_config(inner, base)
        config = configs.unet_of(config, said) if said else config
        rules = diffusers.unet_rules(config, diffusers.attention_of(inner))
    else:
        config = sizes.unet_config(inner, base)
        rules = original.unet_rules(config, prefix)
    return Alone(replace(family, unet=config), lambda: UNet(config), rules)


def text_alone(shapes: Shapes, preset: Family | None, said: Json) -> Alone:
    """A CLIP text encoder by its tensors, in the naming of transformers or of OpenCLIP."""
    prefix = prefix_of(shapes, TEXTS)
    inner = under(shapes, prefix)
    text = preset.texts[0] if preset and preset.texts else Text()
    if not isinstance(text.config, CLIPConfig):
        raise CheckpointError(
            f"{preset.name if preset else None} has no CLIP text encoder; pass family=… of one that has"
        )
    config = sizes.text_config(inner, text.config)
    config = configs.clip_of(f"{text.name}/config.json", config, said) if said else config
    if any(".resblocks." in key for key in inner):
        rules = original.openclip_rules(prefix)
    else:
        rules = diffusers.prompt_rules(config, prefix)
    return Alone(replace(SD1, texts=(replace(text, config=config),)), lambda: TextEncoder(config), rules)


def prefix_of(shapes: Mapping[str, object], prefixes: tuple[str, ...]) -> str:
    """The first of some prefixes that a tensor has."""
    return next(prefix for prefix in prefixes if any(key.startswith(prefix) for key in shapes) or not prefix)
