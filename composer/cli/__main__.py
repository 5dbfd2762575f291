"""`python -m composer.cli`: the same as the command `coe`."""

import sys

from composer.cli import main

sys.exit(main())
