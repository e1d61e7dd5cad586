"""The version of all three packages: they are released as one wheel."""

__version__ = "0.1.0"
