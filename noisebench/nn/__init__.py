"""Reusable parts of networks."""

from noisebench.nn.backbones import make_backbone
from noisebench.nn.heteroscedastic import HeteroscedasticHead, replace_head
from noisebench.nn.monte_carlo import mc_log_probs
from noisebench.nn.taylor import taylor_log_probs

__all__ = ["HeteroscedasticHead", "make_backbone", "mc_log_probs", "replace_head", "taylor_log_probs"]
