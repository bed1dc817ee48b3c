"""`python -m bench.catalogue`."""

import sys

from bench.cli.catalogue import main

if __name__ == "__main__":
    sys.exit(main())
