"""The version: read by setup.py, stored in what is written."""

__version__ = "0.1.0"
