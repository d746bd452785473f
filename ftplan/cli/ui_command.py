"""``ftplan ui``: the local page to plan, check, launch and watch on."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ftplan.cli import options
from ftplan.errors import InputError

if TYPE_CHECKING:
    from ftplan.ui.serving import Address

Host = Annotated[str, typer.Option("--host", help="Address to listen on; beyond loopback the page asks for a token.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 for any that is free.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the runs that are launched and listed.")]
Hosted = Annotated[
    bool,
    typer.Option(
        "--hosted", help="For strangers: plan and check alone, models of the catalogue, no token unless one is set."
    ),
]
Token = Annotated[
    bool,
    typer.Option(
        "--token", help="Ask for a token on loopback or --hosted, too. One in FTPLAN_UI_TOKEN is always asked for."
    ),
]
Open = Annotated[bool, typer.Option("--open", help="Open it in this machine's browser.")]

EXAMPLES: Final = """
# on this machine alone, in its browser
ftplan ui --open
# for other machines, which then need a token
ftplan ui --host 0.0.0.0 --port 8080
"""


def command(
    host: Host = "127.0.0.1",
    port: Port = 7860,
    runs: Runs = Path("ftplan-runs"),
    hosted: Hosted = False,
    token: Token = False,
    open_browser: Open = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> int:
    """Serve a page to plan by sliders, compare, check files, launch runs and watch them.

    It listens on this machine alone unless --host says otherwise. Runs that it started go on when it ends.
    """
    missing = [name for name in ("gradio", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the page needs {', '.join(missing)}", hint="pip install 'ftplan[ui]'", field="ui")
    gc.enable()  # this command lives for hours (see ftplan.__main__)
    from ftplan.ui import serving
    from ftplan.ui.session import Settings

    asked = serving.token_for(host, hosted=hosted, asked=token)

    def tell(address: Address) -> None:
        _tell(address, as_json=as_json, brief=quiet)
        if open_browser:
            import webbrowser

            webbrowser.open(address.url)

    serving.serve(Settings(hosted=hosted, runs=runs.absolute()), host, port, asked, tell)
    return 0


def _tell(address: Address, *, as_json: bool, brief: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps({"url": address.url, "port": address.port, "token": address.token or None}))
        return
    if brief:
        typer.echo(address.url)
        return
    from ftplan.render.console import out, words

    out().print(words(("ftplan's page: ", "bold"), address.url, " (Ctrl-C ends it; runs go on)"), soft_wrap=True)
