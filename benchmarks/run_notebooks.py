"""
Run the notebooks from top to bottom and write them back with their outputs, less what changes with the machine.

```bash
python benchmarks/run_notebooks.py
```
"""

import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).parents[1] / "recipes" / "notebooks"


def main(names: list[str]) -> None:
    for path in [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            client = nbclient.NotebookClient(
                notebook, timeout=1800, record_timing=False, resources={"metadata": {"path": folder}}
            )
            client.execute()
        for cell in notebook.cells:
            cell.metadata.clear()
            if cell.cell_type == "code":  # progress bars and remarks
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
