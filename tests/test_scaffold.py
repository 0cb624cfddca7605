"""`noisebench new`: what it writes installs, conforms, type-checks and runs as it is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from noisebench import registry
from noisebench.checks import check_dataset, check_method
from noisebench.errors import UserError
from noisebench.listing import everything
from noisebench.loading import whole_dataset
from noisebench.method import Classifier
from noisebench.scaffold import write_plugin
from noisebench.verifying import verify

ROOT = Path(__file__).parents[1]


def run(*command: str, **environment: str) -> str:
    """Standard output of a Python module's command."""
    done = subprocess.run(
        [sys.executable, "-m", *command], env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_writes_a_package_and_leaves_nothing_else(tmp_path: Path) -> None:
    written = write_plugin("my_method", tmp_path / "work")
    files = {file.relative_to(written).as_posix() for file in written.rglob("*") if file.is_file()}
    assert files == {"pyproject.toml", "my_method.py", "tests/test_my_method.py", "README.md"}
    assert [folder.name for folder in written.parent.iterdir()] == ["my_method"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A method and a dataset, as they are written."""
    work = tmp_path_factory.mktemp("work")
    return {"method": write_plugin("my_method", work), "dataset": write_plugin("my_images", work, "dataset")}


@pytest.fixture(scope="module")
def installed(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Both, installed for this process."""
    site = tmp_path_factory.mktemp("site")
    quiet = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run("pip", "install", *quiet, "--target", str(site), *map(str, made.values()))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        registry._registry.cache_clear()
        yield
    registry._registry.cache_clear()
    whole_dataset.cache_clear()
    for name in ("my_method", "my_images"):
        sys.modules.pop(name, None)


def test_their_own_tests_pass(made: dict[str, Path]) -> None:
    path = os.pathsep.join(map(str, [*made.values(), ROOT]))
    tests = [str(folder / "tests") for folder in made.values()]
    assert "2 passed" in run("pytest", "-p", "no:cacheprovider", *tests, PYTHONPATH=path)


def test_they_pass_mypy_strict(made: dict[str, Path], tmp_path: Path) -> None:
    # Followed into noisebench alone: torch's sources would take a minute, and the contract's types are noisebench's.
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\nfollow_imports = skip\n[mypy-noisebench.*]\nfollow_imports = silent\n")
    options = ("--config-file", str(config), "--cache-dir", str(tmp_path / "cache"))
    written = [str(next(folder.glob("*.py"))) for folder in made.values()]
    assert "no issues found in 2 source files" in run("mypy", *options, *written, MYPYPATH=str(ROOT))


def test_installed_a_method_is_listed_and_conforms(installed: None) -> None:
    row = next(row for row in everything()["methods"] if row["name"] == "my_method")
    assert row["origin"] == "noisebench-my-method"
    assert row["summary"].startswith("Cross-entropy with smoothed labels")
    check_method(registry.methods()["my_method"].load())


def test_installed_a_dataset_is_listed_and_conforms(installed: None) -> None:
    row = next(row for row in everything()["datasets"] if row["name"] == "my_images")
    assert (row["origin"], row["size"]) == ("noisebench-my-images", {"train": 200, "test": 100})
    check_dataset(registry.datasets()["my_images"].load())
    assert verify("my_images", None).ok


@pytest.mark.parametrize("name", ["a", "f", "batch", "run", "tensor", "field", "hparams", "x2", "a__b"])
def test_names_that_the_template_itself_uses_still_give_a_working_module(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_plugin(name, tmp_path) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    (made,) = [value for value in vars(module).values() if isinstance(value, type) and vars(value).get("name") == name]
    lines = [line for line in file.read_text().splitlines() if " import " in line]
    assert made.__name__ not in {word.strip() for line in lines for word in line.split("import ")[1].split(",")}
    assert issubclass(made, Classifier)


@pytest.mark.parametrize("name", ["", "My", "my-method", "2x", "_my", "my_", "class", "a b", "a.b", "../x", "é", "a\n"])
def test_a_name_that_is_no_python_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot name a method"):
        write_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "says"),
    [("ce", "a method 'ce' exists"), ("digits", "a dataset 'digits' exists"), ("random", "a Python module 'random'")],
)
def test_a_name_that_is_taken_is_refused(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        write_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("weeks of it")
    with pytest.raises(UserError, match="exists already"):
        write_plugin("mine", tmp_path)
    assert [file.name for file in tmp_path.rglob("*")] == ["mine", "work.txt"]
