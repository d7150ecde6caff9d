"""`python -m mbrl_lightning.report`."""

import sys

from mbrl_lightning.report import main

if __name__ == "__main__":
    sys.exit(main())
