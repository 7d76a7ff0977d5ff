import os
import stat
import time
from pathlib import Path

import pytest

from nl3dmm.errors import OutputError
from nl3dmm.outputs import atomic_path, prepare_output_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_prepare_creates_nested_folder_and_leaves_it_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = prepare_output_folder("runs/first")
    assert folder == tmp_path / "runs" / "first"
    assert names(folder) == []
    assert prepare_output_folder(folder) == folder


@pytest.mark.parametrize("tail", ["", "below", "below/deeper"])
def test_prepare_refuses_a_file_in_the_way(tmp_path, tail):
    (tmp_path / "taken").write_text("keep")
    path = tmp_path / "taken" / tail
    with pytest.raises(OutputError, match=r"output folder: got .*taken.*cannot be used.*writable folder") as caught:
        prepare_output_folder(path)
    assert str(path) in str(caught.value)
    assert (tmp_path / "taken").read_text() == "keep"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write")
def test_prepare_refuses_folder_without_write_access():
    with pytest.raises(OutputError, match=r"output folder: got /proc/self.*cannot be used"):
        prepare_output_folder("/proc/self")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_prepare_refuses_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        prepare_output_folder(tmp_path)


def test_prepare_removes_only_old_leftovers(tmp_path):
    old, living, foreign = tmp_path / ".nl3dmm-0.ckpt", tmp_path / ".nl3dmm-1.ckpt", tmp_path / "result.ckpt"
    for path in (old, living, foreign):
        path.write_text("x")
    for path in (old, foreign):
        os.utime(path, (time.time() - 7200,) * 2)
    prepare_output_folder(tmp_path)
    assert names(tmp_path) == [living.name, foreign.name]


def test_atomic_path_replaces_only_at_the_end(tmp_path):
    target = tmp_path / "a.png"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.png"]


def test_atomic_path_gives_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("x")
    with atomic_path(tmp_path / "atomic") as temporary:
        temporary.write_text("x")
    plain, atomic = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic"))
    assert atomic == plain


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_atomic_path_keeps_old_file_on_error(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_path_reports_missing_folder(tmp_path):
    target = tmp_path / "missing" / "a.txt"
    with (
        pytest.raises(OutputError, match=r"output file: got .*missing.*cannot be written") as caught,
        atomic_path(target) as temporary,
    ):
        temporary.write_text("x")
    assert str(target) in str(caught.value)


def test_atomic_path_reports_folder_of_that_name(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="output file: got"), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == ["a"]


def test_atomic_path_reports_a_file_as_parent(tmp_path):
    (tmp_path / "taken").write_text("keep")
    with pytest.raises(OutputError, match="output file: got"), atomic_path(tmp_path / "taken" / "a") as temporary:
        temporary.write_text("x")
