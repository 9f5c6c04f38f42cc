"""`python -m gmodiff` is the command `gmodiff`."""

from gmodiff.cli import main

main()
