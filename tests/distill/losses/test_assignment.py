import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from distillery.distill.losses import assignment
from distillery.distill.losses.assignment import assign


def least_cost(cost, group):
    """The optimum by linear programming; the polytope is integral."""
    rows, columns = cost.shape
    share, rest = divmod(rows * group, columns)
    of_row, of_column = np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))
    limits = np.concatenate([np.full(columns, share + bool(rest)), np.full(columns, -share)])
    result = linprog(
        cost.ravel(),
        A_eq=of_row,
        b_eq=np.full(rows, group),
        A_ub=np.vstack([of_column, -of_column]),
        b_ub=limits,
        bounds=(0, 1),
        method="highs",
    )
    assert result.success
    return round(result.fun)


def check(cost, group):
    """Check that an assignment is valid, and return what it costs."""
    rows, columns = cost.shape
    chosen = assign(cost, group)
    assert chosen.shape == (rows, group)
    assert (np.diff(chosen, axis=1) > 0).all(), "distinct and ascending"
    loads = np.bincount(chosen.ravel(), minlength=columns)
    assert loads.size == columns
    assert loads.max() - loads.min() <= 1
    return np.take_along_axis(cost, chosen, axis=1).sum()


@st.composite
def problems(draw):
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    group = draw(st.integers(1, columns))
    most = draw(st.sampled_from([0, 1, 5, 400_000]))
    cells = draw(st.lists(st.integers(0, most), min_size=rows * columns, max_size=rows * columns))
    return np.array(cells, dtype=np.int64).reshape(rows, columns), group


def by_widening(cost, group):
    """Without adding arcs one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment, "_sole_optimum", lambda *given: None)
        return assign(cost, group)


def optima(cost, group):
    """All assignments that cost the least, by trying everything."""
    rows, columns = cost.shape
    share, rest = divmod(rows * group, columns)
    best, found = None, []
    for picks in itertools.product(itertools.combinations(range(columns), group), repeat=rows):
        loads = np.bincount(np.ravel(picks), minlength=columns)
        if loads.min() >= share and loads.max() <= share + bool(rest):
            total = sum(cost[row, list(own)].sum() for row, own in enumerate(picks))
            if best is None or total <= best:
                best, found = total, [*(found if total == best else []), picks]
    return found


@pytest.mark.slow
@settings(deadline=None)
@given(problem=problems(), candidates=st.sampled_from([1, 2, 64]))
def test_any_problem_is_solved_to_the_optimum(problem, candidates):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment, "FIRST_CANDIDATES", candidates)
        cost, group = problem
        assert check(cost, group) == least_cost(cost, group)
        assert (assign(cost, group) == by_widening(cost, group)).all()


def test_what_is_called_the_only_optimum_is_one_and_has_no_equal():
    generator, found = np.random.Generator(np.random.Philox(key=6)), 0
    for _ in range(1500):
        rows, columns = generator.integers(1, 5), generator.integers(1, 6)
        group = generator.integers(1, columns + 1) if rows < 4 else 1
        cost = generator.integers(0, generator.choice([3, 10, 400_000]), (rows, columns))
        arcs = generator.random((rows, columns)) < 0.5
        arcs[generator.integers(rows, size=columns), np.arange(columns)] = True
        first = assignment._solve(cost, group, arcs)
        if first is None:
            continue
        sole = assignment._sole_optimum(cost, first, arcs)
        if sole is not None:
            assert optima(cost, group) == [tuple(map(tuple, sole))]
            found += 1
    assert found > 300


KINDS = ["uniform", "hubs", "ties", "equal", "channels", "two causes", "zeros"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(96, 200), (150, 150), (120, 485), (200, 96)])
def test_candidates_do_not_cost_the_optimum(kind, rows, columns):
    generator = np.random.Generator(np.random.Philox(key=rows))
    cost = generator.integers(150_000, 220_000, (rows, columns))
    if kind == "hubs":  # a few columns suit every row best, so most rows cannot have their cheapest
        cost += generator.integers(0, 200_000, columns)
    if kind == "ties":
        cost = generator.integers(0, 3, (rows, columns))
    if kind == "equal":
        cost[:] = 7
    if kind in ("channels", "two causes", "zeros"):
        causes = 2 if kind == "two causes" else 6
        maps = generator.standard_normal((rows + columns, causes)) @ generator.standard_normal((causes, 50))
        maps /= np.linalg.norm(maps, axis=1, keepdims=True)
        if kind == "zeros":
            maps[::17] = 0
        cost = (1e5 * (2 - 2 * maps[:rows] @ maps[rows:].T)).astype(np.int64)
    for group in {1, max(columns // rows, 1)}:
        # Columns that each serve two rows, or three, which only the last of their copies may do without.
        copies = np.tile(cost, (group, -(-rows * group // columns)))
        spared = max(copies.shape[1] - len(copies), 0) if rows > columns else 0
        idle = np.full((spared, copies.shape[1]), 10**9)
        idle[:, copies.shape[1] - columns :] = 0
        copies = np.concatenate([copies, idle])
        assert check(cost, group) == copies[linear_sum_assignment(copies)].sum()
        assert (assign(cost, group) == by_widening(cost, group)).all()


def test_channels_of_few_causes_are_matched_without_asking_all_arcs(monkeypatch):
    """A handful of arcs beyond the candidates was enough, where trying all of them took longer than any rival."""
    asked, original = [], assignment._solve
    monkeypatch.setattr(assignment, "_solve", lambda *given: asked.append(given[2].mean()) or original(*given))
    generator = np.random.Generator(np.random.Philox(key=3))
    maps = generator.standard_normal((1500, 4)) @ generator.standard_normal((4, 200))
    maps += 0.4 * generator.standard_normal(maps.shape)
    maps /= np.linalg.norm(maps, axis=1, keepdims=True)
    cost = (1e5 * (2 - 2 * maps[:500] @ maps[500:].T)).astype(np.int64)
    repeated = np.tile(cost, (2, 1))
    assert check(cost, 2) == repeated[linear_sum_assignment(repeated)].sum()
    assert 1 < len(asked) < 6
    assert max(asked) < 1.1 * asked[0]


def test_every_arc_is_tried_where_candidates_do_not_suffice(monkeypatch):
    monkeypatch.setattr(assignment, "FIRST_CANDIDATES", 2)
    proven = []
    original = assignment._is_optimal
    monkeypatch.setattr(assignment, "_is_optimal", lambda *given: proven.append(original(*given)) or proven[-1])
    cost = np.random.Generator(np.random.Philox(key=5)).integers(0, 100_000, (60, 60))
    assert check(cost, 1) == cost[linear_sum_assignment(cost)].sum()
    assert False in proven


def test_a_worse_assignment_is_not_taken_for_the_optimum():
    cost = np.random.Generator(np.random.Philox(key=1)).integers(0, 100_000, (20, 40))
    best = assign(cost, 2)
    assert assignment._is_optimal(cost, best)
    for first in range(19):
        worse = best.copy()
        worse[[first, first + 1], 0] = worse[[first + 1, first], 0]
        gain = np.take_along_axis(cost, worse, 1).sum() - np.take_along_axis(cost, best, 1).sum()
        assert assignment._is_optimal(cost, worse) == (gain == 0)


def test_an_unpicked_column_counts_in_the_proof():
    cost = np.array([[5, 9, 1]])
    assert assignment._is_optimal(cost, np.array([[2]]))
    assert not assignment._is_optimal(cost, np.array([[0]]))


def test_a_cheaper_exchange_is_found_as_soon_as_it_shows(monkeypatch):
    """Not when the sweeps run out, which took seconds for the channels of large networks that share a few causes."""
    monkeypatch.setattr(assignment, "FIRST_CANDIDATES", 8)
    looks, original = [], assignment._has_circle
    monkeypatch.setattr(assignment, "_has_circle", lambda origin: looks.append(original(origin)) or looks[-1])
    generator = np.random.Generator(np.random.Philox(key=2))
    maps = generator.standard_normal((300, 3)) @ generator.standard_normal((3, 80))
    maps += 0.05 * generator.standard_normal(maps.shape)
    maps /= np.linalg.norm(maps, axis=1, keepdims=True)
    cost = (1e5 * (2 - 2 * maps[:100] @ maps[100:].T)).astype(np.int64)
    repeated = np.tile(cost, (2, 1))
    assert check(cost, 2) == repeated[linear_sum_assignment(repeated)].sum()
    assert True in looks
    assert len(looks) < assignment.MOST_SWEEPS / 2


@given(origin=st.lists(st.integers(0, 12), min_size=12, max_size=12))
def test_a_circle_is_where_going_back_never_ends(origin):
    ends = []
    for place in range(12):
        for _ in range(13):
            place = origin[place] if place < 12 else place
        ends.append(place == 12)
    assert assignment._has_circle(np.array([*origin, 12])) == (not all(ends))
