"""Every field of a run, with its default, unit or choices.

Experiments are small files that change some of them.

Override on the command line: ``--config.optimizer.learning_rate=3e-4``. Unknown names are errors.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict


def get_config(model: dict[str, Any]) -> ConfigDict:
    """The base run for a model shape (see ``configs/models.py``)."""
    config: Any = ConfigDict()  # Any: its fields have types that no checker can follow
    config.seed = 0  # decides initial weights, data order, noise, dropout
    config.model = model  # as config.json; not used where init_from is set
    config.init_from = ""  # checkpoint folder of any layout to start from; "" = random weights
    config.dtype = "float32"  # computing type: float32 or bfloat16; weights are float32 always
    config.remat = "none"  # what the backward pass keeps: a name in xvla_jax.models.remat.REMAT

    config.processor = ConfigDict()
    config.processor.image_size = 224  # px, side of the square the model sees
    config.processor.num_views = 3  # view slots
    config.processor.text_length = 50  # tokens; padding is attended, so this is part of the weights

    config.data = ConfigDict()
    config.data.root = ""  # folder that holds the datasets
    config.data.mixture = ""  # name in data/mixtures.py
    config.data.shuffle_buffer = 10_000  # samples per source, over all lanes
    config.data.lanes = 1  # stretches of a batch with files of their own: one or more per host
    config.data.max_bad_episodes = 0  # left out per source; one more ends the run
    config.data.cache_mb = 0.0  # MB for decoded images; worth it for small datasets only

    config.batch_size = 16  # samples per step, over all hosts
    config.accumulate = 1  # parts into which a batch is cut, one after the other: less memory
    config.ema_decay = 0.0  # of the moving average of the weights; 0 = none
    config.optimizer = ConfigDict()
    config.optimizer.mode = "xvla"  # what learns: a name in xvla_jax.groups.MODES
    config.optimizer.last_layers = 4  # blocks that learn in mode last_layers
    config.optimizer.schedule = "xvla_release"  # a name in xvla_jax.optimizer.SCHEDULES
    config.optimizer.iters = 50_000  # steps of the run
    config.optimizer.learning_rate = 1e-4
    config.optimizer.learning_coef = 0.1  # factor for vlm and soft prompts
    config.optimizer.freeze_steps = 1000  # steps for which vlm and core wait
    config.optimizer.warmup_steps = 2000  # steps
    config.optimizer.min_lr_ratio = 0.1  # of the learning rate, at the end of a cosine
    config.optimizer.weight_decay = 0.0
    config.optimizer.betas = (0.9, 0.95)
    config.optimizer.eps = 1e-8
    config.optimizer.max_grad_norm = 1.0  # 0 = no clipping
    config.optimizer.use_cosine_decay = False  # of the schedule xvla_flags

    config.validation = ConfigDict()
    config.validation.every = 0  # steps between measurements on held-out episodes; 0 = none
    config.validation.episodes = 5  # of each source; they are not trained on
    config.validation.stride = 10  # every so many samples of an episode
    config.validation.steps = 10  # of denoising

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices; -1 = all the rest
    config.mesh.fsdp = 1  # devices that share one copy of the weights

    config.wandb = ConfigDict()
    config.wandb.project = ""  # of Weights & Biases; "" = TensorBoard and metrics.jsonl alone
    config.wandb.entity = ""  # "" = that of your account
    config.wandb.name = ""  # "" = name of the workdir
    config.wandb.mode = "online"  # or offline

    config.log_every = 20  # steps
    config.max_skipped_steps = 10  # that were not finite; one more ends the run
    config.save_every = 1000  # steps
    config.keep = 2  # newest checkpoints kept
    return config
