"""The notebook is what `python -m tests.notebook` writes, and its cells run."""

import nbformat
import pytest

from tests import notebook


def test_its_cells_are_those_of_its_script_and_have_outputs() -> None:
    book = nbformat.read(notebook.FILE, as_version=4)
    assert [cell.source for cell in book.cells] == list(notebook.CELLS)
    shown = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("data:image/webp" in str(output) for output in shown) == 2
    assert all(output.output_type != "error" for output in shown)


@pytest.mark.integration
def test_every_cell_runs() -> None:
    book = notebook.run(notebook.made())
    assert book.cells[-1].outputs[0]["data"]["text/plain"] == "True"
    assert "<th>threshold</th>" in str(book.cells[3].outputs)
