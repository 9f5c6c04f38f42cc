"""Training: the command `gmodiff train`, what it trains on, and the loop. Needs the extra "train"."""
