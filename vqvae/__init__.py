"""A living book on vector quantization, and a PyTorch research library."""

__version__ = "0.1.0"
