"""Kill a batch with signal 9 at random moments, many times, and look whether every picture with a name is whole.

    python benchmarks/batch_kills.py --times 50

Runs the test of that name with more kills than the test suite has time for; exits with 0 if nothing was lost.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    options = parser.parse_args()
    environment = os.environ | {"GMODIFF_KILLS": str(options.times)}
    command = [sys.executable, "-m", "pytest", "tests/test_batch_stop.py", "-k", "kill_9", "-o", f"timeout={60 * options.times}"]
    sys.exit(subprocess.run(command, env=environment, cwd=Path(__file__).parents[1]).returncode)


if __name__ == "__main__":
    main()
