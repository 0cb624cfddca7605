"""Archives: unpacked whole or not at all, and nothing outside of the folder."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noisebench.archives import progress_to, published, unpack, unpack_nested
from noisebench.errors import UserError

FILES = {"set/train/cat/1.png": b"cat" * 999, "set/train/dog/2.png": b"", "set/list.txt": b"1\n2\n"}
SUFFIXES = [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip"]


def packed(file: Path, files: dict[str, bytes] = FILES, *special: tarfile.TarInfo) -> Path:
    """An archive of `files`, of the kind that its name says; `special` are a tar's further members."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
            for name, content in files.items():
                made.writestr(name, content)
        return file
    mode: Any = {".tar": "w", ".bz2": "w:bz2", ".xz": "w:xz"}.get(file.suffix, "w:gz")
    with tarfile.open(file, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in special:
            tar.addfile(member)
    return file


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def refusal(archive: Path, unpacks: Callable[[Path, Path], bool] = unpack) -> str:
    """The message that refuses `archive`; it is one line that names the file, and nothing is left but a lock."""
    before = content(archive.parent)
    with pytest.raises(UserError) as caught:
        unpacks(archive, archive.parent / "out" / "made")
    message = str(caught.value)
    assert "\n" not in message
    assert str(archive) in message
    after = content(archive.parent)
    assert {name for name in set(after) - set(before) if not name.endswith(".lock")} == set()
    assert not [f for f in archive.parent.rglob("*") if f.is_dir() and f.name != "out"]
    return message


# Unpacked


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_it_is_unpacked_once(tmp_path: Path, suffix: str) -> None:
    archive, made = packed(tmp_path / f"set{suffix}"), tmp_path / "deep" / "made"
    assert unpack(archive, made)
    assert content(made) == FILES
    (made / "mine.txt").write_text("kept")
    assert not unpack(archive, made)
    assert content(made) == FILES | {"mine.txt": b"kept"}
    assert {f.name for f in made.parent.iterdir()} <= {"made", ".made.lock"}


def test_the_archives_own_top_folder_may_become_the_folder(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip", FILES | {"__MACOSX/._x": b"dropped"})
    unpack(archive, tmp_path / "made", inner="set")
    assert set(content(tmp_path / "made")) == {"train/cat/1.png", "train/dog/2.png", "list.txt"}
    with pytest.raises(UserError, match=r"a\.zip has no folder sets"):
        unpack(archive, tmp_path / "other", inner="sets")
    assert not (tmp_path / "other").exists()


def test_empty_folders_and_harmless_names_are_kept(tmp_path: Path) -> None:
    files = {"./a/..b": b"1", "a//c": b"2", "ümlaut x": b"3"}
    unpack(packed(tmp_path / "a.tar", files, special("empty/", tarfile.DIRTYPE)), tmp_path / "made")
    assert content(tmp_path / "made") == {"a/..b": b"1", "a/c": b"2", "ümlaut x": b"3"}
    assert (tmp_path / "made" / "empty").is_dir()


def test_rights_and_owners_of_the_archive_do_not_count(tmp_path: Path) -> None:
    member = special("shut", tarfile.DIRTYPE)
    member.mode = 0
    unpack(packed(tmp_path / "a.tar", FILES, member), tmp_path / "made")
    assert stat.S_IMODE((tmp_path / "made" / "shut").stat().st_mode) & 0o700 == 0o700


def test_a_tar_of_tars_gives_a_folder_a_class(tmp_path: Path) -> None:
    inner = {}
    for wnid in ("n01", "n02"):
        one = packed(tmp_path / "one.tar", {f"{wnid}_{i}.JPEG": b"%d" % i for i in (1, 2)})
        inner[f"{wnid}.tar"] = one.read_bytes()
    for archive in (packed(tmp_path / "train.tar", inner), packed(tmp_path / "train.tgz", inner)):
        made = tmp_path / archive.suffix[1:]
        assert unpack_nested(archive, made)
        assert not unpack_nested(archive, made)
        assert sorted(content(made)) == ["n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_1.JPEG", "n02/n02_2.JPEG"]


def test_who_watches_is_told_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    archive = packed(tmp_path / "a.tar.gz")
    with progress_to(lambda *said: told.append(said)):
        unpack(archive, tmp_path / "made")
    assert [what for what, *_ in told] == ["checking a.tar.gz"] * 3 + ["unpacking a.tar.gz"] * 4
    assert told[-1][1:] == (archive.stat().st_size,) * 2


# Refused before anything is written


OUTSIDE = ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "..", "a\\..\\..\\out.txt", "C:\\out.txt", "C:out.txt"]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, suffix: str, name: str) -> None:
    message = refusal(packed(tmp_path / f"bad{suffix}", FILES | {name: b"x"}))
    assert "leads outside of its folder; nothing was unpacked" in message
    assert repr(name)[1:-1].replace("\\\\", "\\") in message


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (special("a", tarfile.SYMTYPE, "/etc"), "'a' is a link"),
        (special("a", tarfile.SYMTYPE, "../.."), "'a' is a link"),
        (special("a", tarfile.SYMTYPE, "set"), "'a' is a link"),
        (special("a", tarfile.LNKTYPE, "../../secret"), "'a' is a link"),
        (special("a", tarfile.CHRTYPE), "'a' is a device"),
        (special("a", tarfile.FIFOTYPE), "'a' is a device or a pipe"),
        (special("../a", tarfile.DIRTYPE), "leads outside"),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, member: tarfile.TarInfo, says: str) -> None:
    assert says in refusal(packed(tmp_path / "bad.tar", FILES, member))


def test_links_and_passwords_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as made:
        link = zipfile.ZipInfo("a")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc")
    assert "'a' is a link" in refusal(tmp_path / "bad.zip")
    locked = bytearray(packed(tmp_path / "locked.zip").read_bytes())
    locked[locked.index(b"PK\1\2") + 8] |= 1  # the flag in the central directory
    (tmp_path / "locked.zip").write_bytes(locked)
    assert "is encrypted" in refusal(tmp_path / "locked.zip")


def test_an_inner_archive_is_checked_before_the_first_is_unpacked(tmp_path: Path) -> None:
    good = packed(tmp_path / "one.tar", {"1.JPEG": b"1"}).read_bytes()
    for bad, says in (
        (packed(tmp_path / "two.tar", {"../1.JPEG": b"1"}).read_bytes(), "leads outside"),
        (good[:700], "'n02.tar' is no whole tar"),
        (b"no tar at all" * 99, "'n02.tar' is no whole tar"),
    ):
        archive = packed(tmp_path / "train.tar", {"n01.tar": good, "n02.tar": bad})
        assert says in refusal(archive, unpack_nested)
    assert "leads outside" in refusal(packed(archive, {"n01.tar": good, "../n02.tar": good}), unpack_nested)


def members(file: Path, *rows: tuple[str, bytes | None]) -> Path:
    """An archive of exactly these members, in their order; None is a folder."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as made:
            for name, content in rows:
                made.writestr(name if content is not None else f"{name}/", content or b"")
        return file
    with tarfile.open(file, "w") as tar:
        for name, content in rows:
            member = special(name, tarfile.REGTYPE if content is not None else tarfile.DIRTYPE)
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
    return file


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("a/b", b"1"), ("a/c", b"2"), ("a/b", b"3")], "its member 'a/b' is there twice"),
        ([("a/b", b"1"), ("./a//b", b"1")], "its member 'a/b' is there twice"),
        ([("a", b"1"), ("a/b", b"2")], "its member 'a/b' needs a folder and a file of one name"),
        ([("a", b"1"), ("a/b/c", b"2")], "its member 'a/b/c' needs a folder and a file of one name"),
        ([("a/b", b"1"), ("a", b"2")], "its member 'a' needs a folder and a file of one name"),
        ([("a", b"1"), ("a", None)], "its member 'a' needs a folder and a file of one name"),
    ],
)
def test_two_members_of_one_name_are_refused(
    tmp_path: Path, suffix: str, rows: list[tuple[str, bytes | None]], says: str
) -> None:
    assert says in refusal(members(tmp_path / f"a{suffix}", *rows))


def test_a_class_that_is_there_twice_in_a_tar_of_tars_is_refused(tmp_path: Path) -> None:
    one = packed(tmp_path / "one.tar", {"1.JPEG": b"1"}).read_bytes()
    archive = members(tmp_path / "train.tar", ("n01.tar", one), ("n01.tar", one))
    assert "its member 'n01/1.JPEG' is there twice" in refusal(archive, unpack_nested)


def test_a_folder_may_be_named_twice(tmp_path: Path) -> None:
    unpack(members(tmp_path / "a.tar", ("a", None), ("a/b", b"1"), ("a", None)), tmp_path / "made")
    assert content(tmp_path / "made") == {"a/b": b"1"}


def test_an_archive_is_compared_with_its_published_md5(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tar")
    right = hashlib.md5(archive.read_bytes()).hexdigest()
    with published({archive: "0" * 32}):
        message = refusal(archive)
        assert refusal(archive, unpack_nested) == message
    assert f"has {archive.stat().st_size:,} bytes and MD5 {right}, not the published {'0' * 32}" in message
    with published({archive: right, tmp_path / "other.tar": "0" * 32}):
        assert unpack(archive, tmp_path / "made")
    with published({archive: "0" * 32}):
        assert not unpack(archive, tmp_path / "made"), "what is unpacked is not compared again"
    with published({archive: ""}):
        assert unpack(archive, tmp_path / "again")


# Damaged


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.95])
def test_a_truncated_archive_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    archive = packed(tmp_path / f"short{suffix}", {f"{i}.bin": bytes(range(256)) * 40 for i in range(8)})
    whole = archive.read_bytes().rstrip(b"\0") if suffix == ".tar" else archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * kept)])
    assert "is damaged or no archive: " in refusal(archive)


def test_a_tar_that_ends_between_two_members_is_refused(tmp_path: Path) -> None:
    archive = packed(tmp_path / "short.tar", {"a": b"x" * 512, "b": b"y" * 512})
    archive.write_bytes(archive.read_bytes()[:1024])
    assert "it ends too early" in refusal(archive)


def test_a_broken_header_in_the_middle_is_no_end(tmp_path: Path) -> None:
    archive = packed(tmp_path / "broken.tar", {"a": b"x" * 512, "b": b"y" * 512})
    raw = bytearray(archive.read_bytes())
    raw[1024 + 148] ^= 1  # the checksum of b's header
    archive.write_bytes(raw)
    assert "a header is broken" in refusal(archive)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"page{suffix}"
    archive.write_bytes(b"<html>Sign in to download</html>" * 50)
    assert "is damaged or no archive: " in refusal(archive)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".zip"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_does_no_harm(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    archive = packed(tmp_path / f"a{suffix}")
    raw = bytearray(archive.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    archive.write_bytes(raw)
    made = tmp_path / "below" / "made"
    shutil.rmtree(made.parent, ignore_errors=True)
    try:
        unpack(archive, made)
    except UserError as error:
        assert str(archive) in str(error)
        assert not made.exists()
    else:
        found = list(content(made).values())
        assert all(one in FILES.values() for one in found), "a checksum guards all contents"
        assert len(found) == len(FILES) or suffix == ".zip", "and the names, but for a zip's list of them"
    assert {f.name for f in made.parent.iterdir()} <= {"made", ".made.lock"}


def test_other_files_and_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_bytes(b"")
    assert "give one of .tar, " in refusal(tmp_path / "a.rar")
    assert refusal(tmp_path / "gone.tar").endswith("gone.tar is missing")
    (tmp_path / "made").write_text("mine")
    with pytest.raises(UserError, match="made is there, and no folder"):
        unpack(packed(tmp_path / "a.tar"), tmp_path / "made")
    assert (tmp_path / "made").read_text() == "mine"


# Whole or absent


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, copy: Any, size: int) -> None:
        copy.write(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    assert "No space left on device; nothing of it is left there" in refusal(packed(tmp_path / "a.tar"))


def test_an_interruption_leaves_nothing_and_the_next_call_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, made = packed(tmp_path / "a.tar"), tmp_path / "made"
    calls = []

    def stopped(source: Any, copy: Any, size: int) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", stopped)
        with pytest.raises(KeyboardInterrupt):
            unpack(archive, made)
    assert {f.name for f in tmp_path.iterdir()} <= {"a.tar", ".made.lock"}
    assert unpack(archive, made)
    assert content(made) == FILES


def test_what_a_killed_process_left_aside_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / ".made.unpacking").mkdir()
    (tmp_path / ".made.unpacking" / "old").write_text("half")
    unpack(packed(tmp_path / "a.tar"), tmp_path / "made")
    assert content(tmp_path / "made") == FILES
