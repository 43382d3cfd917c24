"""The command line: parses, calls, prints. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys

from refold.errors import InputError, MissingExtraError


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    from refold.cli.commands import app
    from refold.cli.screen import complain

    try:
        app()
    except (InputError, MissingExtraError) as error:
        complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        complain("interrupted; nothing was written")
        sys.exit(130)
