"""`python -m mbrl_lightning.play`."""

import sys

from mbrl_lightning.play import main

if __name__ == "__main__":
    sys.exit(main())
