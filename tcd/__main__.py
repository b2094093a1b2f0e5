"""`tcd`: what can be asked of the service, and of files of weights, at a command line.

tcd generate "a big red ball on the left, in the snow"
"""

import sys
from collections.abc import Sequence

import typer
from rich.text import Text

from tcd.commands.images import again, edit, generate
from tcd.commands.jobs import jobs
from tcd.commands.models import models
from tcd.commands.preprocess import preprocess
from tcd.commands.videos import animate
from tcd.commands.weights import check, fetch
from tcd.screen import people
from tcd.service import Failed

INTERRUPTED = 130

app = typer.Typer(
    name="tcd",
    help="Stable Diffusion in few steps: the service at TCD_URL, with the key in TCD_API_KEY.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (generate, edit, animate, again, preprocess, models, check, fetch):
    app.command()(command)
app.add_typer(jobs, name="jobs")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exits with 0, or: 1, what was asked is refused or failed; 2, the arguments
    are wrong; 3, the service does not answer; 130, it was interrupted."""
    try:
        app(None if arguments is None else list(arguments))
    except Failed as error:
        people.print(Text.assemble(("error", "red"), f": {error}"), soft_wrap=True)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
