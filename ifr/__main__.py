"""`python -m ifr` is the command `ifr`."""

import sys

from ifr.cli import main

if __name__ == "__main__":
    sys.exit(main())
