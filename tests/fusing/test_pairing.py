"""Which sources are pairs: endings of names, BIDS, nnU-Net, lists; a stand-in for the model."""

import json
from pathlib import Path

import numpy as np
import pytest
from fake_model import fuse, listing

from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.pairing import Naming
from dmfnet_jax.fusing.triples import find_triples
from dmfnet_jax.io import pictures


def write(root: Path, *names: str) -> None:
  """Writes small pictures, each another one."""
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(name.encode())
    pictures.write_image(path, np.random.default_rng(seed).integers(1, 256, (6, 6), np.uint8))


def test_endings_tell_a_from_b_in_one_folder(tmp_path, model, capsys):
  write(tmp_path / "in", "p1_T1w.png", "p1_pet.png", "p2_T1w.png", "p2_pet.png", "p1_mask.png")
  options = {"suffix_a": "_T1w", "suffix_b": "_pet"}
  assert fuse(tmp_path / "in", tmp_path / "in", tmp_path / "out", **options) == 0
  assert listing(tmp_path / "out") == ["p1.png", "p2.png"]
  assert "left out: 1 with other endings than '_T1w' and '_pet'" in capsys.readouterr().err
  # Alone the pair has the same name and so the same noise.
  alone = [tmp_path / "in" / f"p1{ending}.png" for ending in ("_T1w", "_pet")]
  assert fuse(*alone, tmp_path / "alone", **options) == 0
  results = [(tmp_path / folder / "p1.png").read_bytes() for folder in ("out", "alone")]
  assert results[0] == results[1]
  # Results of other endings are not kept for these.
  with pytest.raises(UserError, match="another suffix-b"):
    fuse(*[tmp_path / "in"] * 2, tmp_path / "out", resume=True, suffix_a="_T1w", suffix_b="_mask")


def test_an_ending_may_be_missing_or_part_of_the_other(tmp_path, model):
  write(tmp_path, "in/1.png", "in/1_ct.png", "in/2.png", "in/2_ct.png")
  assert fuse(tmp_path / "in", tmp_path / "in", tmp_path / "out", suffix_b="_ct") == 0
  assert listing(tmp_path / "out") == ["1.png", "2.png"]


def test_the_error_names_the_endings_that_would_do(tmp_path, model):
  write(tmp_path, "a/1_mri.png", "a/2_mri.png", "b/1_ct.png", "b/2_ct.png")
  with pytest.raises(UserError, match=r"add --suffix-a _mri --suffix-b _ct$"):
    fuse(tmp_path / "a", tmp_path / "b", tmp_path / "out")
  write(tmp_path, "c/1-x-T1.png", "c/2-y-T1.png", "d/1-x.png", "d/2-y.png")
  with pytest.raises(UserError, match=r"add --suffix-a -T1$"):
    fuse(tmp_path / "c", tmp_path / "d", tmp_path / "out")
  words = [str(tmp_path / "c"), str(tmp_path / "d"), "-o", str(tmp_path / "cd")]
  assert main(["fuse", *words, "--suffix-a", "-T1"]) == 0
  assert listing(tmp_path / "cd") == ["1-x.png", "2-y.png"]


BIDS = ("sub-01/anat/sub-01_T1w.png", "sub-01/pet/sub-01_trc-fdg_pet.png")
BIDS += ("sub-02/ses-1/anat/sub-02_ses-1_T1w.png", "sub-02/ses-1/pet/sub-02_ses-1_pet.png")
BIDS += ("sub-02/ses-2/anat/sub-02_ses-2_T1w.png",)


def test_bids_is_known_by_its_folders(tmp_path, model, capsys):
  write(tmp_path / "in", *BIDS)
  (tmp_path / "in" / "participants.tsv").write_text("participant_id")
  assert fuse(tmp_path / "in", tmp_path / "in", tmp_path / "out") == 0
  assert listing(tmp_path / "out") == ["sub-01.png", "sub-02_ses-1.png"]
  told = capsys.readouterr().err
  assert "BIDS: A is *_T1w, B is *_pet" in told
  assert f"no partner for {tmp_path / 'in' / BIDS[-1]}" in told
  # Where several images could be meant, the user says which.
  write(tmp_path / "in", "sub-01/anat/sub-01_FLAIR.png")
  with pytest.raises(UserError, match="by --suffix-a, one of _FLAIR, _T1w, _pet"):
    fuse(tmp_path / "in", tmp_path / "in", tmp_path / "other")
  write(tmp_path / "in", "sub-01/pet/sub-01_trc-pib_pet.png")
  with pytest.raises(UserError, match=r"sub-01: .* both end in _pet: name more of the ending"):
    fuse(tmp_path / "in", tmp_path / "in", tmp_path / "other", suffix_a="_FLAIR")
  endings = {"suffix_a": "_FLAIR", "suffix_b": "_trc-pib_pet"}
  assert fuse(tmp_path / "in", tmp_path / "in", tmp_path / "other", **endings) == 0
  assert listing(tmp_path / "other") == ["sub-01.png"]


def test_channels_of_nnunet_are_known(tmp_path, model, capsys):
  write(tmp_path / "in", *(f"{case}_000{i}.png" for case in ("x", "y") for i in range(3)))
  window = {"window_b": "0,200"}
  assert fuse(tmp_path / "in", tmp_path / "in", tmp_path / "out", **window) == 0
  assert listing(tmp_path / "out") == ["x.json", "x.png", "y.json", "y.png"]
  assert "nnU-Net: A is *_0000, B is *_0001" in capsys.readouterr().err
  repeats = json.loads((tmp_path / "out" / "x.json").read_text())["options"]
  assert "--suffix-a=_0000 --suffix-b=_0001" in repeats


@pytest.mark.parametrize(
  ("lines", "roots"),
  [
    ("mri/1.png,pet/7.png,one\nmri/2.png,pet/8.png,two\n", ()),
    ("name;b;a;age\none;pet/7.png;mri/1.png;50\n\ntwo;pet/8.png;mri/2.png;\n", ()),
    ("1.png\t7.png\tone\n2.png\t8.png\ttwo", ("mri", "pet")),
  ],
)
def test_a_list_names_the_pairs(tmp_path, model, lines, roots):
  write(tmp_path, "mri/1.png", "mri/2.png", "pet/7.png", "pet/8.png")
  (tmp_path / "pairs.csv").write_text(lines)
  folders = [str(tmp_path / root) for root in roots]
  given = [*folders, "--pairs", str(tmp_path / "pairs.csv"), "-o", str(tmp_path / "out")]
  assert main(["fuse", *given]) == 0
  assert listing(tmp_path / "out") == ["one.png", "two.png"]


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ("", "holds no pair"),
    ("1.png\n", "line 1: give the paths of A and of B"),
    ("a,b\n1.png,none.png\nx.png,1.png", "line 2: .*none.png, line 3: .*x.png"),
    ("1.png,2.png\n1.png,1.png", "line 2: the name 1 is that of line 1, too"),
    ("1.png,2.png,../x", "the name '../x' is no file's name"),
    ("1.png,.", "line 1: A is a picture and B a folder"),
    (b"\xff\xfe", "not text in UTF-8"),
  ],
)
def test_mistakes_in_a_list_are_named(tmp_path, model, lines, message):
  write(tmp_path, "1.png", "2.png")
  (tmp_path / "pairs.csv").write_bytes(lines if isinstance(lines, bytes) else lines.encode())
  with pytest.raises(UserError, match=message):
    fuse(None, None, tmp_path / "out", pairs=str(tmp_path / "pairs.csv"))
  assert not (tmp_path / "out").exists()


def test_a_file_with_itself_is_told(tmp_path, model, capsys):
  write(tmp_path, "1.png")
  assert fuse(tmp_path / "1.png", tmp_path / "1.png", tmp_path / "out") == 0
  assert "warning: A and B are the same" in capsys.readouterr().err


def test_without_a_list_sources_are_needed(capsys):
  assert main(["fuse", "-o", "out"]) == 2
  assert "required: A, B" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("a", "b", "says"),
  [
    ("ct/1.png", "pet/1.png", "A is CT and B is PET"),
    ("x/1_T1w.png", "x/1_FLAIR.png", "A is T1w and B is FLAIR"),
    ("ir/1.png", "vis/1.png", "A is infrared and B is visible"),
    ("pet/1.png", "mri/1.png", "A is PET and B is MRI"),  # the wrong way round
    ("mri/1.png", "ct/1.png", None),
    ("t1/1_T1w.png", "x/1_pet.png", None),
    ("ct/1.png", "other/1.png", None),  # nothing says what B is
  ],
)
def test_pairs_that_a_model_was_not_trained_on_are_told(tmp_path, model, capsys, a, b, says):
  write(tmp_path, a, b)
  assert fuse(tmp_path / a, tmp_path / b, tmp_path / "out") == 0
  assert "trained" not in capsys.readouterr().err  # nobody knows on what
  model.trained_on = ("MRI-CT", "MRI-PET")
  assert fuse(tmp_path / a, tmp_path / b, tmp_path / "out") == 0
  told = capsys.readouterr().err
  assert ("fake was not trained on such pairs, but on MRI-CT, MRI-PET" in told) == bool(says)
  assert says is None or says in told


def test_evaluate_pairs_alike(tmp_path):
  names = ("p1_T1w.png", "p1_pet.png", "p2_T1w.png", "p2_pet.png", "p1_mask.png")
  write(tmp_path, *(f"in/{name}" for name in names), "out/p1.png", "out/p2.png")
  (tmp_path / "pairs.csv").write_text("in/p1_T1w.png,in/p1_pet.png,p1\n")
  folder, fused = tmp_path / "in", tmp_path / "out"
  triples, failures = find_triples(folder, folder, fused, naming=Naming("_T1w", "_pet"))
  paths = triples["p2"].a, triples["p2"].b, triples["p2"].out
  assert [path.name for path in paths] == ["p2_T1w.png", "p2_pet.png", "p2.png"]
  assert list(triples) == ["p1", "p2"]
  assert not failures
  listed = Naming(pairs=str(tmp_path / "pairs.csv"))
  triples, failures = find_triples(None, None, fused, naming=listed)
  assert triples["p1"].a.name == "p1_T1w.png"
  assert list(failures) == ["p2"]
  with pytest.raises(UserError, match="A and B are one folder"):
    find_triples(folder, folder, fused)
