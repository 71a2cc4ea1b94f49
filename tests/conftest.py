"""What all tests share."""

import os
import signal

# Small matrices on several threads spend their time waiting for each other, on a busy machine ten times over; the
# variable reaches the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

# A shell starts what it runs in the background with Ctrl-C ignored; the tests, and the processes they start, hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)
