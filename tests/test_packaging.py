"""What the package says of itself: licence, citation, extras, a README that an index can show."""

import re
from pathlib import Path

import pytest
import setuptools
import yaml

import dmfnet_jax

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def metadata():
  """The arguments that setup.py gives to setuptools."""
  with pytest.MonkeyPatch.context() as patch:
    given = {}
    patch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    source = (ROOT / "setup.py").read_text()
    exec(compile(source, ROOT / "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
  return given


def test_licence_is_apache_in_full(metadata):
  text = (ROOT / "LICENSE").read_text()
  assert "Version 2.0, January 2004" in text
  assert "END OF TERMS AND CONDITIONS" in text
  assert metadata["license"] == "Apache-2.0"
  assert metadata["license_files"] == ["LICENSE"]


def test_citation_names_this_version_the_paper_and_its_authors():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["version"] == dmfnet_jax.__version__
  assert citation["license"] == "Apache-2.0"
  paper = citation["preferred-citation"]
  assert paper["url"].endswith("/2506.15218")
  names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
  assert names == ["Dan He", "Weisheng Li", "Guofen Wang", "Yuping Huang", "Shiqiang Liu"]


def test_the_newest_change_is_of_this_version():
  (newest, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
  assert newest == dmfnet_jax.__version__


def test_types_are_for_users_too(metadata):
  assert "py.typed" in metadata["package_data"]["dmfnet_jax"]
  assert (ROOT / "dmfnet_jax" / "py.typed").is_file()


def test_the_description_points_at_nothing_that_an_index_lacks(metadata):
  text = metadata["long_description"]
  assert text.startswith("# dmfnet_jax")
  assert not re.search(r"!\[", text)
  assert re.findall(r"\]\(([^)]*)\)", text)  # addresses of the web stay
  assert all(target.startswith("http") for target in re.findall(r"\]\(([^)]*)\)", text))


def test_every_extra_that_is_named_exists(metadata):
  """In messages, guides, launch files and the Makefile."""
  files = [
    *PAGES,
    ROOT / "Makefile",
    *(ROOT / "launch").iterdir(),
    *ROOT.glob("dmfnet_jax/**/*.py"),
  ]
  named = set()
  for path in files:
    if path.is_file():
      for extras in re.findall(r"(?:dmfnet_jax|['\"]\.)\[([\w,]+)\]['\"]", path.read_text()):
        named |= set(extras.split(","))
  assert {"data", "hub", "serve", "tensorboard"} <= named <= metadata["extras_require"].keys()


def test_tests_install_what_they_use(metadata):
  extras = metadata["extras_require"]
  assert {*extras["data"], *extras["tensorboard"], *extras["serve"]} <= {*extras["test"]}


def test_the_base_install_has_no_tensorflow(metadata):
  names = {re.split(r"[\[>=<; ]", line)[0] for line in metadata["install_requires"]}
  assert not names & {"tensorflow", "tensorflow-cpu", "tensorboard", "gradio", "huggingface_hub"}
  assert "tensorflow-datasets" in names
