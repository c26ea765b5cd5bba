"""Muon for matrices with AdamW for the rest, as one optimizer whose state can be saved."""

from collections.abc import Iterable

import torch


class Muon:
    """Momentum orthogonalised by five Newton-Schulz steps (Jordan et al., 2024).

    Matrices of one shape are updated as one batch. Updates are scaled to the size of AdamW's, by
    0.2 sqrt(max(rows, columns)) (Liu et al., 2025, "Muon is scalable for LLM training").
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], momentum: float = 0.95, decay: float = 0.01):
        self.momentum, self.decay = momentum, decay
        by_shape: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        self.groups = list(by_shape.values())
        self.buffers = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update all matrices by their gradients."""
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            none = torch.zeros_like(group[0])
            gradient = torch.stack([none if p.grad is None else p.grad for p in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = _orthogonalised(gradient.lerp(buffer, self.momentum))
            scale = rate * 0.2 * max(update.shape[1:]) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - rate * self.decay).add_(change, alpha=-scale)


def _orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.transpose(1, 2) if tall else matrices).bfloat16()  # the steps forgive rounding
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Optimizer:
    """Both optimizers behind one `step`; `matrices` go to Muon and `others` to AdamW."""

    def __init__(self, matrices: list, others: list, rate: float = 3e-3, other_rate: float = 2e-3):
        self.parameters = [*matrices, *others]
        self.others = others
        self.rate, self.other_rate = rate, other_rate
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, share: float) -> None:
        """Apply the gradients at `share` of the full learning rates, and clear them."""
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)  # Muon does not care for the size of a gradient
        self.muon.step(self.rate * share)
        for group in self.adam.param_groups:
            group["lr"] = self.other_rate * share
        self.adam.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict:
        """Both optimizers, to be saved."""
        return {"muon": self.muon.buffers, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take over what :meth:`state_dict` gave."""
        for buffer, saved in zip(self.muon.buffers, state["muon"], strict=True):
            buffer.copy_(saved)
        self.adam.load_state_dict(state["adam"])


def rate_share(step: int, steps: int, warmup: int, decay_from: float, floor: float) -> float:
    """Share of the full rate: a linear rise over `warmup` steps, then flat, then linear down to `floor`.

    `decay_from` is the part of all steps after which the rate falls.
    """
    rise = min(1.0, (step + 1) / warmup)
    done = step / steps
    fall = 1.0 if done < decay_from else max(floor, 1 - (1 - floor) * (done - decay_from) / (1 - decay_from))
    return rise * fall
