"""Object stores, against a server that speaks S3: fusing, Ray's records."""

import logging
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils.epath import gpath
from fake_model import FakeModel, fuse, in_place
from moto.server import ThreadedMotoServer

from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths, pictures

ROOT = Path(__file__).resolve().parents[2]
PLACE = "s3://bucket"


@pytest.fixture(scope="module")
def store():
  """A client of the server, and its bucket; what it takes to reach it is in the environment."""
  logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would tell of every request
  server = ThreadedMotoServer("127.0.0.1", port=0)
  server.start()
  _, port = server.get_host_and_port()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
      patch.setenv(name, "test")
    patch.setenv("EPATH_USE_TF", "true")  # as it is by default; what `paths` sets goes in the end
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()
  gpath._is_tf_installed.cache_clear()
  paths._set_up.cache_clear()


def write_pairs(stems, place=PLACE):
  rng = np.random.default_rng(0)
  for side in "ab":
    for stem in stems:
      pictures.write_image(f"{place}/{side}/{stem}.png", rng.integers(0, 256, (12, 16), np.uint8))
  return f"{place}/a", f"{place}/b"


def keys(client, prefix):
  return [x["Key"] for x in client.list_objects_v2(Bucket="bucket", Prefix=prefix)["Contents"]]


def test_others_write_there_too(store):
  """A listing is what is there, not what was there at the last one."""
  for i in range(3):
    store.put_object(Bucket="bucket", Key=f"seen/{i}", Body=b"x")
    assert [path.name for path in paths.list_files(f"{PLACE}/seen")] == list(map(str, range(i + 1)))
    assert paths.exists(f"{PLACE}/seen/{i}")
    assert not paths.exists(f"{PLACE}/seen/{i + 1}")
  store.delete_object(Bucket="bucket", Key="seen/0")
  assert not paths.exists(f"{PLACE}/seen/0")


def test_what_cannot_be_done_is_a_line(store):
  for path in ("s3://bucket/none", "s3://nobucket/none"):
    with pytest.raises(UserError, match=f"^{path}: no such file$"):
      paths.read_bytes(path)
  with pytest.raises(UserError, match=r"^s3://nobucket/x: cannot write: .*bucket does not exist"):
    paths.write_bytes("s3://nobucket/x", b"")
  with pytest.raises(UserError, match=r"^s3://bucket/none: no such folder$"):
    paths.list_files(f"{PLACE}/none")
  assert paths.list_files(paths.make_folder(f"{PLACE}/none"), may_be_empty=True) == []


def test_fuse_reads_and_writes(store, tmp_path, capsys):
  """The objects are those of a run here, and `--resume` goes by them."""
  stems = ["x", "y", "z"]
  a, b = write_pairs(stems)
  for side in "ab":
    (tmp_path / side).mkdir()
    for stem in stems:
      data = store.get_object(Bucket="bucket", Key=f"{side}/{stem}.png")["Body"].read()
      (tmp_path / side / f"{stem}.png").write_bytes(data)
  asked = {"seed": 2, "window_b": "0,200", "overlay": 0.5}
  out = f"{PLACE}/fused"
  with in_place(FakeModel()) as model:
    assert fuse(a, b, out, **asked) == 0
    assert fuse(tmp_path / "a", tmp_path / "b", tmp_path / "fused", **asked) == 0
    for path in (tmp_path / "fused").iterdir():
      found = store.get_object(Bucket="bucket", Key=f"fused/{path.name}")["Body"].read()
      assert found == path.read_bytes(), path
    assert len(keys(store, "fused/")) == 3 * 3 + 1
    store.delete_object(Bucket="bucket", Key="fused/y.png")
    model.calls.clear()
    assert fuse(a, b, out, **asked, resume=True) == 0
    assert [call["names"] for call in model.calls] == [["y"]]
    with pytest.raises(UserError, match="holds results of another seed"):
      fuse(a, b, out, **asked | {"seed": 3}, resume=True)


def test_a_list_in_the_store(store, tmp_path):
  write_pairs(["x"], f"{PLACE}/listed")
  store.put_object(Bucket="bucket", Key="listed/pairs.csv", Body=b"a/x.png,b/x.png,one\n")
  with in_place(FakeModel()):
    assert fuse(None, None, tmp_path, pairs=f"{PLACE}/listed/pairs.csv") == 0
  assert (tmp_path / "one.png").exists()


@pytest.mark.slow
def test_ray_reads_and_writes(store, tmp_path):
  stems = ["x", "y", "z"]
  write_pairs(stems, f"{PLACE}/ray")
  rows = {side: [f"{PLACE}/ray/{side}/{stem}.png" for stem in [*stems, "none"]] for side in "ab"}
  pq.write_table(pa.table(rows), tmp_path / "pairs.parquet")
  store.upload_file(str(tmp_path / "pairs.parquet"), "bucket", "ray/pairs.parquet")
  command = [sys.executable, str(ROOT / "launch" / "ray_fuse.py"), "--model", "max", "--part", "2"]
  command += ["--pairs", f"{PLACE}/ray/pairs.parquet", "-o", f"{PLACE}/ray/out"]
  for earlier in ("", ", 3 of them earlier"):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert f"3 of 4 pairs fused into {PLACE}/ray/out{earlier}; records in" in done.stderr
    assert "Traceback" not in done.stderr
  for stem in stems:
    sources = (pictures.read_image(f"{PLACE}/ray/{side}/{stem}.png") for side in "ab")
    fused = pictures.read_image(f"{PLACE}/ray/out/{stem}.png")
    np.testing.assert_array_equal(fused, np.maximum(*sources))
  found = []
  for key in keys(store, "ray/out/records/"):
    store.download_file("bucket", key, str(tmp_path / "part"))
    found += pq.read_table(tmp_path / "part").to_pylist()
  reasons = {row["key"]: row["reason"] for row in found}
  missing = f"{PLACE}/ray/a/none.png: no such file"
  assert reasons == {**dict.fromkeys(stems, ""), "none": missing}
  assert len(found) == 4


def test_a_training_run_there_is_refused_before_it_begins(store, capsys):
  """Orbax takes `gs://` alone; at its first checkpoint it would say that the path is relative."""
  words = ["train", "--config", "configs/dmfnet.py:stage=1,size=tiny", "--workdir", f"{PLACE}/run"]
  assert main(words) == 2
  told = "s3://bucket/run: Orbax writes no checkpoints there: give a folder, or gs://"
  assert capsys.readouterr().err == f"dmfnet: error: {told}\n"
  assert "Contents" not in store.list_objects_v2(Bucket="bucket", Prefix="run/")
