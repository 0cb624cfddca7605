"""What is shipped, and what starting up costs: wheel and sdist, the two symlinks, lazy imports, no branch on a name."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from noisebench import registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "noisebench"
BUILT_IN = ("methods", "datasets")


def python(code: str, path: Path = ROOT, cwd: Path | None = None) -> str:
    """Standard output of a new interpreter that finds noisebench in `path` alone."""
    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --------------------------------------------------------------------------------------------- wheel and sdist


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of a copy of the checkout, uncommitted files included."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout: what belongs to the project is not known")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    copy = tmp_path_factory.mktemp("checkout")
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(ROOT / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def needed() -> set[str]:
    """Every file that an installed noisebench must have, below the package."""
    code = ("*.py", "nn/*.py", "figures/*.py", *(f"{kind}/*.py" for kind in BUILT_IN))
    patterns = (*code, "py.typed", "benchmarks/*.yaml", "templates/*")
    return {file.relative_to(ROOT).as_posix() for pattern in patterns for file in PACKAGE.glob(pattern)}


def test_the_wheel_has_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: info for info in archive.infolist()}
    assert {name for name in files if ".dist-info/" not in name} == needed()
    links = [name for name, info in files.items() if (info.external_attr >> 28) == 0o12]
    assert not links, "a symlink in a wheel points nowhere"


def test_the_sdist_has_all_that_a_wheel_is_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert needed() | {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= files


def test_an_unpacked_wheel_works_away_from_the_checkout(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import noisebench, sys; print(noisebench.__file__); from noisebench.cli import app; app(['list', '--json'])"
    where, _, listed = python(code, tmp_path / "site", cwd=tmp_path).partition("\n")
    assert Path(where).is_relative_to(tmp_path / "site")
    found = json.loads(listed)
    for kind, known in (("methods", registry.methods()), ("datasets", registry.datasets())):
        ours = {name for name, entry in known.entries.items() if entry.origin == "noisebench"}
        assert ours <= {row["name"] for row in found[kind]}
    assert {row["name"] for row in found["benchmarks"]} == set(registry.benchmarks())
    assert found["problems"] == []


# ---------------------------------------------------------------------------------------------- the two symlinks


@pytest.mark.parametrize("kind", BUILT_IN)
def test_methods_and_datasets_stand_at_the_top_and_are_linked_into_the_package(kind: str) -> None:
    link = PACKAGE / kind
    if not link.is_symlink():
        pytest.skip("an installed copy: files in place of links")
    assert link.readlink() == Path("..", kind)
    assert not (ROOT / kind / "__init__.py").exists()


def test_a_checkout_does_not_hide_a_package_named_datasets(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("WHO = 'Hugging Face'\n")
    code = "import sys; assert sys.path[0] == ''; import datasets; print(datasets.WHO)"
    assert python(code, tmp_path, cwd=ROOT).strip() == "Hugging Face"


# ------------------------------------------------------------------------------------------------- lazy imports

HEAVY = "import sys; heavy = {'torch', 'mlflow', 'lightning_fabric'} & set(sys.modules); assert not heavy, heavy"
QUIET = "import contextlib, io, noisebench.cli as cli\nwith contextlib.redirect_stdout(io.StringIO()):"


@pytest.mark.parametrize(
    "code",
    [
        "import noisebench",
        f"{QUIET} cli.app(['--help'], standalone_mode=False)",
        f"{QUIET} cli.app(['list'], standalone_mode=False)",
        f"{QUIET} cli.app(['leaderboard', '--rebuild', 'runs'], standalone_mode=False)",
    ],
    ids=["import", "help", "list", "rebuild"],
)
def test_starting_up_imports_neither_torch_nor_mlflow(code: str, tmp_path: Path) -> None:
    python(f"{code}\n{HEAVY}", cwd=tmp_path)


def test_placing_a_board_of_10_000_cells_imports_neither_torch_nor_mlflow(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from noisebench.board import table_of
from noisebench.standing import result_of
from noisebench.config import load_benchmark
seeds = list(range(1250))
config = load_benchmark("digits", [f"seeds={seeds}", "methods=[ce, gce, elr, mixup]"])
cells = config.cells()
assert len({cell.fingerprint() for cell in cells}) == len(cells) == 10_000
results = [result_of(cell, Path("nowhere")) for cell in cells]
assert {result["status"] for result in results} == {"missing"}
"""
    python(code + HEAVY, cwd=tmp_path)


# ------------------------------------------------------------------------------------------ no branch on a name


def harness() -> Iterator[tuple[Path, ast.AST]]:
    """Every node of the harness; methods and datasets may name each other, it may not."""
    for file in [*PACKAGE.glob("*.py"), *PACKAGE.glob("nn/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            yield file, node


def compared(node: ast.AST) -> Iterator[object]:
    """The constants that a comparison, a `case` or a look-up by a constant key has."""
    if isinstance(node, ast.Compare):
        parts: list[ast.expr] = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        parts = [node.value]
    elif isinstance(node, ast.Subscript):
        parts = [node.slice]
    else:
        return
    for part in parts:
        for inner in [part, *getattr(part, "elts", [])]:
            if isinstance(inner, ast.Constant):
                yield inner.value


def test_the_harness_compares_nothing_with_the_name_of_a_method_or_dataset() -> None:
    names = {*registry.methods().entries, *registry.datasets().entries}
    found = [f"{f.name}:{n.lineno}: {c!r}" for f, n in harness() for c in compared(n) if c in names]  # type: ignore[attr-defined]
    assert not found


def test_the_harness_imports_no_method_and_no_dataset() -> None:
    found = []
    for file, node in harness():
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [f"{file.name}: {m}" for m in modules if m.startswith(("noisebench.methods", "noisebench.datasets"))]
    assert not found
