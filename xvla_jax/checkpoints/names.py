"""The table of PyTorch names: released tensor <-> leaf of the parameter tree, in three dialects.

No other file has PyTorch names. A `Row` ties one released tensor to one leaf, or to one layer of a
stacked leaf, and says how the two layouts differ. LeRobot's dialects rename the released names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A pair of functions: PyTorch tensor to Flax leaf (of a given shape), and back."""

    to_jax: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def _flat_rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0], -1)


LAYOUTS: Final[Mapping[str, Layout]] = {
    "same": Layout(lambda x, _: x, lambda x: x),
    "linear": Layout(lambda x, _: x.T, lambda x: x.T),  # [out, in] -> [in, out]
    # OIHW -> HWIO
    "conv": Layout(lambda x, _: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    # [domains, a * b] -> [domains, a, b]
    "rows": Layout(lambda x, shape: x.reshape(shape), _flat_rows),
    "leading_one": Layout(lambda x, _: x[0], lambda x: x[None]),  # [1, S, M] -> [S, M]
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One released tensor.

    Attributes:
        torch: name in the released ``model.safetensors``.
        path: keys from the root of the parameter tree.
        layer: index into the leaf's leading axis, for leaves stacked by ``nn.scan``.
        layout: key of the layout table.
    """

    torch: str
    path: Path
    layout: str = "same"
    layer: int | None = None


# Released name and layout of the leaves of a layer, by the kind of layer.
_LINEAR: Final = (("weight", "kernel", "linear"), ("bias", "bias", "same"))
_NORM: Final = (("weight", "scale", "same"), ("bias", "bias", "same"))
_CONV: Final = (("weight", "kernel", "conv"), ("bias", "bias", "same"))
_DOMAIN: Final = (("fc.weight", "kernel", "rows"), ("bias.weight", "bias", "same"))

# DaViT block: released prefix ({a} = window_attn or channel_attn), Flax path, kind
_BLOCK: Final = (
    ("conv1.fn.dw", ("conv1",), _CONV),
    ("{a}.norm", ("norm1",), _NORM),
    ("{a}.fn.qkv", ("attention", "qkv"), _LINEAR),
    ("{a}.fn.proj", ("attention", "proj"), _LINEAR),
    ("conv2.fn.dw", ("conv2",), _CONV),
    ("ffn.norm", ("norm2",), _NORM),
    ("ffn.fn.net.fc1", ("mlp", "fc1"), _LINEAR),
    ("ffn.fn.net.fc2", ("mlp", "fc2"), _LINEAR),
)
_BART_LAYER: Final = (
    *((f"self_attn.{n}_proj", ("self_attn", f"{n}_proj"), _LINEAR) for n in ("k", "v", "q", "out")),
    ("self_attn_layer_norm", ("norm1",), _NORM),
    ("fc1", ("mlp", "fc1"), _LINEAR),
    ("fc2", ("mlp", "fc2"), _LINEAR),
    ("final_layer_norm", ("norm2",), _NORM),
)
_POLICY_BLOCK: Final = (
    ("norm1", ("norm1",), _NORM),
    ("norm2", ("norm2",), _NORM),
    ("attn.qkv", ("attn", "qkv"), _LINEAR),
    ("attn.proj", ("attn", "proj"), _LINEAR),
    ("mlp.fc1", ("mlp", "fc1"), _LINEAR),
    ("mlp.fc2", ("mlp", "fc2"), _LINEAR),
)

SHARED: Final = "vlm.language_model.model.shared.weight"
EMBED_TOKENS: Final = "vlm.language_model.model.encoder.embed_tokens.weight"
TEMPORAL: Final = "vlm.visual_temporal_embed.pos_idx_to_embed"
LOGITS_BIAS: Final = "vlm.language_model.final_logits_bias"
BUFFERS: Final = (TEMPORAL, LOGITS_BIAS)  # saved, but no parameters


def rows(config: XVLAConfig) -> list[Row]:
    """Returns a model's table: every parameter once, in the order of the reference's sections."""
    table: list[Row] = []

    def add(
        torch: str, path: Path, kind: tuple[tuple[str, str, str], ...], layer: int | None = None
    ) -> None:
        table.extend(Row(f"{torch}.{t}", (*path, j), layout, layer) for t, j, layout in kind)

    tower = ("vlm", "vision_tower")
    for i, depth in enumerate(config.vision.depths):
        add(f"vlm.vision_tower.convs.{i}.proj", (*tower, f"embed{i}", "conv"), _CONV)
        add(f"vlm.vision_tower.convs.{i}.norm", (*tower, f"embed{i}", "norm"), _NORM)
        for j in range(depth):
            for kind, attention in (("spatial", "window_attn"), ("channel", "channel_attn")):
                for torch, path, leaves in _BLOCK:
                    name = (
                        f"vlm.vision_tower.blocks.{i}.{j}.{kind}_block.{torch.format(a=attention)}"
                    )
                    add(name, (*tower, f"stage{i}_{kind}{j}", *path), leaves)

    image = ("vlm", "image_projector")
    for axis in ("row", "column"):
        table.append(
            Row(f"vlm.image_pos_embed.{axis}_embeddings.weight", (*image, f"{axis}_embeddings"))
        )
    table.append(Row("vlm.image_projection", (*image, "projection")))
    add("vlm.image_proj_norm", (*image, "norm"), _NORM)

    text, encoder = ("vlm", "text_encoder"), "vlm.language_model.model.encoder"
    table.append(Row(SHARED, (*text, "token_embedding")))
    table.append(Row(f"{encoder}.embed_positions.weight", (*text, "position_embedding")))
    add(f"{encoder}.layernorm_embedding", (*text, "norm"), _NORM)
    for layer in range(config.text.encoder_layers):
        for torch, path, leaves in _BART_LAYER:
            add(f"{encoder}.layers.{layer}.{torch}", (*text, "layers", *path), leaves, layer)

    head = ("transformer",)
    table.append(Row("transformer.pos_emb", (*head, "pos_emb"), "leading_one"))
    for layer in range(config.depth):
        for torch, path, leaves in _POLICY_BLOCK:
            add(f"transformer.blocks.{layer}.{torch}", (*head, "blocks", *path), leaves, layer)
    for name in ("vlm_proj", "aux_visual_proj"):
        add(f"transformer.{name}", (*head, name), _DOMAIN if config.use_hetero_proj else _LINEAR)
    add("transformer.norm", (*head, "norm"), _NORM)
    for name in ("action_encoder", "action_decoder"):
        add(f"transformer.{name}", (*head, name), _DOMAIN)
    if config.len_soft_prompts:
        table.append(Row("transformer.soft_prompt_hub.weight", (*head, "soft_prompts"), "rows"))
    return table


# LeRobot's native names: (pattern, replacement) over the released ones, first match wins.
_NATIVE_RULES: Final = (
    (r"^vlm\.vision_tower\.convs\.(\d+)\.proj\.", r"vlm.vision_tower.convs.\1.conv."),
    (r"\.(conv[12])\.fn\.dw\.", r".\1."),
    (r"\.(?:window|channel)_attn\.norm\.", r".norm1."),
    (r"\.(window_attn|channel_attn)\.fn\.", r".\1."),
    (r"\.ffn\.norm\.", r".norm2."),
    (r"\.ffn\.fn\.net\.", r".ffn."),
    (r"^vlm\.image_projection$", r"vlm.multi_modal_projector.image_projection.weight"),
    (r"^vlm\.image_proj_norm\.", r"vlm.multi_modal_projector.image_proj_norm."),
    (r"^vlm\.image_pos_embed\.", r"vlm.multi_modal_projector.image_position_embed."),
    (r"^vlm\.visual_temporal_embed\.", r"vlm.multi_modal_projector.visual_temporal_embed."),
    (r"^vlm\.language_model\.model\.", r"vlm.language_model."),
)


def _native_name(released: str) -> str:
    for pattern, replacement in _NATIVE_RULES:
        renamed, count = re.subn(pattern, replacement, released)
        if count:
            return renamed
    return released


@dataclasses.dataclass(frozen=True)
class Dialect:
    """A way of naming the released tensors.

    Attributes:
        name: key of `DIALECTS`.
        rename: released name -> name in this dialect.
        transposed: released names whose tensor is stored transposed.
        absent: released buffers that this dialect does not store.
        tied_name: the released name under which the token table is written.
        lerobot: config.json and the files beside it are LeRobot's.
        says_format: its writer notes ``format: pt`` in the file.
    """

    name: str
    rename: Callable[[str], str]
    transposed: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    tied_name: str = SHARED
    lerobot: bool = False
    says_format: bool = True

    @property
    def metadata(self) -> dict[str, str]:
        """Text beside the tensors, where LeRobot's writers note the alias that they left out."""
        note = {self.rename(SHARED): self.rename(EMBED_TOKENS)}
        return ({"format": "pt"} if self.says_format else {}) | (note if self.lerobot else {})


DIALECTS: Final[Mapping[str, Dialect]] = {
    "hf": Dialect("hf", lambda name: name),
    "lerobot-vendored": Dialect(
        "lerobot-vendored",
        lambda name: f"model.{name}",
        tied_name=EMBED_TOKENS,
        lerobot=True,
        says_format=False,
    ),
    "lerobot-native": Dialect(
        "lerobot-native",
        lambda name: f"model.{_native_name(name)}",
        transposed=frozenset({"vlm.image_projection"}),
        absent=frozenset({LOGITS_BIAS}),
        tied_name=EMBED_TOKENS,
        lerobot=True,
    ),
}


def detect_dialect(names: set[str]) -> Dialect:
    """Returns the dialect in which a state dict with these names is written.

    Raises:
        CheckpointError: the names are those of no dialect.
    """
    if any(name.startswith("vlm.") for name in names):
        return DIALECTS["hf"]
    if "model.vlm.image_projection" in names or any(
        name.startswith("model.vlm.language_model.model.") for name in names
    ):
        return DIALECTS["lerobot-vendored"]
    if any(name.startswith("model.vlm.") for name in names):
        return DIALECTS["lerobot-native"]
    raise CheckpointError(
        f"the weights are not X-VLA's: none of {len(names)} names starts with 'vlm.' or "
        f"'model.vlm.'; found for example {sorted(names)[:3]}"
    )
