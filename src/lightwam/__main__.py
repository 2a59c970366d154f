"""`python -m lightwam`: the same as the command `lightwam`."""

import sys

from lightwam.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
