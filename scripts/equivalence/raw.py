"""Raw observations in ``scripts/check_equivalence.py``: they test preprocessing too.

Equal pixels show that two networks are the same; only images as cameras give them show that two
checkpoints act the same.
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
from xvla_jax.plans import STEPS
from xvla_jax.pretrained import Pretrained, save_pretrained
from xvla_jax.processor import Processor


def layout_of(torch: TorchOptions | None) -> str:
    """Returns the layout for PyTorch; for LeRobot the one that all of its versions load."""
    return "lerobot-vendored" if torch and torch.package == LEROBOT else "hf"


@dataclasses.dataclass(frozen=True)
class Export:
    """A folder to write a checkpoint for PyTorch into."""

    folder: pathlib.Path
    layout: str

    def write(self, loaded: Pretrained) -> None:
        """Writes the checkpoint with the files that LeRobot needs beside the weights."""
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
    """Raw observations, and our outputs for them.

    Attributes:
        arrays: the observations, as `probe.raw_observations` returns them.
        tasks: their instructions.
        outputs: ours, by the names of ``compare.RAW_STAGES``.
        processor: of ours; LeRobot gets its tokenizer.
        note: size and resizing of the images, for the report.
    """

    arrays: Mapping[str, np.ndarray]
    tasks: list[str]
    outputs: Mapping[str, np.ndarray]
    processor: Processor
    note: str

    @classmethod
    def of(cls, loaded: Pretrained, folder: pathlib.Path, *, count: int, seed: int) -> RawSide:
        """Runs ours in float32; ``folder`` is the one that LeRobot will load."""
        if loaded.processor is None:
            raise ValueError("a checkpoint without a processor has no way to take raw observations")
        config, processor = loaded.config, as_lerobot_can(loaded.processor)
        arrays, tasks = probe.raw_observations(config, processor, count=count, seed=seed)
        files = {path.name: path.read_bytes() for path in folder.glob(f"{BEFORE}*")}
        inputs = probe.prepare_raw(
            config, processor, arrays, tasks, domain_id=read_domain(files) or 0
        )
        params = inference_params(loaded.params, "float32")
        outputs = compare.stage_outputs(config, params, inputs, dtype="float32", steps=STEPS)
        actions = outputs["actions"]
        if processor.action:
            actions = processor.action.unscale(actions)
        height, width = arrays["images"].shape[2:4]
        note = f"{height} x {width} px, resize {processor.resize!r}"
        if processor != loaded.processor:
            note += f" for {loaded.processor.resize!r}, which it lacks"
        return cls(arrays, tasks, {**inputs, "robot_actions": actions}, processor, note)

    def ask(self, reference: TorchReference) -> dict[str, np.ndarray]:
        """Returns LeRobot's outputs; of proprio, the channels that ours has."""
        with tempfile.TemporaryDirectory() as folder:
            self.processor.write(folder)
            outputs = reference.raw(self.arrays, self.tasks, tokenizer=pathlib.Path(folder))
        width = self.outputs["proprio"].shape[1]
        proprio = outputs["proprio"][:, :width]
        return outputs | {"proprio": np.pad(proprio, ((0, 0), (0, width - proprio.shape[1])))}


def pixel_difference(a: Processor, b: Processor) -> float | None:
    """Returns the largest difference of one camera image after two processors, in levels 0 .. 255.

    None if one of them takes no image of that size, or if their results differ in size.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*probe.CAMERA, 3), dtype=np.uint8)
    try:
        ours, theirs = (side.fit(image).astype(np.float32) for side in (a, b))
    except InputError:
        return None
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else None
