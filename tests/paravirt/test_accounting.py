"""The exit table: what is counted adds up, is sorted, and costs only when asked for."""

from hypothesis import given
from hypothesis import strategies as st

from paravirt.accounting import ExitTable

KEYS = st.tuples(st.sampled_from("abc"), st.sampled_from("xy"))


@given(st.lists(KEYS))
def test_counts_add_up_to_the_total_and_shares_to_one(exits: list[tuple[str, str]]) -> None:
    table = ExitTable()
    for operation, route in exits:
        table.count(operation, route)
    rows = table.rows()
    assert table.total == len(exits) == sum(row[2] for row in rows)
    assert {(row[0], row[1]): row[2] for row in rows} == {key: exits.count(key) for key in set(exits)}
    if exits:
        assert abs(sum(row[3] for row in rows) - 1) < 1e-9


@given(st.permutations([("a", "x")] * 3 + [("b", "x")] * 3 + [("c", "y")] * 5))
def test_rows_are_in_an_order_that_does_not_depend_on_when_they_came(exits: list[tuple[str, str]]) -> None:
    table = ExitTable()
    for operation, route in exits:
        table.count(operation, route)
    assert [row[:3] for row in table.rows()] == [("c", "y", 5), ("a", "x", 3), ("b", "x", 3)]


def test_what_is_done_with_another_exit_has_no_share() -> None:
    table = ExitTable()
    for route in ("exit", "exit", "late", "inside"):
        table.count("a", route)
    assert table.total == 2
    assert {row[1]: row[3] for row in table.rows()} == {"exit": 1.0, "late": 0.0, "inside": 0.0}


def test_times_are_seconds_and_zero_unless_taken() -> None:
    table = ExitTable(timed=True)
    table.count("b", "x")
    for nanoseconds in (1_500_000_000, 500_000_000):
        table.count("a", "x")
        table.spent(nanoseconds)
    assert {row[0]: row[4] for row in table.rows()} == {"a": 2.0, "b": 0.0}


def test_an_empty_table_has_no_rows() -> None:
    assert ExitTable().rows() == []
    assert ExitTable().total == 0


def test_what_is_counted_elsewhere_is_there_when_it_is_looked_at() -> None:
    table, news = ExitTable(), [2, 3]
    cell = table.cell("a", "inside")

    def take() -> int:
        cell[0] += 10  # as who counts several kinds at once does
        return news.pop(0)

    table.add_from("a", "inside", take)
    assert table.counts == {("a", "inside"): 12}
    assert table.counts == {("a", "inside"): 25}
