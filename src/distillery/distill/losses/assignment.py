"""Exact assignment of teacher channels to student channels, at the least total cost.

S student channels (rows), T teacher channels (columns), G columns for each row, A arcs (pairs of a row and a column).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment
from ortools.graph.python.min_cost_flow import SimpleMinCostFlow

Integers = npt.NDArray[np.signedinteger[Any]]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Where columns x G is below this, or a tenth of the columns stays unpicked, scipy's copies of rows are the fastest way.
FEW_COPIES = 1024
# So many arcs are solved at once, without asking which of them could matter.
FEW_ARCS = 128 * 128
# About so many arcs that look cheapest to a row, and to a column, are tried first.
OF_ROW, OF_COLUMN = 48, 32


def assign(cost_ST: Integers, group: int) -> Integers:
    """Give each row ``group`` distinct columns at the least total cost, serving the columns as evenly as possible.

    Of ``load = S * group`` picks in all, every column gets ``floor(load / T)`` or ``ceil(load / T)``. So no column is
    picked twice while there are enough of them, and none is left out when there are not.

    The result is always a true optimum; of several, the same one whenever the costs are the same.

    Args:
        cost_ST: integer costs, (S, T).
        group: G; more than 1 only where there are so many columns, ``S * G <= T``.

    Returns:
        The columns of each row in ascending order, (S, G).
    """
    rows, columns = cost_ST.shape
    assert group == 1 or rows * group <= columns, "a group's columns serve it alone"
    if rows * group <= columns:
        if columns * group < FEW_COPIES or 10 * rows * group <= 9 * columns:
            return _assign_copies(cost_ST, group)
        idle_S = (cost_ST == cost_ST[:, :1]).all(axis=1)
        if idle_S.any():
            return _assign_around(cost_ST, group, idle_S)
    if cost_ST.size <= FEW_ARCS:
        tails_A, heads_A = np.indices(cost_ST.shape).reshape(2, -1)
        return _solve(tails_A, heads_A, cost_ST.ravel(), rows, columns, group)
    return _optimum(cost_ST, group)[0]


def _assign_around(cost_ST: Integers, group: int, idle_S: Mask) -> Integers:
    """Rows that all columns suit alike, such as channels of zeros, take what the others leave."""
    columns_SG = np.empty((len(cost_ST), group), np.int64)
    columns_SG[~idle_S] = assign(cost_ST[~idle_S], group)
    left = np.setdiff1d(np.arange(cost_ST.shape[1]), columns_SG[~idle_S])
    columns_SG[idle_S] = left[: idle_S.sum() * group].reshape(-1, group)
    return columns_SG


def _assign_copies(cost_ST: Integers, group: int) -> Integers:
    """Give G copies of each row one column each, of which there are enough."""
    # Two tenths of a second to start, which trainings that match nothing do without.
    from scipy.optimize import linear_sum_assignment

    _, column_GS = linear_sum_assignment(np.tile(cost_ST, (group, 1)))
    columns_SG: Integers = np.sort(column_GS.reshape(group, -1).T, axis=1)
    return columns_SG


def _optimum(cost_ST: Integers, group: int) -> tuple[Integers, Integers, int]:
    """The optimum and what it costs its rows.

    A dense problem has S x T arcs of which nearly all are hopeless. It is solved on promising arcs alone; then the few
    others that would make it cheaper are added, and it is solved again, until there are none.

    Returns:
        The columns of each row, (S, G); the potentials of the rows, (S,), and the highest of a column.
    """
    rows, columns = cost_ST.shape
    arcs_ST = _promising(cost_ST, group)
    # With these there is always some assignment.
    arcs_ST[np.arange(rows).repeat(group), np.arange(rows * group) % columns] = True
    row_S = None
    while True:
        tails_A, heads_A = np.nonzero(arcs_ST)
        cost_A = cost_ST[tails_A, heads_A]
        columns_SG = _solve(tails_A, heads_A, cost_A, rows, columns, group)
        row_S, column_T, top = _potentials(cost_ST, columns_SG, tails_A, heads_A, cost_A, row_S)
        cheaper_ST = cost_ST + row_S[:, None] < column_T
        if not cheaper_ST.any():
            return columns_SG, row_S, top
        arcs_ST |= cheaper_ST


def _promising(cost_ST: Integers, group: int) -> Mask:
    """The arcs that look cheapest to their row or column, at the prices that columns have in half of the problem."""
    rows, columns = cost_ST.shape
    if cost_ST.size <= FEW_ARCS or rows < 2:
        return np.ones(cost_ST.shape, dtype=bool)
    half = np.ascontiguousarray(cost_ST[1::2, ::2])
    _, row_S, top = _optimum(half, group)
    price_T = np.minimum((cost_ST[1::2] + row_S[:, None]).min(axis=0), top)
    reduced_ST = (cost_ST - price_T).astype(np.float32)
    # Costs are integers: less than 1 orders equal ones, so that equal rows do not all ask for the same columns.
    reduced_ST += np.add.outer(97 * np.arange(rows), 61 * np.arange(columns)).astype(np.uint8) * np.float32(1 / 256)
    arcs_ST: Mask = reduced_ST <= _limits(reduced_ST, OF_ROW)[:, None]
    reduced_ST -= reduced_ST.min(axis=1, keepdims=True)
    arcs_ST |= reduced_ST <= _limits(reduced_ST.T, OF_COLUMN)
    return arcs_ST


def _limits(values_NM: Floats, count: int) -> Floats:
    """What about ``count`` values of each row do not exceed, by a sample of 256 to 511 of them, (N,)."""
    step = max(1, values_NM.shape[1] // 256)
    sample_NM = np.ascontiguousarray(values_NM[:, ::step])
    place = min(count // step, sample_NM.shape[1] - 1)
    limits_N: Floats = np.partition(sample_NM, place, axis=1)[:, place]
    return limits_N


def _solve(tails_A: Integers, heads_A: Integers, cost_A: Integers, rows: int, columns: int, group: int) -> Integers:
    """Solve on some arcs only, in the order of their rows, (S, G)."""
    if rows * group == columns and group <= 2:
        return _solve_copies(tails_A, heads_A, cost_A, rows, group)
    return _solve_flow(tails_A, heads_A, cost_A, rows, columns, group)


def _solve_copies(tails_A: Integers, heads_A: Integers, cost_A: Integers, rows: int, group: int) -> Integers:
    """G copies of each row get one column each; faster than the flow where there are few copies."""
    copies = np.concatenate([tails_A + rows * copy for copy in range(group)]).astype(np.int32)
    solver = SimpleLinearSumAssignment()
    solver.add_arcs_with_cost(copies, np.tile(heads_A.astype(np.int32), group), np.tile(cost_A, group))
    status = solver.solve()
    assert status == solver.OPTIMAL, f"the solver ended with {status}"
    mates = np.array([solver.right_mate(copy) for copy in range(rows * group)])
    columns_SG: Integers = np.sort(mates.reshape(group, rows).T, axis=1)
    return columns_SG


def _solve_flow(
    tails_A: Integers, heads_A: Integers, cost_A: Integers, rows: int, columns: int, group: int
) -> Integers:
    """Rows supply ``group`` each, columns demand the even share each, a sink takes the rest by arcs of capacity 1."""
    share, rest = divmod(rows * group, columns)
    flow = SimpleMinCostFlow()
    arcs = flow.add_arcs_with_capacity_and_unit_cost(
        tails_A.astype(np.int32), (rows + heads_A).astype(np.int32), np.ones(len(tails_A), np.int64), cost_A
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
    assert status == flow.OPTIMAL, f"the solver ended with {status}"
    columns_SG: Integers = heads_A[flow.flows(arcs) > 0].reshape(rows, group)
    return columns_SG


def _potentials(
    cost_ST: Integers,
    columns_SG: Integers,
    tails_A: Integers,
    heads_A: Integers,
    cost_A: Integers,
    start_S: Integers | None,
) -> tuple[Integers, Integers, int]:
    """Shortest distances in the residual graph of an optimum on some arcs, by the sweeps of Bellman and Ford.

    An arc that is not among them makes the optimum cheaper only if its cost is less than the distance it bridges.

    Args:
        cost_ST: integer costs, (S, T).
        columns_SG: the columns of each row, (S, G).
        tails_A: the rows of the arcs, (A,).
        heads_A: their columns, each of which has an arc, (A,).
        cost_A: their costs, (A,).
        start_S: where the distances of the rows begin, (S,).

    Returns:
        The distances of the rows, (S,), and of the columns, (T,), and the most that one more column would be worth.
    """
    columns = cost_ST.shape[1]
    order_A = np.argsort(heads_A.astype(np.int32), kind="stable")
    tails_A, cost_A = tails_A[order_A], cost_A[order_A]
    firsts_T = np.searchsorted(heads_A[order_A], np.arange(columns))
    taken_SG = np.take_along_axis(cost_ST, columns_SG, axis=1)
    spare_T = np.bincount(columns_SG.ravel(), minlength=columns) == columns_SG.size // columns
    some_are_full = not spare_T.all()
    row_S = -taken_SG.max(axis=1) if start_S is None else start_S
    while True:
        column_T = np.minimum.reduceat(row_S[tails_A] + cost_A, firsts_T)
        top = int(column_T.max())
        if some_are_full:
            # A column that could take one more can hand its place to a full one through the sink.
            top = int(column_T[spare_T].min())
            column_T = np.where(spare_T, column_T, np.minimum(column_T, top))
        nearer_S = np.minimum(row_S, (column_T[columns_SG] - taken_SG).min(axis=1))
        if (nearer_S == row_S).all():
            return row_S, column_T, top
        row_S = nearer_S
