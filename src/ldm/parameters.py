"""What a PNG file was made with: after `p = parameters(png)`, `pipe(**arguments(p))` makes it again.

Our own text "ldm" is JSON. AUTOMATIC1111's text "parameters", which many programs write, is

    <prompt, one line or more>
    Negative prompt: <one line or more; may be missing>
    Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x768, <name>: <value>, …

where a value is JSON if it starts as JSON and a comma or the end follows it; else all up to the next comma.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from PIL import Image

from ldm.checks import shown
from ldm.clip.config import CLIPConfig
from ldm.details import NAMES
from ldm.errors import InputError
from ldm.family import Family
from ldm.image import Picture
from ldm.request import WAYS
from ldm.schedulers.samplers import SAMPLERS, sampler
from ldm.schedulers.spacing import SPACINGS

MOST_TEXT = 2**17  # characters; a line of settings may take their square
AGAIN = "give the file as it was written"
TEXTS = ("ldm", "parameters")
TAKEN = (
    "prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "seed",
    *WAYS, *NAMES,
)  # fmt: skip
SOLVERS = {name: name for name in SAMPLERS} | {
    "Euler a": "euler_ancestral", "Euler": "euler", "Heun": "heun", "DPM2": "dpm_2", "LMS": "lms",
    "PLMS": "plms", "DDIM": "ddim", "DPM++ 2M": "dpmpp_2m", "DPM++ SDE": "dpmpp_sde",
    "DPM++ 2M SDE": "dpmpp_2m_sde", "DPM++ 3M SDE": "dpmpp_3m_sde", "UniPC": "uni_pc", "LCM": "lcm",
}  # fmt: skip
SCHEDULES = {name: name for name in SPACINGS} | {
    "Automatic": "", "Uniform": "linspace", "Normal": "linspace", "Karras": "karras", "Simple": "simple",
    "Exponential": "exponential", "SGM Uniform": "sgm_uniform", "Beta": "beta",
}  # fmt: skip
WHOLE, NUMBER = r"(-?[0-9]{1,30})", r"(-?[0-9]{1,30}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,3})?)"
SETTINGS: dict[
    str, tuple[str, str, Callable[[str], Any], list[str]]
] = {  # a setting, to an example, its pattern and type, and our names
    "Steps": ("20", WHOLE, int, ["num_inference_steps"]),
    "CFG scale": ("7.5", NUMBER, float, ["guidance_scale"]),
    "Seed": ("123", WHOLE, int, ["seed"]),
    "Size": ("512x768", f"{WHOLE}x{WHOLE}", int, ["width", "height"]),
    "Denoising strength": ("0.75", NUMBER, float, ["strength"]),
    "Clip skip": ("2", WHOLE, lambda said: int(said) - 1, ["clip_skip"]),  # theirs counts the last layer as 1
    "Variation seed": ("123", WHOLE, int, ["variation_seed"]),
    "Variation seed strength": ("0.1", NUMBER, float, ["variation_strength"]),
}
NEGATIVE = "Negative prompt:"
NAME = re.compile(r'\s*([^\s:,"\[{][^:,"]*):\s*')
JSON_END = re.compile(r"\s*(?:,|$)")


def parameters(source: str | os.PathLike[str] | Image.Image) -> dict[str, Any]:
    """What a PNG file, or a picture opened from one, was made with, by the names of `pipe(...)`.

    Our own text wins, and is given back as it was written; besides the arguments it has `family` and `eta`.
    From AUTOMATIC1111's text come those of prompt, negative_prompt (None: it has none), num_inference_steps,
    guidance_scale, seed, width, height, sampler, spacing and strength that it tells, and, in `other`, what is
    not understood: {name: text}.
    Raises InputError for what is no PNG, has neither text or a damaged one, or can be read in two ways.
    """
    if isinstance(source, Picture) and source.parameters:
        return dict(source.parameters)
    if not isinstance(source, (str, os.PathLike, Image.Image)):
        raise InputError(f"source must be the path of a PNG file or a PIL image, not {shown(source)}")
    held = isinstance(source, Image.Image)
    name = str((getattr(source, "filename", "") or "the picture") if held else source)
    texts = texts_of(source, name)
    return of_json(name, texts["ldm"]) if "ldm" in texts else of_a1111(name, texts["parameters"])


def arguments(parameters: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The parameters that `pipe(...)` takes, with the changes, as its keywords.

    changes  keywords of `pipe(...)`, which win. A sampler among them sets spacing and eta of the parameters
             aside too; their strength counts only with an image among them, for that no file has
    Raises InputError where the sampler or its schedule is one that is not known, and changes has no sampler.
    """
    changes = {} if changes is None else changes
    names = TAKEN if changes.get("image") is None else (*TAKEN, "strength")
    taken = {name: parameters[name] for name in names if name in parameters}
    return taken | ({} if "sampler" in changes else sampler_of(parameters)) | dict(changes)


def sampler_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword sampler, if the parameters tell one."""
    told = {name: parameters[name] for name in ("sampler", "spacing", "eta") if name in parameters}
    kept = other if isinstance(other := parameters.get("other"), Mapping) else {}
    unknown = {name: kept[name] for name in ("Sampler", "Schedule type") if name in kept}
    if unknown or (told and "sampler" not in told):
        raise InputError(f"the parameters name no known sampler, but {shown(unknown or told)}; give sampler")
    if told.get("spacing") is None and told.get("eta") is None:
        return {name: told[name] for name in told if name == "sampler"}
    return {"sampler": sampler(told["sampler"], spacing=told.get("spacing"), eta=told.get("eta"))}


def texts_of(source: Any, name: str) -> dict[str, str]:
    """Those of the two texts that a picture has, at least one. Raises InputError."""
    try:
        opened = source if isinstance(source, Image.Image) else Image.open(source, formats=["PNG"])
        with nullcontext(source) if opened is source else opened as image:
            if not any(key in image.info for key in TEXTS):
                image.load()  # a text may also stand behind the pixels
            found = {key: image.info[key] for key in TEXTS if isinstance(image.info.get(key), str)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be read as a PNG file: {error}; {AGAIN}") from error
    if not found:
        raise InputError(f'{name} has no text "ldm" or "parameters", which some programs take out; {AGAIN}')
    for key, text in found.items():
        if len(text) > MOST_TEXT:
            raise InputError(f'{name} has a text "{key}" of more than {MOST_TEXT} characters; {AGAIN}')
    return found


def of_json(name: str, text: str) -> dict[str, Any]:
    """Our own parameters."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{name} has a text "ldm" that is damaged: {error}; {AGAIN}') from error
    if not isinstance(found, dict) or "prompt" not in found:
        raise InputError(f'{name} has a text "ldm" that is no JSON object with a prompt; {AGAIN}')
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def of_a1111(name: str, text: str) -> dict[str, Any]:
    """The parameters of a text in AUTOMATIC1111's form."""
    *lines, last = text.strip().split("\n")
    told = settings(name, last)
    if "Steps" not in told:
        raise InputError(f'{name} has "parameters" that end without "Steps: …": {shown(last)}; {AGAIN}')
    found = prompts(name, lines) | numbers(name, told) | walk(name, told)
    unknown = {"Sampler": "sampler" not in found, "Schedule type": told.get("Schedule type") not in SCHEDULES}
    return found | {"other": {key: told[key] for key in told if unknown.get(key, key not in SETTINGS)}}


def prompts(name: str, lines: list[str]) -> dict[str, Any]:
    """Prompt and negative prompt of the lines before the settings."""
    starts = [i for i, line in enumerate(lines) if line.startswith(NEGATIVE)]
    if len(starts) > 1:
        raise InputError(
            f'{name} has {len(starts)} lines that start with "{NEGATIVE}", so where its prompt ends cannot '
            "be told; give the pipeline the arguments yourself"
        )
    end = starts[0] if starts else len(lines)
    negative = "\n".join(lines[end:]).removeprefix(NEGATIVE).removeprefix(" ") if starts else None
    return {"prompt": "\n".join(lines[:end]), "negative_prompt": negative}


def numbers(name: str, told: Mapping[str, str]) -> dict[str, Any]:
    """Those of the settings that are numbers, by our names."""
    found: dict[str, Any] = {}
    for key, (example, pattern, kind, ours) in SETTINGS.items():
        if key in told:
            if not (parts := re.fullmatch(pattern, told[key])):
                raise InputError(f"{name} has {key}: {shown(told[key])}, not one like {example}; take it out")
            found |= {our: kind(part) for our, part in zip(ours, parts.groups(), strict=True)}
    return found


def walk(name: str, told: Mapping[str, str]) -> dict[str, str]:
    """Sampler and spacing of the settings, by our names; older programs write both as one."""
    said, schedule = told.get("Sampler", ""), told.get("Schedule type", "")
    ending = next((word for word in ("Karras", "Exponential") if said.endswith(f" {word}")), "")
    solver = SOLVERS.get(said.removesuffix(f" {ending}"))
    spacings = {SCHEDULES.get(word) for word in (ending if solver else "", schedule)} - {None, ""}
    if len(spacings) > 1:
        raise InputError(f"{name} has Sampler: {said} but Schedule type: {schedule}; take one out")
    found = {"sampler": solver, "spacing": spacings.pop() if spacings else None}
    return {key: value for key, value in found.items() if value}


def settings(name: str, line: str) -> dict[str, str]:
    """`name: value, …` as {name: value}; a piece without a colon stands for both."""
    found: dict[str, str] = {}
    at = 0
    while at < len(line):
        start = NAME.match(line, at)
        value, at = value_at(line, start.end() if start else at)
        key = start[1].rstrip() if start else value
        if found.setdefault(key, value) != value:
            raise InputError(f"{name} has {shown(key)} twice, with two values; take one out")
    return {key: value for key, value in found.items() if key}


def value_at(line: str, at: int) -> tuple[str, int]:
    """The value that starts at a place, and where the next name does."""
    if line.startswith(('"', "[", "{"), at):
        try:
            value, end = json.JSONDecoder().raw_decode(line, at)
        except (ValueError, RecursionError):
            value, end = None, at  # such as the name of a model, [a] b
        if end > at and (close := JSON_END.match(line, end)):
            return value if isinstance(value, str) else line[at:end], close.end()
    end = line.find(",", at) % (len(line) + 1)  # -1: the line's end
    return line[at:end].strip(), end + 1


def reused(source: Any, changes: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The arguments that made a picture, with changes, for a model of a family. Raises InputError.

    "Clip skip" of other programs is heard where they do: by models that hear CLIP's last layer.
    """
    said = parameters(source)
    if said.get("family", family.name) != family.name:
        raise InputError(f"{shown(source)} was drawn by {said['family']}, not {family.name}; load that model")
    if "task" in said:
        raise InputError(f"{shown(source)} was made by ldm.{said['task']}; call that again")
    given = said.get("given", ("image",) if "strength" in said else ())
    if missing := [name for name in given if changes.get(name) is None]:
        raise InputError(
            f"{shown(source)} was drawn from {' and '.join(missing)}, which it does not hold; "
            f"give {missing[0]}=…"
        )
    clips = [text.config for text in family.texts if isinstance(text.config, CLIPConfig)]
    if "other" in said and (not clips or any(clip.skip for clip in clips)):
        said.pop("clip_skip", None)
    return arguments(said, changes)
