"""A run's config as transformers' arguments, on one device or many."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from bayesmem.train.config import RunConfig

EVALUATED = 2**14  # tokens at most that a device evaluates at a time: its logits are kept, unlike in training


def arguments(config: RunConfig, out: Path) -> TrainingArguments:
    """A run's arguments for transformers. Making them starts the process group, where ``torchrun`` started this.

    Raises:
        ValueError: a batch that the devices cannot share evenly.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    share, rest = divmod(config.batch_size, world)
    micro = config.micro_batch or share
    if rest or share % micro:
        raise ValueError(
            f"batch_size {config.batch_size} over {world} devices in parts of {micro} (micro_batch) does not come out "
            "even; choose batch_size as a multiple of their product."
        )
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": config.min_lr}),
        "wsd": (
            "warmup_stable_decay",
            {
                "num_decay_steps": math.ceil(config.decay * config.steps),
                "min_lr_ratio": config.min_lr,
                "decay_type": "linear",
            },
        ),
        "constant": ("constant_with_warmup", {}),
    }
    kind, options = kinds[config.schedule]
    made = TrainingArguments(
        output_dir=str(out),
        max_steps=config.steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=min(micro, max(1, EVALUATED // config.length)),
        gradient_accumulation_steps=share // micro,
        learning_rate=config.learning_rate,
        lr_scheduler_type=kind,
        lr_scheduler_kwargs=options,
        warmup_steps=int(config.warmup * config.steps),
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        max_grad_norm=config.clip,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # a loss that is no number is told, not left out
        eval_strategy="steps" if config.held_out else "no",
        eval_steps=config.evaluate_every,
        save_steps=config.save_every,
        seed=config.seed,
        data_seed=config.seed,
        bf16=config.bf16,
        use_cpu=not torch.accelerator.is_available(),
        fsdp=True if config.fsdp and world > 1 else None,
        fsdp_config={"version": 2, "state_dict_type": "SHARDED_STATE_DICT"} if config.fsdp and world > 1 else None,
        ddp_find_unused_parameters=False,
        use_cache=True,  # as the model was; in training it keeps none
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    if made.n_gpu > 1:
        made._n_gpu = 1  # several GPUs are torchrun's affair; DataParallel would change the batch
    if made.fsdp_plugin_args:
        # Autocast alone lowers precision, as in DDP (LanguageTrainer enters it): gates stay float32, and gradients
        # are summed in it.
        from torch.distributed.fsdp import MixedPrecisionPolicy

        made.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy()
    return made
