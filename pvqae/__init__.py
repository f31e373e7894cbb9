"""PVQAE: unsupervised visual defect detection with patch-aware vector quantisation (arXiv 2501.09187)."""

from pvqae import moved

__version__ = "0.2.0"
moved.register()
