"""Raw observations in ``scripts/check_equivalence.py``: preprocessing, not only the network.

Equal pixels show whether two networks are the same; only images as cameras give them show whether
two checkpoints act the same.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping

import numpy as np

from scripts.equivalence.torch_packages import LEROBOT
from scripts.equivalence.torch_process import TorchOptions, TorchReference
from xvla_jax.checkpoint_tools import compare, probe
from xvla_jax.checkpoints.lerobot_export import as_lerobot_can
from xvla_jax.checkpoints.lerobot_pipelines import BEFORE, read_domain
from xvla_jax.errors import InputError
from xvla_jax.models.inference import inference_params
from xvla_jax.policy import STEPS
from xvla_jax.pretrained import Pretrained, save_pretrained
from xvla_jax.processor import Processor


def layout_of(torch: TorchOptions | None) -> str:
    """Layout in which PyTorch is given a checkpoint; LeRobot, one that its versions all load."""
    return "lerobot-vendored" if torch and torch.package == LEROBOT else "hf"


@dataclasses.dataclass(frozen=True)
class Export:
    """A folder in which a checkpoint is written for PyTorch."""

    folder: pathlib.Path
    layout: str

    def write(self, loaded: Pretrained) -> None:
        """Writes it, with what LeRobot needs besides weights."""
        save_pretrained(
            self.folder,
            loaded.config,
            loaded.params,
            self.layout,
            processor=loaded.processor,
            contracts=loaded.contracts,
            files=loaded.files,
        )


@dataclasses.dataclass(frozen=True)
class RawSide:
    """Raw observations, and what ours makes of them.

    Attributes:
        arrays: the observations, as `xvla_jax.checkpoint_tools.probe.raw_observations` gives them.
        tasks: their instructions.
        outputs: ours by the names of ``compare.RAW_STAGES``.
        processor: LeRobot gets its tokenizer.
        note: what is special.
    """

    arrays: Mapping[str, np.ndarray]
    tasks: list[str]
    outputs: Mapping[str, np.ndarray]
    processor: Processor
    note: str

    @classmethod
    def of(cls, loaded: Pretrained, folder: pathlib.Path, *, count: int, seed: int) -> RawSide:
        """Runs ours in float32; ``folder`` is what LeRobot is going to load."""
        if loaded.processor is None:
            raise ValueError("a checkpoint without a processor has no way to take raw observations")
        config, processor = loaded.config, as_lerobot_can(loaded.processor)
        arrays, tasks = probe.raw_observations(config, processor, count=count, seed=seed)
        files = {path.name: path.read_bytes() for path in folder.glob(f"{BEFORE}*")}
        inputs = probe.prepare_raw(
            config, processor, arrays, tasks, domain_id=read_domain(files) or 0
        )
        params = inference_params(loaded.params, "float32")
        made = compare.stage_outputs(config, params, inputs, dtype="float32", steps=STEPS)
        actions = made["actions"]
        if processor.action:
            actions = processor.action.unscale(actions)
        height, width = arrays["images"].shape[2:4]
        note = f"{height} x {width} px, resize {processor.resize!r}"
        if processor != loaded.processor:
            note += f" for {loaded.processor.resize!r}, which it lacks"
        return cls(arrays, tasks, {**inputs, "robot_actions": actions}, processor, note)

    def ask(self, reference: TorchReference) -> dict[str, np.ndarray]:
        """The same from LeRobot; of proprio, the channels that ours has."""
        with tempfile.TemporaryDirectory() as folder:
            self.processor.write(folder)
            found = reference.raw(self.arrays, self.tasks, tokenizer=pathlib.Path(folder))
        width = self.outputs["proprio"].shape[1]
        proprio = found["proprio"][:, :width]
        return found | {"proprio": np.pad(proprio, ((0, 0), (0, width - proprio.shape[1])))}


def pixel_difference(a: Processor, b: Processor) -> float | None:
    """Largest difference, in levels of 0 .. 255, of what two processors make of a camera's image.

    None where one of them takes no image of that size, or the two have not one size.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*probe.CAMERA, 3), dtype=np.uint8)
    try:
        ours, theirs = (side.fit(image).astype(np.float32) for side in (a, b))
    except InputError:
        return None
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else None
