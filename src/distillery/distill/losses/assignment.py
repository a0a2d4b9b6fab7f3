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
# Of all rows, over some arcs. Where the way is longer, there are few causes and often many optima.
MOST_WORK = 40


def assign(cost_ST: Integers, group: int) -> Integers:
    """Give each row ``group`` distinct columns at the least total cost, serving the columns as evenly as possible.

    Of ``load = S * group`` picks in all, every column gets ``floor(load / T)`` or ``ceil(load / T)``. So no column is
    picked twice while there are enough of them, and none is left out when there are not.

    A dense problem has S x T arcs of which nearly all are hopeless. The problem is therefore solved on the cheapest
    arcs of each row and column alone, and the solution is then proven optimal over all arcs. Where the proof fails, the
    few arcs that would make it cheaper are added until none would; where that does not lead to the only optimum, the
    candidates are widened, in the end to every arc. The result is always a true optimum: of several, the one that the
    solver finds on the fewest candidates a row (64, four times as many, ..., all) that hold any.

    Args:
        cost_ST: integer costs, (S, T).
        group: G, at least 1 and at most T.

    Returns:
        The columns of each row in ascending order, (S, G).
    """
    candidates = FIRST_CANDIDATES
    relative_ST = _relative(cost_ST) if candidates < cost_ST.shape[1] else None
    while relative_ST is not None and candidates < cost_ST.shape[1]:
        arcs_ST = _cheapest(relative_ST, candidates)
        columns_SG = _solve(cost_ST, group, arcs_ST)
        if columns_SG is not None and _is_optimal(cost_ST, columns_SG):
            return columns_SG
        if columns_SG is not None and candidates == FIRST_CANDIDATES:
            columns_SG = _sole_optimum(cost_ST, columns_SG, arcs_ST)
            if columns_SG is not None:
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


def _sole_optimum(cost_ST: Integers, columns_SG: Integers, arcs_ST: Mask) -> Integers | None:
    """Add the arcs that would make a solution cheaper, and solve again, until there are none.

    Args:
        cost_ST: integer costs, (S, T).
        columns_SG: the solution on some arcs, (S, G).
        arcs_ST: these arcs, (S, T); each column has one at least.

    Returns:
        The columns of each row, (S, G); None where others cost as little, or look as if they would.
    """
    # Two channels of zeros suit everyone alike: they can change places.
    if any((np.ptp(cost_ST, axis=axis) == 0).sum() > 1 for axis in (0, 1)):
        return None
    narrow_ST = cost_ST.astype(_narrow(cost_ST))
    start_S, added = None, False
    while True:
        potentials = _potentials(narrow_ST, columns_SG, arcs_ST, start_S)
        if potentials is None:
            return None
        start_S, column_T = potentials
        reduced_ST = start_S[:, None] + (narrow_ST - column_T)
        cheaper_ST = reduced_ST < 0
        cheapest = not cheaper_ST.any()
        # The first solution of trained networks has twins here and there that the next one is rid of.
        if (added or cheapest) and not _is_unique(columns_SG, reduced_ST == 0, column_T):
            return None
        if cheapest:
            return columns_SG
        if start_S.min() < -np.iinfo(start_S.dtype).max // 8:  # sums to come might not fit
            return None
        arcs_ST, added = arcs_ST | cheaper_ST, True
        solved_SG = _solve(cost_ST, columns_SG.shape[1], arcs_ST)
        assert solved_SG is not None, "more arcs take no solution away"
        columns_SG = solved_SG


def _is_unique(columns_SG: Integers, tight_ST: Mask, column_T: Integers) -> bool:
    """Whether no other assignment is an optimum: tight arcs, and picks the other way, close no circle.

    Args:
        columns_SG: an optimum, (S, G).
        tight_ST: the arcs whose cost is just the difference of the potentials of their ends, (S, T).
        column_T: the potentials of the columns, (T,).
    """
    # Two tenths of a second to start, which most matchings do without.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = tight_ST.shape
    sink = rows + columns
    unpicked_ST = tight_ST.copy()
    np.put_along_axis(unpicked_ST, columns_SG, False, axis=1)
    tails, heads = np.nonzero(unpicked_ST)
    spare_T = _spare(columns_SG, columns)
    level = column_T[spare_T].min()
    gives, takes = (np.flatnonzero((column_T == level) & which_T) for which_T in (spare_T, ~spare_T))
    starts = [tails, rows + columns_SG.ravel(), rows + gives, np.full(len(takes), sink)]
    ends = [rows + heads, np.repeat(np.arange(rows), columns_SG.shape[1]), np.full(len(gives), sink), rows + takes]
    places = np.concatenate(starts), np.concatenate(ends)
    graph = csr_array((np.ones(len(places[0]), np.int8), places), shape=(sink + 1, sink + 1))
    knots = connected_components(graph, connection="strong", return_labels=False)
    return bool(knots == sink + 1)


def _narrow(cost_ST: Integers) -> type[np.signedinteger[Any]]:
    """The type for sums of costs: half as many bytes are gone through in half the time."""
    # A sweep adds and takes off one cost each.
    most = 2 * (MOST_SWEEPS + 2) * int(np.abs(cost_ST).max())
    return np.int32 if most < np.iinfo(np.int32).max // 4 else np.int64


def _spare(columns_SG: Integers, columns: int) -> Mask:
    """The columns that could take one more pick, (T,)."""
    spare_T: Mask = np.bincount(columns_SG.ravel(), minlength=columns) == columns_SG.size // columns
    return spare_T


def _is_optimal(cost_ST: Integers, columns_SG: Integers) -> bool:
    """Prove that no exchange among all arcs is cheaper. False also where the sweeps run out."""
    return _potentials(cost_ST.astype(_narrow(cost_ST)), columns_SG) is not None


def _potentials(
    cost_ST: Integers, columns_SG: Integers, arcs_ST: Mask | None = None, start_S: Integers | None = None
) -> tuple[Integers, Integers] | None:
    """Shortest distances in the residual graph, which exist if no exchange is cheaper.

    Label-correcting after Bellman and Ford, a sweep at a time over the rows whose distance has changed. Rows whose
    distances come from one another in a circle lie on a negative cycle, a cheaper exchange.

    Args:
        cost_ST: integer costs, (S, T), of a type that holds sums of them.
        columns_SG: the columns of each row, (S, G).
        arcs_ST: the arcs that count, (S, T), on which the assignment is an optimum; all where None.
        start_S: where the distances of the rows begin, (S,).

    Returns:
        The distances of rows, (S,), and columns, (T,); None where there is a circle or the sweeps run out.
    """
    taken_SG = np.take_along_axis(cost_ST, columns_SG, axis=1)
    if arcs_ST is not None:
        cost_ST = np.where(arcs_ST, cost_ST, np.iinfo(cost_ST.dtype).max // 2)
    spare = _spare(columns_SG, cost_ST.shape[1])
    row_distance = -taken_SG.max(axis=1) if start_S is None else start_S.copy()
    column_distance = np.full(cost_ST.shape[1], np.iinfo(cost_ST.dtype).max)
    # The row that each row's distance comes from; the last stands for none. The first sweeps, over nearly all rows,
    # rarely close a circle: they do not look.
    none = len(cost_ST)
    origin = np.full(none + 1, none)
    changed = np.arange(none)
    work = 0
    for sweep in range(MOST_SWEEPS):
        work += len(changed)
        if arcs_ST is not None and work > MOST_WORK * none:
            return None
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
            return row_distance, column_distance
        row_distance[rows] = back[rows]
        if arcs_ST is None and sweep >= UNTRACED_SWEEPS:
            # A row's distance has changed because its column's has, in this sweep.
            used = through[columns_SG[rows, back_SG[rows].argmin(axis=1)]]
            origin[rows] = changed[over_CT[:, used].argmin(axis=0)]
            if _has_circle(origin):
                return None
        changed = rows
    return None


def _has_circle(origin: Integers) -> bool:
    """Whether going from a row to its origin, again and again, never ends in the last entry, which stands for none."""
    step = 1
    while step < len(origin):
        origin, step = origin[origin], 2 * step
    return bool((origin != len(origin) - 1).any())
