import pytest

from cadp_fl.errors import InputError
from cadp_fl.outputs import new_file, new_folder


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_what_a_block_leaves_is_whole_or_not_there(tmp_path, new):
    path = tmp_path / "deep" / "x"

    def write(temporary):
        (temporary if new is new_file else temporary / "inside").write_text("whole")

    def fail(temporary):
        write(temporary)
        assert not path.exists()
        raise RuntimeError

    with pytest.raises(RuntimeError), new(path, "A thing") as temporary:
        fail(temporary)
    assert not list(tmp_path.iterdir()), "the folder above was made for it"
    with new(path, "A thing") as temporary:
        write(temporary)
    assert [each.name for each in path.parent.iterdir()] == ["x"]
    assert (path if new is new_file else path / "inside").read_text() == "whole"
    assert path.stat().st_mode & 0o777 == (0o644 if new is new_file else 0o755)


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_nothing_is_written_over(tmp_path, new):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(InputError, match="A thing is never written over"), new(path, "A thing"):
            pytest.fail("the block began")
    with pytest.raises(InputError, match="into a folder that can be made"), new(tmp_path / "file" / "x", "A thing"):
        pytest.fail("the block began")
    assert (tmp_path / "file").read_text() == "mine"
