"""`noisebench new`: what it writes installs, conforms, type-checks and runs as it is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
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


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_plugin("my_method", tmp_path / "work")


def test_it_writes_a_package_and_leaves_nothing_else(written: Path) -> None:
    files = {file.relative_to(written).as_posix() for file in written.rglob("*") if file.is_file()}
    assert files == {"pyproject.toml", "my_method.py", "tests/test_my_method.py", "README.md"}
    assert [folder.name for folder in written.parent.iterdir()] == ["my_method"]


def test_its_own_test_passes(written: Path) -> None:
    path = os.pathsep.join([str(written), str(ROOT)])
    assert "1 passed" in run("pytest", "-p", "no:cacheprovider", str(written / "tests"), PYTHONPATH=path)


def test_installed_it_is_listed_and_conforms(written: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = tmp_path / "site"
    quiet = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run("pip", "install", *quiet, "--target", str(target), str(written))
    monkeypatch.syspath_prepend(str(target))
    registry._registry.cache_clear()
    try:
        row = next(row for row in everything()["methods"] if row["name"] == "my_method")
        assert row["origin"] == "noisebench-my-method"
        assert row["summary"].startswith("Cross-entropy with smoothed labels")
        check_method(registry.methods()["my_method"].load())
    finally:
        registry._registry.cache_clear()
        sys.modules.pop("my_method", None)


def test_it_passes_mypy_strict(written: Path, tmp_path: Path) -> None:
    # Followed into noisebench alone: torch's sources would take a minute, and the contract's types are noisebench's.
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\nfollow_imports = skip\n[mypy-noisebench.*]\nfollow_imports = silent\n")
    options = ("--config-file", str(config), "--cache-dir", str(tmp_path / "cache"))
    assert "Success" in run("mypy", *options, str(written / "my_method.py"), MYPYPATH=str(ROOT))


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


def test_a_dataset_installs_is_listed_and_conforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_plugin("my_images", tmp_path / "work", "dataset")
    target = tmp_path / "site"
    quiet = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run("pip", "install", *quiet, "--target", str(target), str(made))
    path = os.pathsep.join([str(made), str(ROOT)])
    assert "1 passed" in run("pytest", "-p", "no:cacheprovider", str(made / "tests"), PYTHONPATH=path)
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\nfollow_imports = skip\n[mypy-noisebench.*]\nfollow_imports = silent\n")
    options = ("--config-file", str(config), "--cache-dir", str(tmp_path / "cache"))
    assert "Success" in run("mypy", *options, str(made / "my_images.py"), MYPYPATH=str(ROOT))
    monkeypatch.syspath_prepend(str(target))
    registry._registry.cache_clear()
    try:
        row = next(row for row in everything()["datasets"] if row["name"] == "my_images")
        assert (row["origin"], row["size"]) == ("noisebench-my-images", {"train": 200, "test": 100})
        check_dataset(registry.datasets()["my_images"].load())
        assert verify("my_images", None).ok
    finally:
        registry._registry.cache_clear()
        whole_dataset.cache_clear()
        sys.modules.pop("my_images", None)


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
