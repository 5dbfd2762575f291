"""`python -m eval.bench`: the same as `coe bench`."""

import sys

from eval.bench import main

sys.exit(main())
