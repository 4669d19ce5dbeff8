"""README says what is true: its line counts, its links, its first two commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
ROWS = re.findall(r"^\| \[[^\]]+\]\((src/[^)]+)\) \| (\d+) \|", README, re.MULTILINE)


def test_reading_order_is_there() -> None:
    assert len(ROWS) >= 20


@pytest.mark.parametrize(("path", "lines"), ROWS)
def test_line_counts_are_right(path: str, lines: str) -> None:
    actual = len((ROOT / path).read_text("utf-8").splitlines())
    assert actual == pytest.approx(int(lines), rel=0.1, abs=3)  # a small change need not touch README


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_first_block_is_the_two_commands_of_set_up() -> None:
    block = re.search(r"```sh\n(.*?)```", README, re.DOTALL)
    assert block is not None
    install_and_draw, install_and_test = block[1].strip().splitlines()
    assert install_and_draw.startswith("pip install .") and "ldm sample" in install_and_draw
    assert install_and_test.startswith('pip install ".[test]"') and install_and_test.endswith("pytest")


def test_modules_are_small_rooms() -> None:
    sizes = {path: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "src").rglob("*.py")}
    assert not {path.name: size for path, size in sizes.items() if size > 250}
