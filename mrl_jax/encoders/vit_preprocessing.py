"""How the images of a model folder are prepared: `preprocessor_config.json` as an `ImageRule`, mean and deviation.

Without the file, that of the family in transformers counts. Settings that would change a pixel in a way that is not
built are refused by name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mrl_jax.data.readers.images import MAX_PIXELS
from mrl_jax.encoders.folder_settings import NOTHING, Keys, check_settings, flag, read_json, warn
from mrl_jax.encoders.image_rules import BILINEAR, ImageRule
from mrl_jax.system.errors import UserError

BICUBIC = int(Image.Resampling.BICUBIC)
STANDARD = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def _defaults(square: bool, crop: bool, resample: int, normal: tuple[list[float], list[float]]) -> dict[str, Any]:
    return {
        "do_resize": True,
        "size": {"height": 224, "width": 224} if square else {"shortest_edge": 224},
        "default_to_square": square,
        "resample": resample,
        "do_center_crop": crop,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": normal[0],
        "image_std": normal[1],
    }


# By the name of the image processor in transformers, without its ending: what it takes where the file is silent.
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": _defaults(True, False, BILINEAR, STANDARD),
    "CLIP": _defaults(False, True, BICUBIC, OPENAI),
    "Siglip": _defaults(True, False, BICUBIC, STANDARD),
    "Bit": _defaults(False, True, BICUBIC, OPENAI),
}
# Of DINOv2, whose folders say so.
OF_FAMILY = {"Bit": {"size": {"shortest_edge": 256}, "image_mean": IMAGENET[0], "image_std": IMAGENET[1]}}
KEYS = Keys(
    used="do_resize size resample default_to_square do_center_crop crop_size rescale_factor do_normalize image_mean "
    "image_std image_processor_type feature_extractor_type processor_class",
    only={
        "do_rescale": (True, None),
        "do_pad": NOTHING,
        "do_reduce_labels": NOTHING,
        "do_flip_channel_order": NOTHING,
        "crop_pct": NOTHING,
        "use_square_size": NOTHING,
        "reducing_gap": NOTHING,
    },
    # All images are made RGB.
    harmless="do_convert_rgb data_format input_data_format return_tensors device disable_grouping pad_size "
    "_valid_processor_keys image_seq_length feature_extractor image_processor auto_map",
)
ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")


def read_rule(
    folder: Path, family_processor: str, model_size: int, image_size: int | None
) -> tuple[ImageRule, tuple[float, ...], tuple[float, ...]]:
    """The rule of a folder, and mean and standard deviation of the three channels, of pixels in [0, 1].

    Args:
        folder: of the model.
        family_processor: key of `PROCESSORS`, which counts where the folder does not name one.
        model_size: side of the images in config.json, where there is no file.
        image_size: side of the images in place of the folder's own.

    Raises:
        UserError: a setting that is not supported, or no number where one is needed.
    """
    file, given = _file(folder)
    if given is None:
        shortest = {"size": {"shortest_edge": round(256 / 224 * model_size)}} if family_processor == "Bit" else {}
        square = {"height": model_size, "width": model_size}
        given = {"size": square if PROCESSORS[family_processor]["default_to_square"] else {"shortest_edge": model_size}}
        given |= {"crop_size": square, **OF_FAMILY.get(family_processor, {}), **shortest}
        warn(f"{file} is missing; images are prepared as is usual for this family, at {model_size} pixels")
    check_settings(file, given, KEYS)
    settings = PROCESSORS[_processor(file, given, family_processor)] | {
        key: value for key, value in given.items() if value is not None
    }
    how, size = _size(file, settings)
    crop = _pair(file, settings, "crop_size") if flag(file, settings, "do_center_crop") else None
    if flag(file, settings, "do_resize") is False:
        how, size = "none", crop or size
    if crop is None and how == "shortest":
        raise UserError(f"{file}: size={json.dumps(settings['size'])} without do_center_crop gives images of different "
                        "sizes, which is not supported; allowed: height and width, or do_center_crop")  # fmt: skip
    crop = crop or size
    if image_size is not None:  # everything in proportion
        size = tuple(max(1, round(side * image_size / edge)) for side, edge in zip(size, crop, strict=True))  # type: ignore[assignment]
        crop = (image_size, image_size)
    if size[0] * size[1] > MAX_PIXELS or crop[0] * crop[1] > MAX_PIXELS:
        raise UserError(f"{file}: size={json.dumps(settings['size'])} is not allowed; at most {MAX_PIXELS:,} pixels")
    resample = settings["resample"]
    if resample not in [int(known) for known in Image.Resampling] or isinstance(resample, bool):
        raise UserError(f"{file}: resample={json.dumps(resample)} is not allowed; a number of Pillow's filters, 0 to 5")
    factor = settings["rescale_factor"]
    if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-6:
        raise UserError(f"{file}: rescale_factor={json.dumps(factor)} is not supported; allowed: {1 / 255}")
    mean, std = (_channels(file, settings, key) for key in ("image_mean", "image_std"))
    if flag(file, settings, "do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return ImageRule(how, size, crop, int(resample), 3), mean, std  # type: ignore[arg-type]


def _file(folder: Path) -> tuple[Path, Mapping[str, Any] | None]:
    """The file with the settings, and its content; a newer one has them in the part image_processor."""
    file, newer = folder / "preprocessor_config.json", folder / "processor_config.json"
    if file.exists():
        return file, read_json(file)
    if newer.exists() and isinstance(part := read_json(newer).get("image_processor"), dict):
        return newer, part
    return file, None


def _processor(file: Path, settings: Mapping[str, Any], usual: str) -> str:
    for key in ("image_processor_type", "feature_extractor_type"):
        if (name := settings.get(key)) is not None:
            bare = next((str(name).removesuffix(end) for end in ENDINGS if str(name).endswith(end)), str(name))
            if bare not in PROCESSORS:
                allowed = ", ".join(f"{known}ImageProcessor" for known in PROCESSORS)
                raise UserError(f"{file}: {key}={json.dumps(name)} is not supported; allowed: {allowed}")
            return bare
    return usual


def _size(file: Path, settings: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    size = settings["size"]
    square = settings["default_to_square"]
    if isinstance(size, int) and not square:  # as older files say it
        size = {"shortest_edge": size}
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        side = _pair(file, {"size": size["shortest_edge"]}, "size")[0]
        return "shortest", (side, side)
    return "exact", _pair(file, settings, "size")


def _pair(file: Path, settings: Mapping[str, Any], key: str) -> tuple[int, int]:
    """A height and a width: {height, width}, or one number for both."""
    value = settings[key]
    sides: list[Any] = (
        [value.get("height"), value.get("width")] if isinstance(value, dict) and len(value) == 2 else [value] * 2
    )
    if not all(type(side) is int and 0 < side <= MAX_PIXELS for side in sides):
        raise UserError(
            f"{file}: {key}={json.dumps(value)} is not supported; allowed: height and width, whole numbers above 0"
            + (", or shortest_edge" if key == "size" else "")
        )
    return sides[0], sides[1]


def _channels(file: Path, settings: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = settings[key]
    numbers = value if isinstance(value, list) else [value] * 3
    lowest = 0 if key == "image_std" else -1e6
    if len(numbers) != 3 or not all(type(x) in (int, float) and lowest < x < 1e6 for x in numbers):
        raise UserError(f"{file}: {key}={json.dumps(value)} is not allowed; three numbers, one for each channel")
    return tuple(map(float, numbers))
