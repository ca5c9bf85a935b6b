"""What every test shares: one thread a worker, since the workers of xdist fill the cores already."""

import torch

torch.set_num_threads(1)
