"""`python -m iqguide.cli`, and so `accelerate launch -m iqguide.cli`."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
