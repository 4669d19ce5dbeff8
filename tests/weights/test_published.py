"""Published figures for official weights: `pytest -m weights --weights=DIR`.

DIR has official files, single ones or folders in the layout of diffusers, under any names. The figures are in
`tests/data/published.json`, which names their origin. A file is known by its header: the family, and how many
parameters its UNet has. Releases with one header (Stable Diffusion 1.1 to 1.5, 2.0 and 2.1, SDXL and its
kin) are told apart by the hashes of the published files. A file without a known hash is tried with the
figures of every release that it may be: one that is met counts, one that is not is skipped with its error,
unless another figure of the same release was met.
"""

from pathlib import Path

import pytest
import torch

from tests.weights.find import Found, find
from tests.weights.table import Case, Table
from tests.weights.trial import Trial

pytestmark = pytest.mark.weights
TABLE = Table.read()
ABSENT = "no files to try: give a folder of official ones, pytest -m weights --weights=DIR"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--weights")
    if folder is None:
        rows = [pytest.param(None, None, id="none", marks=pytest.mark.skip(reason=ABSENT))]
    else:
        models, _ = find(Path(folder).expanduser())
        rows = [row(*pair) for pair in TABLE.pairs(models)]
    metafunc.parametrize(("case", "model"), rows)


def row(case: Case, model: Found | None, obstacle: str):
    """A pair as a parameter of the test."""
    name = case.id if model is None else f"{case.id}-{model.path.name}"
    return pytest.param(case, model, id=name, marks=pytest.mark.skip(reason=obstacle) if obstacle else ())


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(TABLE)


def test_figure(case: Case, model: Found | None, trial: Trial, monkeypatch: pytest.MonkeyPatch):
    # the figures were made without it, as torch has it for products of matrices but not for convolutions
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    trial.judge(case, model)
