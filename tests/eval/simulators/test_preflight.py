"""On unsuitable machines the error says what to change."""

from __future__ import annotations

import pytest

from eval.simulators import preflight


@pytest.mark.parametrize("version", ["3.4.0", "3.8.1", "3.9.9", "4.0.0", "5.1"])
def test_known_bad_mujoco(version: str) -> None:
    with pytest.raises(preflight.SimulatorSetupError, match=r"mujoco==3\.17\.0"):
        preflight.check_mujoco(version)


@pytest.mark.parametrize("version", ["2.3.7", "3.3.7", "3.10.0", "3.17.0"])
def test_known_good_mujoco(version: str) -> None:
    preflight.check_mujoco(version)


def test_modules_that_crash_are_refused() -> None:
    preflight.refuse_modules(("tensorflow_that_nobody_has",))
    with pytest.raises(preflight.SimulatorSetupError, match="pytest is imported"):
        preflight.refuse_modules(("pytest",))


def test_a_missing_distribution_says_how_to_get_it() -> None:
    with pytest.raises(preflight.SimulatorSetupError, match=r"\.\[sim\]"):
        preflight.installed("no-such-simulator")


def test_backends_that_need_a_display_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(preflight.SimulatorSetupError, match="egl or osmesa"):
        preflight.require_headless_gl()
