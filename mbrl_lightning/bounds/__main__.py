"""`python -m mbrl_lightning.bounds`."""

import sys

from mbrl_lightning.bounds import main

if __name__ == "__main__":
    sys.exit(main())
