"""Puts the chosen parts together. The answers arrive as data: JSON in a raw string, quotes escaped."""

import json
import sys

ANSWERS = json.loads(r'''{{ cookiecutter | tojson }}''')
TEMPLATE = json.loads(r'''{{ cycler.__init__.__globals__.os.getcwd() | tojson }}''')

sys.dont_write_bytecode = True  # the template's folder stays as it is
sys.path.insert(0, TEMPLATE + "/hooks")

import assemble  # noqa: E402

sys.exit(assemble.project(ANSWERS, TEMPLATE))
