"""`python -m mbrl_lightning.record`."""

import sys

from mbrl_lightning.record import main

if __name__ == "__main__":
    sys.exit(main())
