"""Trains the network and its twin on scikit-learn's handwritten digits, and compares them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

BATCH = 64


class Digits(NamedTuple):
    """1,797 scans of handwritten digits, a fifth of them held out; images [N, 1, 8, 8], labels [N]."""

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def load() -> Digits:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, held_out = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    return Digits(images[train], labels[train], images[held_out], labels[held_out])


@dataclass
class History:
    """What one training left: a loss a step, an accuracy an epoch, and the seconds it took."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def epoch_loss(self, epoch: int) -> float:
        """Mean loss of an epoch, counted from 0."""
        steps = len(self.losses) // len(self.accuracies)
        return sum(self.losses[epoch * steps : (epoch + 1) * steps]) / steps


def steps(digits: Digits, epochs: int) -> int:
    """Whole batches only: what is left over waits for the next epoch's order."""
    return epochs * (len(digits.labels) // BATCH)


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    net.eval()
    with torch.inference_mode():
        right = net(images).argmax(1) == labels
    net.train()
    return right.float().mean().item()


def train(
    net: nn.Module,
    digits: Digits,
    epochs: int,
    seed: int = 0,
    on_step: Callable[[History], None] = lambda history: None,
) -> History:
    """Both networks see the same batches in the same order: shuffling and shifts come from `seed` alone."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps(digits, epochs))
    history = History()
    start = time.perf_counter()
    for _ in range(epochs):
        order = torch.randperm(len(digits.labels), generator=random)
        for batch in order[: steps(digits, 1) * BATCH].split(BATCH):
            images = shifted(digits.images[batch], random)
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), digits.labels[batch], label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            schedule.step()
            history.losses.append(loss.item())
            on_step(history)
        history.accuracies.append(accuracy(net, digits.held_out_images, digits.held_out_labels))
    history.seconds = time.perf_counter() - start
    return history


def shifted(images: Tensor, random: torch.Generator) -> Tensor:
    """Moves every image by at most one pixel each way, so that the network cannot learn places by heart."""
    down, right = torch.randint(0, 3, (2, len(images)), generator=random)
    height, width = images.shape[2:]
    windows = F.pad(images, (1, 1, 1, 1)).unfold(2, height, 1).unfold(3, width, 1)  # [N, 1, 3, 3, height, width]
    return windows[torch.arange(len(images)), :, down, right]


class FirstStep(NamedTuple):
    """How far two networks are apart before any training: largest absolute differences."""

    weights: float
    loss: float
    gradients: float


def compare_first_step(ours: nn.Module, twin: nn.Module, images: Tensor, labels: Tensor) -> FirstStep:
    """Leaves both networks as they were: no gradients kept, batch-norm statistics put back."""

    def largest(pairs: list[tuple[Tensor, Tensor]]) -> float:
        return max((a - b).abs().max().item() for a, b in pairs)

    ours_state, twin_state = ours.state_dict(), twin.state_dict()
    if ours_state.keys() != twin_state.keys():
        raise RuntimeError(f"the networks differ in {sorted(ours_state.keys() ^ twin_state.keys())}")
    weights = largest([(ours_state[name], twin_state[name]) for name in ours_state])

    losses, gradients = [], []
    for net in (ours, twin):
        # functional_call keeps the running statistics of the networks themselves untouched
        state = {name: value.clone() for name, value in net.state_dict().items()}
        parameters = {name: state[name].requires_grad_() for name, _ in net.named_parameters()}
        loss = F.cross_entropy(torch.func.functional_call(net, state, (images,)), labels)
        gradients.append(torch.autograd.grad(loss, list(parameters.values())))
        losses.append(loss.item())
    return FirstStep(weights, abs(losses[0] - losses[1]), largest(list(zip(*gradients, strict=True))))
