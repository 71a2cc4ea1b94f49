"""What all tests share."""

import os

# Small matrices on several threads spend their time waiting for each other, on a busy machine ten times over; the
# variable reaches the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
