"""``python -m vitdeploy`` is the command line."""

import sys

from vitdeploy.cli import main

sys.exit(main())
