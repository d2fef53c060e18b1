"""Where a training runs: its device and arithmetic, alone or as one of several processes (torchrun, accelerate)."""

import os
import sys

import torch
import torch.distributed as dist

from kwslib.io import KwsError
from kwslib.machine import autocast_to, keep_memory, pick_device, pick_precision
from kwslib.training.graphs import Graphed


class Place:
    """rank of world processes; device; precision, in which steps compute; scaler of the loss, for fp16 only."""

    def __init__(self, config):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.first = self.rank == 0  # the process that writes and speaks
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        self.device, self.graphs = pick_device(config.device), config.graphs
        if self.device.type == "cpu":
            keep_memory()
        if config.threads:
            torch.set_num_threads(config.threads)
        self.precision = "bf16" if pick_precision(config.precision, self.device) else "fp32"
        if config.precision == "fp16":
            self.precision = "fp16"
            if self.device.type != "cuda":
                raise KwsError(f"precision is fp16 but device is {self.device}; set precision to auto, or use a GPU")
        if self.world == 1 and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
            self.note("accelerate launch --cpu starts one process; torchrun --nproc_per_node N starts several on CPUs")
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.precision == "fp16")

    def autocast(self):
        """The context of a training step's forward pass."""
        if self.precision == "fp16":
            return torch.autocast("cuda", torch.float16)
        return autocast_to(self.device, self.precision == "bf16")

    def parallel(self, model):
        """The model as it is called in training: with gradients averaged over all processes, or, where one process has
        a GPU, with its steps recorded as CUDA graphs."""
        if self.world > 1:
            return torch.nn.parallel.DistributedDataParallel(model)
        recorded = self.graphs and self.device.type == "cuda" and self.precision != "fp16"
        return Graphed(model, self.precision == "bf16") if recorded else model

    def share_buffers(self, model):
        """Batch-norm statistics are each process's own: all continue with the first one's."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def add_up(self, total):
        """The sum of a tensor over all processes, in its place."""
        if self.world > 1:
            dist.all_reduce(total)

    def wait(self):
        """Nobody leaves before the files are whole."""
        if self.world > 1:
            dist.barrier()

    def say(self, text, file=None):
        """Print what every run of this recipe says."""
        if self.first:
            print(text, file=file, flush=True)

    def note(self, text):
        """Print what depends on the machine and the moment, to stderr: notebooks are kept without it."""
        self.say(text, sys.stderr)


def leave():
    """End what `Place` began with the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
