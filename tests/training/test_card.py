"""The card of a run says what it was made from, how, how long, and how well it does."""

import json
from dataclasses import replace

import pytest

import ldm
from ldm.errors import InputError
from ldm.training.card import duration, write_card
from ldm.training.settings import Data, DiffusionSettings, Sheet
from tests import tiny
from tests.training.runs import SMALL, is_sentence

LINES = [
    {"step": 10 * k, "loss": 2.0 if k <= 20 else 0.5, "seconds": 0.5} for k in range(1, 41)
]  # 400 steps of half a second
BY_TIME = {"loss_t050": 0.125, "loss_t950": 0.75}


def card(folder, lines=LINES, scores=None, **more):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if scores is not None:
        (folder / "scores.json").write_text(json.dumps(scores))
    settings = DiffusionSettings(
        out=str(folder), model="a model", data=Data(path="some/photos", flip=0.25), batch=8, rate=3e-4, **more
    )
    path = write_card(settings, tiny.make(SMALL))
    assert path == folder / "card.md"
    return path.read_text("utf-8")


def rows(text):
    """The tables of the card, by what stands on the left; the first of a name counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("| ") and line.endswith(" |"):
            name, _, value = line.strip("| ").partition(" | ")
            found.setdefault(name, value)
    return found


def test_it_says_what_the_model_is_and_how_it_came_about(tmp_path):
    lines = [*LINES[:-1], LINES[-1] | BY_TIME]
    text = card(tmp_path / "dogs", lines, {"fid": 12.5, "shapes": {"colour": 0.75}}, fresh=("unet",))
    found = rows(text)
    assert text.startswith("# dogs\n") and ldm.__version__ in text
    assert "from a model, with unet begun anew." in text and "family sd1" in text
    assert found["data"] == "some/photos, 16 pixels" and found["predicts"] == "eps"
    assert found["unet"] == f"{sum(p.numel() for p in tiny.make(SMALL).unet.parameters()):,} parameters"
    assert found["steps"] == "400 of 8 images" and found["time in steps"] == "about 3 minutes"
    assert found["loss, the mean of 20 lines"] == "2 at first, 0.5 at last"
    assert found["loss at t = 50"] == "0.125" and found["loss at t = 950"] == "0.75"
    assert found["fid"] == "12.5" and found["shapes.colour"] == "0.75"
    assert found["rate"] == "0.0003" and found["data.flip"] == "0.25" and found["batch"] == "8"
    assert found["latent scale"] == "0.18215"


def test_a_run_without_metrics_or_scores_has_a_card_too(tmp_path):
    text = card(tmp_path / "new", [])
    assert "steps of" not in text and "Scores" not in text and rows(text)["rate"] == "0.0003"
    assert "begun anew" not in text
    bad = [{"step": 1, "loss": None, "seconds": None}]
    assert rows(card(tmp_path / "bad", bad))["loss, the mean of 20 lines"] == "none at first, none at last"


def test_it_is_written_anew(tmp_path):
    card(tmp_path / "run")
    text = card(tmp_path / "run", [*LINES, {"step": 500, "loss": 0.5, "seconds": 0.5}])
    assert rows(text)["steps"] == "500 of 8 images"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 seconds"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (7200, "2.0 hours"),
    ],
)
def test_times_are_said_as_one_says_them(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize("name", ["metrics.jsonl", "scores.json"])
@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[1"])
def test_a_file_that_is_not_what_it_is_called_is_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    settings = replace(DiffusionSettings(), out=str(tmp_path), sheet=Sheet())
    with pytest.raises(InputError, match=rf"{name} is .*; move it") as caught:
        write_card(settings, tiny.make(SMALL))
    assert is_sentence(caught.value) and not (tmp_path / "card.md").exists()


def test_scores_that_are_no_names_and_numbers_are_refused(tmp_path):
    (tmp_path / "scores.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="must be an object of names and numbers"):
        write_card(replace(DiffusionSettings(), out=str(tmp_path)), tiny.make(SMALL))
