"""Runs `lvit` commands that come in on stdin, a JSON line each, and answers each with one: one start for many.

The Hub's client reads its endpoint when it is imported, so commands that are to use another need another process.
"""

import json
import sys

from typer.testing import CliRunner

import lvit_hf  # noqa: F401 (libraries that log keep the stderr with which they are imported)
from lvit_cli.main import app


answers = sys.stdout
for line in sys.stdin:
    command = json.loads(line)
    result = CliRunner().invoke(app, command["arguments"], env=command["environment"])
    error = None if isinstance(result.exception, SystemExit) else result.exception
    report = {"status": result.exit_code, "out": result.stdout, "err": result.stderr, "error": error and repr(error)}
    print(json.dumps(report), file=answers, flush=True)
