"""Plug-ins and files in methods/ and datasets/: found without an import, and one that is broken spoils no other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from noisebench import dataset_names, registry
from noisebench.errors import UserError

METHOD = '''\
class Mine:
    """Does my thing."""

    name = "mine"
    paper = "Me, 2024"
    rate: float = 0.5
'''


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Each test reads the registry anew, and the next one does too."""
    for cached in (registry._registry, registry._code_of, registry._nn_parts):
        cached.cache_clear()
    yield
    for cached in (registry._registry, registry._code_of, registry._nn_parts):
        cached.cache_clear()


Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on sys.path: its entry points and its files."""
    before = set(sys.modules)

    def make(name: str, points: str, files: dict[str, str | bytes], group: str = "noisebench.methods") -> Path:
        site = tmp_path / f"site-{name}"
        metadata = site / f"{name.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{points}\n")
        for file, content in files.items():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        monkeypatch.syspath_prepend(str(site))
        return site

    yield make
    for name in set(sys.modules) - before:
        if name.startswith("plug"):
            del sys.modules[name]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package in place of noisebench's own, for files in methods/ and datasets/."""
    for kind in ("methods", "datasets", "benchmarks"):
        (tmp_path / "house" / kind).mkdir(parents=True)
    monkeypatch.setattr(registry, "PACKAGE", tmp_path / "house")
    return tmp_path / "house"


# ------------------------------------------------------------------------------------------------- entry points


def test_a_plug_in_is_equal_to_a_built_in(install: Install) -> None:
    install("plug-a", "mine = plug_a:Mine", {"plug_a.py": METHOD})
    entry = registry.methods()["mine"]
    assert (entry.summary, entry.origin, entry.constants["paper"]) == ("Does my thing.", "plug-a", "Me, 2024")
    assert "plug_a" not in sys.modules, "listing imports nothing"
    assert entry.load().name == "mine"
    assert "ce" in registry.methods().entries


def test_a_dataset_plug_in_may_be_a_module(install: Install) -> None:
    source = '"""My images."""\n\nLICENCE = "CC0"\n\n\ndef load(root, download=False):\n    return root\n'
    install("plug-d", "mine = plug_d", {"plug_d.py": source}, group="noisebench.datasets")
    entry = registry.datasets()["mine"]
    assert (entry.summary, entry.constants["LICENCE"]) == ("My images.", "CC0")
    assert entry.load().load("root") == "root"


def test_a_plug_in_that_cannot_be_imported_is_listed_and_says_why(install: Install) -> None:
    install("plug-b", "mine = plug_b:Mine", {"plug_b.py": METHOD + "raise RuntimeError('no licence\\nat all')\n"})
    entry = registry.methods()["mine"]
    assert entry.summary == "Does my thing."
    with pytest.raises(UserError) as caught:
        entry.load()
    assert str(caught.value) == "'mine' (plug-b) cannot be imported: RuntimeError: no licence"


@pytest.mark.parametrize(
    ("points", "files", "reason"),
    [
        ("mine = plug_gone:Mine", {}, "No module named 'plug_gone'"),
        ("mine = plug_c:Other", {"plug_c.py": METHOD}, "has no attribute 'Other'"),
        ("mine = plug_s:Mine", {"plug_s.py": "class Mine(:\n"}, "SyntaxError"),
        ("mine = plug_n:Mine", {"plug_n.py": b"\0"}, "null bytes"),
        ("mine = plug_l:Mine", {"plug_l.py": b"x = '\xe9'\n"}, "SyntaxError"),
    ],
)
def test_a_broken_plug_in_is_listed_and_its_error_names_it(
    install: Install, points: str, files: dict[str, str | bytes], reason: str
) -> None:
    install("plug-x", points, files)
    entry = registry.methods()["mine"]
    assert entry.code(), "a board with it can still be placed"
    with pytest.raises(UserError) as caught:
        entry.load()
    assert str(caught.value).startswith("'mine' (plug-x) cannot be imported: ")
    assert reason in str(caught.value)


def test_an_entry_point_that_names_no_module_is_left_out(install: Install) -> None:
    install("plug-p", "mine = not a module!\nother = plug_p:Mine", {"plug_p.py": METHOD})
    known = registry.methods()
    assert "mine" not in known.entries
    assert known["other"].origin == "plug-p"
    (problem,) = known.problems
    assert "'mine'" in problem
    assert "not a module!" in problem


def test_a_name_that_is_taken_stays_with_who_has_it(install: Install) -> None:
    install("plug-q", "ce = plug_q:Mine", {"plug_q.py": METHOD})
    known = registry.methods()
    assert known["ce"].origin == "noisebench"
    assert known.problems == ["method 'ce' of plug-q is left out: noisebench has it"]


def test_two_plug_ins_with_one_name(install: Install) -> None:
    install("plug-2", "mine = plug_two:Mine", {"plug_two.py": METHOD})
    install("plug-1", "mine = plug_one:Mine", {"plug_one.py": METHOD})
    known = registry.methods()
    assert known["mine"].origin == "plug-1", "the same one whatever the order of sys.path"
    assert known.problems == ["method 'mine' of plug-2 is left out: plug-1 has it"]


# ------------------------------------------------------------------------------------- files in methods/, datasets/


def test_every_class_with_a_name_is_a_method(house: Path) -> None:
    (house / "methods" / "two.py").write_text(
        METHOD + '\n\nclass Part:\n    pass\n\n\nclass Yours:\n    name = "yours"\n'
    )
    assert list(registry.methods().entries) == ["mine", "yours"]


@pytest.mark.parametrize("broken", [b"def broken(:\n", b"\0", b"name = '\xe9'\n", b"(" * 10_000])
@pytest.mark.parametrize("kind", ["methods", "datasets"])
def test_a_file_that_does_not_parse_is_left_out_and_the_others_go_on(house: Path, kind: str, broken: bytes) -> None:
    (house / kind / "a_broken.py").write_bytes(broken)
    (house / kind / "mine.py").write_text(METHOD)
    known = getattr(registry, kind)()
    assert list(known.entries) == ["mine"]
    (problem,) = known.problems
    assert problem.startswith(f"{kind}/a_broken.py")


def test_a_citation_may_be_inherited_and_a_name_may_not(house: Path) -> None:
    source = METHOD + '\n\nclass Part(Mine):\n    pass\n\n\nclass Yours(Part):\n    name = "yours"\n    rate = RATE\n'
    source = "RATE = 0.7\n\n\n" + source
    (house / "methods" / "two.py").write_text(source)
    known = registry.methods()
    assert (list(known.entries), known.problems) == (["mine", "yours"], [])
    assert known["yours"].constants == {"name": "yours", "paper": "Me, 2024", "rate": 0.7}


def test_two_files_with_one_name(house: Path) -> None:
    for file in ("a.py", "b.py"):
        (house / "methods" / file).write_text(METHOD)
    known = registry.methods()
    source = known["mine"].source
    assert source is not None
    assert source.name == "a.py"
    (problem,) = known.problems
    assert "'mine'" in problem
    assert "b.py" in problem


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UserError, match="method 'mixupp' is unknown; did you mean mixup"):
        registry.methods()["mixupp"]
    with pytest.raises(UserError, match=r"dataset 'qqqqqqqq' is unknown; known: .*digits"):
        registry.datasets()["qqqqqqqq"]


# ------------------------------------------------------------------------------------------- what counts as code


def code_of(file: Path, text: str) -> str:
    file.write_text(text)
    registry._code_of.cache_clear()
    return registry._code_of((file,))


def test_code_changes_with_the_code_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    before = code_of(file, METHOD)
    assert code_of(file, "# a comment\n" + METHOD.replace("    rate", "\n    # why\n    rate")) == before
    assert code_of(file, METHOD.replace("Does my thing.", "Does another thing.")) == before
    assert code_of(file, METHOD.replace('"mine"', "'mine'")) == before
    assert code_of(file, METHOD.replace("0.5", "0.6")) != before
    assert code_of(file, METHOD.replace("Me, 2024", "Me, 2025")) != before


def test_what_a_dataset_tells_people_of_itself_is_no_part_of_its_code(tmp_path: Path) -> None:
    file, text = tmp_path / "set.py", 'SOURCE = "here"\nLICENCE = "none"\nNOISE = "none known"\nNUM_CLASSES = 10\n'
    before = code_of(file, text)
    assert code_of(file, text.replace("here", "there").replace('"none"', '"MIT"')) == before
    assert code_of(file, text.replace("none known", "some")) == before
    assert code_of(file, text.replace("10", "11")) != before


def test_what_a_method_couples_is_no_part_of_its_code(tmp_path: Path) -> None:
    before = code_of(tmp_path / "mine.py", METHOD)
    assert code_of(tmp_path / "mine.py", METHOD.replace("    name =", '    coupled = "pairs"\n    name =')) == before
    assert code_of(tmp_path / "mine.py", METHOD.replace("    name =", "    coupled = pairs()\n    name =")) != before


def test_a_dataset_may_be_named_with_a_path() -> None:
    assert dataset_names.with_path("image_folder:my/photos") == ("image_folder", "my/photos")
    assert dataset_names.with_path("digits") == ("digits", None)
    assert dataset_names.sized("image_folder:my/photos@300") == ("image_folder:my/photos", 300)
    assert dataset_names.sized("image_folder:my@home/photos") == ("image_folder:my@home/photos", None)
    assert dataset_names.dataset_of("image_list:a.csv@50").name == "image_list"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("image_folder", "write image_folder:PATH"),
        ("digits:here", "write digits, without a path"),
        ("image_folder:not/there", "there is no"),
        ("image_foldr:x", "did you mean image_folder"),
    ],
)
def test_a_path_that_is_missing_or_one_too_many_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataset_names.dataset_module(name, None)


def test_a_methods_code_is_also_that_of_the_parts_of_networks_that_it_uses(house: Path) -> None:
    (house / "nn").mkdir()
    (house / "nn" / "__init__.py").write_text(
        "from noisebench.nn.used import Used\nfrom noisebench.nn.other import Other\n"
    )
    (house / "nn" / "used.py").write_text("from noisebench.nn._inner import size\nclass Used: pass\n")
    for part in ("_inner", "other"):
        (house / "nn" / f"{part}.py").write_text("size = 1\n")
    method = house / "methods" / "mine.py"
    before = code_of(method, "from noisebench.nn import Used\n" + METHOD)
    seen = {before}
    for part, counts in (("other", False), ("_inner", True), ("used", True)):
        (house / "nn" / f"{part}.py").write_text("size = 2\n")
        after = code_of(method, method.read_text())
        assert (after not in seen) == counts, part
        seen.add(after)


def test_a_plug_ins_code_is_that_of_its_whole_package(install: Install) -> None:
    files: dict[str, str | bytes] = {
        "plug_k/__init__.py": "",
        "plug_k/mine.py": METHOD,
        "plug_k/parts/layer.py": "SIZE = 1\n",
        "plug_k/template.py": "{this is no Python}}",
    }
    site = install("plug-k", "mine = plug_k.mine:Mine", files)

    def code() -> str:
        for cached in (registry._registry, registry._code_of, registry._nn_parts):
            cached.cache_clear()
        return registry.methods()["mine"].code()

    seen = [code()]
    for file, text in (("parts/layer.py", "SIZE = 2\n"), ("template.py", "{another}}")):
        (site / "plug_k" / file).write_text(text)
        seen.append(code())
    assert len(set(seen)) == 3


def test_defaults_of_settings_are_inherited_within_a_file(house: Path) -> None:
    (house / "methods" / "family.py").write_text(
        "class Base:\n    class Hparams:\n        rate: float = 0.5\n        size: int = 3\n"
        "class Inherits(Base):\n    name = 'inherits'\n"
        "class Extends(Base):\n    name = 'extends'\n    class Hparams(Base.Hparams):\n        size: int = 4\n"
        "class Replaces(Base):\n    name = 'replaces'\n    class Hparams:\n        other: int = 1\n"
    )
    found = {name: entry.defaults for name, entry in registry.methods().entries.items()}
    assert found == {
        "inherits": {"rate": 0.5, "size": 3},
        "extends": {"rate": 0.5, "size": 4},
        "replaces": {"other": 1},
    }
