"""`python -m mbrl_lightning.sweep`."""

import sys

from mbrl_lightning.sweep import main

if __name__ == "__main__":
    sys.exit(main())
