"""Search an index of any back end as a plan says: exactly, or by the stages of a shortlist."""

import numpy as np

from mrl_jax.search import plan as plans
from mrl_jax.search import shortlist
from mrl_jax.search.index import Index, rerank
from mrl_jax.search.index.exact import ExactIndex
from mrl_jax.search.index.store import Store
from mrl_jax.search.queries import SearchResults
from mrl_jax.system.errors import UserError

CANDIDATES_PER_RESULT = 10  # documents ranked by whole embedding per result, without a plan

Stages = list[tuple[int, int]]


def search_index(index: Index, z: np.ndarray, k: int, stages: Stages | None, dim: int | None = None) -> SearchResults:
    """The k best documents of each query.

    Args:
        index: of any back end.
        z: queries, float32 [Q, D].
        k: number of results per query.
        stages: of a funnel. With None, search of all documents if the back end has that, else of a shortlist.
        dim: number of coordinates that documents are ranked by, where there are no stages; by default all.
    """
    if isinstance(index, ExactIndex):
        return index.search(z, k, stages and [(m, min(size, len(index))) for m, size in stages], dim)
    size = max(k, min(CANDIDATES_PER_RESULT * k, index.max_candidates)) if stages is None else stages[0][1]
    return rerank(index, z, k, min(size, len(index)), dim)


def parse_plan(index: Index, plan: str, k: int, dim: int | None = None, dashes: str = "--") -> Stages | None:
    """The stages that a plan asks for; None for exact search, and for a ranking by fewer than all dims.

    Args:
        index: of any back end.
        plan: auto, exact, or stages such as 64:200,128:50.
        k: number of results.
        dim: that documents are ranked by, one of the nesting dims; by default all.
        dashes: before the names of `plan` and `dim` in messages.

    Raises:
        UserError: the index has no such plan, or no such dim.
    """
    width, dims, prefix = index.description.width, index.description.dims, index.description.scanned
    if dim is not None and dim not in dims:
        raise UserError(f"{dashes}dim={dim} is not allowed; one of {', '.join(map(str, dims))}")
    if plan == "auto":
        return saved_plan(index, k) if dim in (None, width) else None
    if plan == "exact":
        need_exact(index, f"{dashes}plan exact")
        return None
    if dim not in (None, width):
        raise UserError(f"{dashes}plan={plan} ranks by all {width} dims; leave {dashes}dim={dim} out, or the plan")
    try:
        parts = (part.partition(":") for part in plan.split(","))
        stages = [(int(m), int(size)) for m, _, size in parts]
        shortlist.check_stages(stages, dims, k)
    except ValueError as error:
        why = "" if "invalid literal" in str(error) else f" ({error})"
        raise UserError(
            f"{dashes}plan={plan} is not allowed{why}; auto, exact, or stages such as 64:200 or 32:400,64:100"
        ) from None
    if not isinstance(index, ExactIndex) and (len(stages) > 1 or stages[0][0] != prefix):
        raise UserError(f"{dashes}plan={plan}: this index has one stage, at {prefix} dims")
    if stages[0][0] > prefix:
        raise UserError(f"{dashes}plan={plan}: the first stage can scan at most {prefix} dims")
    return stages


def saved_plan(index: Index, k: int) -> Stages | None:
    """The stages that `plan` saved for these documents; None where there are none."""
    return plans.load(index.folder, index.version, k, index.description) if isinstance(index, Store) else None


def need_exact(index: Index, what: str) -> ExactIndex:
    """The index. Raises UserError, which begins with `what`, unless it can be searched exactly."""
    if not isinstance(index, ExactIndex):
        raise UserError(f"{what} needs an index of kind exact; this one is {index.description.kind}")
    return index
