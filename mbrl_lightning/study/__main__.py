"""`python -m mbrl_lightning.study`."""

import sys

from mbrl_lightning.study import main

if __name__ == "__main__":
    sys.exit(main())
