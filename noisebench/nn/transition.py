"""A noise layer behind the softmax: T, known or learned (Sukhbaatar et al. 2014, "Training Convolutional Networks with
Noisy Labels")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from noisebench.errors import UserError, unknown

Projection = Literal["euclidean", "renormalise"]
Regulariser = Literal["ridge", "trace", "nuclear"]

FLOOR = 1e-12
"""Added to a probability inside the logarithm: an exact zero in T can leave none for a label."""


class TransitionLayer(nn.Module):
    """p(noisy = j | x) = sum_i p(true = i | x) T[i, j], Eq. 2: one linear layer without bias behind the softmax.

    T is row-stochastic, the transpose of the paper's Q. Learned by back-propagation, it must be put back on the simplex
    after every step of the optimiser (`project`), and needs `penalty` added to the loss: T times the network's own
    confusion matrix is all that the data determine, and the penalty moves the noise from the latter into T. The
    gradients of T, of the loss and of the penalty, are those along the simplex, each row's cut to norm 1.

    Args:
        num_classes: K.
        matrix: the T to start from, or the known one, [K, K], rows sum to one; the identity by default.
        learned: whether T is a parameter; else a buffer.
        projection: onto the simplex: "euclidean", the nearest point, or "renormalise", the paper's cheap form (negative
            entries become zero, rows are divided by their sum).
        regulariser: "ridge", the sum of the squared entries; "trace", the sum of the diagonal; "nuclear", the sum of
            the singular values, which is the trace for symmetric positive semi-definite T alone.

    Raises:
        UserError: T of another size, or rows that are no probabilities; an unknown name.
    """

    matrix: Tensor

    def __init__(
        self,
        num_classes: int,
        matrix: Tensor | npt.NDArray[np.floating[Any]] | None = None,
        *,
        learned: bool = True,
        projection: Projection = "euclidean",
        regulariser: Regulariser = "ridge",
    ) -> None:
        super().__init__()
        if projection not in get_args(Projection):
            raise unknown("projection", projection, get_args(Projection))
        if regulariser not in get_args(Regulariser):
            raise unknown("regulariser", regulariser, get_args(Regulariser))
        start = torch.eye(num_classes) if matrix is None else torch.as_tensor(matrix).detach().float().clone()
        check_transition(start, num_classes)
        self.projection, self.regulariser = projection, regulariser
        if learned:
            self.matrix = nn.Parameter(start)
        else:
            self.register_buffer("matrix", start)

    def forward(self, log_p: Tensor) -> Tensor:
        """log(p(noisy | x) + 1e-12), float32 [B, K], of log p(true | x) [B, K] (log_softmax)."""
        with torch.autocast(log_p.device.type, enabled=False):  # which would round probabilities to bfloat16
            return torch.log(log_p.float().exp() @ _along_simplex(self.matrix) + FLOOR)

    def penalty(self) -> Tensor:
        """The regulariser, a scalar, divided by K: 1 for the identity."""
        return PENALTIES[self.regulariser](_along_simplex(self.matrix)) / len(self.matrix)

    @torch.no_grad()
    def project(self) -> None:
        """Put the rows of T back on the probability simplex."""
        if self.projection == "euclidean":
            self.matrix.copy_(project_simplex(self.matrix))
        else:
            kept = self.matrix.clamp_min(0)
            total = kept.sum(dim=1, keepdim=True)
            uniform = torch.full_like(kept, 1 / kept.shape[1])
            self.matrix.copy_(torch.where(total > 0, kept / total, uniform))


def _along_simplex(matrix: Tensor) -> Tensor:
    """T, with a gradient that is `_bounded`; a hook on the parameter itself would not be copied with the layer."""
    if not matrix.requires_grad or not torch.is_grad_enabled():
        return matrix
    used = matrix.view_as(matrix)
    used.register_hook(_bounded)  # type: ignore[no-untyped-call]
    return used


def _bounded(gradient: Tensor) -> Tensor:
    """The gradient of T along the simplex, each row's norm at most 1.

    It has 1 / p(noisy) in it: one surprising label would throw a row of T into a corner of the simplex, from where no
    gradient leads back.
    """
    along = gradient - gradient.mean(dim=1, keepdim=True)
    return torch.div(along, along.norm(dim=1, keepdim=True).clamp_min(1))


PENALTIES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "ridge": lambda matrix: matrix.square().sum(),
        "trace": lambda matrix: matrix.diagonal().sum(),
        "nuclear": lambda matrix: torch.linalg.svdvals(matrix).sum(),
    }
)
"""Regularisers of a T [K, K]; each is K at the identity."""


def project_simplex(rows: Tensor) -> Tensor:
    """The nearest point of the probability simplex for each of `rows` [..., K] (Duchi et al., ICML 2008, Fig. 1)."""
    rows = rows - rows.amax(dim=-1, keepdim=True)  # the same point, and a large row keeps its digits
    ordered = rows.sort(dim=-1, descending=True).values
    excess = (ordered.cumsum(dim=-1) - 1) / torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=rows.dtype)
    support = (ordered > excess).sum(dim=-1, keepdim=True).clamp_min(1)
    return (rows - excess.gather(-1, support - 1)).clamp_min(0)


def check_transition(matrix: Tensor, num_classes: int) -> None:
    """Refuse what is no T of so many classes.

    Raises:
        UserError: not [K, K], or a row that is no distribution.
    """
    if matrix.shape != (num_classes, num_classes):
        raise UserError(f"T is {list(matrix.shape)}; give [{num_classes}, {num_classes}], P(noisy j | true i)")
    bad = ((matrix < 0).any(dim=1) | ((matrix.sum(dim=1) - 1).abs() > 1e-4) | ~matrix.isfinite().all(dim=1)).nonzero()
    if len(bad):
        row = matrix[int(bad[0])]
        raise UserError(
            f"T: row {int(bad[0])} sums to {float(row.sum()):.4g} with {float(row.min()):.4g} as its least entry; give "
            "rows >= 0 that sum to 1 (T[i, j] = P(noisy j | true i))"
        )
