"""Every field of a run, with its default, unit or choices.

Experiments are small files that change some of them.

Override on the command line: ``--config.optimizer.learning_rate=3e-4``. Unknown names are refused.
"""

from __future__ import annotations

import json
from typing import Any

from ml_collections import ConfigDict


def get_config(model: dict[str, Any]) -> ConfigDict:
    """The base run for a model shape (see ``configs/models.py``)."""
    config: Any = ConfigDict()  # Any: its fields have types that no checker can follow
    config.seed = 0  # decides initial weights, data order, noise, dropout
    # as config.json, for from_scratch and scripts.plan; with init_from the checkpoint decides, and
    # a field that you set beyond the file's must agree with it
    config.model = model
    config.model_default = json.dumps(model)  # config.model of the file; leave it as it is
    config.init_from = ""  # checkpoint folder of any layout to start from
    # domains of the data that init_from lacks, as NAME=ORIGIN,NAME=ORIGIN: a copy of one of its
    # domains by name, nearest or fresh; * is every other new name; "" = it has them all
    config.new_domains = ""
    config.from_scratch = False  # random initial weights; exactly one of the two is set
    config.action_mode = ""  # a name in xvla_jax/actions.py; "" = that of the model
    config.real_action_dim = 0  # channels of action_mode auto; 0 = those of the model
    # "context": tokens of the context do not attend to actions, so one computation of them serves
    # all denoising steps; "all": they do, as in X-VLA; "" = as in the model
    config.context_attends_to = ""
    config.dtype = "float32"  # computing type: float32 or bfloat16; weights are float32 always
    config.remat = "none"  # what the backward pass keeps: a name in xvla_jax.models.layers.REMAT
    config.scan_vision = False  # compiles equal blocks of the vision tower once: for TPU
    # forms of attention, a name in xvla_jax.models.kernels.ATTENTION: xla, or fused, one kernel for
    # TPUs that stores no scores
    config.attention = "xla"
    # in training, images that the vision tower runs at once, as a share of a device's view slots;
    # "auto": what costs least with the views of the mixture; "" = all slots, absent views too
    config.packed_views = ""
    config.processor = _processor()
    config.data = _data()
    config.batch_size = 16  # samples per step
    config.batch_size_per = "run"  # over all hosts; "device": for each
    config.accumulate = 1  # parts into which a batch is cut, one after the other: less memory
    # flow times and noises for each observation, which is encoded once: the head sees
    # batch_size * noise_draws chunks
    config.noise_draws = 1
    config.distill = _distill()
    config.rtc = _rtc()
    config.ema_decay = 0.0  # of a moving average of the weights, which policies take; 0 = none
    config.optimizer = _optimizer()
    config.lora = _lora()
    config.validation = _validation()
    config.rollouts = _rollouts()
    config.distributed = _distributed()
    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices; -1 = all the rest
    config.mesh.fsdp = 1  # devices that share one copy of the weights
    config.wandb = _wandb()
    config.log_every = 20  # steps
    config.profile = ""  # START:STOP: trace these steps, without STOP, for TensorBoard; "" = none
    config.max_skipped_steps = 10  # that were not finite; one more ends the run
    config.save_every = 1000  # steps that a killed process loses at most; saved twice as often
    config.keep = 2  # newest checkpoints kept
    config.keep_every = 0  # steps; checkpoints at multiples stay for ever; 0 = none
    # saves at each measurement of config.validation, and keeps the checkpoint with the lowest l1
    config.keep_best = False
    return config


def get_tpu_config(model: dict[str, Any]) -> ConfigDict:
    """The base run for the released size, laid out for TPUs; four chips share the weights."""
    config: Any = get_config(model)
    config.dtype = "bfloat16"
    config.remat = "full"
    config.scan_vision = True
    config.mesh.fsdp = 4
    return config


def _processor() -> ConfigDict:
    """Images and text, for a run from scratch; a checkpoint has its own processor."""
    processor: Any = ConfigDict()
    processor.image_size = 224  # px, side of the square the model sees
    processor.num_views = 3  # view slots
    processor.text_length = 50  # tokens; padding is attended, so this is part of the weights
    return processor


def _data() -> ConfigDict:
    """The data that is trained on."""
    data: Any = ConfigDict()
    data.root = ""  # folder that holds the datasets
    data.mixture = ""  # name in data/rows/mixtures.py
    data.weights_per = ""  # samples, or frames: weights are multiplied by them; "" = as the mixture
    # X-VLA's meta file, or a folder of them, in place of root and mixture
    data.train_metas_path = ""
    data.outside_root = False  # files that meta files name may lie anywhere, not only below root
    data.shuffle_buffer = 10_000  # samples, over all lanes: of each source, or
    data.shuffle_per = "source"  # mixture: of all sources together, each by its share
    # of a batch's rows to sources: drawn independently, or even: each stretch has the shares
    data.deal = "independent"
    data.lanes = 1  # stretches of a batch with files of their own: one or more per host
    data.max_bad_episodes = 0  # left out per source; one more ends the run
    data.read_limit_s = 1800.0  # s after which a read that stands still ends the run; 0 = never
    data.cache_mb = 0.0  # MB for decoded images; worth it for small datasets only
    return data


def _optimizer() -> ConfigDict:
    """The parameters that are trained, their learning rates and schedule."""
    optimizer: Any = ConfigDict()
    optimizer.mode = "xvla"  # a name in xvla_jax.training.groups.MODES
    optimizer.last_layers = 4  # blocks that are trained in mode last_layers
    optimizer.schedule = "xvla_release"  # a name in xvla_jax.training.optimizer.SCHEDULES
    optimizer.iters = 50_000  # steps of the run
    optimizer.learning_rate = 1e-4
    optimizer.learning_coef = 0.1  # factor for vlm and soft prompts
    optimizer.freeze_steps = 1000  # steps for which vlm and core wait
    optimizer.warmup_steps = 2000  # steps
    optimizer.min_lr_ratio = 0.1  # of the learning rate, at the end of a cosine
    optimizer.weight_decay = 0.0
    optimizer.betas = (0.9, 0.95)
    optimizer.eps = 1e-8
    optimizer.max_grad_norm = 1.0  # 0 = no clipping
    optimizer.use_cosine_decay = False  # of the schedule xvla_flags
    return optimizer


def _distill() -> ConfigDict:
    """Self-distillation: init_from is the teacher too; docs/fast_and_smooth.md."""
    distill: Any = ConfigDict()
    # denoising steps of the student, 1 or 2; 0 = none, and nothing else here has an effect
    distill.steps = 0
    distill.teacher_plan = "exact10"  # its sampler plan, a name in xvla_jax/plans.py
    return distill


def _rtc() -> ConfigDict:
    """Training for delays (real-time chunking): chunks that continue given actions."""
    rtc: Any = ConfigDict()
    # most first rows of a chunk that are given, not trained: each sample draws 0 .. max_delay of
    # them, equally often; 0 = none, -1 = as init_from was trained
    rtc.max_delay = -1
    return rtc


def _validation() -> ConfigDict:
    """The paper's metric, on episodes kept out of training."""
    validation: Any = ConfigDict()
    validation.every = 0  # steps between measurements on held-out episodes; 0 = none
    validation.episodes = 5  # of each source; they are not trained on
    validation.stride = 10  # every so many samples of an episode
    validation.steps = 10  # of denoising
    return validation


def _rollouts() -> ConfigDict:
    """Success in a simulator beside the training, in a process of its own; docs/train.md."""
    rollouts: Any = ConfigDict()
    rollouts.task = ""  # row of eval/tasks/; "" = no rollouts
    rollouts.every = 1000  # steps between two checkpoints that are evaluated; the last is as well
    # first:end or first:end:stride; a checkpoint is chosen on half of them and confirmed on the
    # other; "" = those that scripts.evaluate takes
    rollouts.states = ""
    rollouts.workers = 1  # simulators at once
    rollouts.simulator_python = ""  # of the simulator's own environment; "" = as scripts.evaluate
    rollouts.accept_renderer = False  # evaluate although the golden frame differs
    rollouts.environment = "JAX_PLATFORMS=cpu"  # variables of the process, NAME=VALUE,NAME=VALUE
    rollouts.limit_s = 3600.0  # s after which an evaluation is ended without a score; 0 = never
    return rollouts


def _distributed() -> ConfigDict:
    """Several processes; docs/multihost.md."""
    distributed: Any = ConfigDict()
    distributed.kind = "none"  # how they find each other: none, auto, slurm, coordinator
    distributed.address = ""  # host:port of process 0; kind coordinator
    distributed.num_processes = 1  # kind coordinator
    distributed.process_id = 0  # kind coordinator; another on each host
    distributed.timeout_s = 300  # for which processes wait for each other
    distributed.heartbeat_s = 60  # without a sign of life, then a process counts as dead
    return distributed


def _lora() -> ConfigDict:
    """An adapter that is trained instead of the weights: X-VLA's recipe, apart from the rank."""
    lora: Any = ConfigDict()
    lora.rank = 0  # columns of A, in X-VLA 8; 0 = no adapter, and nothing else here has an effect
    lora.alpha = 16.0  # the adapter's scale is alpha / rank
    lora.dropout = 0.0  # only 0 is implemented
    lora.target_modules = "all-linear"  # or a regular expression over released module names
    lora.modules_to_save = (  # trained in full
        "transformer.soft_prompt_hub",
        "transformer.action_encoder",
        "transformer.action_decoder",
    )
    return lora


def _wandb() -> ConfigDict:
    """Weights & Biases."""
    wandb: Any = ConfigDict()
    wandb.project = ""  # of Weights & Biases; "" = TensorBoard and metrics.jsonl alone
    wandb.entity = ""  # "" = that of your account
    wandb.name = ""  # "" = name of the workdir
    wandb.mode = "online"  # or offline
    return wandb
