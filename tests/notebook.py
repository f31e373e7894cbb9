"""Write docs/quickstart.ipynb with its outputs: `python -m tests.notebook`. A test runs its cells, too.

Cells are as `ruff format`, which formats notebooks, leaves them.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FILE = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
CELLS = (
    "# A detector in three lines\n\n"
    "`pvqae.fit` learns from photographs of good parts only. This notebook runs offline, on the embedded demo: "
    "photographs of scikit-image (CC0), cut into parts, with made defects. It says nothing about quality.",
    'from pathlib import Path\n\nimport pvqae\nfrom pvqae.datasets import demo\n\ndemo.make(Path("parts"))',
    "## Fit\n\nA folder, a list of files, arrays, or a frame with the column `path`; eight at least, and more make a "
    "sharper promise about false alarms. Here several photographs show the same part, so a frame says which: else a "
    "part would be judged by what its own photographs taught, and the threshold would be too low.",
    'import pandas as pd\n\nfiles = sorted(Path("parts/gravel/train/good").iterdir())\n'
    'normals = pd.DataFrame({"path": files, "part": [file.stem.split("_")[0] for file in files]})\n'
    'detector = pvqae.fit(normals, name="gravel")\ndetector',
    "## Score",
    'file = sorted(Path("parts/gravel/test/fill").iterdir())[0]\nfound = detector.score(file)\nfound',
    "print(\n    found.decision,\n    round(found.score, 2),\n    "
    '"above" if found.score > found.threshold else "within",\n    round(found.threshold, 2),\n)'
    "\nprint(found.map.shape, found.mask.sum(), found.regions[:1])",
    "Arrays work as well: `H x W x 3` or grey, `uint8`, `uint16` or floats in [0, 1].",
    'pixels = pvqae.read_image(sorted(Path("parts/gravel/test/good").iterdir())[0])\ndetector.score(pixels)',
    "## Save and load\n\nA bundle is safetensors, JSON and hashes: nothing in it is executed, and every file is "
    "checked when it is loaded. `python -m flows serve`, `pvqae score` and `pvqae export` take it.",
    'detector.save("bundle")\nagain = pvqae.load("bundle")\nagain.score(pixels).score == detector.score(pixels).score',
)


def made() -> nbformat.NotebookNode:
    """Return the notebook without outputs: a cell of code is one that does not begin as text."""
    book = nbformat.v4.new_notebook()
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, source in enumerate(CELLS):
        code = source.startswith(("from ", "import ", "detector", "file", "print", "pixels"))
        new = nbformat.v4.new_code_cell if code else nbformat.v4.new_markdown_cell
        book.cells.append(new(source, id=f"cell-{number}"))
    return book


def run(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run all cells in a folder of their own, on one core; progress on stderr is left out of the outputs."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})  # beside other work, threads of a process wait for each other
    try:
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(
                book, timeout=1200, kernel_name="python3", resources={"metadata": {"path": folder}}
            ).execute()
    finally:
        os.sched_setaffinity(0, cores)
    for cell in book.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.output_type == "execute_result" or _of_print(cell, one)]
    return book


def _of_print(cell: nbformat.NotebookNode, output: nbformat.NotebookNode) -> bool:
    return output.output_type == "stream" and output.name == "stdout" and "print" in cell.source


if __name__ == "__main__":
    FILE.write_text(json.dumps(run(made()), indent=1, sort_keys=True) + "\n", "utf-8")
    print(f"wrote {FILE}", file=sys.stderr)
