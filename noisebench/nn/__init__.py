"""Reusable parts of networks."""

from noisebench.nn.backbones import make_backbone
from noisebench.nn.beta_mixture import BetaMixture, GaussianMixture
from noisebench.nn.heteroscedastic import HeteroscedasticHead, replace_head
from noisebench.nn.monte_carlo import mc_log_probs
from noisebench.nn.taylor import taylor_log_probs
from noisebench.nn.transition import TransitionLayer

__all__ = [
    "BetaMixture",
    "GaussianMixture",
    "HeteroscedasticHead",
    "TransitionLayer",
    "make_backbone",
    "mc_log_probs",
    "replace_head",
    "taylor_log_probs",
]
