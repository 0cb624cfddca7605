"""The heteroscedastic head: a drop-in for the last linear layer of a classifier (Collier et al., CVPR 2021)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebench.errors import UserError
from noisebench.nn._draws import Sampling, check_sampling
from noisebench.nn.monte_carlo import Backend, Link, check_temperature, mc_log_probs
from noisebench.nn.taylor import taylor_log_probs

Covariance = Literal["diag", "full", "pe"]

MIN_SCALE = 1e-3
"""Added to softplus, so that a standard deviation stays above 0 (the authors' layers)."""


class HeteroscedasticHead(nn.Module):
    """A final layer whose logits are normal with a covariance that depends on the input: N(mu(x), Sigma(x)).

    Use it in place of the last `nn.Linear`, with cross-entropy as before::

        model.fc = HeteroscedasticHead(512, 10, covariance="full", rank=6)
        loss = F.cross_entropy(model(x), y)         # log-probabilities are logits that need no normalising

    Sigma = diag(d²) + V Vᵀ with d = softplus(linear) + 1e-3, and V by `covariance`: none ("diag"); a linear map of the
    features reshaped to [K, R] ("full"); v(x)[:, None] * V with a parameter V [K, R] ("pe", parameter-efficient). In
    float32 (or float64) under mixed precision too.

    Args:
        in_features: D.
        num_classes: K.
        covariance: "full", "diag" or "pe".
        rank: R, 1 to K; 15 by default, or K where there are fewer classes. Not used by "diag". The paper: 15 for 1,000
            classes, 50 for 21,843; the authors' code 6 for CIFAR.
        temperature: of the softmax or sigmoid, above 0; to be tuned (the paper: 0.9 to 1.5; sigmoid 0.15).
        learn_temperature: make it a parameter, kept inside `temperature_bounds` (Collier et al., ICLR 2023).
        temperature_bounds: low and high for a learned temperature.
        link: "softmax"; "sigmoid" for multilabel tasks: `forward` gives logits for binary cross-entropy then.
        train_samples, eval_samples: Monte-Carlo samples in either mode; time is linear in them, memory constant.
        noise_on: "logits"; "features": the noise is on the features and Sigma is D x D, so that the head's cost in
            parameters no longer grows with K (HET-XL). `rank` is 1 to D there.
        per_example, sampling, backend: see `mc_log_probs`.
        taylor: a closed second-order approximation instead of samples; needs `noise_on="logits"`, link "softmax".

    Shapes: features [*, D] to [*, K].

    Raises:
        UserError: an argument out of range, naming it.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        covariance: Covariance = "full",
        rank: int | None = None,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        temperature_bounds: tuple[float, float] = (0.05, 5.0),
        link: Link = "softmax",
        train_samples: int = 1000,
        eval_samples: int = 1000,
        noise_on: Literal["logits", "features"] = "logits",
        per_example: bool = False,
        sampling: Sampling = "plain",
        backend: Backend = "auto",
        taylor: bool = False,
    ) -> None:
        super().__init__()
        of_width = "in_features" if noise_on == "features" else "num_classes"
        width = in_features if noise_on == "features" else num_classes
        for name, value, known in (
            ("covariance", covariance, get_args(Covariance)),
            ("noise_on", noise_on, ("logits", "features")),
            ("link", link, get_args(Link)),
            ("sampling", sampling, get_args(Sampling)),
            ("backend", backend, get_args(Backend)),
        ):
            if value not in known:
                raise UserError(f"{name}: {value!r}; give one of {', '.join(known)}")
        samples = {"train_samples": train_samples, "eval_samples": eval_samples}
        for name, count in {"in_features": in_features, "num_classes": num_classes, **samples}.items():
            if not _is_count(count):
                raise UserError(f"{name}: {count!r}; give an int of 1 or more")
        if rank is None or covariance == "diag":
            rank = min(15, width)
        if not _is_count(rank) or rank > width:
            raise UserError(f"rank: {rank!r}; give 1 to {width}, {of_width}")
        check_temperature(temperature)
        if taylor and (noise_on != "logits" or link != "softmax"):
            raise UserError("taylor: needs noise_on 'logits' and link 'softmax'")
        if not taylor and link == "softmax":
            for name, count in samples.items():
                check_sampling(sampling, count, width + (0 if covariance == "diag" else rank), name)
        low, high = temperature_bounds
        if not 0 < low < high:
            raise UserError(f"temperature_bounds: {temperature_bounds}; give (low, high) with 0 < low < high")
        if learn_temperature and not low < temperature < high:
            raise UserError(f"temperature: {temperature:g}; give one inside temperature_bounds, {low:g} to {high:g}")
        self.in_features, self.num_classes = in_features, num_classes
        self.covariance_kind, self.rank, self.link, self.noise_on = covariance, rank, link, noise_on
        self.train_samples, self.eval_samples, self.taylor = train_samples, eval_samples, taylor
        self.per_example, self.sampling, self.backend = per_example, sampling, backend
        self.loc = nn.Linear(in_features, num_classes)
        self.scale = nn.Linear(in_features, width)
        self.factors: nn.Linear | None = None
        self.gain: nn.Linear | None = None
        self.shared_factors: nn.Parameter | None = None
        if covariance == "full":
            self.factors = nn.Linear(in_features, width * rank)
        elif covariance == "pe":
            self.gain = nn.Linear(in_features, width)
            # As the weight of nn.Linear(R, K) starts.
            self.shared_factors = nn.Parameter(torch.empty(width, rank).uniform_(-1, 1) / math.sqrt(rank))
        self._bounds = (low, high)
        self._fixed_temperature = temperature
        share = torch.tensor((temperature - low) / (high - low))
        self.raw_temperature = nn.Parameter(share.logit()) if learn_temperature else None

    @property
    def temperature(self) -> float | Tensor:
        """The temperature; a tensor with a gradient if it is learned."""
        if self.raw_temperature is None:
            return self._fixed_temperature
        low, high = self._bounds
        return low + (high - low) * self.raw_temperature.sigmoid()

    def forward(self, features: Tensor) -> Tensor:
        """Log-probabilities [*, K] of features [*, D]; logits of each class for the sigmoid link.

        Raises:
            UserError: features of another size, or not finite (looked at in every call but inside compiled code).
        """
        flat = self._checked(features)
        loc, scale, factors, gain = self._parameters_of(flat)
        if self.taylor:
            found = taylor_log_probs(loc, scale, factors, gain=gain, temperature=self.temperature)
        else:
            on_features = self.noise_on == "features"
            found = mc_log_probs(
                loc,
                scale,
                factors,
                gain=gain,
                weight=self.loc.weight if on_features else None,
                bias=self.loc.bias if on_features else None,
                temperature=self.temperature,
                num_samples=self.train_samples if self.training else self.eval_samples,
                link=self.link,
                per_example=self.per_example,
                sampling=self.sampling,
                backend=self.backend,
            )
        return found.reshape(*features.shape[:-1], self.num_classes)

    def covariance(self, features: Tensor) -> Tensor:
        """Sigma(x) of the logits, [B, K, K], dense: diag(d²) + V Vᵀ; for features [B, D] of few examples at a time."""
        _, scale, factors, gain = self._parameters_of(self._checked(features))
        root = torch.diag_embed(scale)
        if factors is not None:
            low = factors if gain is None else gain[..., None] * factors
            root = torch.cat([root, low], dim=-1)
        if self.noise_on == "features":
            root = self.loc.weight.to(root.dtype) @ root
        return root @ root.transpose(1, 2)

    def _checked(self, features: Tensor) -> Tensor:
        if features.shape[-1:] != (self.in_features,):
            raise UserError(f"features: shape {list(features.shape)}; give [batch, {self.in_features}]")
        if not (torch.compiler.is_compiling() or features.is_meta) and not bool(features.isfinite().all()):
            where = (~features.isfinite()).nonzero()[0].tolist()
            raise UserError(f"features: {float(features[tuple(where)])} at {where}; give finite values")
        return features.reshape(-1, self.in_features)

    def _parameters_of(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """loc, scale, factors, gain of features [B, D], in float32 or float64 even under mixed precision."""
        dtype = torch.promote_types(self.loc.weight.dtype, torch.float32)

        def linear(layer: nn.Linear) -> Tensor:
            return F.linear(wide, layer.weight.to(dtype), layer.bias.to(dtype))

        with torch.autocast(flat.device.type, enabled=False):
            wide = flat.to(dtype)
            loc = wide if self.noise_on == "features" else linear(self.loc)
            scale = F.softplus(linear(self.scale)) + MIN_SCALE
            if self.factors is not None:
                return loc, scale, linear(self.factors).view(flat.shape[0], self.scale.out_features, self.rank), None
            return loc, scale, self.shared_factors, None if self.gain is None else linear(self.gain)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        rank = "" if self.covariance_kind == "diag" else f", rank={self.rank}"
        samples = "taylor" if self.taylor else f"samples={self.train_samples}/{self.eval_samples}"
        return f"{self.in_features}, {self.num_classes}, covariance={self.covariance_kind}{rank}, {samples}"


def replace_head(
    model: nn.Module, num_classes: int | None = None, *, layer: str | None = None, **options: object
) -> HeteroscedasticHead:
    """Put a `HeteroscedasticHead` in the place of a classifier's last linear layer, as torchvision and timm have it.

    The linear layer's weights become those of the mean if the classes stay, so that a trained model stays one.
    Auxiliary classifiers (GoogLeNet, Inception) stay as they are.

    Args:
        model: changed in place.
        num_classes: K; as before by default.
        layer: name of the layer in `model.named_modules()`; by default what timm says, else the last with parameters.
        options: of `HeteroscedasticHead`.

    Returns:
        The new head.

    Raises:
        UserError: a model whose last layer with parameters is not linear, is used twice, or that has several heads;
            options as `HeteroscedasticHead`.
    """
    kind, told = type(model).__name__, layer or getattr(model, "default_cfg", {}).get("classifier")  # timm
    if isinstance(told, (tuple, list)):
        raise UserError(f"model: {kind} has {len(told)} heads ({', '.join(told)}); name one with layer=")
    trained = [name for name, part in model.named_modules() if list(part.parameters(recurse=False))]
    name = told or (trained[-1] if trained else "")
    old = dict(model.named_modules()).get(name)
    if not name or not isinstance(old, nn.Linear):
        raise UserError(f"model: the last layer of {kind} ('{name}') is no nn.Linear inside it; name one with layer=")
    if sum(part is old for _, part in model.named_modules(remove_duplicate=False)) > 1:
        raise UserError(f"model: layer '{name}' of {kind} stands in several places; put a head in by hand")
    classes = old.out_features if num_classes is None else num_classes
    head = HeteroscedasticHead(old.in_features, classes, **options)  # type: ignore[arg-type]
    head.to(old.weight.device, old.weight.dtype).train(old.training)
    if classes == old.out_features:
        with torch.no_grad():
            head.loc.weight.copy_(old.weight)
            head.loc.bias.zero_() if old.bias is None else head.loc.bias.copy_(old.bias)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, head)
    if hasattr(model, "num_classes"):  # timm
        model.num_classes = classes  # type: ignore[assignment]
    return head


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
