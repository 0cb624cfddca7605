"""Two-component mixtures of per-sample losses: which labels are likely noisy (Arazo et al., ICML 2019, section 3.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from noisebench.errors import UserError

EDGE = (
    1e-4  # observations are kept this far from 0 and 1, where the beta density has no logarithm (the paper's epsilon)
)
NARROWEST = 1e-8  # variance of a component, or one on a single value would have an infinite alpha
FLAT = 1e-6  # losses that differ by less (relative to the largest, if that is above 1) tell nothing


class _Mixture(nn.Module):
    """What both mixtures share: losses are brought to (0, 1), and a posterior is asked for after a fit alone."""

    weight: Tensor
    low: Tensor
    width: Tensor
    fitted: Tensor

    def __init__(self, normalise: bool) -> None:
        super().__init__()
        self.normalise = normalise
        for name, value in (("weight", [0.5, 0.5]), ("low", 0.0), ("width", 1.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def posterior(self, losses: Tensor) -> Tensor:
        """P(noisy | loss), Eq. 9, float32 of the shape of `losses`, in [0, 1]; a loss that is no number counts as inf.

        Raises:
            UserError: no losses were fitted yet.
        """
        if not bool(self.fitted):
            raise UserError(f"{type(self).__name__}.posterior: no losses were seen yet; call fit(losses) first")
        scaled = (losses.double().nan_to_num(nan=torch.inf) - self.low) / self.width
        return torch.sigmoid(self._log_odds(scaled.clamp(EDGE, 1 - EDGE))).float()

    def _store(self, **values: Tensor) -> None:
        """Put what was fitted into the buffers of these names."""
        for name, value in values.items():
            getattr(self, name).copy_(value)
        self.fitted.fill_(True)

    def _log_odds(self, x: Tensor) -> Tensor:
        """log P(noisy | x) - log P(clean | x) of scaled losses."""
        raise NotImplementedError

    def _observations(self, losses: Tensor) -> Tensor | None:
        """The losses to fit, scaled into (0, 1) and sorted, float64 [n]; None where they tell nothing.

        Arazo et al.'s trimming and constants; where nothing is left between the percentiles, the range of all losses.
        """
        if losses.numel() == 0:
            raise UserError(f"{type(self).__name__}.fit: no losses; give one a sample")
        ordered = losses.detach().flatten().sort().values.double()  # NaN comes last, as if it were inf
        finite = ordered[ordered.isfinite()]
        if len(finite) == 0:
            return None
        ordered = ordered.nan_to_num(nan=torch.inf).clamp(finite[0], finite[-1])
        if not self.normalise:
            x = ordered.clamp(EDGE, 1 - EDGE)
            return x if bool(x[-1] - x[0] > FLAT) else None
        first, last = (_percentile(ordered, p) for p in (5, 95))
        kept = ordered[int((ordered < first).sum()) : int((ordered <= last).sum())]
        low, width = first + 1e-5, last - first - 9e-6
        if last - first < 2e-5 or len(kept) < 3:
            kept, low, width = ordered, ordered[0], ordered[-1] - ordered[0]
            if width <= FLAT * ordered[-1].abs().clamp_min(1):
                return None
        self.low.copy_(low)
        self.width.copy_(width)
        x = (kept - low) / width
        return torch.where(x >= 1, 0.999, torch.where(x <= 0, 0.001, x)).clamp_(EDGE, 1 - EDGE)


class BetaMixture(_Mixture):
    """A mixture of two beta distributions over per-sample losses, fitted by EM with weighted moments.

    The posterior is exact, where the authors look it up in 100 bins. As theirs it is held at its maximum for losses
    beyond that; held at its minimum for losses below that it departs from theirs: without it, at low noise, the lowest
    losses of all come out as noisy. Every input has a posterior: losses that do not differ give 0.5.

    Buffers:
        alpha, beta, weight: float64 [2]; component 0 is clean, 1 (of the higher mean) noisy.
        low, width: the scaling, x = (loss - low) / width; fitted: whether losses were seen.

    Args:
        max_iter: EM iterations; ten, the paper's, are far from convergence.
        tol: stop when no parameter moves by more than this share of itself; None never does.
        normalise: trim losses to their 5th to 95th percentile and scale them as the authors do; else they are taken
            to be in [0, 1] already.
        hold_low: the hold on the left.
        starts: runs of EM, the first from the authors' start, others from splits of the losses; the likeliest stays.

    Raises:
        UserError: an argument out of range.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(
        self,
        max_iter: int = 10,
        tol: float | None = None,
        normalise: bool = True,
        *,
        hold_low: bool = True,
        starts: int = 1,
    ) -> None:
        super().__init__(normalise)
        for name, value in (("max_iter", max_iter), ("starts", starts)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"BetaMixture: {name} is {value!r}; give an int, 1 or more")
        if tol is not None and not tol > 0:
            raise UserError(f"BetaMixture: tol is {tol}; give a number above 0, or None")
        self.max_iter, self.tol, self.hold_low, self.starts = max_iter, tol, hold_low, starts
        for name in ("alpha", "beta"):
            self.register_buffer(name, torch.ones(2, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, losses: Tensor) -> BetaMixture:
        """Fit per-sample losses, any float dtype and shape, on their device; returns itself.

        Raises:
            UserError: no losses.
        """
        x = self._observations(losses)
        if x is None:
            one = torch.ones(2, dtype=torch.float64)
            found = _Betas(one, one, one / 2)
        else:
            logs, powers = (x.log(), (-x).log1p()), torch.stack([torch.ones_like(x), x, x * x])
            runs = [self._em(logs, powers, start) for start in _starting_points(x, self.starts)]
            found = runs[0] if len(runs) == 1 else max(runs, key=lambda betas: betas.likelihood(*logs))
            if bool(found.means[0] > found.means[1]):
                found = _Betas(*(value.flip(0) for value in found))
        self._store(**found._asdict())
        return self

    def _em(self, logs: tuple[Tensor, Tensor], powers: Tensor, betas: _Betas) -> _Betas:
        """EM (Eqs. 4 to 8) on x, given as its logarithms, each [n], and its powers 0 to 2, [3, n]."""
        totals = powers.sum(1)
        for _ in range(self.max_iter):
            noisy = powers @ betas.log_odds(*logs).sigmoid_()
            before, betas = betas, betas.moved(torch.stack([totals - noisy, noisy]))
            if self.tol is not None and all(
                bool(((new - old).abs() <= self.tol * old.abs()).all()) for new, old in zip(betas, before, strict=True)
            ):
                break
        return betas

    def _log_odds(self, x: Tensor) -> Tensor:
        betas = _Betas(self.alpha, self.beta, self.weight)
        a, b = (float(value[1] - value[0]) for value in (self.alpha, self.beta))
        # The log-odds are a log x + b log(1 - x) + c, whose one turning point is a maximum where a and b are positive,
        # a minimum where both are negative; otherwise they rise throughout.
        if a > 0 and b > 0:
            x = x.clamp_max(a / (a + b))
        elif a < 0 and b < 0 and self.hold_low:
            x = x.clamp_min(a / (a + b))
        return betas.log_odds(x.log(), (-x).log1p())


class GaussianMixture(_Mixture):
    """scikit-learn's mixture of two Gaussians over the same scaled losses: what the paper compares its own with.

    Buffers:
        mean, variance, weight: float64 [2]; component 1, of the higher mean, is the noisy one. Others as `BetaMixture`.

    Args:
        normalise: as `BetaMixture`.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, normalise: bool = True) -> None:
        super().__init__(normalise)
        for name in ("mean", "variance"):
            self.register_buffer(name, torch.ones(2, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, losses: Tensor) -> GaussianMixture:
        """Fit per-sample losses, any float dtype and shape; returns itself.

        Raises:
            UserError: no losses.
        """
        from sklearn.mixture import GaussianMixture as Mixture  # a second to import

        x = self._observations(losses)
        if x is None or len(x) < 2:
            one = torch.ones(2, dtype=torch.float64)
            self._store(mean=one, variance=one, weight=one / 2)
        else:
            mixture = Mixture(2, random_state=0).fit(x.cpu().numpy()[:, None])
            order = mixture.means_[:, 0].argsort()
            values = {"mean": mixture.means_, "variance": mixture.covariances_, "weight": mixture.weights_}
            self._store(**{name: torch.from_numpy(value.reshape(2)[order]) for name, value in values.items()})
        return self

    def _log_odds(self, x: Tensor) -> Tensor:
        clean, noisy = (
            (weight / variance.sqrt()).log() - (x - mean) ** 2 / (2 * variance)
            for mean, variance, weight in zip(self.mean, self.variance, self.weight, strict=True)
        )
        odds: Tensor = noisy - clean
        return odds


class _Betas(NamedTuple):
    """Parameters of two beta distributions, each float64 [2]."""

    alpha: Tensor
    beta: Tensor
    weight: Tensor

    @property
    def means(self) -> Tensor:
        return self.alpha / (self.alpha + self.beta)

    @property
    def _constants(self) -> Tensor:
        """log weight - log B(alpha, beta), [2]."""
        log_beta = self.alpha.lgamma() + self.beta.lgamma() - (self.alpha + self.beta).lgamma()
        return self.weight.log() - log_beta

    def likelihood(self, log_x: Tensor, log_1_x: Tensor) -> float:
        """The mean of log p(x), Eq. 2."""
        alpha, beta, constants = (value[:, None] for value in (self.alpha, self.beta, self._constants))
        return float(((alpha - 1) * log_x + (beta - 1) * log_1_x + constants).logsumexp(0).mean())

    def log_odds(self, log_x: Tensor, log_1_x: Tensor) -> Tensor:
        """log p(1 | x) - log p(0 | x), of the shape of `log_x`."""
        a, b, c = (value[1] - value[0] for value in (self.alpha, self.beta, self._constants))
        return torch.mul(log_x, a).addcmul_(log_1_x, b).add_(c)

    def moved(self, sums: Tensor) -> _Betas:
        """The M-step, from the weighted sums of 1, x and x^2 of each component, [2, 3]; an empty one stays."""
        count = sums[:, 0].sum()
        mass = sums[:, 0].maximum(1e-12 * count)
        mean = sums[:, 1] / mass
        variance = (sums[:, 2] / mass - mean**2).clamp_min(NARROWEST)
        alpha = mean * (mean * (1 - mean) / variance - 1)
        beta = alpha * (1 - mean) / mean
        there = mass > 1e-9 * count
        return _Betas(torch.where(there, alpha, self.alpha), torch.where(there, beta, self.beta), mass / count)


def _starting_points(x: Tensor, count: int) -> list[_Betas]:
    """The authors' start, then the two halves of sorted x [n] on either side of `count` - 1 evenly spaced quantiles."""
    authors = _Betas(*torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.5, 0.5]], dtype=torch.float64, device=x.device))
    points = [authors]
    for i in range(1, count):
        at = len(x) * i // count
        if 0 < at < len(x):
            sums = [torch.stack([torch.ones_like(p).sum(), p.sum(), (p * p).sum()]) for p in (x[:at], x[at:])]
            points.append(authors.moved(torch.stack(sums)))
    return points


def _percentile(ordered: Tensor, percent: float) -> Tensor:
    """As NumPy's, interpolated linearly between order statistics."""
    rank = percent / 100 * (len(ordered) - 1)
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])
