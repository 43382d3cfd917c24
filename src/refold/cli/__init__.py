"""The command line: parses, calls, prints. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import io
import sys

from refold.errors import InputError, MissingExtraError, ProcessError


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    from refold.cli import demo
    from refold.cli.screen import UsageError, complain, correction

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a column's name may be in any script
            stream.reconfigure(errors="backslashreplace")
    try:
        code = demo.commands.app(standalone_mode=False)
    except (InputError, MissingExtraError) as error:
        complain(str(error))
        code = 2
    except ProcessError as error:
        if error.first:
            complain(str(error), alone=True)
        code = 1
    except UsageError as error:
        complain(correction(error))
        code = 2
    sys.exit(code)
