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
    group = draw(st.integers(1, max(columns // rows, 1)))
    most = draw(st.sampled_from([0, 1, 5, 400_000]))
    cells = draw(st.lists(st.integers(0, most), min_size=rows * columns, max_size=rows * columns))
    return np.array(cells, dtype=np.int64).reshape(rows, columns), group


@pytest.mark.slow
@settings(deadline=None)
@given(problem=problems(), tried=st.sampled_from([1, 2, 48]))
def test_any_problem_is_solved_to_the_optimum(problem, tried):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in [("FEW_COPIES", 0), ("FEW_ARCS", 0), ("OF_ROW", tried), ("OF_COLUMN", tried)]:
            patch.setattr(assignment, name, value)
        cost, group = problem
        assert check(cost, group) == least_cost(cost, group)


KINDS = ["uniform", "hubs", "ties", "equal", "channels", "two causes", "zeros"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(96, 200), (150, 150), (120, 485), (200, 96), (90, 1000)])
@pytest.mark.parametrize("few", [True, False], ids=["as it is", "as if it were large"])
def test_no_way_costs_the_optimum(kind, rows, columns, few, monkeypatch):
    if not few:
        monkeypatch.setattr(assignment, "FEW_COPIES", 0)
        monkeypatch.setattr(assignment, "FEW_ARCS", 500)
    generator = np.random.Generator(np.random.Philox(key=rows))
    cost = generator.integers(150_000, 220_000, (rows, columns))
    if kind == "hubs":  # a few columns suit every row best, so most rows cannot have their cheapest
        cost += generator.integers(0, 200_000, columns)
    if kind == "ties":
        cost = generator.integers(0, 3, (rows, columns))
    if kind == "equal":
        cost[:] = 7
    if kind in ("channels", "two causes", "zeros"):
        maps = generator.standard_normal((rows + columns, 2 if kind == "two causes" else 6))
        cost = cost_of(maps @ generator.standard_normal((maps.shape[1], 50)), rows, zeros=kind == "zeros")
    for group in {1, max(columns // rows, 1)}:
        # Columns that each serve two rows, or three, which only the last of their copies may do without.
        copies = np.tile(cost, (group, -(-rows * group // columns)))
        spared = max(copies.shape[1] - len(copies), 0) if rows > columns else 0
        idle = np.full((spared, copies.shape[1]), 10**9)
        idle[:, copies.shape[1] - columns :] = 0
        copies = np.concatenate([copies, idle])
        assert check(cost, group) == copies[linear_sum_assignment(copies)].sum()
        assert (assign(cost, group) == assign(cost.copy(order="F"), group)).all()


def cost_of(maps, rows, zeros=False):
    """Costs of channels, some of them zeros, as a matching has them."""
    if zeros:
        maps[::17] = 0
    maps /= np.maximum(np.linalg.norm(maps, axis=1, keepdims=True), 1e-12)
    return (1e5 * (2 - 2 * maps[:rows] @ maps[rows:].T)).astype(np.int64)


@pytest.fixture
def asked(monkeypatch):
    """The shapes that the solver was given, and how many arcs of them."""
    asked, original = [], assignment._solve

    def noted(tails, heads, cost, rows, columns, group):
        asked.append((rows, columns, len(tails)))
        return original(tails, heads, cost, rows, columns, group)

    monkeypatch.setattr(assignment, "_solve", noted)
    return asked


def test_channels_of_few_causes_are_matched_without_asking_all_arcs(asked):
    """At the prices of half the problem few arcs are missing; without them, all were tried, which took seconds."""
    generator = np.random.Generator(np.random.Philox(key=3))
    maps = generator.standard_normal((1500, 4)) @ generator.standard_normal((4, 200))
    cost = cost_of(maps + 0.4 * generator.standard_normal(maps.shape), 500)
    repeated = np.tile(cost, (2, 1))
    assert check(cost, 2) == repeated[linear_sum_assignment(repeated)].sum()
    whole = [arcs for *shape, arcs in asked if shape == [500, 1000]]
    assert len(whole) < 6
    assert max(whole) < 0.2 * cost.size
    assert (250, 500) in [tuple(shape) for *shape, _ in asked]


def test_equal_channels_do_not_all_ask_for_the_same(asked):
    """Each row of a tie sees other arcs first, so that few suffice."""
    generator = np.random.Generator(np.random.Philox(key=4))
    cost = generator.integers(0, 3, (600, 1200))
    assert check(cost, 2) == 0
    assert max(arcs for *_, arcs in asked) < 0.2 * cost.size


def test_arcs_that_were_missed_are_added(monkeypatch, asked):
    monkeypatch.setattr(assignment, "OF_ROW", 1)
    monkeypatch.setattr(assignment, "OF_COLUMN", 1)
    monkeypatch.setattr(assignment, "FEW_COPIES", 0)
    monkeypatch.setattr(assignment, "FEW_ARCS", 100)
    cost = np.random.Generator(np.random.Philox(key=5)).integers(0, 100_000, (60, 60))
    assert check(cost, 1) == cost[linear_sum_assignment(cost)].sum()
    whole = [arcs for *shape, arcs in asked if shape == [60, 60]]
    assert len(whole) > 1
    assert whole == sorted(set(whole))


def test_channels_of_zeros_take_what_others_leave(asked):
    cost = np.random.Generator(np.random.Philox(key=7)).integers(0, 100_000, (520, 1040))
    cost[::9] = 70_000
    chosen = assign(cost, 2)
    others = np.arange(520) % 9 > 0
    repeated = np.tile(cost[others], (2, 1))
    assert np.take_along_axis(cost, chosen, 1)[others].sum() == repeated[linear_sum_assignment(repeated)].sum()
    assert len(set(chosen.ravel())) == 1040
    assert not asked, "scipy is the fastest where columns abound"
