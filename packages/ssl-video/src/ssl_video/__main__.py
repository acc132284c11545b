"""`python -m ssl_video`: the command line, for torchrun and for machines without the script on their path."""

import sys

from ssl_video.cli import main

if __name__ == "__main__":
    sys.exit(main())
