"""The page to try a model: what it takes, refuses, shows, and whom it lets in."""

import base64
import io
import os
import re
import signal
import struct
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from browser import errors_of, open_browser, requests_of, wait_for
from PIL import Image

from dmfnet_jax import serve
from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import color, scaling
from dmfnet_jax.serve import page as page_lib
from dmfnet_jax.serve import view

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30)).astype(np.uint8)
OTHER = RNG.integers(0, 256, (20, 30)).astype(np.uint8)
COLOURED = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
SAMPLES = {"pet_axial_096": (GREY, COLOURED), "grey": (GREY, OTHER)}
OWN = "your own files"


class FakeModel:
  """The maximum of the sources, a little brighter with the seed."""

  def __init__(self):
    self.calls = []

  def fuse(self, a, b, *, seed, names, samples=None):
    self.calls.append((seed, names, samples))
    luma = np.maximum(a, b if b.ndim == 2 else color.rgb_to_luma(b)) // 2 + np.uint8(seed)
    fused = luma if b.ndim == 2 else color.replace_luma(b, luma)
    return fused if samples is None else (fused, a.astype(np.float32) / 100)


def png_header(width, height) -> bytes:
  """A PNG that claims a size and has no pixels."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def save(path, picture) -> str:
  Image.fromarray(picture).save(path)
  return str(path)


def pixels(uri: str) -> np.ndarray:
  kind, encoded = uri.split(",", 1)
  assert kind == "data:image/png;base64"
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


# What is chosen and uploaded.


def test_a_sample_pair():
  a, b, name = page_lib.choose_pair(SAMPLES, "pet_axial_096", "ignored", None, "hot")
  np.testing.assert_array_equal(a, GREY)
  np.testing.assert_array_equal(b, COLOURED)  # a colour map is for a grey B
  assert name == "pet_axial_096"


def test_uploads_and_colour_maps(tmp_path):
  file_a = save(tmp_path / "my scan ä.png", np.repeat(GREY[..., None], 3, -1))
  file_b = save(tmp_path / "b.png", np.repeat(OTHER[..., None], 3, -1))  # grey in effect
  a, b, name = page_lib.choose_pair(SAMPLES, OWN, file_a, file_b, "grey")
  np.testing.assert_array_equal(a, GREY)
  np.testing.assert_array_equal(b, OTHER)
  assert name == "my scan ä"
  for lut in scaling.LUT_NAMES:
    _, b, _ = page_lib.choose_pair(SAMPLES, OWN, file_a, file_b, lut)
    np.testing.assert_array_equal(b, scaling.apply_lut(OTHER, scaling.read_lut(lut)))
  _, b, _ = page_lib.choose_pair(SAMPLES, OWN, file_a, save(tmp_path / "c.png", COLOURED), "hot")
  np.testing.assert_array_equal(b, COLOURED)


def test_pictures_of_two_sizes_are_refused(tmp_path):
  files = save(tmp_path / "a.png", GREY), save(tmp_path / "b.png", OTHER[:10])
  with pytest.raises(UserError, match="A is 30 x 20 pixels and B 30 x 10"):
    page_lib.choose_pair(SAMPLES, OWN, *files, "grey")
  with pytest.raises(UserError, match="upload both pictures"):
    page_lib.choose_pair(SAMPLES, OWN, files[0], None, "grey")


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (png_header(1025, 1024), r"x\.png: 1025 x 1024 pixels; this page takes 1,048,576"),
    (png_header(30000, 30000), r"x\.png: more than .* pixels, over the limit"),
    (png_header(30, 20), r"x\.png: broken picture"),
    (b"not a picture", r"x\.png: not a readable"),
    (b"", r"x\.png: the file is empty"),
  ],
)
def test_bad_uploads_are_named_without_their_place(tmp_path, data, message):
  (tmp_path / "x.png").write_bytes(data)
  with pytest.raises(UserError, match=f"^{message}") as error:
    page_lib.read_upload(str(tmp_path / "x.png"))
  assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("value", [None, -1, 17, 1.5])
def test_numbers_are_checked_on_the_server(value):
  with pytest.raises(UserError, match="the count must be a whole number, 0 to 16"):
    page_lib._whole(value, 0, 16, "the count")


@pytest.mark.parametrize(
  ("name", "label"),
  [("pet_axial_096", "PET axial"), (OWN, OWN), ("ct_1", "ct_1"), ("x", "x")],
)
def test_labels(name, label):
  assert page_lib._label(name) == label


# What is shown.


def test_a_result_holds_its_pictures_without_loss():
  fused = color.replace_luma(COLOURED, GREY)
  shown = view.result(GREY, COLOURED, fused, name='<b>"', deviation=OTHER)
  blend = re.findall(r'<img class="([^"]+)" src="([^"]+)"', shown)
  assert [name for name, _ in blend] == ["fused", "over-a", "over-b"]
  for (_, uri), picture in zip(blend, (fused, GREY, COLOURED), strict=True):
    np.testing.assert_array_equal(pixels(uri), picture)
  downloads = re.findall(r'href="([^"]+)" download="([^"]+)"', shown)
  assert [name for _, name in downloads] == ["&lt;b&gt;&quot;.png", "&lt;b&gt;&quot;_std.png"]
  np.testing.assert_array_equal(pixels(downloads[0][0]), fused)
  np.testing.assert_array_equal(pixels(downloads[1][0]), OTHER)
  assert "_std.png" not in view.result(GREY, COLOURED, fused, name="x")


def test_the_sources_and_the_heading():
  assert view.sources(GREY, COLOURED).count("<img") == 2
  assert "Upload A and B" in view.sources(None, GREY)
  assert "model &lt;x&gt;" in view.heading("model <x>")


# The command.


def test_the_command(monkeypatch, capsys):
  calls = []
  monkeypatch.setattr(serve, "serve", lambda *a, **k: calls.append((a, k)))
  assert main(["serve"]) == 0
  assert main(["serve", "--model", "m", "--host", "0.0.0.0", "--port", "0"]) == 0
  assert calls == [
    (("small",), {"host": "127.0.0.1", "port": 7860}),
    (("m",), {"host": "0.0.0.0", "port": 0}),
  ]
  assert main(["serve", "--port", "65536"]) == 2
  assert "65536 is out of range: 0 to 65535" in capsys.readouterr().err


@pytest.fixture
def environment(monkeypatch):
  """Undoes what `serve` sets for its process."""
  for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
    monkeypatch.setenv(name, "")
  handler = signal.getsignal(signal.SIGTERM)
  yield
  signal.signal(signal.SIGTERM, handler)


def test_without_gradio(monkeypatch, environment):
  monkeypatch.setitem(__import__("sys").modules, "gradio", None)
  with pytest.raises(UserError, match=r'pip install "dmfnet_jax\[serve\]"'):
    serve.serve("small")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_ends_with_ctrl_c_and_leaves_nothing(monkeypatch, capsys, environment, host):
  seen = {}

  def launch(page, folder, **address):
    Path(folder, "upload.png").touch()
    seen.update(address, folder=folder, environment=dict(os.environ))
    return "http://there"

  def interrupt(seconds):
    raise KeyboardInterrupt

  from dmfnet_jax.inference import model

  closed = []
  page = types.SimpleNamespace(close=lambda verbose: closed.append(verbose))
  monkeypatch.setattr(model, "load_model", lambda spec, **options: f"model {spec}")
  monkeypatch.setattr(serve, "_sample_pairs", dict)
  monkeypatch.setattr(serve, "_import_gradio", lambda folder: None)
  monkeypatch.setattr(serve, "build_page", lambda model, samples, title: page)
  monkeypatch.setattr(serve, "launch", launch)
  monkeypatch.setattr(serve.time, "sleep", interrupt)
  serve.serve("runs/m.safetensors", host=host, port=1234)
  assert (seen["host"], seen["port"]) == (host, 1234)
  assert not Path(seen["folder"]).exists()
  assert closed == [False]
  said = capsys.readouterr().err
  assert "open http://there in a browser" in said
  assert ("warning: listening on 0.0.0.0" in said) == (host == "0.0.0.0")


# The server.


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  """The page of a fake model: its address, its temporary folder, the model."""
  pytest.importorskip("gradio", reason="needs gradio, the extra [serve]")
  patch = pytest.MonkeyPatch()
  for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
    patch.setenv(name, "")
  folder = tmp_path_factory.mktemp("uploads")
  serve._import_gradio(str(folder))
  model = FakeModel()
  page = serve.build_page(model, SAMPLES, title="model fake")
  url = serve.launch(page, str(folder), host="127.0.0.1", port=0)
  yield types.SimpleNamespace(url=url, folder=folder, model=model, page=page)
  page.close(verbose=False)
  patch.undo()


def test_it_is_not_a_door_to_the_machine(server, tmp_path):
  httpx = pytest.importorskip("httpx")
  with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
    home = client.get("/")
    assert home.status_code == 200
    policy = home.headers["content-security-policy"]
    assert policy.startswith("default-src 'self' data: blob:;")
    assert "http" not in policy
    assert "fonts.googleapis" not in home.text
    # Another site whose name was made to lead here.
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    (tmp_path / "secret.txt").write_text("secret")
    for path in (tmp_path / "secret.txt", Path(__file__), "/etc/hostname"):
      assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)
    upload = {"files": ("big.png", b"\0" * (serve.MAX_FILE_SIZE + 1))}
    assert client.post("/gradio_api/upload", files=upload).status_code == 413
    upload = {"files": ("../../../up.png", b"data")}
    assert client.post("/gradio_api/upload", files=upload).status_code == 200
    assert client.get("/monitoring").status_code in (403, 404)
    described = client.get("/gradio_api/info").json()
    assert described["named_endpoints"] == described["unnamed_endpoints"] == {}
  names = [path.name for path in server.folder.rglob("*.png")]
  assert names == ["up.png"]
  assert not list(server.folder.parent.glob("up.png"))
  assert server.page.share_url is None
  assert server.page.analytics_enabled is False


def test_a_taken_port_is_a_users_mistake(server):
  page = serve.build_page(FakeModel(), {}, title="x")
  port = int(server.url.rstrip("/").rpartition(":")[2])
  with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1, port {port}"):
    serve.launch(page, str(server.folder), host="127.0.0.1", port=port)


def test_the_page_in_a_browser(server, tmp_path):
  file_a = save(tmp_path / "my scan.png", GREY)
  file_b = save(tmp_path / "b.png", OTHER)
  save(tmp_path / "small.png", OTHER[:10])
  (tmp_path / "downloads").mkdir()
  with open_browser(tmp_path / "downloads") as browser:
    requests_of(browser)

    def find(selector):
      return next(iter(browser.find_elements("css selector", selector)), None)

    def text(selector):
      return browser.execute_script(
        "return document.querySelector(arguments[0])?.innerText ?? ''", selector
      )

    def upload(which, path):
      if clear := find(f"#file_{which} button[aria-label=Clear]"):
        browser.execute_script("arguments[0].click()", clear)
      field = wait_for(lambda: find(f"#file_{which} input[type=file]"), "the upload field")
      field.send_keys(str(path))

    browser.get(server.url)
    # A sample pair is there to begin with.
    wait_for(lambda: len(browser.find_elements("css selector", "#view img")) == 2, "the sources")
    browser.find_elements("css selector", "#choice input")[-1].click()
    wait_for(lambda: "Upload A and B" in text("#view"), "one's own files")

    upload("a", file_a)
    wait_for(lambda: find("#view img[alt=A]"), "A")
    upload("b", tmp_path / "small.png")
    message = "A is 30 x 20 pixels and B 30 x 10"
    wait_for(lambda: message in text(".toast-body"), "a message")
    upload("b", file_b)
    wait_for(lambda: find("#view img[alt=B]"), "B")

    field = find("#seed input")
    field.clear()
    field.send_keys("5\t")
    find("#fuse").click()
    wait_for(lambda: find("#view .blend"), "the fused picture")
    assert server.model.calls == [(5, "my scan", None)]

    opacity = (
      "return ['over-a', 'over-b'].map("
      "c => Number(getComputedStyle(document.querySelector('#view .' + c)).opacity))"
    )
    slider = find("#view input[type=range]")
    assert browser.execute_script(opacity) == [0, 0]
    slider.send_keys("\ue012" * 25)  # the left arrow, half the way to A
    assert browser.execute_script(opacity) == [0.5, 0]
    slider.send_keys("\ue010")  # End
    assert browser.execute_script(opacity) == [0, 1]

    find("#view a.download").click()
    file = tmp_path / "downloads" / "my scan.png"
    wait_for(file.exists, "the download")
    expected = FakeModel().fuse(GREY, OTHER, seed=5, names="")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), expected)

    assert all(url.startswith(server.url) for url in requests_of(browser))
    # Gradio may ask for the progress of an upload that is complete already.
    assert [error for error in errors_of(browser) if "upload_progress" not in error] == []
