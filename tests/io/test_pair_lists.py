import pytest

from d2net.errors import FormatError, InputError, OutputError
from d2net.io.pair_lists import read_pairs, write_pairs


def test_pairs_come_back_in_their_order(tmp_path):
    path = tmp_path / "pairs.txt"
    pairs = [
        ("q/b.jpg", "db/a.jpg"),
        ("#1.jpg", "#2.jpg"),
        (" a.jpg", "b"),
        ("my photo.jpg", "a.jpg"),
        ("ü\u2028.jpg", "b\u00a0c.jpg"),
    ]
    write_pairs(path, pairs)
    assert read_pairs(path) == pairs
    write_pairs(path, [])
    assert read_pairs(path) == []


def test_only_names_with_spaces_need_tabs(tmp_path):
    path = tmp_path / "pairs.txt"
    write_pairs(path, [("a.jpg", "b.jpg"), ("c d.jpg", "e.jpg")])
    assert path.read_bytes() == b"a.jpg b.jpg\nc d.jpg\te.jpg\n"


def test_lists_of_other_programs_are_read(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_bytes(
        b"\xef\xbb\xbfa.jpg b.jpg\r\n\r\n  c.jpg   d.jpg  \n\te.jpg\n".replace(b"\te", b"f\te")
    )
    assert read_pairs(path) == [("a.jpg", "b.jpg"), ("c.jpg", "d.jpg"), ("f", "e.jpg")]
    path.write_text("# from Windows\nü.jpg b.jpg\n", encoding="utf-16", newline="\r\n")
    assert read_pairs(path) == [("ü.jpg", "b.jpg")]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a b\na\n", "line 2: expected two names, found 1"),
        (b"a b c\n", "line 1: expected two names, found 3.*a tab"),
        (b"a\tb\tc", "line 1: expected two names, found 3"),
        (b"a\t\t", "line 1: expected two names, found 1"),
        (b"a b\n\na /etc/passwd\n", "line 3: '/etc/passwd' cannot name a photo"),
        (b"a b\0\n", "line 1: .* cannot name a photo"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8 text"),
    ],
)
def test_faults_are_told_with_their_line(tmp_path, content, complaint):
    path = tmp_path / "pairs.txt"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=complaint) as caught:
        read_pairs(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path / "missing.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path)
    with pytest.raises(OutputError, match="does not exist"):
        write_pairs(tmp_path / "missing" / "pairs.txt", [])


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\rb", "a ", "", "../a"])
def test_names_that_a_line_cannot_hold_leave_the_old_list_alone(tmp_path, name):
    path = tmp_path / "pairs.txt"
    write_pairs(path, [("a", "b")])
    with pytest.raises(InputError, match="cannot"):
        write_pairs(path, [("c", "d"), ("e", name)])
    assert read_pairs(path) == [("a", "b")]
