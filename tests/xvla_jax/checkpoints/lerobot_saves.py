"""Saves a policy with LeRobot: PYTHON -m ...lerobot_saves CASE SHAPE OUT TOKENIZER.

For ``capture_lerobot.py``; it runs where lerobot is. SHAPE is a config.json in the released style.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
from typing import Any

from tests.xvla_jax.checkpoints import lerobot_cases as cases

_SHAPE = (
    "florence_config", "hidden_size", "depth", "num_heads", "mlp_ratio", "num_domains",
    "len_soft_prompts", "dim_time", "max_len_seq", "use_hetero_proj",
)  # fmt: skip


def main(case: str, shape: str, out: str, tokenizer: str) -> None:
    """Writes what `XVLAPolicy.save_pretrained` and both pipelines' `save_pretrained` write."""
    torch = importlib.import_module("torch")
    saved = cases.SAVED[case]
    types: Any = importlib.import_module("lerobot.configs.types")
    visual, state, action = (
        getattr(types.FeatureType, name) for name in ("VISUAL", "STATE", "ACTION")
    )
    inputs = {
        f"observation.images.{name}": types.PolicyFeature(visual, (3, *size))
        for name, size in saved.cameras.items()
    }
    raw = json.loads(pathlib.Path(shape).read_text())
    modeling = importlib.import_module("lerobot.policies.xvla.modeling_xvla")
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in saved.fields.items()
    }
    if "normalization_mapping" in fields:
        modes = fields["normalization_mapping"].items()
        fields["normalization_mapping"] = {k: types.NormalizationMode[v] for k, v in modes}
    config = modeling.XVLAConfig(
        **{name: raw[name] for name in _SHAPE},
        **fields,
        input_features=inputs | {"observation.state": types.PolicyFeature(state, (saved.state,))},
        output_features={"action": types.PolicyFeature(action, (saved.action,))},
        chunk_size=cases.CHUNK,
        n_action_steps=cases.CHUNK,
        tokenizer_max_length=cases.TEXT,
        device="cpu",
    )
    policy = modeling.XVLAPolicy(config)
    with torch.no_grad():
        for name, tensor in policy.state_dict().items():
            if not cases.is_buffer(name):
                tensor.copy_(torch.as_tensor(cases.draw(name, tuple(tensor.shape))))
    policy.save_pretrained(out)
    steps = importlib.import_module("lerobot.processor.tokenizer_processor")
    load = steps.AutoTokenizer.from_pretrained
    steps.AutoTokenizer.from_pretrained = lambda _: load(tokenizer)  # without the network
    stats = {
        key: {name: torch.tensor(value) for name, value in one.items()}
        for key, one in saved.stats.items()
    }
    factory = importlib.import_module("lerobot.policies.factory")
    for pipeline in factory.make_pre_post_processors(config, dataset_stats=stats):
        pipeline.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
