"""``python -m vitdeploy`` is the command line."""

import sys

from vitdeploy.cli.commands import main

sys.exit(main())
