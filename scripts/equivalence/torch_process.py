"""The near end of ``scripts/equivalence/torch_reference.py``: PyTorch in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import IO, Any, Self

import numpy as np

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
_TAIL = 2000  # characters of stderr that an error shows


class TorchReferenceError(RuntimeError):
    """The PyTorch process ended; the message holds its last output."""


@dataclasses.dataclass(frozen=True)
class TorchOptions:
    """Options to start the process with.

    Attributes:
        package: folder of the original package (it holds ``models/``), or ``lerobot``.
        python: interpreter that has torch.
        dtype: ``float32`` or ``bfloat16``: type of weights and computing.
        threads: 0 leaves PyTorch's own choice.
        device: torch's name of the device.
    """

    package: str
    python: str = sys.executable
    dtype: str = "float32"
    threads: int = 0
    device: str = "cpu"


def require_torch(options: TorchOptions) -> None:
    """Checks quickly that the process can start.

    Raises:
        TorchReferenceError: it cannot; the message says what is missing.
    """
    code = (
        "from scripts.equivalence.torch_packages import require; "
        f"require({_place(options.package)!r})"
    )
    try:
        done = subprocess.run(
            [options.python, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise TorchReferenceError(f"cannot start {options.python}: {error}") from error
    if done.returncode:
        raise TorchReferenceError(f"PyTorch cannot be run: {done.stderr.strip()[-_TAIL:]}")


def _place(package: str) -> str:
    """Returns the package as a path that does not depend on a process's folder."""
    return str(pathlib.Path(package).resolve()) if pathlib.Path(package).is_dir() else package


class TorchReference:
    """A model in PyTorch that answers requests; a context manager, as it is a process.

    Attributes:
        about: the program's first line: versions, threads, seconds to import and to load.
    """

    about: Mapping[str, Any]

    def __init__(self, checkpoint: str | os.PathLike[str], options: TorchOptions) -> None:
        """Stores the command; ``checkpoint`` is in the released layout or one of LeRobot's."""
        self._command = [
            options.python,
            "-m",
            "scripts.equivalence.torch_reference",
            f"--checkpoint={pathlib.Path(checkpoint).resolve()}",
            f"--package={_place(options.package)}",
            f"--dtype={options.dtype}",
            f"--threads={options.threads}",
            f"--device={options.device}",
        ]

    def __enter__(self) -> Self:
        """Starts the process and waits until the model is loaded.

        Raises:
            TorchReferenceError: loading failed; the message says why.
        """
        self._errors: IO[str] = tempfile.TemporaryFile("w+")
        try:
            self._process = subprocess.Popen(
                self._command,
                cwd=_ROOT,
                env={**os.environ, **_QUIET},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as error:
            self._errors.close()
            raise TorchReferenceError(f"cannot start {self._command[0]}: {error}") from error
        try:
            self.about = self._answer()
        except TorchReferenceError:
            self.__exit__()
            raise
        return self

    def __exit__(self, kind: object = None, *_: object) -> None:
        """Ends the process, at once if something went wrong."""
        if kind is not None:
            self._process.terminate()
        self._process.communicate()
        self._errors.close()

    def stages(self, inputs: Mapping[str, np.ndarray], *, steps: int) -> dict[str, np.ndarray]:
        """Returns float32 outputs of each stage; the program's docstring describes the inputs."""
        return self._arrays(inputs, {"command": "stages", "steps": steps})

    def raw(
        self, arrays: Mapping[str, np.ndarray], tasks: list[str], *, tokenizer: pathlib.Path
    ) -> dict[str, np.ndarray]:
        """Returns LeRobot's outputs for raw observations; see ``torch_lerobot.py``."""
        request = {"command": "raw", "tasks": tasks, "tokenizer": str(tokenizer.resolve())}
        return self._arrays(arrays, request)

    def _arrays(
        self, inputs: Mapping[str, np.ndarray], request: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            inputs_file, outputs_file = (
                pathlib.Path(folder, "inputs.npz"),
                pathlib.Path(folder, "outputs.npz"),
            )
            arrays: dict[str, Any] = dict(inputs)
            np.savez(inputs_file, **arrays)
            self.ask({**request, "inputs": str(inputs_file), "outputs": str(outputs_file)})
            with np.load(outputs_file) as outputs:
                return dict(outputs)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a request, as the program's docstring describes it, and returns the answer."""
        if self._process.stdin is None:
            raise TorchReferenceError("the process has no stdin")
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> TorchReferenceError:
        status = self._process.wait()
        self._errors.seek(0)
        last_output = self._errors.read().strip()[-_TAIL:]
        return TorchReferenceError(f"PyTorch reference ended with status {status}: {last_output}")
