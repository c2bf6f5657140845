"""`ifr data check` lists every problem, one line each; its exit code says whether there are any."""

import pytest
from PIL import Image
from small_set import HEIGHT, WIDTH, sound_content, write

from ifr.cli import main


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = main(["data", "check", *map(str, arguments)])
        out, errors = capsys.readouterr()
        return code, out.splitlines(), errors.splitlines()

    return run


@pytest.fixture
def damaged(tmp_path):
    content = sound_content()
    first = content["annotations"][0]
    content["images"] += [
        {"id": 4, "file_name": "../b.png", "height": HEIGHT, "width": WIDTH},
        {"id": 5, "file_name": "absent.png", "height": HEIGHT, "width": WIDTH},
        {"id": 6, "file_name": "cut.png", "height": HEIGHT, "width": WIDTH},
    ]
    content["annotations"] += [
        {**first, "id": 8, "bbox": [1, 2, -3, 4]},
        {**first, "id": 9, "image_id": 99, "category_id": 98},
    ]
    source = write(tmp_path, content)
    (source.images / "cut.png").write_bytes((source.images / "a.png").read_bytes()[:2000])
    return source


def test_every_problem_has_a_line_with_file_and_ids(run, damaged):
    code, lines, errors = run(f"{damaged.images}:{damaged.json}")
    assert code == 1
    assert lines[:6] == [
        "images",
        f"  {damaged.json}: image 4 ('../b.png'): 'file_name' must be a relative path inside the image "
        "folder, got '../b.png'",
        "annotations",
        f"  {damaged.json}: annotation 8 (image 3): bbox has a negative width or height: [1, 2, -3, 4]",
        f"  {damaged.json}: annotation 9 (image 99): image_id 99 is not among the file's images",
        f"  {damaged.json}: annotation 9 (image 99): category_id 98 is not among the file's categories",
    ]
    assert lines[6:8] == ["pictures", f"  {damaged.images / 'absent.png'}: no such file (image 5)"]
    assert lines[8].startswith(f"  {damaged.images / 'cut.png'}: the picture is damaged (")
    assert lines[8].endswith("(image 6)")
    assert len(lines) == 9
    assert errors[0] == "error: pictures-a has 6 problems"
    assert errors[1].startswith("remedy: ")


def test_reading_only_headers_misses_damage(run, damaged):
    code, lines, errors = run(f"{damaged.images}:{damaged.json}", "--headers")
    assert code == 1
    assert not any("cut.png" in line for line in lines)
    assert errors[0] == "error: pictures-a has 5 problems"


@pytest.mark.parametrize("setting", [(), ("INPUT.INTENSITY.BOUNDS", "(0, 4095)")])
def test_a_valid_data_set_exits_with_0(run, tmp_path, caplog, setting):
    caplog.set_level("INFO")
    source = write(tmp_path, sound_content())
    assert run(f"{source.images}:{source.json}", *setting)[:2] == (0, [])
    assert "no problems found" in caplog.text


def test_skipped_annotations_are_notes_not_problems(run, tmp_path):
    content = sound_content()
    first = content["annotations"][0]
    content["annotations"] += [{**first, "id": number, "iscrowd": 1} for number in range(8, 31)]
    source = write(tmp_path, content)
    code, lines, _ = run(f"{source.images}:{source.json}")
    assert code == 0
    shown = ", ".join(map(str, range(8, 28)))
    share = "(23 of 24 objects (95.8 %); DATASETS.CROWDS_AS_OBJECTS True keeps them)"
    assert lines == ["left out", f"  note: {source.json}: crowds (23): {shown} and 3 more {share}"]


def test_many_images_are_read_by_several_processes(run, tmp_path):
    content = sound_content()
    source = write(tmp_path, content)
    for number in range(10, 330):
        name = f"{number}.png"
        content["images"].append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        Image.new("RGB", (WIDTH, HEIGHT + (number % 100 == 0))).save(source.images / name)
    write(tmp_path, content)
    code, lines, _ = run(f"{source.images}:{source.json}")
    assert code == 1
    assert "320 of 321 images (99.7 %) have no objects to train on" in lines.pop()
    assert [line.rpartition("/")[2][:7] for line in lines if line.startswith("  ")] == ["100.png", "200.png", "300.png"]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ([".:absent.json"], "no file 'absent.json'"),
        (["absent:a.json"], "no folder 'absent'"),
        (["nothing"], "unknown data set 'nothing'"),
    ],
)
def test_missing_inputs_are_named(run, tmp_path, monkeypatch, arguments, cause):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    code, _, (first, second) = run(*arguments)
    assert code == 1
    assert cause in first
    assert second == "remedy: see ifr data check --help"


def test_an_invalid_json_file_is_one_problem(run, tmp_path):
    (tmp_path / "a.json").write_text("{")
    code, lines, _ = run(f"{tmp_path}:{tmp_path / 'a.json'}")
    assert code == 1
    assert lines[0] == "file"
    assert len(lines) == 2
    assert f"{tmp_path / 'a.json'}: not a JSON file" in lines[1]


def test_the_help_says_what_it_does(capsys):
    with pytest.raises(SystemExit):
        main(["data", "check", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "ifr data check DATASET",
        "one line each",
        "exit code is 0",
        "--headers",
        "every image is decoded",
    ):
        assert part.lower() in text.lower()


def test_what_is_in_the_file_twice_is_noted(run, tmp_path):
    content = sound_content()
    content["images"].append({**content["images"][0], "id": 41})
    content["annotations"].append({**content["annotations"][0], "id": 80})
    source = write(tmp_path, content)
    code, lines, _ = run(f"{source.images}:{source.json}")
    assert code == 0
    text = " ".join(lines)
    assert "file names of several images, each with a part of the objects (1), such as 'a.png'" in text
    assert "1 of 2 objects (50.0 %) repeat the image, class, box and mask of another" in text
