"""Reusable parts of networks."""

from noisebench.nn.backbones import make_backbone

__all__ = ["make_backbone"]
