"""A Family as JSON in a file's metadata, for models whose settings no preset has and no tensor tells."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ldm.checkpoint.configs import LAWS, MOST_SCALE, MOST_SIDE, MOST_STEPS, PREDICTIONS
from ldm.checkpoint.fields import Json, choose, flag, name_in, real, text, whole, wrong
from ldm.clip import BERTConfig, ClassConfig, CLIPConfig, Tokenizer
from ldm.clip.text import ACTIVATIONS
from ldm.errors import CheckpointError
from ldm.families import family as family_named
from ldm.family import BESIDE, NUMBERS, Family, Text
from ldm.schedulers import Schedule
from ldm.schedulers.samplers import SAMPLERS
from ldm.schedulers.spacing import SPACINGS
from ldm.unet.config import UNetConfig
from ldm.vae.config import VAEConfig

KEY, TOKENIZER = "ldm.family", "ldm.tokenizer"  # names in the metadata of a safetensors file
PLAIN = (
    "size",
    "sampler",
    "set_alpha_to_one",
    "steps",
    "guidance",
    "strength",
    "beside",
    "vector",
    "blank",
    "averaged",
)
KINDS: dict[str, Callable[..., Any]] = {"clip": CLIPConfig, "bert": BERTConfig, "classes": ClassConfig}
# What JSON of another form raises.
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)

# The least and most of what is counted; a network of the most is still built in seconds.
BOUNDS = {
    "depth": (0, 24), "mid_depth": (0, 24), "res_blocks": (1, 8), "layers": (1, 128), "skip": (0, 127),
    "empty": (0, 2**17), "size": (1, 2**7 * MOST_SIDE), "steps": (1, MOST_STEPS),
}  # fmt: skip
USUAL = (1, 2**17)  # widths, vocabularies
MOST_LEVELS = 8
RANGES = {"beta_start": (0, 1), "beta_end": (0, 1), "scale": (0, MOST_SCALE), "guidance": (-1e3, 1e3)}
RANGES["strength"] = (0, 1.001)

Config = TypeVar("Config")


def to_json(family: Family) -> str:
    """Everything about a family, functions by their names."""
    schedule = asdict(family.schedule) | {"law": name_in(LAWS, family.schedule.law)}
    settings: dict[str, Any] = {field: getattr(family, field) for field in PLAIN}
    settings |= {part: asdict(getattr(family, part)) for part in ("unet", "vae")}
    settings |= {
        "name": family.name,
        "texts": [
            {
                "kind": name_in(KINDS, type(text.config)),
                "config": asdict(text.config),
                "pad": text.pad,
                "name": text.name,
            }
            for text in family.texts
        ],
        "schedule": schedule,
        "prediction": name_in(PREDICTIONS, family.prediction),
        "spacing": name_in(SPACINGS, family.spacing),
    }
    return json.dumps(settings, sort_keys=True)


def from_json(written: str, source: str) -> Family:
    """The inverse of `to_json`. Raises CheckpointError naming the source."""
    try:
        said = json.loads(written)
        law = choose("schedule", said["schedule"], "law", LAWS, "")
        numbers = {name: value for name, value in said["schedule"].items() if name != "law"}
        plain = {field: said[field] for field in PLAIN}
        found = replace(
            build("settings", Family, plain | {"name": family_named(said["name"]).name}),
            unet=build("unet", UNetConfig, said["unet"]),
            vae=build("vae", VAEConfig, said["vae"]),
            texts=tuple(text_from(text) for text in said["texts"]),
            schedule=replace(build("schedule", Schedule, numbers), law=law),
            prediction=choose("settings", said, "prediction", PREDICTIONS, ""),
            spacing=choose("settings", said, "spacing", SPACINGS, ""),
        )
        check_levels(found)
        choose("settings", said, "sampler", SAMPLERS, "")
        choose("settings", said, "beside", BESIDE, "")
        choose("settings", said, "vector", {"": 0, **NUMBERS}, "")
        return found
    except DAMAGED as error:
        raise CheckpointError(f"{source}: the metadata {KEY} is damaged ({error}); pass family=…") from error


def text_from(said: Json) -> Text:
    """One text encoder of a family."""
    kind = choose("text", said, "kind", KINDS, "")
    if "activation" in said["config"]:
        choose("text", said["config"], "activation", ACTIVATIONS, "quick_gelu")
    config = build("text", kind, said["config"])
    return Text(config, pad=text("text", said, "pad", ""), name=text("text", said, "name", ""))


def build(part: str, kind: Callable[..., Config], said: Json) -> Config:
    """A config of a class, each value checked against the type and the bounds of its field."""
    hints = get_type_hints(kind)
    if unknown := said.keys() - hints.keys():
        raise CheckpointError(f"{part}: {', '.join(sorted(unknown))} is not known")
    return kind(**{field: value_of(part, said, field, hints[field]) for field in said})


def value_of(part: str, said: Json, field: str, hint: Any) -> Any:
    """One value: a number, flag or text, one of them or None, or one of them for each level."""
    value, options = said[field], get_args(hint)
    if value is None and type(None) in options:
        return None
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or len(value) > MOST_LEVELS:
            raise wrong(part, field, f"a list of at most {MOST_LEVELS}", value)
        return tuple(value_of(part, {field: item}, field, options[0]) for item in value)
    kind = options[0] if options else hint
    if kind is int:
        return whole(part, said, field, 0, *BOUNDS.get(field, USUAL))
    if kind is float:
        return real(part, said, field, 0, *RANGES[field])
    return flag(part, said, field, False) if kind is bool else text(part, said, field, "")


def check_levels(family: Family) -> None:
    """Raises CheckpointError where lists that go by level do not have one item for each."""
    unet, vae = family.unet, family.vae
    lists = {"unet: depth": (unet.depth, unet.channels), "vae: channels": (vae.channels, vae.channels)}
    lists |= {"unet: crossing": (unet.crossing or unet.channels, unet.channels)}
    lists |= {"vae: attention": (vae.attention or vae.channels, vae.channels)}
    for config in (one.config for one in family.texts):
        if isinstance(config, CLIPConfig) and config.skip > config.layers:
            raise CheckpointError(f"text: skip is more than the {config.layers} layers")
    for name, (found, levels) in lists.items():
        if not levels or len(found) != len(levels):
            raise CheckpointError(f"{name} has {len(found)} items for {len(levels)} levels")


def tokenizer_to_json(tokenizer: Tokenizer) -> str:
    """Vocabulary and merges, for a model that does not use OpenAI's."""
    return json.dumps({"vocab": tokenizer.vocab, "merges": tokenizer.merges}, ensure_ascii=False)


def tokenizer_from_json(text: str, source: str, family: Family) -> Tokenizer:
    """The inverse of `tokenizer_to_json`. Raises CheckpointError naming the source."""
    try:
        said = json.loads(text)
        merges = [(left, right) for left, right in said["merges"]]
        first = family.texts[0]
        return Tokenizer(dict(said["vocab"]), merges, length=first.length, pad=first.pad)
    except DAMAGED as error:
        raise CheckpointError(
            f"{source}: the metadata {TOKENIZER} is damaged ({error}); get the file again"
        ) from error
