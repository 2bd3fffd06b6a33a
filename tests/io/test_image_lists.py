"""Which files a user means."""

import os
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from d2net.errors import InputError
from d2net.io.drawn_pictures import write_picture
from d2net.io.image_lists import find_images, find_photo, read_image_list

links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


@pytest.fixture
def photos(tmp_path):
    for name in (
        "photos/b.JPG",
        "photos/a.png",
        "photos/night/c d.tiff",
        "photos/night/über\n写真.webp",
        "photos/night/notes.txt",
        "photos/night/a.png.d2-net",
        "photos/.hidden.jpg",
        "photos/._b.JPG",
        "photos/.thumbnails/b.jpg",
        "photos/@eaDir/b.JPG/SYNOPHOTO_THUMB_M.jpg",
        "other/a.png",
        "scan.raw",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


ALL = ["a.png", "b.JPG", "night/c d.tiff", "night/über\n写真.webp"]


def names(found):
    return [image.name for image in found]


def test_folders_are_walked_and_sorted(photos):
    found = find_images([photos / "photos"])
    assert names(found) == ALL
    assert all(image.path == photos / "photos" / image.name for image in found)
    assert find_images(photos / "photos") == find_images(str(photos / "photos")) == found


def test_paths_may_be_relative(photos, monkeypatch):
    monkeypatch.chdir(photos / "photos")
    assert names(find_images(["."])) == ALL
    assert names(find_images(["night", "a.png"])) == ["c d.tiff", "über\n写真.webp", "a.png"]
    assert names(find_images(["../other", "../photos/b.JPG"])) == ["a.png", "b.JPG"]
    assert names(find_images(["../other", "."], root="..")) == [
        "other/a.png",
        *(f"photos/{name}" for name in ALL),
    ]
    assert all(image.path.exists() for image in find_images(["../other", "b.JPG"]))


def test_single_files_are_taken_whatever_they_are_called(photos):
    assert names(find_images([photos / "scan.raw", photos / "photos/.hidden.jpg"])) == [
        "scan.raw",
        ".hidden.jpg",
    ]


def test_root_names_files_and_folders(photos):
    found = find_images([photos / "photos/night", photos / "other/a.png"], root=photos)
    assert names(found) == [
        "photos/night/c d.tiff",
        "photos/night/über\n写真.webp",
        "other/a.png",
    ]
    with pytest.raises(InputError, match="not below the root folder"):
        find_images([photos / "other"], root=photos / "photos")


def test_files_given_twice_are_listed_once(photos):
    folder = photos / "photos"
    assert names(find_images([folder, folder / "a.png", folder, folder / "night"])) == ALL
    again = find_images([folder / "night" / ".." / "b.JPG", folder])
    assert names(again) == ["b.JPG", "a.png", *ALL[2:]]


def test_different_files_of_one_name_need_a_root(photos):
    with pytest.raises(InputError, match=r"both have the name 'a\.png'; give a folder"):
        find_images([photos / "photos", photos / "other"])
    found = find_images([photos / "photos", photos / "other"], root=photos)
    assert names(found)[-1] == "other/a.png"


@pytest.mark.parametrize("missing", ["none.jpg", "none/", "a\0.jpg"])
def test_missing_paths_are_errors(photos, missing):
    with pytest.raises(InputError, match="there is no file or folder"):
        find_images([photos / "other", str(photos / missing)])


def test_folder_without_photos_gives_none(tmp_path):
    assert find_images([tmp_path]) == []
    assert find_images([]) == []


@links
def test_links_do_not_loop_and_real_folders_give_the_names(photos):
    folder = photos / "photos"
    (folder / "aaa").symlink_to(folder / "night", target_is_directory=True)
    (folder / "night" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "night" / "self").symlink_to(".", target_is_directory=True)
    assert names(find_images([folder])) == ALL
    (folder / "more").symlink_to(photos / "other", target_is_directory=True)
    (folder / "z.png").symlink_to(photos / "other" / "a.png")
    assert names(find_images([folder])) == [*ALL[:2], "more/a.png", *ALL[2:], "z.png"]
    assert names(find_images([folder / "more" / "a.png"], root=folder)) == ["more/a.png"]


def test_what_the_package_made_is_not_taken_for_a_photo(photos, caplog):
    folder = photos / "photos"
    picture = Image.new("RGB", (40, 30), "red")
    write_picture(folder / "matches.png", picture)
    write_picture(folder / "night" / "keypoints.JPG", picture)
    (folder / "map").mkdir()
    (folder / "map" / "map.json").write_text("{}")
    write_picture(folder / "map" / "map.png", picture)
    assert names(find_images([folder])) == ALL
    assert "matches.png" in caplog.text
    assert "keypoints.JPG" in caplog.text
    assert "map.png" not in caplog.text
    caplog.clear()
    assert names(find_images([folder / "matches.png"])) == ["matches.png"]
    assert "matches.png is a picture that d2net made" in caplog.text


def test_an_exported_scene_is_no_folder_of_photos(photos, caplog):
    scene = photos / "photos" / "scene"
    (scene / "images").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(scene / "images" / "a.png")
    for name in ("transforms.json", "points.ply"):
        (scene / name).touch()
    assert names(find_images([photos / "photos"])) == ALL
    assert str(scene) in caplog.text
    assert names(find_images([scene])) == ["images/a.png"]


def test_photos_in_the_folder_of_a_map_are_photos(photos):
    (photos / "photos" / "map.json").write_text("{}")
    assert names(find_images([photos])) == ["other/a.png", *(f"photos/{name}" for name in ALL)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.timeout(20)
def test_a_pipe_does_not_block(photos):
    os.mkfifo(photos / "other" / "pipe.jpg")
    assert names(find_images([photos / "other"])) == ["a.png"]
    with pytest.raises(InputError, match="is a pipe or a device"):
        find_images([photos / "other" / "pipe.jpg"])


def test_raw_photos_are_told(photos, caplog):
    (photos / "other" / "b.GPR").touch()
    (photos / "other" / "c.HIF").touch()
    assert names(find_images([photos / "other"])) == ["a.png", "c.HIF"]
    assert "1 photo in an unsupported format, such as" in caplog.text


def test_lists_made_on_windows_may_have_backslashes(photos):
    path = write_list(photos, "night\\c d.tiff\r\n")
    (found,) = read_image_list(path, photos / "photos")
    assert (found.name, found.path.exists()) == ("night/c d.tiff", True)


@pytest.mark.parametrize(("on_disk", "listed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_written_as_on_another_system(tmp_path, on_disk, listed):
    name = "cafés/Zürich.jpg"
    path = tmp_path / unicodedata.normalize(on_disk, name)
    path.parent.mkdir()
    path.touch()
    text = write_list(tmp_path, unicodedata.normalize(listed, name))
    (found,) = read_image_list(text, tmp_path)
    assert found.path.exists()
    assert [found.name] == names(find_images([path.parent], tmp_path))
    assert find_photo([tmp_path], unicodedata.normalize(listed, name)) == found.path


@links
def test_broken_links_are_kept_so_that_reading_reports_them(photos):
    (photos / "other" / "b.jpg").symlink_to("nowhere.jpg")
    assert names(find_images([photos / "other"])) == ["a.png", "b.jpg"]
    assert names(find_images([photos / "other" / "b.jpg"])) == ["b.jpg"]


def test_folders_that_cannot_be_listed_are_errors(photos, monkeypatch):
    real = os.scandir

    def refuse(path):
        if Path(path).name == "night":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)  # chmod does not stop the superuser
    with pytest.raises(InputError, match=r"cannot list the folder .*night': Permission denied"):
        find_images([photos / "photos"])


# --- Lists -----------------------------------------------------------------------------------


def write_list(folder, text, encoding="utf-8"):
    path = folder / "list.txt"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.timeout(20)
def test_a_list_may_come_through_a_pipe(tmp_path):
    pipe, listed = tmp_path / "list.txt", [f"photo {i:04}.jpg" for i in range(2000)]
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("\n".join(listed),))
    writer.start()
    assert names(read_image_list(pipe, tmp_path)) == listed
    writer.join()


def test_names_may_hold_spaces_and_hashes(tmp_path):
    path = write_list(
        tmp_path, "# queries\n\ndb/1.jpg\r\n  db/two words.jpg \ndb/#3 4.jpg\n./db//1.jpg\n写.png"
    )
    found = read_image_list(path, tmp_path / "images")
    assert names(found) == ["db/1.jpg", "db/two words.jpg", "db/#3 4.jpg", "写.png"]
    assert found[1].path == tmp_path / "images" / "db" / "two words.jpg"


def test_cameras_of_hloc_queries_are_cut_off(tmp_path):
    path = write_list(
        tmp_path,
        "query/day/milestone/2010-10-30_17-47-25.jpg SIMPLE_RADIAL 1600 1200 1469.2 800 600 -0.02\n"
        "my query 7.jpg\tPINHOLE 640 480 5.0e+02 5e2 320 240\n"
        "IMG 12 34 56.jpg\n"
        "query 1600 1200.jpg\n"
        "PINHOLE 640 480.jpg\n",
    )
    assert names(read_image_list(path, tmp_path)) == [
        "query/day/milestone/2010-10-30_17-47-25.jpg",
        "my query 7.jpg",
        "IMG 12 34 56.jpg",
        "query 1600 1200.jpg",
        "PINHOLE 640 480.jpg",
    ]


def test_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    path = write_list(tmp_path, "a.jpg\nb.jpg\n", "utf-8-sig")
    assert names(read_image_list(path, tmp_path)) == ["a.jpg", "b.jpg"]


@links
def test_names_that_are_not_utf_8_find_their_files(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.jpg\n")
    assert read_image_list(tmp_path / "list.txt", tmp_path)[0].path.read_bytes() == b"x"


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "db/../../a.jpg"])
def test_names_outside_the_root_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="stay below it"):
        read_image_list(write_list(tmp_path, name), tmp_path)


def test_unreadable_lists_are_errors(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path, "a\0.txt"):
        with pytest.raises(InputError, match="cannot be read"):
            read_image_list(path, tmp_path)
