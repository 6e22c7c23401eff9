"""Writes a policy as a program that JAX runs without this library.

python -m scripts.export_program --checkpoint=CKPT --out=FOLDER --num_views=2
    --instruction="put the cube onto the plate" [--instruction=...] [--observations=1]
    [--platforms=cpu,cuda,tpu] [--dtype=float32|bfloat16]

FOLDER holds the StableHLO program for all platforms, weights (safetensors), action contract,
preprocessing, a manifest with the SHA-256 of every file, and policy.py, which acts from them and
needs jax, numpy and flatbuffers (jax.export reads by it). The tokenizer stays behind: each
instruction is stored with its tokens. Actions are those of Policy.act for as many views, bit for
bit on the same device.
"""

from __future__ import annotations

import sys

from rich.console import Console

from scripts.terminal import Command, quiet_libraries

COMMAND = Command(__doc__)
_CHECKPOINT = COMMAND.DEFINE_string("checkpoint", None, "Checkpoint of any layout.", required=True)
_OUT = COMMAND.DEFINE_string("out", None, "Folder of the program; new or empty.", required=True)
_INSTRUCTION = COMMAND.DEFINE_multi_string(
    "instruction", None, "A text to act on; may be repeated.", required=True
)
_VIEWS = COMMAND.DEFINE_integer(
    "num_views", None, "Most images of an observation.", lower_bound=1, required=True
)
_OBSERVATIONS = COMMAND.DEFINE_integer(
    "observations", 1, "Most observations of a call.", lower_bound=1
)
_PLATFORMS = COMMAND.DEFINE_list("platforms", "cpu,cuda,tpu", "Devices that it will run on.")
_DTYPE = COMMAND.DEFINE_enum("dtype", "float32", ["bfloat16", "float32"], "Computing type.")


def main(_: list[str]) -> int:
    """Returns the exit status: 0, or 1 when nothing was written."""
    import jax.numpy as jnp

    from xvla_jax.errors import XVLAError
    from xvla_jax.exported.program import PLATFORMS, write_program
    from xvla_jax.policy import Policy
    from xvla_jax.serving.engine import model_sha256

    quiet_libraries()
    console = Console()
    unknown = [name for name in _PLATFORMS.value if name not in PLATFORMS]
    if unknown or not _PLATFORMS.value:
        console.print(
            f"error: --platforms={','.join(_PLATFORMS.value)}; allowed are {', '.join(PLATFORMS)}",
            style="bold red",
            markup=False,
        )
        return 1
    try:
        policy = Policy.from_pretrained(_CHECKPOINT.value, dtype=jnp.dtype(_DTYPE.value))
        manifest = write_program(
            _OUT.value,
            policy,
            instructions=_INSTRUCTION.value,
            views=_VIEWS.value,
            batch=_OBSERVATIONS.value,
            platforms=_PLATFORMS.value,
            source={"checkpoint": _CHECKPOINT.value, "sha256": model_sha256(policy)},
        )
    except XVLAError as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    console.print(
        f"{_OUT.value}: a program for {', '.join(manifest['platforms'])}, seal {manifest['seal']}",
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
