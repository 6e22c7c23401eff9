"""Serves a policy: HTTP POST /act and openpi's websocket on one port.

python -m scripts.serve --checkpoint=FOLDER [--port=8010] [--host=ADDRESS --token_file=FILE]
    [--plans=exact10,frozen3]

X-VLA's names work too: --model_path, --processor_path, --LoRA_path, --output_dir, --device, --port,
--host, --disable_slurm. SIGTERM and Ctrl-C answer the requests in flight and exit with 0.
docs/serving.md explains the protocols, the limits and the token.
"""

from __future__ import annotations

import functools
import logging
import os
import pathlib
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from scripts.terminal import Command, quiet_libraries

if TYPE_CHECKING:
    from xvla_jax.serving.engine import PolicyEngine
    from xvla_jax.serving.limits import Limits
    from xvla_jax.serving.server import Door, SlurmTask

_LOOPBACK = "127.0.0.1"
DEFAULT_PLAN = "exact10"  # of xvla_jax.plans, which --help need not load
_PLATFORMS = {"auto": None, "cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}

COMMAND = Command(
    __doc__, rows={"plans": "plans"}, in_buckets=("checkpoint", "adapter", "program_cache")
)
_CHECKPOINT = COMMAND.DEFINE_string(
    "checkpoint", None, "Folder of the checkpoint, any layout.", required=True
)
_PROCESSOR = COMMAND.DEFINE_string("processor", None, "Folder of other processor files.")
_ADAPTER = COMMAND.DEFINE_string("adapter", None, "PEFT folder to merge into the weights.")
_OUT = COMMAND.DEFINE_string("out", "./logs", "Folder of info.json; none if empty.")
_DEVICE = COMMAND.DEFINE_enum("device", "auto", sorted(_PLATFORMS), "What to compute on.")
_DTYPE = COMMAND.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Computing type.")
_HOST = COMMAND.DEFINE_string("host", None, f"Address to bind; {_LOOPBACK} if not given.")
_PORT = COMMAND.DEFINE_integer("port", 8010, "Port; 0 for a free one.", 0, 65535)
_NO_SLURM = COMMAND.DEFINE_bool("disable_slurm", False, "Ignore the environment of SLURM.")
_TOKEN_FILE = COMMAND.DEFINE_string("token_file", None, "File with the token; or set XVLA_TOKEN.")
_INSECURE = COMMAND.DEFINE_bool("insecure", False, "Serve other machines without a token.")
_CERT = COMMAND.DEFINE_string("tls_cert", None, "PEM file of the certificate chain.")
_KEY = COMMAND.DEFINE_string("tls_key", None, "PEM file of the private key.")
_DRAIN = COMMAND.DEFINE_float("drain_seconds", 30.0, "Longest wait at the end.", 0.0)
_INSPECT = COMMAND.DEFINE_bool("inspect", False, "Answer POST /inspect, for compare_client.")
_HOSTS = COMMAND.DEFINE_list("allowed_hosts", [], "Names in the Host header, beside loopback's.")
_PROXIES = COMMAND.DEFINE_list("trusted_proxies", [], "Whose X-Forwarded-For is believed.")
_VIEWS = COMMAND.DEFINE_list("num_views", [], "Numbers of views to compile for; all if empty.")
_ANY_DOMAIN = COMMAND.DEFINE_bool("any_domain", False, "Serve domains without a contract too.")
_PLANS = COMMAND.DEFINE_list(
    "plans",
    [DEFAULT_PLAN],
    "Sampler plans that requests may have, the best first: one that names none gets the first that "
    "meets its deadline.",
)
_UNCERTIFIED = COMMAND.DEFINE_bool(
    "uncertified", False, "Serve plans that have no certificate of the checkpoint."
)
_PROGRAMS = COMMAND.DEFINE_string(
    "program_cache", None, "Folder or bucket of compiled programs; off: keep none."
)
# field of Limits -> (its default, help)
LIMITS: dict[str, tuple[float, str]] = {
    "body_bytes": (16 * 2**20, "Of a request, and of a websocket message."),
    "body_seconds": (10, "Until the last byte of a body has arrived."),
    "image_pixels": (2**22, "Of one image."),
    "text_characters": (1000, "Of an instruction."),
    "steps": (50, "Denoising steps."),
    "deadline_ms": (30_000, "Longest deadline, and that of a request that names none."),
    "queue": (64, "Requests that wait, of all clients."),
    "batch": (8, "Observations that run together; a power of two."),
    "wait_ms": (5, "That a request may wait for others."),
    "connections": (256, "Open at once; more make the oldest without a request end."),
    "idle_seconds": (3600, "That a websocket may be silent."),
}
_BOUNDS = {
    name: COMMAND.DEFINE_float(f"max_{name}", default, text, 0.0)
    for name, (default, text) in LIMITS.items()
}
COMMAND.DEFINE_alias("model_path", "checkpoint")
COMMAND.DEFINE_alias("processor_path", "processor")
COMMAND.DEFINE_alias("LoRA_path", "adapter")
COMMAND.DEFINE_alias("output_dir", "out")
COMMAND.DEFINE_alias("views", "num_views")


def limits_from_flags() -> Limits:
    """Returns the limits with the types of their defaults."""
    from xvla_jax.serving.limits import Limits

    kinds = Limits()
    return Limits(
        **{name: type(getattr(kinds, name))(flag.value) for name, flag in _BOUNDS.items()}
    )


def door_from_flags(task: SlurmTask | None) -> Door:
    """Returns the door; with a token, a SLURM task is reachable from other nodes."""
    from xvla_jax.serving.server import Door, is_loopback

    token = os.environ.get("XVLA_TOKEN") or None
    if _TOKEN_FILE.value:
        token = pathlib.Path(_TOKEN_FILE.value).read_text().strip()
    host = _HOST.value
    if host is None:
        host = task.host if task and (token or _INSECURE.value) else _LOOPBACK
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
    """Loads the checkpoint that the flags name."""
    from xvla_jax import buckets
    from xvla_jax.plans import named_plan
    from xvla_jax.policy import Policy
    from xvla_jax.serving.engine import PolicyEngine, programs_of

    views = [int(text) for text in _VIEWS.value]
    # none twice, none at all is the default
    plans = [named_plan(name, "--plans") for name in dict.fromkeys(_PLANS.value or [DEFAULT_PLAN])]
    policy = Policy.from_pretrained(
        _CHECKPOINT.value,
        dtype=_DTYPE.value,
        adapter=_ADAPTER.value,
        processor=_PROCESSOR.value,
        ahead=lambda processor: programs_of(processor.num_views, views, limits),
        plans=plans,
    )
    folder = buckets.place_of(_ADAPTER.value or _CHECKPOINT.value)
    return PolicyEngine(
        policy,
        limits,
        views=views,
        any_domain=_ANY_DOMAIN.value,
        plans=plans,
        certificates=None if _UNCERTIFIED.value else folder,
    )


def main(_: list[str]) -> int:
    """Returns the exit status: 0 after a signal, 1 after an error."""
    import jax

    from xvla_jax.compilation.program_cache import keep_programs
    from xvla_jax.errors import XVLAError
    from xvla_jax.serving.server import serve, slurm_task
    from xvla_jax.serving.service import Service

    console = Console(stderr=True)
    quiet_libraries()
    if _PLATFORMS[_DEVICE.value]:
        jax.config.update("jax_platforms", _PLATFORMS[_DEVICE.value])
    try:
        console.print(keep_programs(_PROGRAMS.value), markup=False, highlight=False, soft_wrap=True)
        task = None if _NO_SLURM.value else slurm_task(os.environ)
        limits = limits_from_flags()
        service = Service(functools.partial(load_engine, limits), limits)
        return serve(service, door_from_flags(task), output_dir=_OUT.value or None, task=task)
    except (XVLAError, OSError, ValueError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
