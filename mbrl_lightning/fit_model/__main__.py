"""`python -m mbrl_lightning.fit_model`."""

import sys

from mbrl_lightning.fit_model import main

if __name__ == "__main__":
    sys.exit(main())
