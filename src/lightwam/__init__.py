"""lightwam: lightweight World-Action Models."""

__version__ = "0.1.0"
