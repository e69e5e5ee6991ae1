"""A trained encoder in use: embeddings, classes, cascades."""

import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import jax
import numpy as np

from mrl_jax import nesting
from mrl_jax.data.prompts import NO_PROMPTS, Prompts, put
from mrl_jax.evaluate import adaptive
from mrl_jax.evaluate.adaptive import Calibration, Rule
from mrl_jax.evaluate.cascade import Kind
from mrl_jax.evaluate.nested_classifier import NestedClassifier
from mrl_jax.losses import heads
from mrl_jax.model.chunks import chunks
from mrl_jax.model.parts import cut
from mrl_jax.system import console
from mrl_jax.system.errors import UserError, one_of
from mrl_jax.text.tokenizers import Preprocessor
from mrl_jax.training import batches
from mrl_jax.training.batches import Examples
from mrl_jax.training.mixture import of_source
from mrl_jax.training.step import TrainStep, Weights
from mrl_jax.training.trainer import tokens_at_once

CHUNK_EXAMPLES = 16_384  # examples that are read, sorted by length and embedded together


class EmbeddingModel:
    """A trained member of a run: `mrl_jax.load` returns one.

    Attributes:
        dims: the prefix lengths that it was trained at.
        head: the kind of its classifier, see `losses.heads.KINDS`.
        classes: the names of its classes; none where it was trained on pairs or unlabelled texts.
        calibration: what its classifiers answered to held-out examples; None where that is not known.
        prompts: what stands before texts, by name.
        source: of a run on several, the one whose classifiers these are.
        sizes: numbers of its encoder's layers, and of hidden units, that it was trained with; none: with all alone.
        unknown: number of inputs so far with a zero embedding: texts without any token that it knows.
    """

    def __init__(
        self,
        program: TrainStep,
        weights: Weights,
        reader: Preprocessor,
        dims: tuple[int, ...],
        head: str,
        classes: Sequence[str] = (),
        calibration: Calibration | None = None,
        prompts: Prompts = NO_PROMPTS,
        source: str | None = None,
        sizes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
    ) -> None:
        self.prompts, self.source = prompts, source
        self.program, self.reader, self.dims, self.head = program, reader, dims, head
        self.weights = jax.device_put(weights)  # once: NumPy arrays would be copied at every call
        self.classes, self.calibration, self.unknown = tuple(classes), calibration, 0
        self._embed = jax.jit(program.embed)
        self._warned_untrained = self._warned_cut = False
        self.sizes, self.parts = sizes, dict[tuple[int, int], EmbeddingModel]()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and the prompts. Embeddings are comparable only between models with the same one."""
        digest = hashlib.sha256(self.prompts.identity.encode())
        for leaf in jax.tree.leaves(self.weights):
            digest.update(np.ascontiguousarray(leaf))
        return digest.hexdigest()

    def encode(
        self,
        raw: Iterable[str] | np.ndarray,
        dim: int | None = None,
        batch_size: int = 256,
        show_progress: bool | None = None,
        prompt: str | None = None,
        layers: int | None = None,
        hidden: int | None = None,
    ) -> np.ndarray:
        """Embeddings of texts (or images, or features), truncated to `dim` and then scaled to unit length.

        Texts are read and embedded `CHUNK_EXAMPLES` at a time, sorted by length within a chunk to reduce padding, so a
        generator is never held in memory as a whole. Texts beyond the model's maximum length are cut; the first call
        that cuts any prints how many.

        Args:
            raw: n texts, features [n, d], or images: uint8 [n, h, w, c], or a list of paths or of Pillow's images; of a
                run on captions and pictures a list of str is texts, one of `Path`s, Pillow's images or bytes images.
            dim: prefix length, 1…D; by default D. It need not be one of the trained dims.
            batch_size: maximum number of examples per batch.
            show_progress: whether to show a progress bar on standard error; by default for more than one chunk.
            prompt: the name of what to put before each text: `query`, `document` or another of the model's `prompts`;
                by default its default prompt, if it has one.
            layers, hidden: how many layers, and units in the feed-forward of each, as `part`; by default all.

        Returns:
            float32 [n, dim] with rows of unit length; a zero embedding (a text without any known word) stays zero.

        Raises:
            UserError: the model has no prompt of that name, or not so many layers.
            ValueError: `dim` is outside 1…D, `batch_size` below 1, or `raw` is a single text instead of a list.
        """
        if layers is not None or hidden is not None:
            return self.part(layers, hidden).encode(raw, dim, batch_size, show_progress, prompt)
        blocks = list(self.encode_stream(raw, dim, batch_size, show_progress, prompt=prompt))
        dim = self.program.width if dim is None else dim
        z, start = np.empty((sum(map(len, blocks)), dim), np.float32), 0
        blocks.reverse()
        while blocks:  # freed one by one, so that memory does not hold two copies of all
            block = blocks.pop()
            z[start : start + len(block)] = block
            start += len(block)
        return z

    def part(self, layers: int | None = None, hidden: int | None = None) -> "EmbeddingModel":
        """The model of the first layers and hidden units alone, smaller and faster; see `parts.cut`."""
        return cut(self, layers, hidden)

    def encode_stream(
        self,
        raw: Iterable[str] | np.ndarray,
        dim: int | None = None,
        batch_size: int = 256,
        show_progress: bool | None = None,
        chunk_size: int = CHUNK_EXAMPLES,
        prompt: str | None = None,
    ) -> Iterator[np.ndarray]:
        """As `encode`, but yields blocks float32 [≤ chunk_size, dim] in order, with constant memory.

        Other arguments and errors as for `encode`; they are checked at the call, before the first block is asked for.

        Args:
            chunk_size: number of examples that are read, sorted by length and embedded together.
        """
        dim = self._check_dim(self.program.width if dim is None else dim)
        self._check(raw, batch_size)
        self.prompts.of(prompt)
        return self._stream(raw, dim, batch_size, show_progress, chunk_size, prompt=prompt)

    def _check_dim(self, dim: int) -> int:
        """`dim`, if there are as many; the first one that was not trained at is named on standard error."""
        if not 1 <= dim <= self.program.width:
            raise ValueError(f"dim={dim} is outside 1…{self.program.width}, the width of these embeddings")
        if dim not in self.dims and not self._warned_untrained:
            self._warned_untrained = True
            below, above = [m for m in self.dims if m < dim][-1:], [m for m in self.dims if m > dim][:1]
            near = " and ".join(map(str, below + above))
            print(f"dim={dim} was not trained; the nearest trained dims are {near}", file=sys.stderr)
        return dim

    def _stream(
        self,
        raw: Iterable[str] | np.ndarray,
        dim: int,
        batch_size: int = 256,
        show_progress: bool | None = None,
        chunk_size: int = CHUNK_EXAMPLES,
        normalised: bool = True,
        prompt: str | None = None,
    ) -> Iterator[np.ndarray]:
        total = len(raw) if isinstance(raw, Sized) else None
        shown = show_progress if show_progress is not None else total is None or total > chunk_size
        cut = 0
        with console.progress(total, "encode", "example", leave=False, shown=shown) as bar:
            for chunk in chunks(raw, chunk_size):
                z = self._embed_chunk(chunk, batch_size, dim, normalised, prompt, bar.update)
                self.unknown += int(np.count_nonzero(~z.any(axis=1)))
                cut += getattr(self.reader, "cut", 0)
                yield z
        if cut and not self._warned_cut:
            self._warned_cut = True
            longest = getattr(self.program.encoder, "max_length", None)
            print(f"{cut:,} texts were longer than {longest} tokens and were cut", file=sys.stderr)

    def embed(self, raw: Sequence[str] | np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Embeddings as the classifiers read them: full width, not normalised.

        Args:
            raw: as for `encode`.
            batch_size: maximum number of examples per batch.

        Returns:
            float32 [n, D].

        Raises:
            ValueError: `batch_size` is below 1, or `raw` is a single text instead of a list.
        """
        self._check(raw, batch_size)
        return self._embed_chunk(raw, batch_size, self.program.width, normalised=False)

    @staticmethod
    def _check(raw: Any, batch_size: int) -> None:
        if isinstance(raw, str):
            raise ValueError("a list of texts is needed; got one text")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is not allowed; at least 1")

    def _embed_chunk(
        self,
        raw: Sequence[str] | np.ndarray,
        batch_size: int,
        dim: int,
        normalised: bool,
        prompt: str | None = None,
        embedded: Callable[[int], Any] = lambda n: None,
    ) -> np.ndarray:
        """`embedded` hears of every batch how many examples it had."""
        batch_size = min(batch_size, 1 << (len(raw) - 1).bit_length()) if len(raw) else 1  # few shapes to compile
        examples = Examples(self.reader(put(self.prompts.of(prompt), raw)), np.zeros(len(raw), np.int32))
        z = np.empty((len(raw), dim), np.float32)
        if len(raw):
            for rows, batch, valid in batches.slices(examples, batch_size, tokens_at_once()):
                del batch["label"]
                z_BxD = self._embed(self.weights, batch)
                z[rows] = np.asarray(nesting.truncate(z_BxD, dim) if normalised else z_BxD[:, :dim])[valid]
                embedded(len(rows))
        return z

    def predict(
        self,
        raw: Iterable[str] | np.ndarray,
        dim: int | None = None,
        batch_size: int = 256,
        show_progress: bool | None = None,
    ) -> tuple[list[str], np.ndarray]:
        """The most probable class of each input and the probabilities of all classes, from a prefix of its embedding.

        The probabilities are calibrated on the validation split, or on the examples that were given to `calibrate`.

        Args:
            raw: n texts, images or features, as for `encode`.
            dim: prefix length, as for `classifier`.
            batch_size, show_progress: as for `encode`.

        Returns:
            n class names, and float64 [n, C] with columns in the order of `classes`.

        Raises:
            UserError: the model was trained without classes, so it has no classifiers.
            ValueError: there is no classifier at `dim`, or as for `encode`.
        """
        self._check(raw, batch_size)
        answers = self.classifier(dim).predict(raw, batch_size=batch_size, show_progress=show_progress)
        return answers.names, answers.probabilities

    def classifier(self, dim: int | None = None) -> NestedClassifier:
        """The classifier of one prefix, with class names.

        Args:
            dim: a trained dim, by default the largest; a tied head (MRL-E) has a classifier at every dim.

        Raises:
            As for `predict`.
        """
        self.classifiers()
        dim = self.dims[-1] if dim is None else dim
        if not heads.IS_TIED[self.head] and dim not in self.dims:
            raise ValueError(f"dim={dim} has no classifier; allowed: {', '.join(map(str, self.dims))}")
        self._check_dim(dim)
        known = {} if self.calibration is None else dict(zip(self.dims, self.calibration.temperatures[0], strict=True))
        rule = Rule("max_softmax", (float(known.get(dim, 1.0)),), np.zeros(0), False)
        return self._nested((dim,), rule, dim in known)

    def cascade(self, epsilon: float = 0.01, delta: float = 0.1) -> NestedClassifier:
        """A classifier that reads few dims of each input, and more only where it is unsure (see `evaluate.cascade`).

        Its thresholds are certified on the validation split, or on the examples that were given to `calibrate`:
        P(accuracy loss ≥ epsilon) ≤ delta. If nothing can be certified, it reads every input at full width.

        Args:
            epsilon: accuracy that it may lose relative to full width, as a share.
            delta: probability with which it may lose more.

        Returns:
            `names, probabilities, dims = cascade.predict(texts)`; the dims are those that were read of each text.

        Raises:
            UserError: the model has no classifiers, or one at a single dim; or it is not calibrated.
            ValueError: epsilon or delta is not in (0, 1), or there are too few examples to certify anything.
        """
        self.classifiers()
        if len(self.dims) == 1:
            raise UserError(f"this model has one classifier, at dim={self.dims[0]}: a cascade needs two or more")
        if self.calibration is None:
            raise UserError(
                "this run is of a version that did not calibrate; give held-out texts with their labels "
                "(model.calibrate, or --calibrate FILE)"
            )
        return self._nested(self.dims, self.calibration.rules(epsilon, delta)["certified"], True)

    def calibrate(
        self, raw: Iterable[str] | np.ndarray, labels: Sequence[str], kind: Kind = "margin", seed: int = 0
    ) -> None:
        """Calibrate on held-out examples of your own, from here on, instead of the validation split.

        A certificate is strict only on such examples: the validation split has also chosen the moment of training.

        Args:
            raw: n texts, images or features, as for `encode`.
            labels: n names of `classes`.
            kind: measure of confidence, see `evaluate.cascade.confidence`.
            seed: of the split into examples to fit on and examples to certify with.

        Raises:
            UserError: the model has no classifiers, or a label is none of its classes.
            ValueError: there are no examples, or not as many labels as inputs.
        """
        classifiers, index = self.classifiers(), {name: i for i, name in enumerate(self.classes)}
        numbers = np.array([index[one_of("label", label, index)] for label in labels], np.int64)
        z = np.concatenate([np.zeros((0, self.dims[-1])), *self._stream(raw, self.dims[-1], normalised=False)])
        if len(z) != len(numbers) or not len(z):
            raise ValueError(f"{len(z):,} inputs and {len(numbers):,} labels; as many are needed, and at least one")
        logits = (z[:, :m] @ kernel + bias for m, (kernel, bias) in classifiers.items())
        self.calibration = adaptive.calibrate(logits, numbers, kind, seed)

    def _nested(self, dims: tuple[int, ...], rule: Rule, calibrated: bool) -> NestedClassifier:
        by_dim = self.classifiers(dims)

        def embed(raw: Any, **options: Any) -> Iterator[np.ndarray]:
            return self._stream(raw, dims[-1], normalised=False, **options)

        tied = heads.IS_TIED[self.head]
        return NestedClassifier(self.classes, dims, tuple(by_dim[m] for m in dims), rule, tied, calibrated, embed)

    def classifiers(self, dims: Sequence[int] | None = None) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The classifiers, for embeddings from `embed`.

        Args:
            dims: prefix lengths, by default the trained ones; separate heads have classifiers at no others.

        Returns:
            By dim m the kernel [m, C] and the bias [C], float32.

        Raises:
            UserError: the model was trained without classes, so it has no classifiers.
        """
        params = self.weights.params if self.source is None else of_source(self.weights.params, self.source)
        if "heads" not in params:
            labelled = [name for name, of in self.weights.params.get("sources", {}).items() if "heads" in of]
            hint = f"; give the folder of a source that has: sources/{', sources/'.join(labelled)}"
            raise UserError(f"this model was trained without classes: it has no classifier{hint if labelled else ''}")
        by_dim = heads.classifiers(params["heads"][self.head], self.head, self.program.dims, dims or self.dims)
        return {m: (np.asarray(kernel), np.asarray(bias)) for m, (kernel, bias) in by_dim.items()}
