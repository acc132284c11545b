"""`python -m ssl_video`: run the command line, for torchrun and where the script is not on the path."""

import sys

from ssl_video.cli import main

if __name__ == "__main__":
    sys.exit(main())
