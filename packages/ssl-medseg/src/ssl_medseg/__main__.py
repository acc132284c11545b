"""Run the command line with `python -m ssl_medseg`, for torchrun and where the script is not on the path."""

import sys

from ssl_medseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
