"""Runs a notebook from start to end and writes its outputs into it, without paths and times of this machine.

    python scripts/run_tutorial.py [docs/tutorial.ipynb]

needs nbclient and ipykernel.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run by this very Python, in a folder that is thrown away.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "here"}
        (Path(folder) / "kernels" / "here").mkdir(parents=True)
        (Path(folder) / "kernels" / "here" / "kernel.json").write_text(json.dumps(spec))
        specs = KernelSpecManager(kernel_dirs=[str(Path(folder) / "kernels")])
        manager = AsyncKernelManager(kernel_name="here", kernel_spec_manager=specs)
        (Path(folder) / "work").mkdir()
        client = NotebookClient(notebook, km=manager, timeout=600, resources={"metadata": {"path": f"{folder}/work"}})
        client.execute()
    return cleaned(notebook)


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without times and temporary folders, and with the kernel of anybody."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for holder, key in [(output, "text"), (data, "text/plain"), (data, "text/html")]:
                if key in holder:
                    holder[key] = re.sub(r" · (\d+:)?\d+:\d\d\b", "", holder[key])
                    holder[key] = re.sub(r"/\S*/tmp\w+", "/tmp/noisebench-runs", holder[key])
                    holder[key] = re.sub(r"<Figure[^>]*>|<noisebench\.plots\.Picture[^>]*>", "<Figure>", holder[key])
    return notebook


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else TUTORIAL
    nbformat.write(executed(file), file)
