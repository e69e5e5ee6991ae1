"""Two towers: one encoder of the table for images, one for texts, both ending in one space of D dims.

    texts  → text tower  ┐
                         ├→ z [texts + images, D], the texts first
    images → image tower ┘

Nothing is shared and nothing mixes coordinates after the towers' own projections, so a prefix of both is a pair of
smaller towers: CLIP (Radford et al., 2021, arXiv:2103.00020) and ALIGN (Jia et al., 2021), nested as in the Matryoshka
paper (Kusupati et al., 2022, arXiv:2205.13147). A caption is the anchor and its picture the positive of a loss of
pairs. A batch may hold one side alone; its embeddings are then those of that side.

All that the table says of an encoder is asked of each tower; a sentence for a mistake names the key of its own section.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from mrl_jax.data.captioned import CaptionedImages
from mrl_jax.data.prompts import Prompts
from mrl_jax.data.readers.images import StoredImages
from mrl_jax.encoders.bag import BagConfig
from mrl_jax.encoders.base import EncoderConfig, EncoderType
from mrl_jax.encoders.image_rules import Prepared
from mrl_jax.encoders.vit import ViTConfig
from mrl_jax.system.errors import UserError
from mrl_jax.text.tokenizers import Arrays, Preprocessor

SIDES = ("text", "image")  # in the order of the embeddings of a batch; also the folders of their preprocessors


@dataclass(frozen=True)
class TowersConfig(EncoderConfig):
    """Settings: the section of an encoder for each side, such as {name: vit, patch: 8, projection: true}."""

    name: str = "towers"
    image: EncoderConfig = field(default_factory=ViTConfig, metadata={"reads": "image"})  # of pictures: {name: vit, …}
    text: EncoderConfig = field(default_factory=BagConfig, metadata={"reads": "text"})  # of captions: likewise

    @property
    def max_length(self) -> int | None:
        """Tokens to which a text is truncated."""
        return getattr(self.text, "max_length", None)

    @property
    def positions(self) -> int | None:
        """Tokens of the longest text."""
        return getattr(self.text, "positions", None)


def entry(config: EncoderConfig) -> EncoderType[Any]:
    """What the table says of a tower."""
    from mrl_jax.encoders import ENCODERS  # which has an entry for this module

    return ENCODERS[config.name]


@contextmanager
def section(side: str) -> Iterator[None]:
    """Let the message of a `UserError` name the keys of a tower as they are: `encoder.image.patch`."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error.args[0]).replace("encoder.", f"encoder.{side}.")) from None


def _of(config: TowersConfig, side: str) -> EncoderConfig:
    of: EncoderConfig = getattr(config, side)
    return of


class Towers(nnx.Module):
    """Inputs {"image": uint8 [I, h, w, c]} and those of the text tower for T texts, or one of them → float32
    [T + I, D]."""

    def __init__(
        self,
        config: TowersConfig,
        *,
        inputs: dict[str, tuple[int, ...]],
        vocabulary: int,
        width: int,
        rngs: nnx.Rngs,
    ) -> None:
        """Raises `UserError` where a side is missing, or a tower cannot be built with this width."""
        texts = {name: shape for name, shape in inputs.items() if name != "image"}
        if "image" not in inputs or not texts:
            raise UserError(f"encoder=towers needs images and texts, but the data has {', '.join(inputs) or 'nothing'}")
        with section("text"):
            self.text: Any = entry(config.text).module(
                config.text, inputs=texts, vocabulary=vocabulary, width=width, rngs=rngs
            )
        with section("image"):
            images = {"image": inputs["image"]}
            self.image: Any = entry(config.image).module(
                config.image, inputs=images, vocabulary=0, width=width, rngs=rngs
            )

    def __call__(self, inputs: dict[str, jax.Array], *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Embed a batch; `rngs` given means training."""
        texts = {name: array for name, array in inputs.items() if name != "image"}
        parts = [self.text(texts, rngs=rngs)] if texts else []
        if "image" in inputs:
            parts.append(self.image({"image": inputs["image"]}, rngs=rngs))
        return jnp.concatenate(parts)


@dataclass
class TowersPreprocessor:
    """The preprocessors of both towers; which of them reads is told by what is given: a list of str is texts."""

    text: Preprocessor
    image: Preprocessor
    cut: int = 0  # texts of the last call that were longer than the text tower reads

    @property
    def vocabulary(self) -> int:
        return self.text.vocabulary

    @property
    def tokenizer(self) -> Tokenizer | None:
        """That of texts."""
        return self.text.tokenizer

    def __call__(self, raw: Any) -> Arrays:
        """The arrays of n texts (a list of str) or n images: uint8 [n, h, w, c], or a list of arrays, Pillow's images,
        encoded files (bytes) and `Path`s."""
        if not are_texts(raw):
            self.cut = 0
            return self.image(raw)
        arrays = self.text(raw)
        self.cut = getattr(self.text, "cut", 0)
        return arrays

    def save(self, directory: Path) -> None:
        """Each in a folder of its own."""
        for side in SIDES:
            getattr(self, side).save(directory / side)


def are_texts(raw: Any) -> bool:
    """Whether raw inputs are texts; what is empty counts as texts."""
    if isinstance(raw, StoredImages | Prepared):
        return False
    if isinstance(raw, np.ndarray):
        return raw.dtype.kind in "UO"
    return all(isinstance(item, str) for item in raw[:1])


def fit_preprocessor(
    kind: str, raw: CaptionedImages, *, image: EncoderConfig, text: EncoderConfig
) -> TowersPreprocessor:
    """The preprocessors of both towers, learnt from their sides of the training data."""
    del kind  # image-text

    def fit(side: str, config: EncoderConfig, inputs: Any) -> Preprocessor:
        of = entry(config)
        with section(side):
            return of.fit_preprocessor(side, inputs, **{key: getattr(config, key) for key in of.learnt_from})

    return TowersPreprocessor(text=fit("text", text, raw.texts), image=fit("image", image, raw.images))


def load_preprocessor(config: TowersConfig, directory: Path, kind: str) -> TowersPreprocessor:
    """Both, as saved with a run. Raises `UserError` for a missing or damaged file."""
    del kind  # image-text
    text, image = (
        entry(_of(config, side)).load_preprocessor(_of(config, side), directory / side, side) for side in SIDES
    )
    return TowersPreprocessor(text=text, image=image)


def standalone(config: TowersConfig, vocabulary: int) -> tuple[TowersConfig, int]:
    """The config of towers that need no files of their own to be rebuilt, and the text tower's number of token ids."""
    with section("text"):
        text, tokens = entry(config.text).standalone(config.text, vocabulary)
    with section("image"):
        image, _ = entry(config.image).standalone(config.image, 0)
    return replace(config, text=text, image=image), tokens


def prompts(config: TowersConfig, given: Mapping[str, str] | None) -> Prompts:
    """Those of the text tower."""
    with section("text"):
        return entry(config.text).prompts(config.text, given)


def digest(config: TowersConfig) -> str | None:
    """SHA-256 that identifies the pretrained weights of both towers; None where neither starts from any."""
    of = [entry(_of(config, side)).digest(_of(config, side)) for side in SIDES]
    return hashlib.sha256(repr(of).encode()).hexdigest() if any(of) else None


def check_width(config: TowersConfig, width: int) -> None:
    """Raise `UserError` where a tower cannot end in `width` dims, or pictures would be mixed without their captions."""
    for key in ("mixup", "cutmix"):
        if value := getattr(config.image, key, 0):
            raise UserError(f"encoder.image.{key}={value} is not allowed; 0, as a mixture of pictures has no caption")
    for side in SIDES:
        with section(side):
            entry(_of(config, side)).check_width(_of(config, side), width)


def trained(config: TowersConfig, parameters: Any) -> Any:
    """Which parameters learn, as a tree of bool; None: all of both."""
    given = {side: parameters.get(side, {}) for side in SIDES}
    of = {side: entry(_of(config, side)).trained(_of(config, side), given[side]) for side in SIDES}
    if all(learns is None for learns in of.values()):
        return None
    return {
        side: jax.tree.map(lambda _: True, given[side]) if learns is None else learns for side, learns in of.items()
    }


def rotate(config: TowersConfig, parameters: Any, rotation: np.ndarray) -> tuple[TowersConfig, Any] | None:
    """Both towers with their embeddings rotated alike, which leaves every cosine between them as it is."""
    turned = {side: entry(_of(config, side)).rotate(_of(config, side), parameters[side], rotation) for side in SIDES}
    if turned["text"] is None or turned["image"] is None:
        return None
    configs = {side: of[0] for side, of in turned.items() if of is not None}
    return replace(config, **configs), {side: of[1] for side, of in turned.items() if of is not None}
