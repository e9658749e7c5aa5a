"""DistributedDataParallel: two gloo processes, half a batch each, give the gradients of one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import torch_ext

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        torch_ext.nn.DepthwiseConv2d(4, 3, padding=1, depth_multiplier=2),
        nn.ReLU(),
        torch_ext.nn.SeparableConv2d(8, 6, 3, stride=2, padding="same"),
    )


def batch() -> Tensor:
    return torch.randn(4, 4, 9, 8, generator=torch.Generator().manual_seed(1))


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = DistributedDataParallel(network())
    model(batch()[2 * rank : 2 * rank + 2]).square().mean().backward()
    if rank == 0:
        torch.save([parameter.grad for parameter in model.parameters()], f"{folder}/gradients.pt")
    del model  # holds the process group
    dist.barrier()  # no process leaves while another still talks to it
    dist.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(one_process, (str(tmp_path),), nprocs=2)
    gradients = torch.load(tmp_path / "gradients.pt")
    model = network()
    model(batch()).square().mean().backward()
    for actual, parameter in zip(gradients, model.parameters()):
        torch.testing.assert_close(actual, parameter.grad)
