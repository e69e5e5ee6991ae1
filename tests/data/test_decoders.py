"""Worker processes that decode images: the pixels and messages of one process, and what happens when a worker ends."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from mrl_jax.data.readers.decoders import Decoders
from mrl_jax.data.readers.images import Cover, EncodedImages, Geometry, StoredImages
from mrl_jax.system.errors import UserError


class Pictures:
    """Encoded images in memory, as records and as files; the last one is damaged."""

    def __init__(self, count: int = 40) -> None:
        self.encoded = []
        for number in range(count):
            buffer = io.BytesIO()
            size = (50 - number, 30 + number, 3)
            pixels = np.random.default_rng(number).integers(0, 255, size).astype(np.uint8)
            Image.fromarray(pixels).save(buffer, "JPEG")
            self.encoded.append(buffer.getvalue())
        self.encoded.append(b"no image")

    def inputs(self, rows: Sequence[int], key: str) -> list[bytes]:
        return [self.encoded[row] for row in rows]

    def __len__(self) -> int:
        return len(self.encoded)

    def read(self, row: int) -> bytes:
        return self.encoded[row]

    def name(self, row: int) -> str:
        return f"picture {row}"


@pytest.fixture(scope="module")
def decoders() -> Decoders:
    return Decoders(2)


def test_workers_give_the_pixels_and_messages_of_one_process(decoders: Decoders) -> None:
    pictures = Pictures()
    rows, of_batch = np.arange(41)[::-1], np.array([3, 1, 40, 3, *range(5, 30)])
    makers = (
        lambda own: EncodedImages(pictures, "image", Geometry(16, 12, 3), rows, own),
        lambda own: StoredImages(pictures, rows, True, (Cover(20), Cover(14)), own),
    )
    for make in makers:
        here, there = make(None), make(decoders).subset(np.arange(41))
        np.testing.assert_array_equal(here[of_batch], there[of_batch])
        assert there[np.arange(0)].shape[0] == 0
        messages = []
        for images in (here, there):
            with pytest.raises(UserError) as error:
                images[np.arange(3)]  # row 40 is the damaged one
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        assert "40" in messages[0]
        np.testing.assert_array_equal(here[of_batch], there[of_batch])  # a message does not disturb what follows


def test_a_worker_that_was_killed_ends_in_one_sentence() -> None:
    one = Decoders(1)
    images = EncodedImages(Pictures(3), "image", Geometry(8, 8, 3), np.arange(3), one)
    assert images[np.arange(3)].any()
    worker = one._free.get()
    worker.kill()
    one._free.put(worker)
    with pytest.raises(UserError, match=r"a process that decodes images has ended \(status -9\)") as error:
        images[np.arange(3)]
    assert "\n" not in str(error.value)
