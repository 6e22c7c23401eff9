"""Certifies sampler plans: measures what they change in a checkpoint's actions.

python -m scripts.certify_sampler --checkpoint=FOLDER --data=NAME --root=FOLDER
    [--plans=frozen10,frozen3] [--episodes=16] [--task=quickstart --init_states=30:80 --out=FOLDER]
    [--reference=FOLDER]

Recorded frames of held-out episodes (those that config.validation.episodes of the same number
keeps out of training) pass through the plans with the same noise; the distance from exact10 is
measured by domain in millimetres, degrees and decisions of the gripper. With --task all plans are
evaluated in closed loop on the same initial states; the receipt goes to --out. With --reference all
are compared with exact10 of that checkpoint: the teacher of a student, or the float32 weights that
int8 ones were made of, which need it for exact10 too. The certificate is
written into the checkpoint's folder, bound to its weights and sealed. The server and the evaluation
use no plan that has none, or that breaks its limits; docs/fast_and_smooth.md explains it.
Exit status: 0 if all plans keep the limits, 1 after an error, 2 if one breaks them.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from eval.files import FileError, write_json
from eval.runs.compare import compare_runs
from eval.runs.receipt import RESULTS, read_receipt
from eval.runs.seal import SEAL
from scripts.evaluation.recorded import acted, frames_of, observation_of
from scripts.terminal import Command, UsageError, count_progress, quiet_libraries

if TYPE_CHECKING:
    from data.stream.pipeline import Frame
    from data.trajectory import Source
    from xvla_jax.checkpoint_tools.certificate import Certificate, Drift, Entry, Limits, Success
    from xvla_jax.plans import SamplerPlan
    from xvla_jax.policy import Policy

_BREAKS = 2  # exit status
_FILE_WIDTH = 100  # characters of a line where the output is a file

COMMAND = Command(__doc__, rows={"data": "data", "plans": "plans", "task": "tasks"})
_CHECKPOINT = COMMAND.DEFINE_string("checkpoint", None, "Of any layout.", required=True)
_ADAPTER = COMMAND.DEFINE_string(
    "adapter", None, "PEFT folder to merge into the weights; the certificate goes there."
)
_REFERENCE = COMMAND.DEFINE_string(
    "reference", None, "Checkpoint whose exact10 is compared with; without, the same one's."
)
_PROCESSOR = COMMAND.DEFINE_string("processor", None, "Folder of other processor files.")
_DTYPE = COMMAND.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Computing type.")
_DATA = COMMAND.DEFINE_string("data", None, "Dataset, mixture or module:ROW.", required=True)
_ROOT = COMMAND.DEFINE_string("root", None, "Its data folder.", required=True)
_EPISODES = COMMAND.DEFINE_integer(
    "episodes", 16, "Held-out episodes of each dataset, four frames each.", lower_bound=1
)
_PLANS = COMMAND.DEFINE_list(
    "plans", ["frozen10", "refresh2", "frozen3", "exact5", "exact3"], "Plans to certify."
)
_DRIFT = COMMAND.DEFINE_float(
    "max_drift", 0.25, "Largest mean drift, as a share of the policy's own error.", lower_bound=0
)
_FLIPS = COMMAND.DEFINE_float(
    "max_flips", 0.01, "Largest share of gripper decisions that differ.", lower_bound=0
)
_SEED = COMMAND.DEFINE_integer("seed", 0, "Seed of noise and episodes.", lower_bound=0)
_TASK = COMMAND.DEFINE_string("task", None, "Row of eval/tasks/ for paired success.")
_STATES = COMMAND.DEFINE_string("init_states", None, "Of the task: initial states, first:end.")
_WORKERS = COMMAND.DEFINE_integer("workers", 2, "Simulators at once.", lower_bound=1)
_OUT = COMMAND.DEFINE_string("out", None, "Folder of the evaluation, with --task.")


def measure(
    policy: Policy,
    reference: Policy,
    sources: Sequence[Source],
    plans: Sequence[SamplerPlan],
    console: Console,
) -> tuple[dict[str, int], dict[str, dict[str, dict[str, Drift]]]]:
    """Returns frames by dataset, and the drift by plan, domain and quantity."""
    from scripts.evaluation.drift import drifts, quantities
    from xvla_jax.errors import CertificateError
    from xvla_jax.plans import DEFAULT

    names = {domain: name for name, domain in policy.domains.items()}
    counts: dict[str, int] = {}
    seen: dict[int, list[Frame]] = {}
    for source in sources:
        for frame in _frames(policy, source):
            spec = source.reader.spec.name
            counts[spec] = counts.get(spec, 0) + 1
            seen.setdefault(int(frame.batch["domain_id"][0]), []).append(frame)
    measured: dict[str, dict[str, dict[str, Drift]]] = {plan.name: {} for plan in plans}
    with count_progress(console, "frames x plans") as show:
        done, total = 0, sum(map(len, seen.values())) * (1 + len(plans))
        for domain, frames in seen.items():
            if domain not in policy.contracts:
                raise CertificateError(
                    f"the checkpoint has no contract of domain {domain}; it has "
                    f"{', '.join(map(str, policy.contracts))} (action_contract.json)"
                )
            if reference.contracts.get(domain) != policy.contracts[domain]:
                raise CertificateError(
                    f"--reference={_REFERENCE.value} has another contract of domain {domain}, or "
                    "none (action_contract.json): its actions cannot be compared"
                )
            observations = [observation_of(frame) for frame in frames]
            runs = [(reference, DEFAULT), *((policy, plan) for plan in plans)]
            chunks = []
            for acting, plan in runs:
                chunks.append(acted(acting, observations, plan, seed=_SEED.value))
                done += len(frames)
                show(done, total)
            recorded = np.stack([frame.batch["actions"][0] for frame in frames])
            named = quantities(policy.space, policy.contracts[domain])
            for plan, chunk in zip(plans, chunks[1:], strict=True):
                drift = drifts(named, chunks[0], chunk, recorded)
                measured[plan.name][names.get(domain, str(domain))] = drift
    return counts, measured


def _frames(policy: Policy, source: Source) -> Iterator[Frame]:
    """Yields recorded frames of the held-out episodes of a source; of all where there are few."""
    from data.sources import hold_out

    episodes = sum(source.reader.episodes_per_part)
    if _EPISODES.value < episodes:
        _, source = hold_out(source, _EPISODES.value)
    return frames_of(policy, source, _EPISODES.value)


def evaluate(
    plans: Sequence[str], digests: tuple[str, str], out: pathlib.Path, console: Console
) -> dict[str, dict[str, Success]]:
    """Runs scripts.evaluate with all plans into ``out``; returns paired success by plan and task.

    Args:
        plans: names of the plans of the checkpoint.
        digests: hash of the reference and of the checkpoint.
        out: folder of the evaluation.
        console: for the command.

    Raises:
        ValueError: the evaluation failed, or evaluated another model.
    """
    from xvla_jax.checkpoint_tools.certificate import Success
    from xvla_jax.plans import DEFAULT

    first = "reference" if _REFERENCE.value else DEFAULT.name
    folders = {first: _REFERENCE.value or _CHECKPOINT.value} | dict.fromkeys(
        plans, _CHECKPOINT.value
    )
    arguments = [
        *("--tasks", _TASK.value, "--out", str(out), "--uncertified", "--accept_renderer"),
        *(f"--policy={name}={folder}" for name, folder in folders.items()),
        *(f"--plan={name}={name}" for name in plans),
        *("--film=", f"--workers={_WORKERS.value}", f"--seed={_SEED.value}"),
        *([f"--init_states={_STATES.value}"] if _STATES.value else []),
    ]
    console.print(f"python -m scripts.evaluate {' '.join(arguments)}", style="dim", markup=False)
    status = subprocess.call([sys.executable, "-m", "scripts.evaluate", *arguments])
    if status:
        raise ValueError(f"scripts.evaluate ended with status {status}")
    receipt = read_receipt(out)
    for name, digest in ((first, digests[0]), (plans[0], digests[1])):
        model = receipt["policies"][name]["hash"]
        if model != digest:
            raise ValueError(f"{out / RESULTS} has model {model} as {name}; it is {digest}")
    measured: dict[str, dict[str, Success]] = {}
    for name in plans:
        for task, pairs in compare_runs(receipt, name, receipt, first).items():
            measured.setdefault(name, {})[task] = Success(
                episodes=pairs.pairs,
                default=pairs.both + pairs.only_second,
                plan=pairs.both + pairs.only_first,
                difference=pairs.difference,
                receipt=receipt[SEAL],
            )
    return measured


def _plans() -> list[SamplerPlan]:
    """Returns the plans to measure; exact10 may be one of them where there is a reference."""
    from xvla_jax.plans import DEFAULT, named_plan

    plans = [named_plan(name, "--plans") for name in dict.fromkeys(_PLANS.value)]
    if not _REFERENCE.value:
        plans = [plan for plan in plans if plan != DEFAULT]
    if not plans:
        raise UsageError(f"--plans={','.join(_PLANS.value)}: {DEFAULT.name} needs no certificate")
    return plans


def certify(console: Console) -> tuple[Certificate, pathlib.Path]:
    """Measures all plans and writes the certificate."""
    from data.rows.mixtures import mixture
    from data.sources import open_mixture
    from xvla_jax.checkpoint_tools.certificate import Entry, Limits, certificate_name, sealed
    from xvla_jax.policy import Policy
    from xvla_jax.serving.engine import model_sha256

    plans = _plans()
    sources = open_mixture(mixture(_DATA.value), _ROOT.value)
    policy = Policy.from_pretrained(
        _CHECKPOINT.value,
        dtype=_DTYPE.value,
        adapter=_ADAPTER.value,
        processor=_PROCESSOR.value,
    )
    reference = _reference(policy)
    digest = model_sha256(policy)
    digests = (digest if reference is policy else model_sha256(reference)), digest
    frames, drift = measure(policy, reference, sources, plans, console)
    success: dict[str, dict[str, Success]] = {}
    if _TASK.value and _OUT.value:
        names = [plan.name for plan in plans]
        success = evaluate(names, digests, pathlib.Path(_OUT.value), console)
    limits = Limits(_DRIFT.value, _FLIPS.value)
    entries = {}
    for plan in plans:
        entry = Entry(plan.to_dict(), drift[plan.name], success.get(plan.name, {}), beyond=())
        entries[plan.name] = entry.checked(limits)
    certificate = _certificate(policy, digests, frames, limits, entries)
    folder = pathlib.Path(_ADAPTER.value or _CHECKPOINT.value)
    path = folder / certificate_name(certificate.dtype)
    write_json(path, sealed(certificate))
    return certificate, path


def _certificate(
    policy: Policy,
    digests: tuple[str, str],
    frames: dict[str, int],
    limits: Limits,
    entries: dict[str, Entry],
) -> Certificate:
    """Returns the certificate of what was measured, with how it was made.

    Args:
        policy: of the checkpoint.
        digests: hash of the reference and of the checkpoint.
        frames: number by dataset.
        limits: that the plans are to keep.
        entries: what was measured, by plan.
    """
    import jax

    from eval.simulators.preflight import versions
    from xvla_jax.checkpoint_tools.certificate import SCHEMA, Certificate

    device = jax.local_devices()[0]
    return Certificate(
        schema=SCHEMA,
        model_sha256=digests[1],
        dtype=np.dtype(policy.model.dtype).name,
        device=f"{device.platform} {device.device_kind}",
        frames=frames,
        seed=_SEED.value,
        limits=limits,
        plans=entries,
        made_by={"command": COMMAND.line, **versions(("jax", "jaxlib", "flax", "numpy"))},
        reference=digests[0] if _REFERENCE.value else None,
    )


def _reference(policy: Policy) -> Policy:
    """Returns the policy whose exact10 all plans are compared with: of --reference, or the same.

    Raises:
        CertificateError: it has other actions, or is missing and the weights are int8.
    """
    from xvla_jax.errors import CertificateError
    from xvla_jax.policy import Policy

    if not _REFERENCE.value and policy.int8:
        raise CertificateError(
            f"{_CHECKPOINT.value} has int8 weights; --reference=FOLDER names the float32 weights "
            "that they were made of, from which the drift is measured"
        )
    if not _REFERENCE.value:
        return policy
    reference = Policy.from_pretrained(_REFERENCE.value, dtype=_DTYPE.value)
    for field in ("action_mode", "num_actions", "real_action_dim"):
        ours, theirs = (getattr(one.config, field) for one in (policy, reference))
        if ours != theirs:
            raise CertificateError(
                f"{field} of --reference={_REFERENCE.value} is {theirs!r}, that of "
                f"--checkpoint={_CHECKPOINT.value} {ours!r}; their actions cannot be compared"
            )
    return reference


def show(console: Console, certificate: Certificate) -> None:
    """Prints a table for each domain, and for each plan its success and the verdict."""
    compared = f" of {_REFERENCE.value}" if certificate.reference else ""
    domains = dict.fromkeys(d for entry in certificate.plans.values() for d in entry.drift)
    for domain in domains:
        table = Table(title=f"Distance from exact10{compared}, domain {domain}", box=box.SIMPLE)
        table.add_column("plan", no_wrap=True)
        table.add_column("channel", no_wrap=True)
        for column in ("mean", "p99", "worst", "own error", "of that"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, entry in certificate.plans.items():
            for quantity, drift in entry.drift[domain].items():
                table.add_row(name, f"{quantity}, {drift.unit}", *_numbers(drift))
            table.add_section()
        console.print(table)
    for name, entry in certificate.plans.items():
        for line in _successes(entry, compared):
            console.print(f"{name}: {line}", markup=False)
        verdict = f"breaks limits: {'; '.join(entry.beyond)}" if entry.beyond else "certified"
        console.print(f"{name}: {verdict}", markup=False, soft_wrap=True)


def _numbers(drift: Drift) -> Iterator[str]:
    for value in (drift.mean, drift.p99, drift.worst, drift.own_error):
        yield f"{value:.2g}"
    yield f"{drift.mean / drift.own_error:.0%}" if drift.own_error else ""


def _successes(entry: Entry, compared: str) -> Iterator[str]:
    for task, one in entry.success.items():
        difference, low, high = (100 * value for value in one.difference)
        yield (
            f"{task}: {one.plan} of {one.episodes}, exact10{compared} {one.default}: "
            f"{difference:+.1f} points ({low:+.1f} to {high:+.1f})"
        )


def main(_: list[str]) -> int:
    """Returns the exit status."""
    from xvla_jax.errors import XVLAError

    if _TASK.value and (not _OUT.value or _DTYPE.value != "float32" or _ADAPTER.value):
        raise UsageError("--task needs --out, and is for --dtype=float32 without --adapter")
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    quiet_libraries()
    try:
        certificate, path = certify(console)
    except (XVLAError, FileError, ValueError, OSError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    show(console, certificate)
    console.print(f"written to {path}", markup=False, soft_wrap=True)
    return _BREAKS if any(entry.beyond for entry in certificate.plans.values()) else 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
