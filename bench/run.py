"""`python -m bench.run`."""

import sys

from bench.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
