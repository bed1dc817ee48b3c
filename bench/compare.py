"""`python -m bench.compare`."""

import sys

from bench.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
