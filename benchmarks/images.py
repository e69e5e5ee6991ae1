"""Images a second from JPEG files to what a training step sees: read, decoded, prepared, augmented.

    python benchmarks/images.py [--threads 2] [--images 512] [--json FILE]
    python benchmarks/images.py --workers 1 [--threads 1] [--images 512] [--json FILE]
    python benchmarks/images.py --passes 390 --images 256 [--json FILE]       # resident memory over 100,000 images

Files are photographs as far as a decoder is concerned: noise whose spectrum falls as that of photographs (1/f), 500 ×
375 pixels as the average of ImageNet, at quality 90, and the same at 224 × 224. They are read as a run reads them from
disk (`data=images data.streaming=true`), in batches of 64; augmentation is a random resized crop and flip, and
RandAugment, compiled for the CPU. Times are of the wall clock and of the processor: on a machine that does something
else, images per second of processor time is the number to compare, for each core.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fresh import machine, pin

BATCH, SIDE = 64, 224


def photograph(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, 3] with the spectrum of a photograph."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    spectrum = (
        np.fft.fft2(random.normal(size=(height, width, 3)), axes=(0, 1)) / np.maximum(frequency, 1 / 500)[..., None]
    )
    picture = np.fft.ifft2(spectrum, axes=(0, 1)).real
    picture = picture.mean(axis=2, keepdims=True) + 0.3 * picture
    return (128 + 50 * (picture - picture.mean()) / picture.std()).clip(0, 255).astype(np.uint8)


def write(folder: Path, count: int, height: int, width: int) -> int:
    """So many files of one class; returns the mean of their bytes."""
    from PIL import Image

    random = np.random.default_rng(0)
    (folder / "one").mkdir(parents=True)
    for i in range(count):
        if i < 32:  # further files are copies: what they show makes no difference to a decoder
            Image.fromarray(photograph(random, height, width)).save(folder / "one" / f"{i:05d}.jpg", quality=90)
        else:
            (folder / "one" / f"{i:05d}.jpg").write_bytes((folder / "one" / f"{i % 32:05d}.jpg").read_bytes())
    return int(np.mean([path.stat().st_size for path in (folder / "one").iterdir()]))


def rate(work: Callable[[np.ndarray], Any], count: int) -> dict[str, float]:
    """Images a second, and a second of processor time, of the work on each batch of rows."""
    work(np.arange(BATCH))  # compiles, and has files in memory
    wall, processor = time.perf_counter(), time.process_time()
    for start in range(0, count - BATCH + 1, BATCH):
        work(np.arange(start, start + BATCH))
    done = count // BATCH * BATCH
    return {
        "images_per_second": round(done / (time.perf_counter() - wall), 1),
        "images_per_processor_second": round(done / (time.process_time() - processor), 1),
    }


def by_workers(folder: Path, count: int, workers: int) -> dict[str, Any]:
    """What decoding costs this process where threads of its own do it, and where workers do."""
    from mrl_jax.data.readers.decoders import Decoders
    from mrl_jax.data.readers.image_files import FilesBelow, files_below
    from mrl_jax.data.readers.images import Cover, StoredImages

    size = write(folder, count, 375, 500)
    files = FilesBelow(folder, tuple(files_below(folder)))
    results: dict[str, Any] = {}
    for name, decoders in (("threads", None), (f"{workers} workers", Decoders(workers))):
        images = StoredImages(files, np.arange(count), True, (Cover(256),), decoders)
        images[np.arange(BATCH)]  # the workers are there
        wall, before = time.perf_counter(), os.times()
        for start in range(0, count - BATCH + 1, BATCH):
            images[np.arange(start, start + BATCH)]
        done, after = count // BATCH * BATCH, os.times()
        results[f"500 × 375, {size // 1024} kB, {name}"] = {
            "images_per_second": round(done / (time.perf_counter() - wall), 1),
            "user_ms_of_this_process": round(1e3 * (after.user - before.user) / done, 3),
            "system_ms_of_this_process": round(1e3 * (after.system - before.system) / done, 3),
        }
    return results


def memory(work: Callable[[np.ndarray], Any], count: int, passes: int) -> dict[str, Any]:
    """Resident memory in MiB after the first tenth of the passes over all images, after each further one, and speed."""
    found, started = [], time.perf_counter()
    for done in range(1, passes + 1):
        for start in range(0, count - BATCH + 1, BATCH):
            work(np.arange(start, start + BATCH))
        if done % (passes // 10) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1))
    images = passes * (count // BATCH * BATCH)
    return {
        "images": images,
        "resident_mib": found,
        "images_per_second": round(images / (time.perf_counter() - started), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--workers", type=int, help="compare so many processes that decode with threads")
    parser.add_argument("--passes", type=int, help="measure memory over so many passes, ten or more, of crop and flip")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pin(options.threads)
    if options.workers:
        with tempfile.TemporaryDirectory() as place:
            report(options, by_workers(Path(place) / "pictures", options.images, options.workers))
        return
    import jax

    from mrl_jax.data.readers.image_files import FilesBelow, files_below
    from mrl_jax.data.readers.images import Cover, StoredImages
    from mrl_jax.encoders.augmentation import in_training
    from mrl_jax.encoders.image_rules import ImageRule
    from mrl_jax.encoders.vit import ViTConfig

    results: dict[str, Any] = {}
    plain, strong = ViTConfig(augment="resized_crop"), ViTConfig(augment="resized_crop", randaugment=10)

    def augmented(config: ViTConfig) -> Callable[[jax.Array, np.ndarray], jax.Array]:
        return jax.jit(lambda key, images: in_training(config, lambda: key, images, (SIDE, SIDE)))

    programs = {"crop and flip": augmented(plain), "crop, flip and RandAugment": augmented(strong)}
    rules = {
        "data.image_size=224": Cover(SIDE),
        "shortest 256, crop 224, bicubic": ImageRule("shortest", (256, 256), (SIDE, SIDE), 3, 3),
    }
    with tempfile.TemporaryDirectory() as place:
        for height, width in ((SIDE, SIDE),) if options.passes else ((375, 500), (SIDE, SIDE)):
            folder = Path(place) / f"{height}x{width}"
            size = write(folder, options.images, height, width)
            files = FilesBelow(folder, tuple(files_below(folder)))
            for name, rule in rules.items() if not options.passes else ():
                images = StoredImages(files, np.arange(len(files)), True, (rule,))
                results[f"{width} × {height}, {size // 1024} kB, {name}"] = rate(images.__getitem__, options.images)
            images = StoredImages(files, np.arange(len(files)), True, (rules["data.image_size=224"],))
            for name, program in programs.items():

                def both(rows: np.ndarray, images: Any = images, program: Any = program) -> None:
                    program(jax.random.key(0), images[rows]).block_until_ready()

                if options.passes:
                    results[name] = memory(both, options.images, options.passes)
                    break
                results[f"{width} × {height}, {name}"] = rate(both, options.images)
    report(options, results)


def report(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Print the results, and write them where asked for."""
    results = {"machine": machine(), "threads": options.threads, **results}
    for name, result in results.items():
        print(name, result)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
