"""`roclab lm serve`: the language model behind OpenAI's and Anthropic's APIs."""

from __future__ import annotations

import typer

from roclab.cli.options import options_from
from roclab.lm.settings import LoadOptions
from roclab.server.settings import ServerSettings

MODELS = typer.Option(
    None,
    "--model",
    "-m",
    help="Short name, path, or owner/name on a Hub; repeat it for several; smollm2-135m if not given.",
)


@options_from(LoadOptions, "options")
@options_from(ServerSettings, "settings")
def serve(settings: ServerSettings, options: LoadOptions, model: list[str] = MODELS) -> None:
    """Answer OpenAI and Anthropic clients over HTTP: chat, completions, responses, messages, tokens, metrics.

    Example: roclab lm serve --model smollm2-135m --port 8000
    """
    from roclab.server.app import serve as run

    run(model or ["smollm2-135m"], options, settings)
