"""`python -m mbrl_lightning.export`."""

import sys

from mbrl_lightning.export import main

if __name__ == "__main__":
    sys.exit(main())
