"""Scenes with their truth: published sets, brackets in folders, simulated and real static sets."""
