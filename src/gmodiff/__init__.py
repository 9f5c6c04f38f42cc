"""GMODiff: a bracket of ordinary photos in, a true HDR photo out, without inventing what was measured."""

__version__ = "0.1.0.dev0"
