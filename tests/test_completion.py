"""`dmfnet completion`: what a shell offers behind a few words."""

import subprocess

import pytest

from dmfnet_jax.cli import COMMANDS, main
from dmfnet_jax.data.datasets import DATASETS


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
  """A function from the words of a line, the last one unfinished, to what bash offers for it."""
  folder = tmp_path_factory.mktemp("completion")
  (folder / "mri.png").touch()

  def offered(script, *words):
    line = " ".join(f"'{word}'" for word in ("dmfnet", *words))
    code = (
      f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}\n"
      '_shtab_dmfnet && printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
      ["bash", "-s"], input=code, capture_output=True, text=True, check=False, cwd=folder
    )
    assert not done.stderr
    return set(done.stdout.split())

  return offered


@pytest.fixture
def script(capsys):
  assert main(["completion", "bash"]) == 0
  return capsys.readouterr().out


@pytest.mark.parametrize(
  ("words", "expected"),
  [
    (("",), {*COMMANDS}),
    (("fu",), {"fuse"}),
    (("fuse", "a.png", "b.png", "--preci"), {"--precision"}),
    (("fuse", "a.png", "b.png", "--precision", ""), {"float32", "bfloat16"}),
    (("fuse", "mr"), {"mri.png"}),
    (("fuse", "a.png", "b.png", "--model", "mr"), {"mri.png"}),
    (("data", "prepare", ""), {*DATASETS}),
  ],
)
def test_bash_offers(complete, script, words, expected):
  assert expected <= complete(script, *words)


def test_zsh_has_a_completion_of_every_command(capsys):
  assert main(["completion", "zsh"]) == 0
  out = capsys.readouterr().out
  assert out.startswith("#compdef dmfnet")
  assert all(f"\n    {name}:'" in out for name in COMMANDS)


def test_another_shell_is_refused(capsys):
  assert main(["completion", "cmd.exe"]) == 2
  assert "invalid choice: 'cmd.exe'" in capsys.readouterr().err


def test_the_help_of_preparing_lists_the_datasets(capsys):
  assert main(["data", "prepare", "--help"]) == 0
  out = capsys.readouterr().out
  lines = [" ".join(line.split()) for line in out.splitlines()]
  assert all(f"{name} {dataset.about}" in lines for name, dataset in DATASETS.items())
  assert main(["data", "prepare", "nothing", "--data-dir", "d"]) == 2
  error = capsys.readouterr().err
  assert "invalid choice: 'nothing'" in error
  assert all(name in error for name in DATASETS)
