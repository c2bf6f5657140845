"""Pictures of more than 8 bits are scaled by INPUT.INTENSITY, in training, testing, prediction and checks alike."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_set import HEIGHT, PIXELS, WIDTH, sound_content, write
from test_malformed_pictures import sixteen_bits_a_colour
from tiny_experiment import write_tiny

from ifr.checkpoints import save_checkpoint
from ifr.cli import main
from ifr.data.check import check_dataset
from ifr.data.coco import CocoDataset
from ifr.data.images import read_image
from ifr.data.intensity import Intensity, build_intensity
from ifr.data.loader import build_train_loader, evaluation_loader, open_test_set
from ifr.errors import ImageError
from ifr.experiment import build_model
from ifr.hosts.standalone.config import RCNNFPNConfig
from ifr.hosts.standalone.predictor import Predictor

RAMP = np.linspace(500, 4000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
EXPECTED = np.rint(np.clip((np.rint(RAMP) - 1000) / 2000, 0, 1) * 255).astype(np.uint8)
BOUNDS = Intensity(1000, 3000)


def integers(path, dtype=np.uint16, **settings):
    Image.fromarray(np.rint(RAMP).astype(dtype)).save(path, **settings)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", np.uint16), ("a.tif", np.uint16), ("a.tif", np.int32), ("a.tif", np.float32), ("a.pgm", np.uint16)],
)
def test_bounds_become_0_and_255(tmp_path, name, dtype):
    integers(tmp_path / name, dtype)
    found = read_image(tmp_path / name, (HEIGHT, WIDTH), BOUNDS)
    for channel in range(3):
        np.testing.assert_array_equal(found[:, :, channel], EXPECTED)


def test_big_endian(tmp_path):
    picture = Image.frombytes("I;16B", (WIDTH, HEIGHT), np.rint(RAMP).astype(">u2").tobytes())
    picture.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", (HEIGHT, WIDTH), BOUNDS)[:, :, 0], EXPECTED)


def test_values_between_are_linear_and_nan_is_black():
    values = np.array([-np.inf, -1.0, 0.0, 0.25, 0.5, 1.0, 7.0, np.inf, np.nan], np.float32)
    assert Intensity(0, 1).scale(values).tolist() == [0, 0, 0, 64, 128, 255, 255, 255, 0]


def test_percentiles_are_those_of_each_picture():
    values = np.arange(101, dtype=np.uint16) * 10
    found = Intensity(10, 90, percentiles=True).scale(values)
    assert found[[0, 10, 50, 90, 100]].tolist() == [0, 0, 128, 255, 255]
    np.testing.assert_array_equal(Intensity(10, 90, percentiles=True).scale(values * 50 + 3), found)
    assert Intensity(0, 100, percentiles=True).scale(np.array([np.nan, 1, 3])).tolist() == [0, 0, 255]
    assert Intensity(1, 99, percentiles=True).scale(np.full(9, 777, np.uint16)).tolist() == [0] * 9


def test_pictures_of_8_bits_stay_as_they_are(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", intensity=BOUNDS), PIXELS[:, :, ::-1])


def test_what_the_setting_cannot_scale_is_refused(tmp_path):
    sixteen_bits_a_colour(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: INPUT.INTENSITY scales grey pictures only"):
        read_image(tmp_path / "a.png", intensity=BOUNDS)
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: .*no value is finite"):
        read_image(tmp_path / "a.tif", intensity=BOUNDS)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_the_refusal_names_the_setting(tmp_path, dtype):
    integers(tmp_path / "a.tif", dtype)
    with pytest.raises(ImageError, match=r"set INPUT\.INTENSITY\.BOUNDS or INPUT\.INTENSITY\.PERCENTILES"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("bounds", "percentiles", "message"),
    [
        ([0, 1], [1, 99], "not both"),
        ([3], [], r"INPUT.INTENSITY.BOUNDS takes \[low, high\] .* got \[3\]"),
        ([5, 5], [], r"got \[5, 5\]"),
        (["a", "b"], [], r"got \['a', 'b'\]"),
        ([0, float("inf")], [], r"got \[0, inf\]"),
        ([], [99, 1], r"INPUT.INTENSITY.PERCENTILES takes .* got \[99, 1\]"),
        ([], [-1, 99], r"from 0 to 100, got \[-1, 99\]"),
    ],
)
def test_wrong_settings_raise(bounds, percentiles, message):
    with pytest.raises(ValueError, match=message):
        build_intensity(bounds, percentiles)


@pytest.fixture
def source(tmp_path):
    made = write(tmp_path, sound_content())
    integers(made.images / "a.png")
    return made


@pytest.fixture
def config():
    settings = RCNNFPNConfig()
    settings.merge_from_list(["INPUT.AUG.TRAIN_PIPELINES", [], "INPUT.AUG.TEST_PIPELINES", [], "SEED", 0])
    settings.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "MODEL.ROI_HEADS.NUM_CLASSES", 1, "MODEL.MASK_ON", True])
    settings.merge_from_list(["SOLVER.IMS_PER_BATCH", 1, "INPUT.INTENSITY.BOUNDS", "[1000, 3000]"])
    return settings


def test_training_testing_and_prediction_see_the_same_pixels(source, config):
    sample = next(iter(build_train_loader(config, [CocoDataset(source)])))[0]
    np.testing.assert_array_equal(sample["image"][0].numpy(), EXPECTED)
    dataset = open_test_set(f"{source.images}:{source.json}")
    (tested,) = next(iter(evaluation_loader(config, dataset)))
    assert torch.equal(tested["image"], sample["image"])

    class Seen(torch.nn.Module):
        def forward(self, batch):
            self.image = batch[0]["image"]
            return [{"boxes": torch.zeros(0, 4)}]

    model = Seen()
    predictor = Predictor(model, config)
    predictor(np.asarray(Image.open(source.images / "a.png")))
    assert torch.equal(model.image, sample["image"])
    predictor(read_image(source.images / "a.png", intensity=BOUNDS))
    assert torch.equal(model.image, sample["image"])


def test_the_check_takes_the_setting(source, capsys):
    (finding,) = check_dataset(source)
    assert "INPUT.INTENSITY.BOUNDS" in finding.text
    assert list(check_dataset(source, intensity=BOUNDS)) == []
    assert list(check_dataset(source, intensity=BOUNDS, decode=False)) == []
    arguments = ["data", "check", f"{source.images}:{source.json}"]
    assert main(arguments) == 1
    assert main([*arguments, "INPUT.INTENSITY.PERCENTILES", "[1, 99]"]) == 0
    capsys.readouterr()
    assert main([*arguments, "INPUT.INTENSITY.PERCENTILES", "[99, 1]"]) == 1
    assert "got [99, 1]" in capsys.readouterr().err
    assert main([*arguments, "SEED", "1"]) == 1
    assert "unexpected argument 'SEED'" in capsys.readouterr().err


def test_predict_and_inspect_draw_the_scaled_picture(source, tmp_path):
    sheet = tmp_path / "sheet.png"
    setting = ["INPUT.INTENSITY.BOUNDS", "[1000, 3000]"]
    entry = f"{source.images}:{source.json}"
    assert main(["data", "inspect", entry, "--output", str(sheet), *setting]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(sheet))[30:, 40:, 0], EXPECTED[30:, 40:])
    experiment = write_tiny(tmp_path)
    save_checkpoint(tmp_path / "weights.pth", build_model(experiment, device="cpu"))
    command = ["predict", str(experiment), "--device", "cpu", "--score", "1", "--output", str(tmp_path / "out")]
    command += ["--format", "png", "--input", str(source.images / "a.png"), "--json", str(tmp_path / "r.json")]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "weights.pth")]
    assert main([*command, *weights]) == 1
    assert main([*command, *weights, *setting]) == 0
    assert json.loads((tmp_path / "r.json").read_text()) == []
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png"))[:, :, 1], EXPECTED)
