"""Other forms that annotation tools write are converted and counted; test_odd_annotations has a case for each."""

from small_set import WIDTH, annotation, image, sound_content, write
from test_odd_annotations import as_floats, odd_object

from ifr.data.check import check_dataset
from ifr.data.coco import CocoDataset


def test_keys_that_are_not_used_are_named_in_one_line(tmp_path):
    content = sound_content()
    for number in range(7):
        annotation(f"{number}\n\ud800" + "x" * 100, 0)(content)
    (finding,) = check_dataset(write(tmp_path, content))
    assert ": 7 keys that are not used: annotations.0\\n\\ud800xxx" in finding.text
    assert finding.text.endswith("x, ...")
    assert "\n" not in finding.text
    assert len(finding.text) < 600


def test_a_mask_of_an_absurd_size_gives_no_box(tmp_path):
    content = sound_content()
    image("height", 2**60)(content)
    annotation("segmentation", {"size": [2**60, WIDTH], "counts": [2**60 * WIDTH]})(content)
    del content["annotations"][0]["bbox"]
    texts = [finding.text for finding in check_dataset(write(tmp_path, content))]
    assert "exceed the limit" in texts[0]
    assert "'bbox' must be a list, got nothing" in texts[1]


def test_training_says_once_what_was_converted(tmp_path, caplog):
    content = sound_content()
    as_floats(content)
    annotation("iscrowd", False)(content)
    annotation("rotation", 0.5)(content)
    caplog.set_level("INFO")
    CocoDataset(write(tmp_path, content))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith(
        "a.json: 7 numbers such as 60.0 read as integers; 1 iscrowd true or false read as 1 or 0; 1 keys that are not "
        "used: annotations.rotation"
    )


def test_a_crowd_marked_true_is_a_crowd(tmp_path):
    content = sound_content()
    odd_object(iscrowd=True)(content)
    source = write(tmp_path, content)
    assert CocoDataset(source).left_out == {"crowds": 1}
    texts = [finding.text for finding in check_dataset(source)]
    assert "1 iscrowd true or false read as 1 or 0" in texts[0]
    assert "crowds (1): 8" in texts[1]
