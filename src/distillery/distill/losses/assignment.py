"""Exact assignment of teacher channels to student channels, as a minimum-cost flow.

S student channels, T teacher channels, G teacher channels for each student channel.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from ortools.graph.python.min_cost_flow import SimpleMinCostFlow

Integers = npt.NDArray[np.signedinteger[Any]]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

FIRST_CANDIDATES = 64
MOST_SWEEPS = 400
UNTRACED_SWEEPS = 6


def assign(cost_ST: Integers, group: int) -> Integers:
    """Give each row ``group`` distinct columns at the least total cost, serving the columns as evenly as possible.

    Of ``load = S * group`` picks in all, every column gets ``floor(load / T)`` or ``ceil(load / T)``. So no column is
    picked twice while there are enough of them, and none is left out when there are not.

    A dense problem has S x T arcs of which nearly all are hopeless. The problem is therefore solved on the cheapest
    arcs of each row and column alone, the solution is then proven optimal over all arcs, and where the proof fails the
    candidates are widened, in the end to every arc. The result is always a true optimum.

    Args:
        cost_ST: integer costs, (S, T).
        group: G, at least 1 and at most T.

    Returns:
        The columns of each row in ascending order, (S, G).
    """
    candidates = FIRST_CANDIDATES
    relative_ST = _relative(cost_ST) if candidates < cost_ST.shape[1] else None
    while relative_ST is not None and candidates < cost_ST.shape[1]:
        columns_SG = _solve(cost_ST, group, _cheapest(relative_ST, candidates))
        if columns_SG is not None and _is_optimal(cost_ST, columns_SG):
            return columns_SG
        candidates *= 4
    columns_SG = _solve(cost_ST, group, np.ones(cost_ST.shape, dtype=bool))
    assert columns_SG is not None, "a dense assignment always has a solution"
    return columns_SG


def _relative(cost_ST: Integers) -> Floats:
    """Costs less their column and row means: how well a pair suits beyond how well each of the two suits everyone."""
    relative_ST: Floats = (cost_ST - cost_ST.mean(axis=0)).astype(np.float32)
    relative_ST -= relative_ST.mean(axis=1, keepdims=True)
    return relative_ST


def _cheapest(relative_ST: Floats, candidates: int) -> Mask:
    """The arcs among the ``candidates`` cheapest of their row or half as many of their column, (S, T)."""
    of_row = min(candidates, relative_ST.shape[1] - 1)
    of_column = min(candidates // 2, relative_ST.shape[0] - 1)
    row_limit = np.partition(relative_ST, of_row, axis=1)[:, of_row]
    column_limit = np.partition(np.ascontiguousarray(relative_ST.T), of_column, axis=1)[:, of_column]
    mask_ST: Mask = (relative_ST <= row_limit[:, None]) | (relative_ST <= column_limit)
    return mask_ST


def _solve(cost_ST: Integers, group: int, arcs_ST: Mask) -> Integers | None:
    """Solve on some arcs only; None where these admit no assignment.

    Nodes: rows supply ``group`` each, columns demand the even share each, one sink takes the rest through arcs of
    capacity 1.
    """
    rows, columns = cost_ST.shape
    share, rest = divmod(rows * group, columns)
    tails, heads = np.nonzero(arcs_ST)
    flow = SimpleMinCostFlow()
    arcs = flow.add_arcs_with_capacity_and_unit_cost(
        tails.astype(np.int32), (rows + heads).astype(np.int32), np.ones(len(tails), np.int64), cost_ST[arcs_ST]
    )
    column_nodes = np.arange(rows, rows + columns, dtype=np.int32)
    sink = rows + columns
    if rest:
        flow.add_arcs_with_capacity_and_unit_cost(
            column_nodes, np.full(columns, sink, np.int32), np.ones(columns, np.int64), np.zeros(columns, np.int64)
        )
    supplies = np.concatenate([np.full(rows, group), np.full(columns, -share), [-rest]]).astype(np.int64)
    flow.set_nodes_supplies(np.arange(sink + 1, dtype=np.int32), supplies)
    status = flow.solve()
    if status == flow.INFEASIBLE:
        return None
    assert status == flow.OPTIMAL, f"the solver ended with {status}"
    columns_SG: Integers = heads[flow.flows(arcs) > 0].reshape(rows, group)
    return columns_SG


def _is_optimal(cost_ST: Integers, columns_SG: Integers) -> bool:
    """Prove that no exchange among all arcs is cheaper: shortest distances exist in the residual graph.

    Label-correcting after Bellman and Ford, a sweep at a time over the rows whose distance has changed. Rows whose
    distances come from one another in a circle lie on a negative cycle, a cheaper exchange. False also where the sweeps
    run out.
    """
    # A sweep adds and takes off one cost each. Half as many bytes are gone through in half the time.
    if 2 * (MOST_SWEEPS + 1) * int(np.abs(cost_ST).max()) < np.iinfo(np.int32).max:
        cost_ST = cost_ST.astype(np.int32)
    share = columns_SG.size // cost_ST.shape[1]
    spare = np.bincount(columns_SG.ravel(), minlength=cost_ST.shape[1]) == share
    taken_SG = np.take_along_axis(cost_ST, columns_SG, axis=1)
    row_distance = -taken_SG.max(axis=1)
    column_distance = np.full(cost_ST.shape[1], np.iinfo(cost_ST.dtype).max)
    # The row that each row's distance comes from; the last stands for none. The first sweeps, over nearly all rows,
    # rarely close a circle: they do not look.
    none = len(cost_ST)
    origin = np.full(none + 1, none)
    changed = np.arange(none)
    for sweep in range(MOST_SWEEPS):
        over_CT = row_distance[changed, None] + (cost_ST if len(changed) == none else cost_ST[changed])
        column_distance = np.minimum(column_distance, over_CT.min(axis=0))
        through = np.arange(cost_ST.shape[1])
        if not spare.all():
            # An unpicked column can hand its place to a picked one through the sink.
            best = np.flatnonzero(spare)[column_distance[spare].argmin()]
            further = ~spare & (column_distance > column_distance[best])
            column_distance[further], through[further] = column_distance[best], best
        back_SG = column_distance[columns_SG] - taken_SG
        back = back_SG.min(axis=1)
        rows = np.flatnonzero(back < row_distance)
        if not rows.size:
            return True
        row_distance[rows] = back[rows]
        if sweep >= UNTRACED_SWEEPS:
            # A row's distance has changed because its column's has, in this sweep.
            used = through[columns_SG[rows, back_SG[rows].argmin(axis=1)]]
            origin[rows] = changed[over_CT[:, used].argmin(axis=0)]
            if _has_circle(origin):
                return False
        changed = rows
    return False


def _has_circle(origin: Integers) -> bool:
    """Whether going from a row to its origin, again and again, never ends in the last entry, which stands for none."""
    step = 1
    while step < len(origin):
        origin, step = origin[origin], 2 * step
    return bool((origin != len(origin) - 1).any())
