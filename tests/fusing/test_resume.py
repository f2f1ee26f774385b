"""Large jobs: several processes, and going on where a job stopped."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from fake_model import fuse

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import resume
from dmfnet_jax.io import paths, pictures, scaling
from dmfnet_jax.weights import files as weights

ROOT = Path(__file__).resolve().parents[2]
STEMS = [f"{i:02d}" for i in range(11)]


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
  rng = np.random.default_rng(0)
  for folder in ("a", "b"):
    (tmp_path / folder).mkdir()
    for stem in STEMS:
      picture = rng.integers(0, 256, (5, 6), np.uint8)
      pictures.write_image(tmp_path / folder / f"{stem}.png", picture)
  return tmp_path / "a", tmp_path / "b"


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
  for name in ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"):
    monkeypatch.delenv(name, raising=False)


def contents(folder: Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in paths.list_files(folder)}


def names(model) -> list[str]:
  return [name for call in model.calls for name in call["names"]]


def test_processes_share_the_pairs(folders, tmp_path, model, monkeypatch, capsys):
  """Each pair is fused once, by its process, to the bytes that one process writes."""
  fuse(*folders, tmp_path / "one")
  model.calls.clear()
  for index in range(2):
    assert fuse(*folders, tmp_path / "all", shard=f"{index}/3") == 0
  monkeypatch.setenv("JAX_PROCESS_ID", "2")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
  assert fuse(*folders, tmp_path / "all") == 0
  assert sorted(names(model)) == STEMS
  assert contents(tmp_path / "all") == contents(tmp_path / "one")
  err = capsys.readouterr().err
  assert "process 2 of 3: 3 of 11 pairs" in err
  assert "3 of 3 pairs fused" in err


@pytest.mark.parametrize("resume", [False, True])
def test_more_processes_than_pairs(folders, tmp_path, model, resume):
  asked = {"shard": "40/50", "resume": resume}
  assert fuse(*folders, tmp_path / "out", **asked) == 0
  assert model.calls == []


@pytest.mark.parametrize("words", ["4/4", "-1/4", "1", "a/b", "1/0", "0/4/2"])
def test_what_is_no_share_is_refused(words):
  with pytest.raises(UserError, match="--shard is I/N with I from 0 to N - 1"):
    resume.which_process(words)


@pytest.mark.parametrize(("index", "count"), [("3", "3"), ("x", "3"), ("0", None), (None, "2")])
def test_a_launcher_that_contradicts_itself_is_refused(monkeypatch, index, count):
  for name, value in (("JAX_PROCESS_ID", index), ("JAX_NUM_PROCESSES", count)):
    if value is not None:
      monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match=r"JAX_\w+( and JAX_NUM_PROCESSES)? must be"):
    resume.which_process(None)


def test_alone_by_default():
  assert resume.which_process(None) == (0, 1)


@pytest.mark.parametrize(
  ("variables", "share"),
  [
    ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n"}, (2, 4)),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1)),
    ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"}, (1, 3)),
  ],
)
def test_clusters_tell_the_share(monkeypatch, variables, share):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert resume.which_process(None) == share


def test_hosts_of_a_tpu_slice_share(monkeypatch):
  monkeypatch.setattr("dmfnet_jax.backend.has_tpu", lambda: True)
  monkeypatch.setattr("jax.process_index", lambda: 3)
  monkeypatch.setattr("jax.process_count", lambda: 8)
  assert resume.which_process(None) == (3, 8)


def test_results_that_do_not_fit_the_memory_are_named(
  folders, tmp_path, model, monkeypatch, capsys
):
  write = pictures.write_image

  def write_image(path, image):
    if path.name == "05.png":
      raise MemoryError
    write(path, image)

  monkeypatch.setattr(pictures, "write_image", write_image)
  assert fuse(*folders, tmp_path / "out") == 1
  assert set(contents(tmp_path / "out")) == {f"{stem}.png" for stem in STEMS} - {"05.png"}
  assert "pair 05: the results do not fit the memory" in capsys.readouterr().err


def test_a_stopped_job_goes_on(folders, tmp_path, model, capsys):
  """Nothing is fused twice, nothing is left out, and the bytes are those of one go."""
  out = tmp_path / "out"
  fuse(*folders, tmp_path / "one", seed=5)
  model.calls.clear()
  model.errors[4] = KeyboardInterrupt()
  with pytest.raises(KeyboardInterrupt):
    fuse(*folders, out, seed=5, resume=True, batch_size=1)
  done = set(contents(out))
  assert 0 < len(done) <= 4
  model.errors.clear()
  model.calls.clear()
  assert fuse(*folders, out, seed=5, resume=True) == 0
  assert {f"{name}.png" for name in names(model)} == {f"{stem}.png" for stem in STEMS} - done
  assert contents(out) == contents(tmp_path / "one")
  assert f"11 of 11 pairs fused into {out}, {len(done)} of them earlier" in capsys.readouterr().err
  model.calls.clear()
  assert fuse(*folders, out, seed=5, resume=True) == 0
  assert model.calls == []


def test_without_resume_results_are_replaced(folders, tmp_path, model):
  fuse(*folders, tmp_path / "out", resume=True)
  model.calls.clear()
  fuse(*folders, tmp_path / "out")
  assert sorted(names(model)) == STEMS


def test_results_of_other_options_are_not_kept(folders, tmp_path, model):
  out = tmp_path / "out"
  fuse(*folders, out, resume=True, samples=2, window_a="0,200")
  before = contents(out)
  for options in ({"seed": 1}, {"window_a": "0,100"}, {"precision": "bfloat16"}):
    asked = {"samples": 2, "window_a": "0,200"} | options
    name = next(iter(options)).replace("_", "-")
    with pytest.raises(UserError, match=f"holds results of another {name}: fuse into another"):
      fuse(*folders, out, resume=True, **asked)
  assert contents(out) == before
  assert fuse(*folders, out, resume=True, samples=2, window_a="0,200") == 0


def test_results_replaced_without_resume_are_not_taken_for_the_first(
  folders, tmp_path, model, capsys
):
  """What replaced them was made in another way, so that the record of the first is gone."""
  out = tmp_path / "out"
  fuse(*folders, out, seed=1, resume=True)
  fuse(*folders, out, seed=2)
  assert not (out / ".dmfnet_fuse.json").exists()
  assert "is not known" not in capsys.readouterr().err
  for _ in range(2):  # nor by the second one, which finds what the first has kept
    fuse(*folders, out, seed=1, resume=True)
    assert "how the results there were made is not known" in capsys.readouterr().err


def test_results_made_without_resume_are_not_mixed_with_others(folders, tmp_path, model):
  out = tmp_path / "out"
  for _ in range(2):
    fuse(*folders, out, seed=1)
  (out / "03.png").unlink()
  with pytest.raises(UserError, match="holds results of another seed"):
    fuse(*folders, out, seed=2, resume=True)
  assert not (out / "03.png").exists()
  assert fuse(*folders, out, seed=1, resume=True) == 0
  assert (out / "03.png").exists()


def test_a_record_that_cannot_be_read_is_told(folders, tmp_path, model):
  out = tmp_path / "out"
  (out / ".dmfnet_fuse.json").mkdir(parents=True)
  (out / "1.png").touch()
  with pytest.raises(UserError, match=r"\.dmfnet_fuse\.json: "):
    fuse(*folders, out)


def test_what_stands_beside_the_results_counts(folders, tmp_path, model):
  """Results without the slices or the montage that are asked for now are not finished."""
  out, montage = tmp_path / "out", tmp_path / "m"
  fuse(*folders, out, montage=montage)
  assert fuse(*folders, out, montage=str(montage), resume=True) == 0
  for options, names in (({"png": True, "montage": montage}, "png"), ({}, "montage")):
    with pytest.raises(UserError, match=f"holds results of another {names}: "):
      fuse(*folders, out, resume=True, **options)


def test_another_model_is_told(folders, tmp_path, model):
  fuse(*folders, tmp_path / "out", resume=True)
  model.weights = "others"
  with pytest.raises(UserError, match="holds results of another model"):
    fuse(*folders, tmp_path / "out", resume=True)
  model.weights = "weights"
  assert fuse(*folders, tmp_path / "out", resume=True) == 0


def test_a_folder_that_an_older_version_began_goes_on(folders, tmp_path, model):
  """The record has the names that it had, and an option that it lacks was not set."""
  out = tmp_path / "out"
  fuse(*folders, out, seed=3, lut="hot", window_a="0,200", window_b="auto")
  record = json.loads((out / ".dmfnet_fuse.json").read_text())
  assert record.pop("lut") == hashlib.sha256(scaling.read_lut("hot").tobytes()).hexdigest()
  assert record == {
    "model": model.fingerprint(),
    "seed": 3,
    "samples": None,
    "window-a": [0, 200],
    "window-b": "auto",
    "window-c": None,
    "axis": None,
    "resample": False,
    "rgb": False,
    "png": False,
    "montage": None,
    "save-b": False,
    "overlay": None,
    "precision": "float32",
    "model-name": "fake",
    "emphasis": None,
    "tile": "auto",
    "suffix-a": "",
    "suffix-b": "",
  }
  older = {"model": model.fingerprint(), "seed": 3}
  (tmp_path / "older").mkdir()
  (tmp_path / "older" / ".dmfnet_fuse.json").write_text(json.dumps(older))
  assert fuse(*folders, tmp_path / "older", seed=3, resume=True) == 0
  with pytest.raises(UserError, match="holds results of another png and samples"):
    fuse(*folders, tmp_path / "older", seed=3, resume=True, png=True, samples=2)


def test_how_a_run_goes_does_not_count(folders, tmp_path, model):
  fuse(*folders, tmp_path / "out")
  again = {"batch_size": 3, "strict": True, "same_frame": True, "shard": "0/1"}
  assert fuse(*folders, tmp_path / "out", resume=True, **again) == 0


def test_another_colour_map_of_the_same_name_is_told(folders, tmp_path, model):
  table = tmp_path / "map.csv"
  for step in (1, 2):
    table.write_text("\n".join(f"{i},{i},{i // step}" for i in range(256)))
    if step == 1:
      fuse(*folders, tmp_path / "out", lut=str(table))
  with pytest.raises(UserError, match="holds results of another lut"):
    fuse(*folders, tmp_path / "out", lut=str(table), resume=True)


def test_results_of_unknown_origin_are_kept_with_a_warning(folders, tmp_path, model, capsys):
  out = tmp_path / "out"
  fuse(*folders, out)
  (out / ".dmfnet_fuse.json").unlink()  # as an older version left it
  (out / "03.png").unlink()
  model.calls.clear()
  assert fuse(*folders, out, resume=True) == 0
  assert names(model) == ["03"]
  assert "how the results there were made is not known" in capsys.readouterr().err


def test_a_damaged_record_is_told(folders, tmp_path, model):
  out = tmp_path / "out"
  fuse(*folders, out, resume=True)
  for text in ("{", "[]", "{}"):
    (out / ".dmfnet_fuse.json").write_text(text)
    with pytest.raises(UserError, match="is damaged: delete it"):
      fuse(*folders, out, resume=True)


def test_one_pair_into_a_file_is_not_resumed(folders, tmp_path, model):
  pair = [folder / "00.png" for folder in folders]
  with pytest.raises(UserError, match="--resume needs a folder as the output"):
    fuse(*pair, tmp_path / "x.png", resume=True)
  assert not (tmp_path / "x.png").exists()


def test_folders_are_listed_once(folders, tmp_path, model, monkeypatch):
  """However many pairs there are: a listing of each folder, and no look at single results."""
  out = tmp_path / "out"
  fuse(*folders, out, resume=True)
  (out / "03.png").unlink()
  listed = []
  scandir = os.scandir
  monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
  assert fuse(*folders, out, resume=True) == 0
  assert {name: listed.count(name) for name in ("a", "b", "out")} == {"a": 2, "b": 2, "out": 1}


@pytest.mark.slow
def test_real_processes_share_a_folder(folders, tmp_path):
  """Started as on a pod: each fuses its own, and nothing is missing."""
  params, config = tiny.model()
  weights.save_weights(tmp_path / "tiny.safetensors", params, config)
  command = [sys.executable, str(ROOT / "launch" / "local.py"), "-n", "2", "--", sys.executable]
  command += ["-m", "dmfnet_jax", "fuse", *map(str, folders), "-o", str(tmp_path / "out")]
  command += ["--model", str(tmp_path / "tiny.safetensors")]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  said = done.stdout + done.stderr
  assert "[0] dmfnet: process 0 of 2: 6 of 11 pairs" in said
  assert "[1] dmfnet: process 1 of 2: 5 of 11 pairs" in said
  assert set(contents(tmp_path / "out")) == {f"{stem}.png" for stem in STEMS}
