"""`python -m model_service VERB`."""

import sys

from model_service.cli import main

sys.exit(main())
