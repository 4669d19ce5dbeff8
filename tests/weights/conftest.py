"""What the figures were tried with, and why some were not, at the end of the run."""

from collections import defaultdict
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from tests.weights.find import find
from tests.weights.table import Table


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    if (folder := config.getoption("--weights")) is None:
        return
    write, table = terminalreporter.write_line, Table.read()
    terminalreporter.section("published figures")
    models, others = find(Path(folder).expanduser())
    for model in models:
        like = " or ".join(table.like(model)) or "no release with figures"
        write(f"{model.path.name}: {model.report.family}, has the header of {like}")
    for name, problem in others.items():
        write(f"{name}: passed over, no model: {problem}")
    skipped = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        _, _, reason = report.longrepr
        reason, _, files = reason.removeprefix("Skipped: ").partition("downloads: ")
        reason += "downloads, which -rs names" if files else ""
        skipped[reason].append(report.nodeid.partition("[")[2].removesuffix("]"))
    for reason, ids in sorted(skipped.items()):
        write(f"skipped {', '.join(ids)}: {reason}")
