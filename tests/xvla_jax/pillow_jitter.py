"""The oracle of colour jitter: Pillow's ImageEnhance, which torchvision's ColorJitter calls."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def pillow_jittered(images: np.ndarray, factors: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Returns images uint8[..., H, W, 3] jittered one by one, by factors and order [..., 3]."""
    out = np.empty_like(images)
    for place in np.ndindex(images.shape[:-3]):
        picture = Image.fromarray(images[place])
        for which in order[place].tolist():
            picture = _ENHANCERS[which](picture).enhance(float(factors[place][which]))
        out[place] = np.asarray(picture)
    return out
