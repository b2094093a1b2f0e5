"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Url = Annotated[str, typer.Option(envvar="TCD_URL", help="Where the service is.")]
Key = Annotated[
    str | None, typer.Option(envvar="TCD_API_KEY", help="Its API key, if it asks for one.")
]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON for each result.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder that files go to.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Of `tcd models`; else the service's own.")
]
Negative = Annotated[
    str | None, typer.Option(help="What is not to be seen; with --guidance above 1.")
]
Steps = Annotated[int | None, typer.Option("--steps", "-s", help="Denoising steps, 1 to 50.")]
Eta = Annotated[float | None, typer.Option(help="Noise that each step puts back, 0 to 1.")]
Guidance = Annotated[float | None, typer.Option("--guidance", "-g", help="In force above 1.")]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, in multiples of 8.")]
Seed = Annotated[int | None, typer.Option(help="Else any; the file's name says it.")]
Count = Annotated[int, typer.Option("-n", "--count", min=1, help="Images; each a seed further.")]
Loras = Annotated[
    list[str] | None, typer.Option("--lora", "-l", help="A style: NAME or NAME=WEIGHT. Repeatable.")
]
Controls = Annotated[
    list[str] | None,
    typer.Option("--control", "-c", help="TYPE=PICTURE or TYPE=PICTURE@SCALE. Repeatable."),
]
Like = Annotated[
    list[str] | None,
    typer.Option("--like", help="Pictures to resemble (IP-Adapter): PICTURE or PICTURE@SCALE."),
]
Format = Annotated[str | None, typer.Option("--format", help="png, jpeg or webp.")]
Show = Annotated[bool, typer.Option("--show", help="Draws the images on the terminal.")]
Later = Annotated[bool, typer.Option("--later", help="A job: says its id, and does not wait.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other field of the request: FIELD=VALUE, JSON or text."),
]
Timeout = Annotated[
    float,
    typer.Option(help="Seconds that an answer is waited for, and a full service asked again."),
]

HERE = Path()
DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 600.0
