"""The notebooks in examples/ run from top to bottom, and are stored light and without an error."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import ldm

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MOST_BYTES = 400_000  # of a stored notebook, pictures included
SECONDS = 300  # for a cell on a busy machine; a whole notebook takes less than 60 on one idle thread


def test_there_are_notebooks():
    assert {"forward_process", "reverse_process"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(ldm.__file__).parents[1]))  # the same ldm as this test's
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=where).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_light_and_without_errors(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert path.stat().st_size < MOST_BYTES
    assert not [
        output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"
    ]
