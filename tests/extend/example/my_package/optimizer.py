"""An optimizer: a ``torch.optim.Optimizer``, called with the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class SignSGD(torch.optim.Optimizer):
    """Every parameter moves by ``lr`` against the sign of its gradient (Bernstein et al. 2018)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        """Called with ``optimizer.args``."""
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])
