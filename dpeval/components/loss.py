"""What is minimised: cross entropy, summed so that ranks and micro-batches add up to the mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class GlobalMeanLoss(nn.Module):
    """Cross entropy in which every image counts ``1 / global_batch``.

    Summed over micro-batches and ranks it is the mean over the global batch, however that was
    dealt out, and its gradient is that mean's. The factor goes in as class weights, which the
    loss's own kernel applies: a multiplication more, or a gradient for backward to begin with,
    shows in a step of 10 ms.
    """

    def __init__(self, global_batch: int) -> None:
        super().__init__()
        self._share = 1 / global_batch
        self._weights: Tensor | None = None

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The part of this micro-batch; `logits` are [b, classes], `labels` [b]."""
        if self._weights is None:
            # Half precision would round the share; autocast computes this loss in float32.
            precise = torch.promote_types(logits.dtype, torch.float32)
            self._weights = logits.new_full(logits.shape[1:], self._share, dtype=precise)
        return functional.cross_entropy(logits, labels, self._weights, reduction="sum")
