"""Writes the page and the film of a quickstart; scripts.quickstart does it as its last stage.

python -m scripts.report --workdir=outputs/quickstart

The folder may have been copied to gs://BUCKET/FOLDER.
"""

from __future__ import annotations

import html
import json
import os
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

from eval.files import FileError
from eval.pages.evaluation import evaluation_sections
from eval.pages.html import plain_table
from eval.pages.quickstart import Curve, Report, write_report
from eval.runs.receipt import RESULTS, read_receipt
from scripts.demo.stages import REPORT, read_ledger
from scripts.diagnostics.packages import PACKAGES, installed_versions
from scripts.evaluation.receipts import NEEDED
from scripts.places import files
from scripts.places.workdir import Workdir
from scripts.terminal import Command

if TYPE_CHECKING:
    from xvla_jax.buckets import Place
    from xvla_jax.checkpoint_tools.certificate import Certificate

_DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs" / "fast_and_smooth.md"

COMMAND = Command(__doc__, in_buckets=("workdir",))
_WORKDIR = COMMAND.DEFINE_string("workdir", None, "Folder of the quickstart.", required=True)

_RECORDING = "demonstrations/recording.json"
_NEEDED = (
    f"evaluation/{RESULTS}",
    *(f"evaluation/{pattern}" for pattern in NEEDED),
    "train/metrics*.jsonl",
    "hf/sampler_certificate.*.json",
    _RECORDING,
)

_MEANINGS = {
    "trained": "the small X-VLA, trained on the demonstrations, read back from the PyTorch layout",
    "untrained": "the same model with random weights",
    "blind": "the trained model with black images: what can be solved without looking",
    "expert": "the script that made the demonstrations; it gets the positions of all objects",
}


def build(workdir: pathlib.Path, place: Place) -> Report:
    """Collects the results of the stages; ``place`` is the folder as the user gave it."""
    receipt = read_receipt(workdir / "evaluation" / RESULTS)
    export = json.loads((workdir / "export.json").read_text())
    recording = json.loads((workdir / _RECORDING).read_text())
    ledger = read_ledger(workdir)
    (task,) = receipt["tasks"].values()
    (instruction,) = {e["task"] for p in task["policies"].values() for e in p["by_task"].values()}
    policies = [
        (name, _MEANINGS.get(name, ""), entry["summary"])
        for name, entry in task["policies"].items()
    ]
    return Report(
        title="X-VLA quickstart",
        lead=_lead(instruction, recording["recorded"], task["row"]),
        policies=policies,
        facts=_facts(task, export, recording),
        sections=[
            *evaluation_sections(receipt, workdir / "evaluation"),
            ("Sampler plans", plan_section(workdir, place)),
        ],
        curves=_curves(workdir / "train"),
        stages=[(name, entry["seconds"]) for name, entry in ledger.items()],
        versions={
            **_versions(),
            **receipt["versions"]["simulator"],
            "renderer": receipt["renderer"],
        },
        commands=[f"python -m {shlex.join(entry['arguments'])}" for entry in ledger.values()],
    )


def _lead(instruction: str, recorded: int, row: dict[str, Any]) -> str:
    world = "LIBERO" if row["benchmark"] == "libero" else f"the simulator {row['benchmark']}"
    moved = row["displacement"]
    return (
        f"A small X-VLA learned “{instruction}” from {recorded} demonstrations in {world} and was "
        "tried on initial states that it has not seen."
    ) + (
        f" Each episode moves the object by up to {100 * moved:.0f} cm from its official place."
        if moved
        else ""
    )


def _facts(task: dict[str, Any], export: dict[str, Any], recording: dict[str, Any]) -> list[str]:
    errors = sum(e["summary"]["simulator_errors"] for e in task["policies"].values())
    return [
        f"{export['parameters']:,} parameters were written in the PyTorch layout and read back: "
        f"equal {export['parameters_equal']}; {export['chunks_compared']} action chunks from the "
        f"same noise differ by at most {export['largest_action_difference']:g}.",
        f"{recording['failed']} of {recording['tried']} demonstrations failed and were left out.",
        f"{errors} episodes ended in a simulator error; such an episode counts as failed.",
    ]


def plan_section(workdir: pathlib.Path, place: Place | None = None) -> str:
    """Returns the certificate of the exported weights as HTML; "" where there is none.

    Raises:
        CertificateError: it was changed after it was written.
    """
    from xvla_jax.checkpoint_tools.certificate import certificate_path, read_certificate
    from xvla_jax.plans import DEFAULT

    path = certificate_path(workdir / "hf", "float32")
    if not path.is_file():
        return ""
    certificate, seal = read_certificate(path)
    parts = [_plan_table(certificate, domain) for domain in _domains(certificate)]
    plans = ",".join([DEFAULT.name, *(n for n, e in certificate.plans.items() if not e.beyond)])
    weights = shlex.quote(str((place or workdir) / "hf"))
    serve = f"python -m scripts.serve --checkpoint={weights} --plans={plans}"
    docs = html.escape(os.path.relpath(_DOCS, workdir))
    frames = ", ".join(f"{count} frames of {name}" for name, count in certificate.frames.items())
    return (
        f"<p>Distance of the actions from those of {DEFAULT.name} with the same noise, over all "
        f"rows of {html.escape(frames)}: mean, and in brackets the worst. The first row is the "
        f"policy's own distance from what was recorded.</p>{''.join(parts)}"
        f'<p>Certificate {seal[:16]}; <a href="{docs}#certificates">how it is measured</a>.</p>'
        f"<pre>{html.escape(serve)}</pre>"
    )


def _domains(certificate: Certificate) -> list[str]:
    return list(dict.fromkeys(d for entry in certificate.plans.values() for d in entry.drift))


def _plan_table(certificate: Certificate, domain: str) -> str:
    """Returns a row for each plan, and a column for each quantity."""
    from xvla_jax.checkpoint_tools.certificate import SHARE
    from xvla_jax.plans import DEFAULT

    drifts = {name: entry.drift[domain] for name, entry in certificate.plans.items()}
    quantities = next(iter(drifts.values()))

    def shown(value: float, unit: str) -> str:
        return f"{value:.1%}" if unit == SHARE else f"{value:.2g}"

    rows = [
        [
            f"{DEFAULT.name}, own error",
            *(shown(d.own_error, d.unit) for d in quantities.values()),
            "",
        ]
    ]
    for name, entry in certificate.plans.items():
        cells = [
            shown(d.mean, d.unit) + ("" if d.unit == SHARE else f" ({d.worst:.2g})")
            for d in drifts[name].values()
        ]
        rows.append([name, *cells, "; ".join(entry.beyond) or "certified"])
    head = [f"{name}{'' if d.unit == SHARE else f', {d.unit}'}" for name, d in quantities.items()]
    return plain_table(rows, ("plan", *head, f"limits, {domain}"))


def _versions() -> dict[str, str]:
    installed = installed_versions()
    return {p.name: installed[p.name] for p in PACKAGES if p.name in installed}


def _curves(workdir: pathlib.Path) -> list[Curve]:
    from xvla_jax.training.telemetry import read_metrics

    lines = read_metrics(workdir)
    terms = sorted({name for line in lines for name in line if name.endswith("_loss")})
    # steps with a line of rollouts alone have neither
    loss = {n: [(line["step"], line[n]) for line in lines if n in line] for n in ("loss", *terms)}
    rate = "samples_per_s"
    speed = {"samples/s": [(line["step"], line[rate]) for line in lines if rate in line]}
    return [
        Curve("Loss and its terms", loss, "step", log_y=True),
        Curve("Training speed", speed, "step"),
    ]


def _animate(workdir: pathlib.Path) -> None:
    """Writes the film of a success, where there is one, as a moving image."""
    from scripts.demo import animation

    (task,) = read_receipt(workdir / "evaluation" / RESULTS)["tasks"].values()
    films = [workdir / "evaluation" / film["film"] for film in task["films"] if film["success"]]
    if films and films[0].is_file():
        animation.write_animation(films[0], workdir / animation.FILE)


def main(_: list[str]) -> int:
    """Writes the page and prints its path."""
    place = files.place_of(_WORKDIR.value, flag="--workdir")
    with Workdir(place, needed=_NEEDED) as workdir:
        status = _write(workdir.local, place)
        workdir.save()
    if status == 0:
        print(place / REPORT)
    return status


def _write(workdir: pathlib.Path, place: Place) -> int:
    """Writes page and film into a folder of this machine, that of ``place``; returns the status."""
    from xvla_jax.errors import XVLAError

    missing = [
        name
        for name in (f"evaluation/{RESULTS}", "export.json", _RECORDING)
        if not (workdir / name).is_file()
    ]
    if missing:
        print(f"error: {place} lacks {', '.join(missing)}; run python -m scripts.quickstart")
        return 1
    try:
        write_report(workdir / REPORT, build(workdir, place))
        _animate(workdir)
    except (FileError, XVLAError) as error:
        print(f"error: {str(error).replace(str(workdir), str(place))}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
