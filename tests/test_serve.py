"""The page to try a model: what it takes, refuses, shows, and whom it lets in."""

import base64
import io
import os
import re
import signal
import struct
import time
import types
import zipfile
import zlib
from pathlib import Path

import dicom_phantoms as phantoms
import nibabel
import numpy as np
import pytest
from browser import errors_of, open_browser, requests_of, wait_for
from PIL import Image

from dmfnet_jax import DEFAULT_MODEL, serve
from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import color, scaling
from dmfnet_jax.serve import page as page_lib
from dmfnet_jax.serve import uploads, view

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


def choose(choice, file_a=None, file_b=None, lut="grey", **volumes):
  return page_lib.choose_pair(SAMPLES, page_lib.Choice(choice, file_a, file_b, lut, **volumes))


def test_a_sample_pair():
  chosen = choose("pet_axial_096", "ignored", None, "hot")
  np.testing.assert_array_equal(chosen.a, GREY)
  np.testing.assert_array_equal(chosen.b, COLOURED)  # a colour map is for a grey B
  assert chosen.name == chosen.file_name == "pet_axial_096"


def test_uploads_and_colour_maps(tmp_path):
  file_a = save(tmp_path / "my scan ä.png", np.repeat(GREY[..., None], 3, -1))
  file_b = save(tmp_path / "b.png", np.repeat(OTHER[..., None], 3, -1))  # grey in effect
  chosen = choose(OWN, file_a, file_b)
  np.testing.assert_array_equal(chosen.a, GREY)
  np.testing.assert_array_equal(chosen.b, OTHER)
  assert chosen.name == "my scan ä"
  for lut in scaling.LUT_NAMES:
    b = choose(OWN, file_a, file_b, lut).b
    np.testing.assert_array_equal(b, scaling.apply_lut(OTHER, scaling.read_lut(lut)))
  b = choose(OWN, file_a, save(tmp_path / "c.png", COLOURED), "hot").b
  np.testing.assert_array_equal(b, COLOURED)


def test_pictures_of_two_sizes_are_refused(tmp_path):
  files = save(tmp_path / "a.png", GREY), save(tmp_path / "b.png", OTHER[:10])
  with pytest.raises(UserError, match="A is 30 x 20 pixels and B 30 x 10"):
    choose(OWN, *files)
  with pytest.raises(UserError, match="upload both, A and B"):
    choose(OWN, files[0])
  with pytest.raises(UserError, match="A and B are a picture and a volume"):
    choose(OWN, files[0], str(tmp_path / "b.nii.gz"))


def volume(path, seed, shape=(20, 30, 5)) -> str:
  """A NIfTI volume of thick slices."""
  values = np.random.default_rng(seed).integers(1, 1000, shape).astype(np.int16)
  nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 4, 1])), path)
  return str(path)


def zipped(path, folder) -> str:
  with zipfile.ZipFile(path, "w") as archive:
    for file in folder.iterdir():
      archive.write(file, f"../{folder.name}/{file.name}")  # a name that leads elsewhere
    archive.writestr("__MACOSX/._x", b"")
  return str(path)


def test_a_slice_of_volumes_is_what_the_command_shows(tmp_path):
  files = volume(tmp_path / "s1_T1w.nii.gz", 1), volume(tmp_path / "s1_pet.nii", 2)
  chosen = choose(OWN, *files, index=3, window_a="100,900")
  expected = np.asarray(nibabel.load(files[0]).dataobj)[::-1, ::-1, 3].T
  np.testing.assert_array_equal(chosen.a, scaling.to_uint8(expected, (100, 900)))
  assert (chosen.name, chosen.file_name) == ("s1_T1w/axial/3", "s1_T1w_axial_003")
  assert chosen.shown["titles"] == ("A: T1w", "B: PET")
  assert chosen.shown["aspect"] == pytest.approx(20 / 30)
  note = "axial slice 3 of 0 to 4; left is R, up is A; A: 100 to 900 (given)"
  assert chosen.shown["note"].startswith(note)
  assert "B: 0 to 999 (0 to the maximum, as PET)" in chosen.shown["note"]
  with pytest.raises(UserError, match="window '1': give two numbers"):
    choose(OWN, *files, window_b="1")
  with pytest.raises(UserError, match="the slice must be a whole number, 0 to 4"):
    choose(OWN, *files, index=5)


def test_a_series_comes_as_a_zip_file(tmp_path):
  for name, modality in (("ct", "CT"), ("mr", "MR")):
    phantoms.write_series(tmp_path / name, 3, modality=modality)
  files = [zipped(tmp_path / f"{name}.zip", tmp_path / name) for name in ("mr", "ct")]
  outside = sorted(tmp_path.rglob("*"))
  chosen = choose(OWN, *files, index=1, window_b="brain")
  assert chosen.a.shape == (phantoms.ROWS, phantoms.COLUMNS)
  assert chosen.shown["titles"] == ("A: MRI", "B: CT")
  assert "B: 0 to 80 HU (brain)" in chosen.shown["note"]
  assert chosen.file_name == "mr_axial_001"
  assert sorted(tmp_path.rglob("*")) == outside


@pytest.mark.parametrize(
  ("name", "data", "message"),
  [
    ("x.png", png_header(1025, 1024), r"1025 x 1024 pixels; this page takes 1,048,576"),
    ("x.png", png_header(30000, 30000), r"more than .* pixels, over the limit"),
    ("x.png", png_header(30, 20), r"broken picture"),
    ("x.png", b"not a picture", r"not a readable"),
    ("x.png", b"", r"the file is empty"),
    ("x.nii", b"no volume", r"is no NIfTI file"),
    ("x.zip", b"no zip", r"no zip file that can be unpacked"),
  ],
)
def test_bad_uploads_are_named_without_their_place(tmp_path, name, data, message):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(UserError, match=f"^{name}: {message}") as error:
    choose(OWN, str(tmp_path / name), str(tmp_path / name))
  assert str(tmp_path) not in str(error.value)


def test_large_volumes_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
  file = volume(tmp_path / "v.nii.gz", 0)
  phantoms.write_series(tmp_path / "ct", 3)
  archive = zipped(tmp_path / "ct.zip", tmp_path / "ct")
  monkeypatch.setattr(uploads, "MAX_VOXELS", 100)
  with pytest.raises(UserError, match=r"^v\.nii\.gz: 3,000 voxels; this page takes 100"):
    choose(OWN, file, file)
  with pytest.raises(UserError, match=r"^ct\.zip: 3 images of .* are too large"):
    choose(OWN, archive, archive)
  monkeypatch.setattr(uploads, "_MAX_FILES", 2)
  with pytest.raises(UserError, match=r"^ct\.zip: unpacks to more than 2 files"):
    choose(OWN, archive, archive)


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
  layer = np.dstack([COLOURED, np.where(COLOURED.any(-1), 255, 0)])
  assert [name for name, _ in blend] == ["fused", "over-a", "over-b", "layer"]
  for (_, uri), picture in zip(blend, (fused, GREY, COLOURED, layer), strict=True):
    np.testing.assert_array_equal(pixels(uri), picture)
  downloads = re.findall(r'href="([^"]+)" download="([^"]+)"', shown)
  assert [name for _, name in downloads] == ["&lt;b&gt;&quot;_fused.png", "&lt;b&gt;&quot;_std.png"]
  np.testing.assert_array_equal(pixels(downloads[0][0]), fused)
  np.testing.assert_array_equal(pixels(downloads[1][0]), OTHER)
  assert "_std.png" not in view.result(GREY, COLOURED, fused, name="x")


def test_the_sources_and_the_heading():
  assert view.sources(GREY, COLOURED).count("<img") == 2
  assert "Upload A and B" in view.sources(None, GREY)
  assert "&lt;b&gt;" in view.sources(GREY, GREY, titles=("<b>", "B"))
  assert "&lt;b&gt;" in view.problem("<b>")
  assert "model &lt;x&gt;" in view.heading("model <x>")


# The command.


def test_the_command(monkeypatch, capsys):
  calls = []
  monkeypatch.setattr(serve, "serve", lambda *a, **k: calls.append((a, k)))
  assert main(["serve"]) == 0
  assert main(["serve", "--model", "m", "--host", "0.0.0.0", "--port", "0"]) == 0
  assert calls == [
    ((DEFAULT_MODEL,), {"host": "127.0.0.1", "port": 7860}),
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
  patch.setattr(serve, "MAX_FILE_SIZE", 2**20)  # quick to go beyond
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

    browser.set_window_size(1400, 1000)
    browser.get(server.url)
    # A sample pair is there to begin with.
    wait_for(lambda: len(browser.find_elements("css selector", "#view img")) == 2, "the sources")
    browser.find_elements("css selector", "#choice input")[-1].click()
    wait_for(lambda: "Upload A and B" in text("#view"), "one's own files")
    wait_for(lambda: find("#file_b button"), "the drop zones")
    # Their words lie inside, and the icon below the label.
    cut = """return ['a', 'b'].filter((letter) => {
      const zone = document.querySelector(`#file_${letter} button`), words = document.createRange();
      words.selectNodeContents(zone);
      const [inner, outer] = [words.getBoundingClientRect(), zone.getBoundingClientRect()];
      const label = document.querySelector(`#file_${letter} label`).getBoundingClientRect();
      const icon = zone.querySelector('svg').getBoundingClientRect();
      const last = [...words.getClientRects()].pop();
      return icon.top < label.bottom || last.bottom > outer.bottom || inner.width > outer.width;
    })"""
    assert browser.execute_script(cut) == []

    upload("a", file_a)
    wait_for(lambda: find("#view img[alt=A]"), "A")
    upload("b", tmp_path / "small.png")
    message = "A is 30 x 20 pixels and B 30 x 10"
    wait_for(lambda: message in text("#view .problem"), "a message")
    assert text("body").count(message) == 1
    find("#fuse").click()
    time.sleep(0.5)
    assert text("body").count(message) == 1
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

    find("#view [name=dmf-mode][value=overlay]").click()
    layers = opacity.replace("['over-a', 'over-b']", "['over-a', 'over-b', 'layer']")
    assert browser.execute_script(layers) == [1, 0, 1]
    slider.send_keys("\ue011")  # Home
    assert browser.execute_script(layers) == [1, 0, 0]

    find("#view a.download").click()
    file = tmp_path / "downloads" / "my scan_fused.png"
    wait_for(file.exists, "the download")
    expected = FakeModel().fuse(GREY, OTHER, seed=5, names="")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), expected)

    assert all(url.startswith(server.url) for url in requests_of(browser))
    # Volumes: a slider in the middle, windows, and the slice that it shows.
    upload("a", volume(tmp_path / "v_T1w.nii.gz", 1))
    upload("b", volume(tmp_path / "v_pet.nii.gz", 2))
    wait_for(lambda: "axial slice 2 of 0 to 4" in text("#view"), "the middle slice")
    field = find("#slice input[type=range]")
    field.send_keys("\ue014")  # the right arrow
    wait_for(lambda: "axial slice 3 of 0 to 4" in text("#view"), "the next slice")
    field = find("#window_b textarea, #window_b input")
    field.send_keys("suv:0,7\n")
    wait_for(lambda: "0 to 7 SUV (suv:0,7)" in text("#view"), "the window")
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.execute_script("window.scrollTo(0, 0); document.querySelector('#fuse').click()")
    wait_for(lambda: find("#view .blend"), "the fused slice")
    assert server.model.calls[-1] == (5, "v_T1w/axial/3", None)
    top = "return document.querySelector('#view .blend').getBoundingClientRect().top"
    wait_for(lambda: browser.execute_script(top) < 844 / 2, "the result in view")

    # Gradio may ask for the progress of an upload that is complete already.
    assert [error for error in errors_of(browser) if "upload_progress" not in error] == []
