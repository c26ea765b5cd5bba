"""``python -m stsimdiff``."""

import sys

from stsimdiff.cli import main

if __name__ == "__main__":
    # Usage, help and tab completion name the command and not this file.
    sys.argv[0] = "stsimdiff"
    main()
