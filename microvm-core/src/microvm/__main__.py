"""``python -m microvm`` is the ``microvm`` command."""

import sys

from microvm.cli import main

sys.exit(main())
