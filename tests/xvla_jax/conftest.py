"""Exact float32 products, and a report of how near the golden outputs were met."""

from __future__ import annotations

import jax
import pytest

from tests.xvla_jax import golden

jax.config.update("jax_default_matmul_precision", "highest")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints worst error over tolerance for each golden output."""
    if golden.worst:
        terminalreporter.section("golden cases: worst error / tolerance")
        for what, ratio in sorted(golden.worst.items(), key=lambda item: -item[1]):
            terminalreporter.write_line(f"{ratio:8.4f}  {what}")
