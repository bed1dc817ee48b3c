"""`python -m bench.run`."""

import sys

from bench.cli.app import module_main

if __name__ == "__main__":
    sys.exit(module_main("run"))
