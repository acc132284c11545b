"""`python -m ssl_medseg`: the command line, for torchrun and for machines without the script on their path."""

import sys

from ssl_medseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
