"""X-VLA in JAX: one soft-prompted vision-language-action policy for many robots."""

from xvla_jax.config import XVLAConfig
from xvla_jax.models.xvla import XVLA
from xvla_jax.policy import Policy
from xvla_jax.pretrained import load_pretrained, save_pretrained

__version__ = "0.2.0"
__all__ = ["XVLA", "Policy", "XVLAConfig", "load_pretrained", "save_pretrained"]
