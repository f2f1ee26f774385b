"""`dmfnet serve`: a page in the browser to try a model on one pair at a time.

Needs Gradio (`pip install "dmfnet_jax[serve]"`). What the page is held to:

- It listens on this machine alone unless told otherwise, and never through a public link.
- Uploads are limited in bytes, pixels and voxels, go to a temporary folder and are deleted after an
  hour or when the server stops. An archive's files are written for as long as they are read, and
  nothing else is: results are handed to the browser in the page.
- The browser may load nothing from elsewhere (a content security policy says so), and Gradio's
  usage reports and version checks are off.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dmfnet_jax.errors import UserError
from dmfnet_jax.serve.page import Sources, build_page
from dmfnet_jax.serve.view import CSS

MAX_FILE_SIZE = 128 * 2**20
"""Bytes of an upload."""

_LOOPBACK = ("127.0.0.1", "localhost")

_HEADERS = (
  # Gradio's front end compiles its templates in the browser, hence 'unsafe-eval'.
  (
    b"content-security-policy",
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; base-uri 'self'; form-action 'self'; "
    b"frame-ancestors 'self'",
  ),
  (b"referrer-policy", b"no-referrer"),
  (b"x-content-type-options", b"nosniff"),
)


def serve(model_spec: str, *, host: str = "127.0.0.1", port: int = 7860) -> None:
  """Serves the page until Ctrl-C.

  Args:
    model_spec: a released model's name, a `.safetensors` file or a training workdir.
    host: the address to listen on; "0.0.0.0" lets everyone in who can reach this machine.
    port: where; 0 takes the first free one from 7860 on.

  Raises:
    UserError: Gradio is not installed, an unknown model, or the port is taken.
  """
  with tempfile.TemporaryDirectory(prefix="dmfnet_serve_", ignore_cleanup_errors=True) as folder:
    _import_gradio(folder)

    from dmfnet_jax.inference.model import load_model

    model = load_model(model_spec)
    page = build_page(model, _sample_pairs(), title=f"the model {Path(model_spec).name}")
    url = launch(page, folder, host=host, port=port)
    print(f"dmfnet: open {url} in a browser; Ctrl-C ends", file=sys.stderr, flush=True)
    if host not in _LOOPBACK:
      print(
        f"dmfnet: warning: listening on {host}: whoever can reach this machine can use the page, "
        "without a password and without encryption",
        file=sys.stderr,
      )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is removed
    try:
      while True:
        time.sleep(3600)
    except KeyboardInterrupt:
      print("dmfnet: stopped", file=sys.stderr)
    finally:
      page.close(verbose=False)


def launch(page: Any, folder: str, *, host: str, port: int) -> str:
  """Starts to serve a page of `build_page`, in threads of its own; `page.close()` ends it.

  `folder` is Gradio's temporary one: no other is served or written to. Host and port are `serve`'s.

  Returns:
    The page's address.

  Raises:
    UserError: the address or the port cannot be had.
  """
  import gradio
  from starlette.middleware import Middleware
  from starlette.middleware.trustedhost import TrustedHostMiddleware

  middleware = [Middleware(_add_headers)]
  if host in _LOOPBACK:
    # A web site whose name is made to lead to this machine is refused by the name.
    middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK)))
  # Named fonts would come from Gradio's package or from Google; these are the system's own.
  theme = gradio.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
  )
  try:
    _, url, _ = page.launch(
      server_name=host,
      server_port=port or None,
      prevent_thread_lock=True,
      quiet=True,
      share=False,
      max_file_size=MAX_FILE_SIZE,
      max_threads=8,
      allowed_paths=[folder],  # instead of what an environment variable may say
      footer_links=[],
      run_history=False,
      enable_monitoring=False,
      ssr_mode=False,
      mcp_server=False,
      pwa=False,
      app_kwargs={"middleware": middleware},
      theme=theme,
      css=CSS,
    )
  except OSError as error:
    raise UserError(f"cannot listen on {host}, port {port}: {error}; try another --port") from error
  return url


def _sample_pairs() -> dict[str, Sources]:
  """The simulated pairs by their names; none where the template they are made from is missing."""
  from dmfnet_jax.data.builders import mni_template

  try:
    return {name: (a, b) for a, b, name in mni_template.demo_pairs()}
  except UserError as error:
    print(f"dmfnet: no sample pairs: {error}", file=sys.stderr)
    return {}


def _import_gradio(folder: str) -> None:
  """Imports Gradio with its reports off and `folder` as its temporary folder."""
  os.environ["GRADIO_TEMP_DIR"] = folder
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
  os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
  try:
    import gradio  # noqa: F401
  except ImportError as error:
    raise UserError('the page needs Gradio: pip install "dmfnet_jax[serve]"') from error


def _add_headers(app: Any) -> Any:
  """ASGI middleware: adds `_HEADERS` to every response."""

  async def with_headers(scope: Any, receive: Any, send: Any) -> None:
    async def send_with_headers(message: Any) -> None:
      if message["type"] == "http.response.start":
        message = {**message, "headers": [*message["headers"], *_HEADERS]}
      await send(message)

    await app(scope, receive, send_with_headers)

  return with_headers
