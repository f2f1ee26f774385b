"""The notebook of the guides runs as it is, and shows what it says."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
  """What the notebook's cells print and draw, in their order."""
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  folder = tmp_path_factory.mktemp("notebook")
  NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
  assert not any(folder.iterdir())  # it leaves nothing beside it
  return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def test_it_is_stored_without_outputs():
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(notebook)
  assert not [cell for cell in notebook.cells if cell.get("outputs")]


def test_it_draws_two_panels_and_the_metrics(outputs):
  assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


def test_its_table_ranks_the_released_model_over_the_mean(outputs):
  text = "".join(output.text for output in outputs if output.output_type == "stream")
  assert "Traceback" not in text
  rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
  header = next(line.split() for line in text.splitlines() if "VIFF" in line)
  assert len(header) == 12
  viff = header.index("VIFF")
  assert float(rows["small-v2"][viff]) > float(rows["mean"][viff]) > 0
