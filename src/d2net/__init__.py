"""D2-Net."""

__version__ = "0.1.0"
