"""One rank of the two-process test of distillation: ``python -m train.distill_ranks FOLDER``, torchrun's variables set.

With copies of the arms (``FOLDER/ddp``) and shards of them (``FOLDER/fsdp``).
"""

import sys
from pathlib import Path

import torch

from bayesmem.experiments import distill
from train.small_distill import ranked


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for kind in ("ddp", "fsdp"):
        found = distill.run(ranked(folder, fsdp=kind == "fsdp", micro_batch=1), folder / kind)
        print(kind, *found)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
