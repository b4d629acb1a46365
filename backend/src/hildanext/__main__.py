# `python -m hildanext`: the same as the `hildanext` script (torchrun uses this form).
# Entry points: none.
# See hildanext.cli.
"""Module entry of the command line."""

import sys

from hildanext.cli import main

if __name__ == "__main__":
    sys.exit(main())
