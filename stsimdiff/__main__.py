"""``python -m stsimdiff``."""

import sys

from stsimdiff.ranks import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()  # before the imports that take seconds

    from stsimdiff.commands.cli import main

    # Usage, help and tab completion name the command and not this file.
    sys.argv[0] = "stsimdiff"
    main()
