"""How good it is, on what, against whom: `gmodiff evaluate` and `gmodiff report`."""
