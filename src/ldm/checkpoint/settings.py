"""A Family as JSON in a file's metadata, for models whose settings no preset has and no tensor tells."""

import json
from dataclasses import asdict, replace
from typing import Any

from ldm.checkpoint.configs import LAWS, PREDICTIONS, SPACINGS, name_in
from ldm.clip import CLIPConfig, Tokenizer
from ldm.errors import CheckpointError
from ldm.families import Family
from ldm.families import family as family_named
from ldm.schedulers import Schedule
from ldm.unet.config import UNetConfig
from ldm.vae.config import VAEConfig

KEY, TOKENIZER = "ldm.family", "ldm.tokenizer"  # names in the metadata of a safetensors file
PLAIN = ("pad", "size", "sampler", "set_alpha_to_one", "steps", "guidance")


def to_json(family: Family) -> str:
    """Everything about a family, functions by their names."""
    schedule = asdict(family.schedule) | {"law": name_in(LAWS, family.schedule.law)}
    settings: dict[str, Any] = {field: getattr(family, field) for field in PLAIN}
    settings |= {part: asdict(getattr(family, part)) for part in ("unet", "vae", "text")}
    settings |= {
        "name": family.name,
        "schedule": schedule,
        "prediction": name_in(PREDICTIONS, family.prediction),
        "spacing": name_in(SPACINGS, family.spacing),
    }
    return json.dumps(settings, sort_keys=True)


def from_json(text: str, source: str) -> Family:
    """The inverse of `to_json`. Raises CheckpointError naming the source."""
    try:
        said = json.loads(text)
        builders: dict[str, Any] = {"unet": UNetConfig, "vae": VAEConfig, "text": CLIPConfig}
        parts: dict[str, Any] = {
            part: build(**{name: tuple(x) if isinstance(x, list) else x for name, x in said[part].items()})
            for part, build in builders.items()
        }
        schedule = Schedule(**(said["schedule"] | {"law": LAWS[said["schedule"]["law"]]}))
        functions: dict[str, Any] = {
            "prediction": PREDICTIONS[said["prediction"]],
            "spacing": SPACINGS[said["spacing"]],
        }
        plain: dict[str, Any] = {field: said[field] for field in PLAIN}
        return replace(family_named(said["name"]), schedule=schedule, **parts, **functions, **plain)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source}: the metadata {KEY} is damaged ({error}); pass family=…") from error


def tokenizer_to_json(tokenizer: Tokenizer) -> str:
    """Vocabulary and merges, for a model that does not use OpenAI's."""
    return json.dumps({"vocab": tokenizer.vocab, "merges": tokenizer.merges}, ensure_ascii=False)


def tokenizer_from_json(text: str, source: str, family: Family) -> Tokenizer:
    """The inverse of `tokenizer_to_json`. Raises CheckpointError naming the source."""
    try:
        said = json.loads(text)
        merges = [(left, right) for left, right in said["merges"]]
        return Tokenizer(dict(said["vocab"]), merges, length=family.text.length, pad=family.pad)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source}: the metadata {TOKENIZER} is damaged ({error})") from error
