"""Rates of a run against the peaks of its device, by numbers that one can check by eye."""

from __future__ import annotations

from pathlib import Path

import pytest

from xvla_jax.planning.roofline import (
    PROGRAM_NAME,
    StepWork,
    read_work,
    roofline_rows,
    step_work,
    write_work,
)

# reads two arrays of 4 KiB and writes one
_TEXT = """HloModule step

ENTRY %main (a: f32[32,32], b: f32[32,32]) -> f32[32,32] {
  %a = f32[32,32]{1,0} parameter(0)
  %b = f32[32,32]{1,0} parameter(1)
  ROOT %dot = f32[32,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def test_a_step_is_set_against_both_peaks() -> None:
    # on v5e, 197 TFLOP/s and 819 GB/s: 0.1 s of products, 0.2 s of memory
    work = StepWork("TPU v5 lite", 4, int(4 * 19.7e12), int(163.8e9))
    assert roofline_rows(work, 0.4) == {
        "devices": "4 x TPU v5 lite",
        "FLOP/s of a device": "49.2 of 197 T, 25.0%",
        "HBM bytes/s of a device": "410 of 819 G, 50.0%",
        "roofline": "0.2 s by HBM, 50% reached",
    }
    uncounted = StepWork("NVIDIA H200", 1, int(98.9e12), None)
    assert roofline_rows(uncounted, 0.2)["roofline"] == "0.1 s by FLOPs, 50% reached"
    assert "HBM bytes/s of a device" not in roofline_rows(uncounted, 0.2)


def test_no_peak_is_invented() -> None:
    work = StepWork("cpu", 1, 10**12, None)
    assert roofline_rows(work, 1.0) == {"devices": "1 x cpu", "roofline": "no peak known for cpu"}


def test_bytes_are_those_of_the_compiled_program(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = step_work("TPU v6 lite", 2, 65_536, lambda: _TEXT)
    assert work == StepWork("TPU v6 lite", 2, 65_536, 3 * 4096)
    assert read_work(tmp_path) is None
    write_work(tmp_path, work)
    assert read_work(tmp_path) == work
    assert step_work("TPU v6 lite", 2, 65_536, lambda: "no program").hbm_bytes is None
    assert "the bytes of the train step are not counted" in caplog.text
    caplog.clear()
    other = _TEXT.replace("dot(%a, %b)", "fusion(%a, %b), calls=%elsewhere")  # another compiler's
    assert step_work("NVIDIA H200", 2, 65_536, lambda: other).hbm_bytes is None
    assert "the bytes of the train step are not counted: KeyError('elsewhere')" in caplog.text

    def refuse() -> str:
        raise AssertionError("the text of a program that nothing is compared with")

    assert step_work("cpu", 2, 65_536, refuse).hbm_bytes is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "not JSON"), ('{"devices": 4', "not JSON"), ('{"devices": 4}', "device_kind is missing")],
)
def test_a_damaged_file_costs_the_roofline_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, reason: str
) -> None:
    (tmp_path / PROGRAM_NAME).write_text(content)  # as a full disk or an older version left it
    assert read_work(tmp_path) is None
    [line] = caplog.messages
    assert reason in line
    assert line.endswith("; the table has no roofline")


def test_a_file_appears_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = StepWork("cpu", 1, 1, None)
    write_work(tmp_path, work)
    write = Path.write_text

    def full(path: Path, text: str) -> None:
        write(path, text[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_work(tmp_path, StepWork("cpu", 2, 2, None))
    assert read_work(tmp_path) == work
    assert [path.name for path in tmp_path.iterdir()] == [PROGRAM_NAME]
