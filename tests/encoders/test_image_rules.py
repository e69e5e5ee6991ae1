"""How images are prepared, against Pillow alone and against the image processors of transformers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrl_jax.encoders import vit_folder
from mrl_jax.encoders.image_rules import BILINEAR, ImageRule, load_or_pass, of_data
from mrl_jax.encoders.vit_preprocessing import read_rule
from mrl_jax.system.errors import UserError
from tests import vision_folders

RANDOM = np.random.default_rng(0)
SIZES = [(40, 64), (64, 40), (41, 41), (9, 33), (16, 16), (24, 17), (30, 20)]  # width, height
PICTURES = [Image.fromarray(RANDOM.integers(0, 256, (h, w, 3)).astype(np.uint8)) for w, h in SIZES]
TYPES = {
    "exact": {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2},
    "old and square": {"feature_extractor_type": "ViTFeatureExtractor", "size": 16},
    "shortest": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16},
                 "crop_size": {"height": 16, "width": 16}, "resample": 3},
    "old and shortest": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 16, "crop_size": 16},
    "larger, then cropped": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 19},
                             "crop_size": {"height": 16, "width": 16}},
    "smaller, then padded": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 11},
                             "crop_size": {"height": 16, "width": 15}},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 14, "width": 14}, "resample": 1},
    "not resized": {"image_processor_type": "BitImageProcessor", "do_resize": False, "crop_size": 16},
}  # fmt: skip


def rule_of(folder: Path, settings: dict[str, Any], image_size: int | None = None, family: str = "ViT") -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return read_rule(folder, family, 16, image_size)


@pytest.mark.parametrize("kind", TYPES)
def test_pixels_are_those_of_the_image_processor_on_pillow(kind: str, tmp_path: Path) -> None:
    """To the last bit before they are scaled, and after that to a rounding error."""
    transformers = pytest.importorskip("transformers")
    rule, mean, std = rule_of(tmp_path, TYPES[kind])
    name = TYPES[kind].get("image_processor_type", TYPES[kind].get("feature_extractor_type"))
    name = str(name).replace("FeatureExtractor", "ImageProcessor")
    processor = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    reference = processor.from_pretrained(tmp_path)
    for picture in PICTURES:
        expected = reference(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        found = (rule.prepare(picture) / np.float32(255) - np.float32(mean)) / np.float32(std)
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_an_exact_size_is_that_of_pillow(tmp_path: Path) -> None:
    rule, mean, std = rule_of(tmp_path, TYPES["exact"])
    for picture in PICTURES:
        expected = np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(rule.prepare(picture), expected)
    assert (mean, std) == ((0.5,) * 3, (0.5,) * 3)


def test_the_shorter_side_and_the_middle_are_those_of_pillow(tmp_path: Path) -> None:
    rule, mean, _ = rule_of(tmp_path, TYPES["larger, then cropped"])
    for picture in PICTURES:
        w, h = picture.size
        scaled = (19, int(19 * h / w)) if w <= h else (int(19 * w / h), 19)
        whole = np.asarray(picture.resize(scaled, Image.Resampling.BICUBIC))
        top, left = (scaled[1] - 16) // 2, (scaled[0] - 16) // 2
        np.testing.assert_array_equal(rule.prepare(picture), whole[top : top + 16, left : left + 16])
    assert mean == (0.48145466, 0.4578275, 0.40821073)  # that of the processor, where the file is silent


def test_another_image_size_is_in_proportion(tmp_path: Path) -> None:
    rule, _, _ = rule_of(tmp_path, {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}}, 448)
    assert (rule.how, rule.size, rule.crop) == ("shortest", (512, 512), (448, 448))
    rule, _, _ = rule_of(tmp_path, TYPES["exact"], 32)
    assert (rule.how, rule.size, rule.crop) == ("exact", (32, 32), (32, 32))


def test_without_a_file_the_usual_preparation_of_the_family_is_taken_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = vision_folders.write(tmp_path / "dinov2", vision_folders.CONFIGS["dinov2"], vision_folders.make("dinov2"))
    (folder / "preprocessor_config.json").unlink()
    described = vit_folder.describe(folder)
    assert (described.rule.how, described.rule.size, described.rule.crop) == ("shortest", (9, 9), (8, 8))
    assert described.mean == (0.485, 0.456, 0.406)
    assert "preprocessor_config.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_pad": True}, "do_pad=true is not supported; allowed: to leave it out"),
        ({"do_rescale": False}, "do_rescale=false is not supported; allowed: true"),
        ({"rescale_factor": 0.0078}, r"rescale_factor=0.0078 is not supported; allowed: 0.0039"),
        ({"resample": 9}, "resample=9 is not allowed; a number of Pillow's filters, 0 to 5"),
        ({"size": {"longest_edge": 16}}, "allowed: height and width, whole numbers above 0, or shortest_edge"),
        ({"size": {"shortest_edge": 16}}, "without do_center_crop gives images of different sizes"),
        ({"size": -1}, "size=-1 is not supported"),
        ({"size": 10**9}, "size=1000000000 is not supported"),
        ({"image_mean": [0.5, 0.5]}, "is not allowed; three numbers, one for each channel"),
        ({"image_std": [0.5, 0.5, 0]}, "is not allowed; three numbers"),
        ({"image_processor_type": "SwinImageProcessor"}, 'image_processor_type="SwinImageProcessor" is not supported'),
        ({"do_resize": "yes"}, 'do_resize="yes" is not allowed; true or false'),
    ],
)
def test_a_setting_that_is_not_built_is_refused_by_name(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        rule_of(tmp_path, settings)


def test_images_come_as_arrays_pictures_bytes_and_paths(tmp_path: Path) -> None:
    picture = PICTURES[0]
    picture.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    rule = ImageRule("exact", (16, 16), (16, 16), BILINEAR, 3)
    items = [np.asarray(picture), picture, buffer.getvalue(), tmp_path / "a.png", str(tmp_path / "a.png")]
    images = rule(items)["image"]
    assert len(images) == 5
    np.testing.assert_array_equal(images[np.arange(5)], np.stack([rule.prepare(picture)] * 5))
    np.testing.assert_array_equal(images.subset(np.array([3]))[np.arange(1)], rule.prepare(picture)[None])
    for item, message in (
        (3, "image 0 .from 0. is int; a path, the bytes of a file"),
        ("none.png", r"image 0 .from 0. \(none.png\): No such file"),
        (b"text", "image 0 .from 0.: it is no image"),
        (np.zeros((4, 4, 3)), "is ndarray; a path"),
    ):
        with pytest.raises(UserError, match=message):
            rule([item])["image"][np.arange(1)]


def test_pictures_and_arrays_are_seen_as_their_files_are(tmp_path: Path) -> None:
    """What is transparent is white, 16 bits become 8, and a picture is turned upright, however it is given."""
    rng = np.random.default_rng(0)
    clear = np.concatenate([rng.integers(0, 255, (16, 16, 3)), np.zeros((16, 16, 1), int)], axis=2).astype(np.uint8)
    clear[8:, :, 3] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "clear.png": (Image.fromarray(clear), {}),
        "deep.png": (Image.fromarray(np.full((16, 16), 30_000, np.uint16)), {}),
        "turned.png": (Image.fromarray(rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)), {"exif": turned}),
    }
    rule = ImageRule("exact", (16, 16), (16, 16), BILINEAR, 3)
    for name, (picture, options) in made.items():
        picture.save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as opened:
            images = rule([tmp_path / name, opened])["image"][np.arange(2)]
        np.testing.assert_array_equal(images[0], images[1], err_msg=name)
    np.testing.assert_array_equal(rule([clear])["image"][np.arange(1)], rule([tmp_path / "clear.png"])["image"][[0]])
    assert (rule([clear])["image"][np.arange(1)][0, :8] == 255).all()


def test_arrays_of_the_size_of_training_stay_as_they_are_and_others_are_brought_to_it(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (3, 10, 12, 1)).astype(np.uint8)
    rule = of_data(images)
    assert rule(images)["image"] is images
    other = rule(RANDOM.integers(0, 256, (2, 20, 20, 3)).astype(np.uint8))["image"]
    assert other[np.arange(2)].shape == (2, 10, 12, 1)
    rule.save(tmp_path)
    assert ImageRule.load(tmp_path) == rule
    for content in (
        "[]",
        '{"how": "exact"}',
        "{",
        '{"how": "x", "size": [1, 1], "crop": [1, 1], "resample": 2, "channels": 3}',
    ):
        (tmp_path / "images.json").write_text(content)
        with pytest.raises(UserError, match=r"images.json cannot be read: .*; it says how images are prepared"):
            ImageRule.load(tmp_path)
    (tmp_path / "images.json").unlink()
    assert load_or_pass(None, tmp_path, "image")(images) == {"image": images}  # a run of before


@pytest.mark.parametrize("how", ["shortest", "cover"])
@pytest.mark.parametrize("upright", [False, True])
def test_of_a_line_of_pixels_the_middle_is_read_and_never_the_whole_scaled(
    how: Any, upright: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled as a whole, a file of a few kilobytes would become billions of pixels."""
    line = np.zeros((2, 100_001, 3), np.uint8)
    line[:, 49_990:50_011] = (200, 100, 50)
    picture = Image.fromarray(line.swapaxes(0, 1) if upright else line)
    asked, resize = [], Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *rest: Any) -> Image.Image:
        asked.append(size[0] * size[1])
        return resize(self, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", watched)
    pixels = ImageRule(how, (64, 64), (64, 64), BILINEAR, 3).prepare(picture)
    assert pixels.shape == (64, 64, 3)
    assert (pixels == (200, 100, 50)).all()
    assert sum(asked) <= 1 << 20
