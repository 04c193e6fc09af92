"""Choose where networks run: the first GPU or the CPU; of several processes each its own."""

from __future__ import annotations

import os

import torch

from liverseg.errors import InputError


def select_device(name: str | int | torch.device | None = None) -> torch.device:
    """Return the device called `name`, or the first GPU if there is one and else the CPU.

    Raises:
        InputError: for an unknown name, and for a CUDA device that is not there.
    """
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise InputError(
            f"device: found {name!r}, expected cpu, cuda or cuda:NUMBER: use one of these."
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device: {device} was asked for, found {torch.cuda.device_count()} CUDA devices: use "
            "cpu, or install the GPU's driver and a CUDA build of torch."
        )
    return device


def local_device() -> torch.device:
    """Return the device of this process of torchrun: its own GPU, or the CPU without any.

    Raises:
        InputError: outside torchrun, and for more processes than GPUs.
    """
    if "LOCAL_RANK" not in os.environ:
        raise InputError(
            "multi_gpu_train.json: found no LOCAL_RANK in the environment, expected torchrun to "
            "set it: start with `torchrun --nproc_per_node 2 -m monai.bundle run …`, or leave "
            "this file out for one process."
        )
    rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if 0 < gpus <= rank:
        raise InputError(
            f"nproc_per_node: found {gpus} GPUs for {os.environ['LOCAL_WORLD_SIZE']} processes, "
            f"expected one each: start {gpus} processes on this machine."
        )
    return torch.device("cuda", rank) if gpus else torch.device("cpu")


def sync_batch_norm(network: torch.nn.Module) -> torch.nn.Module:
    """Convert batch norms to norms over the batches of all processes; none on the CPU.

    The names of its weights stay, so what is saved loads into a network without.
    """
    if not torch.cuda.is_available():
        return network
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
