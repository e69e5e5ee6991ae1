"""What a training step learns, besides the encoder: the protocol of the objectives that tasks have."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

OF_LABEL = ("label", "teacher", "guide")  # of a batch, what the encoder does not read


class Objective(Protocol):
    """The objective of a task: parameters besides the encoder's, nested loss, score. See `mrl_jax.tasks`."""

    @property
    def dims(self) -> tuple[int, ...]:
        """The K nesting dims."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of heads that loss weights [kinds, K] refer to."""
        ...

    @property
    def columns(self) -> int:
        """Embeddings per example."""
        ...

    @property
    def couples_examples(self) -> bool:
        """Whether the loss of an example depends on the others in its batch, so that a batch cannot be split."""
        ...

    @property
    def breaks_ties(self) -> bool:
        """Whether of moments with the same accuracy that of the smallest loss is kept, instead of the first."""
        ...

    @property
    def sampled(self) -> int:
        """Number of granularities that a sampled arm trains per step."""
        ...

    def with_options(self, options: Mapping[str, Any]) -> "Objective":
        """The same with these options of `LossConfig`, numbers or arguments of the compiled step."""
        ...

    def of(self, label: Any) -> tuple["Objective", Any]:
        """The objective of a batch with this label, and the label as that one reads it: of a mixture, its source's."""
        ...

    def init(self, key: jax.Array) -> dict[str, Any]:
        """The initial parameters."""
        ...

    def loss(
        self, params: Any, z: jax.Array, label: Any, weights: jax.Array, of_arm: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The scalar loss of embeddings [columns · B, D] and the loss of each granularity [kinds, K]. With vectors of
        other models [columns · B, T] in the batch, the label is a mapping of `label` and these, see `OF_LABEL`.
        `of_arm` are the weights of all steps, of which `weights` has those that are drawn; None: no others."""
        ...

    def score(self, params: Any, z: jax.Array, label: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Numbers of correct answers and summed losses, [kinds, K] each, over examples where `valid` [B] is true."""
        ...

    def narrow(self, width: int) -> "Objective":
        """The objective of the fixed-size model of `width` alone."""
        ...

    def cut(self, wide: Any, params: Any) -> dict[str, Any]:
        """The initial parameters of this objective, cut from the parameters of the `wide` one."""
        ...

    def widen(self, wide: Any, full: Any, params: Any) -> dict[str, Any]:
        """`full`, the parameters of the `wide` objective, with the parameters of this one written into them."""
        ...
