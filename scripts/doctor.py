"""Checks that this machine can run the quickstart, and says how to repair what is missing.

python -m scripts.doctor [--json]

Exit status 1 when something that the quickstart needs is broken.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts.diagnostics import machine, packages
from scripts.diagnostics.finding import Finding, broken
from scripts.terminal import Command

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
COLOURS = {"ok": "green", "warning": "yellow", "broken": "bold red"}

COMMAND = Command(__doc__)
_JSON = COMMAND.DEFINE_bool("json", False, "Print JSON instead of a table.")


def examine() -> list[Finding]:
    """Checks everything, quick things first; takes about half a minute."""
    installed = packages.installed_versions()
    constraints = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    return [
        machine.python_finding(sys.version_info[:3]),
        *packages.package_findings(installed, packages.pinned_versions(constraints)),
        *packages.conflict_findings(installed),
        packages.dlimp_finding(installed),
        machine.amount_finding(machine.CORES, len(os.sched_getaffinity(0))),
        machine.amount_finding(machine.MEMORY, memory),
        machine.amount_finding(machine.DISK, shutil.disk_usage(ROOT).free / GIB),
        machine.writable_finding(
            "checkout", ROOT, "broken", "clone the repository into a folder of yours"
        ),
        machine.writable_finding(
            "home", Path.home(), "warning", "export HOME=a folder that can be written"
        ),
        *_probe_findings(),
    ]


def _probe_findings() -> list[Finding]:
    chosen = os.environ.get("MUJOCO_GL") or "egl"
    gl = {
        backend: machine.run_probe(
            machine.PROBE_GL, {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
        )
        for backend in dict.fromkeys([chosen, "egl", "osmesa"])
    }
    # An own folder keeps LIBERO from asking where its data sets are, and from writing to the home.
    with tempfile.TemporaryDirectory() as folder:
        libero = machine.run_probe(machine.PROBE_LIBERO, {"LIBERO_CONFIG_PATH": folder})
    # where JAX_PLATFORMS names the CPU, a card that is not used is no news
    has_card = machine.NVIDIA_DRIVER.exists() and not os.environ.get("JAX_PLATFORMS")
    return [
        machine.device_finding(machine.run_probe(machine.PROBE_DEVICES, {}), has_card=has_card),
        machine.gl_finding(gl, chosen),
        machine.libero_finding(libero),
    ]


def as_table(findings: Sequence[Finding]) -> Table:
    """Returns the findings as a table."""
    table = Table(title="xvla_jax doctor")
    for column in ("what", "here", "status", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        status = f"[{COLOURS[finding.status]}]{finding.status}[/]"
        table.add_row(finding.name, escape(finding.state), status, escape(finding.advice))
    return table


def main(_: list[str]) -> int:
    """Prints the findings and returns the exit status."""
    findings = examine()
    if _JSON.value:
        rows = [asdict(finding) for finding in findings]
        # "found" is the name of the field in releases up to 0.1
        print(json.dumps([{"found": row.pop("state"), **row} for row in rows], indent=2))
    else:
        Console().print(as_table(findings))
    return 1 if broken(findings) else 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
