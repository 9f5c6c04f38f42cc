"""The command, run in this process."""

import sys

from gmodiff.cli import main


def run(arguments: list[str], capsys) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    old = sys.argv
    sys.argv = ["gmodiff", *arguments]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = old
    captured = capsys.readouterr()
    return code, captured.out, captured.err
