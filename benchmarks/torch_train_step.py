"""The train step of a PyTorch package, in a process of its own, for ``benchmarks.training``.

It does not import JAX. Its last line is JSON: seconds of the steps, of the first, peak memory.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import statistics
import time
from typing import Any

from scripts.equivalence.torch_packages import chunk_shape, import_torch, load_model

_LEARNING_RATE, _BETAS, _MAX_NORM = 1e-4, (0.9, 0.95), 1.0


def _batch(torch: Any, num_actions: int, text_length: int) -> dict[str, Any]:
    """Returns one sample, noise in three views."""
    torch.manual_seed(0)
    actions = 0.3 * torch.randn(1, num_actions, 20)
    actions[..., [9, 19]] = 1.0
    return {
        "input_ids": torch.randint(3, 1000, (1, text_length)),
        "image_input": torch.randn(1, 3, 3, 224, 224),
        "image_mask": torch.ones(1, 3, dtype=torch.bool),
        "domain_id": torch.zeros(1, dtype=torch.long),
        "proprio": 0.3 * torch.randn(1, 20),
        "action": actions,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--package", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--text_length", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch = import_torch()
    model = load_model(pathlib.Path(options.checkpoint), options.package, "float32", "cpu")
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, betas=_BETAS)
    batch = _batch(torch, chunk_shape(model)[0], options.text_length)

    def step() -> float:
        began = time.perf_counter()
        loss: Any = sum(model(**batch).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    first = step()
    seconds = [step() for _ in range(options.repeat)]
    figures = {
        "first_s": first,
        "steps_s": seconds,
        "median_s": statistics.median(seconds),
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
