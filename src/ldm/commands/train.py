"""`ldm train`: a run from a TOML file and `key=value` words."""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.errors import InputError

KINDS = {
    "vae": "an autoencoder",
    "diffusion": "a diffusion model, from nothing or from a checkpoint",
    "lora": "low-rank changes of a model, for any program that loads LoRAs",
    "inversion": "the embedding of a new word",
}
log = logging.getLogger("ldm")
WORDS = """
a config is TOML, such as

    out = "runs/cats"
    model = "v1-5-pruned-emaonly.safetensors"
    rate = 1e-5
    [data]
    path = "photos"

words win over it: ldm train lora --config cats.toml steps=2000 data.size=512
several processes: torchrun --nproc-per-node 2 -m ldm train …
"""


def add(commands: Any) -> None:
    """Add the subcommand `train` to others."""
    train = commands.add_parser(
        "train", help="train a model, a LoRA or a word", description="Train from a config.", epilog=WORDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    kinds = train.add_subparsers(required=True, metavar="KIND")
    for name, text in KINDS.items():
        kind = kinds.add_parser(name, help=text, description=f"Train {text}.")
        kind.add_argument("--config", metavar="FILE.toml", help="settings; without one they are all words")
        kind.add_argument("--resume", action="store_true", help="go on where the run in its folder stopped")
        kind.add_argument(
            "--show", action="store_true", help="print all settings with their values, and stop"
        )
        kind.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings that win over the file")
        kind.set_defaults(run=run, kind=name)


def run(options: argparse.Namespace) -> None:
    """Train what was asked for; the first of several processes prints what was written."""
    from ldm.ranks import joined
    from ldm.training.config import read
    from ldm.training.settings import at_home, check

    kind, begin = kind_of(options.kind)
    settings = read(kind, options.config, options.words)
    if options.show:
        print(shown(settings))
        return
    settings = at_home(settings)
    check(settings)
    check_resumed(Path(settings.out), options.resume)
    with joined(settings.device) as ranks:
        for path in begin(settings, ranks):
            if ranks.first:
                print(path)


def kind_of(name: str) -> tuple[type[Any], Callable[..., Any]]:
    """The settings of a kind of training, and what trains it."""
    from ldm.training import recipes, settings
    from ldm.training.autoencoder import VaeSettings

    kinds: dict[str, tuple[type[Any], Callable[..., Any]]] = {
        "vae": (VaeSettings, recipes.train_vae),
        "diffusion": (settings.DiffusionSettings, recipes.train_diffusion),
        "lora": (settings.LoraSettings, recipes.train_lora),
        "inversion": (settings.InversionSettings, recipes.train_inversion),
    }
    return kinds[name]


def check_resumed(out: Path, resume: bool) -> None:
    """Raises InputError for a folder with a run that was not meant to go on; warns of one without any."""
    from ldm.training.places import listed

    found = listed(out) if out.is_dir() else []
    if found and not resume:
        raise InputError(f"{out} has a run, {found[0].name}; add --resume to go on, or give another out")
    if resume and not found:
        log.warning("%s has no checkpoint to go on from; the run begins with its first step", out)


def shown(settings: Any) -> str:
    """Settings as TOML words."""
    from ldm.training.changes import fields
    from ldm.training.config import plain

    return "\n".join(f"{name} = {written(value)}" for name, value in fields(plain(settings)))


def written(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, (int, float)):
        return repr(value)
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")  # the one character that TOML wants otherwise
