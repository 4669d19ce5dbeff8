"""Configs: what is written is what is meant, or is refused with its key."""

from dataclasses import dataclass, field

import pytest

from ldm.errors import InputError
from ldm.training.config import plain, read


@dataclass(frozen=True)
class Rate:
    peak: float = 1e-4
    warmup: int = 0


@dataclass(frozen=True)
class Run:
    data: str = ""
    steps: int = 10
    flip: bool = False
    prompts: tuple[str, ...] = ()
    shares: tuple[float, ...] = (0.5,)
    rate: Rate = field(default_factory=Rate)


TEXT = 'data = "pictures"\nsteps = 20\nprompts = ["a", "b"]\n[rate]\npeak = 1\n'


@pytest.fixture
def file(tmp_path):
    (tmp_path / "run.toml").write_text(TEXT, "utf-8")
    return tmp_path / "run.toml"


def test_a_word_wins_over_the_file_and_that_over_the_default(file):
    assert read(Run) == Run()
    found = read(
        Run, file, ["steps=30", "rate.warmup=5", "flip=true", "data=other folder", "shares=[1, 0.25]"]
    )
    assert found == Run("other folder", 30, True, ("a", "b"), (1.0, 0.25), Rate(1.0, 5))
    assert isinstance(found.rate.peak, float) and read(Run, file).data == "pictures"


def test_plain_data_makes_the_same_config_again(file):
    found = read(Run, file)
    assert plain(found)["rate"] == {"peak": 1.0, "warmup": 0} and plain(found)["prompts"] == ("a", "b")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stesp=1"], "unknown key stesp; did you mean 'steps'"),
        (["rate.warmpu=1"], "unknown key rate.warmpu; did you mean 'warmup'"),
        (["steps=1.5"], "steps must be a whole number, not 1.5"),
        (["steps=true"], "steps must be a whole number, not True"),
        (["steps="], "steps must be a whole number, not ''"),
        (["flip=1"], "flip must be true or false"),
        (["data=3"], "data must be a text, not 3"),
        (["prompts=a"], "prompts must be a list, not 'a'"),
        (["prompts=[1]"], r"prompts\[0\] must be a text"),
        (["rate=3"], "rate must be a table"),
        (["rate=3", "rate.peak=2"], "rate is 3"),
        (["steps.x=3"], "steps must be a whole number"),
        (["steps"], "key=value"),
    ],
)
def test_what_does_not_fit_is_named(words, said):
    with pytest.raises(InputError, match=said):
        read(Run, None, words)


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe", b"steps = 1\nsteps = 2"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.toml is no TOML"):
        read(Run, tmp_path / "a.toml")


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "b.toml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read(Run, path)


def test_a_key_of_the_file_is_named_with_the_file(file):
    file.write_text(TEXT + "peka = 1\n", "utf-8")
    with pytest.raises(InputError, match=r"run\.toml: unknown key rate\.peka; did you mean 'peak'"):
        read(Run, file)
