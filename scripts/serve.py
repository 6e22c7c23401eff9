"""Serves a policy: HTTP ``POST /act`` and openpi's websocket on one port. docs/serving.md has more.

python -m scripts.serve --checkpoint=FOLDER [--port=8010] [--host=ADDRESS --token_file=FILE]

X-VLA's names work too: --model_path, --processor_path, --LoRA_path, --output_dir, --device, --port,
--host, --disable_slurm. SIGTERM and Ctrl-C finish what is in flight and exit with 0.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
import sys

import jax
from absl import app, flags
from rich.console import Console

from scripts.terminal import ends_clearly, quiet_libraries
from xvla_jax.errors import XVLAError
from xvla_jax.policy import Policy
from xvla_jax.serving.engine import PolicyEngine
from xvla_jax.serving.limits import Limits
from xvla_jax.serving.server import Door, SlurmTask, is_loopback, serve, slurm_task
from xvla_jax.serving.service import Service

_PLATFORMS = {"auto": None, "cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}
_DOOR, _LIMITS = Door(), Limits()

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder, any layout.", required=True)
_PROCESSOR = flags.DEFINE_string("processor_path", None, "Folder of processor files, if another.")
_ADAPTER = flags.DEFINE_string("LoRA_path", None, "Folder of a LoRA adapter to merge.")
_OUTPUT = flags.DEFINE_string("output_dir", "./logs", "Where info.json goes; none if empty.")
_DEVICE = flags.DEFINE_enum("device", "auto", sorted(_PLATFORMS), "What to compute on.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Computing type.")
_HOST = flags.DEFINE_string("host", None, f"Address to bind; {_DOOR.host} if not given.")
_PORT = flags.DEFINE_integer("port", _DOOR.port, "Port; 0 for a free one.", 0, 65535)
_NO_SLURM = flags.DEFINE_bool("disable_slurm", False, "Do as if outside of SLURM.")
_TOKEN_FILE = flags.DEFINE_string("token_file", None, "File with the token; or set XVLA_TOKEN.")
_INSECURE = flags.DEFINE_bool("insecure", False, "Serve other machines without a token.")
_CERT = flags.DEFINE_string("tls_cert", None, "PEM file of the certificate chain.")
_KEY = flags.DEFINE_string("tls_key", None, "PEM file of the private key.")
_DRAIN = flags.DEFINE_float("drain_seconds", _DOOR.drain_seconds, "Longest wait at the end.", 0.0)
_INSPECT = flags.DEFINE_bool("inspect", False, "Answer POST /inspect, for compare_client.")
_HOSTS = flags.DEFINE_list("allowed_hosts", [], "Names in the Host header, beside loopback's.")
_PROXIES = flags.DEFINE_list("trusted_proxies", [], "Whose X-Forwarded-For is believed.")
_VIEWS = flags.DEFINE_list("views", [], "Numbers of views to compile for; all if empty.")
_ANY_DOMAIN = flags.DEFINE_bool("any_domain", False, "Serve domains without a contract too.")
_BOUNDS = {
    field.name: flags.DEFINE_float(
        f"max_{field.name}", getattr(_LIMITS, field.name), "See docs/serving.md, limits.", 0.0
    )
    for field in dataclasses.fields(Limits)
}
flags.DEFINE_alias("model_path", "checkpoint")


def limits_from_flags() -> Limits:
    """Limits with the types of their defaults."""
    return Limits(
        **{name: type(getattr(_LIMITS, name))(flag.value) for name, flag in _BOUNDS.items()}
    )


def door_from_flags(task: SlurmTask | None) -> Door:
    """The door; with a token, a SLURM task is reachable from other nodes."""
    token = os.environ.get("XVLA_TOKEN") or None
    if _TOKEN_FILE.value:
        token = pathlib.Path(_TOKEN_FILE.value).read_text().strip()
    host = _HOST.value
    if host is None:
        host = task.host if task and (token or _INSECURE.value) else _DOOR.host
        if task and is_loopback(host):
            logging.warning("no token and no --host: only this node can connect")
    return Door(
        host=host,
        port=_PORT.value + (task.index if task else 0),
        token=token,
        insecure=_INSECURE.value,
        tls_cert=_CERT.value,
        tls_key=_KEY.value,
        drain_seconds=_DRAIN.value,
        inspect=_INSPECT.value,
        allowed_hosts=tuple(_HOSTS.value),
        trusted_proxies=tuple(_PROXIES.value),
    )


def load_engine(limits: Limits) -> PolicyEngine:
    """The checkpoint that the flags name."""
    policy = Policy.from_pretrained(
        _CHECKPOINT.value,
        dtype=_DTYPE.value,
        adapter=_ADAPTER.value,
        processor=_PROCESSOR.value,
    )
    views = [int(text) for text in _VIEWS.value]
    return PolicyEngine(policy, limits, views=views, any_domain=_ANY_DOMAIN.value)


def main(argv: list[str]) -> int:
    """Returns the exit status: 0 after a signal, 1 after an error."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    console = Console(stderr=True)
    quiet_libraries()
    if _PLATFORMS[_DEVICE.value]:
        jax.config.update("jax_platforms", _PLATFORMS[_DEVICE.value])
    try:
        task = None if _NO_SLURM.value else slurm_task(os.environ)
        limits = limits_from_flags()
        service = Service(functools.partial(load_engine, limits), limits)
        return serve(service, door_from_flags(task), output_dir=_OUTPUT.value or None, task=task)
    except (XVLAError, OSError, ValueError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1


if __name__ == "__main__":
    sys.exit(app.run(ends_clearly(main)))
