"""system/tables.py: text tables."""

from lightwam.system.tables import plural, rate_cells, table_lines


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    lines = table_lines([["name", "ms", "share"], ["a", "10.5", "5%"], ["longer", "7"]])
    assert lines == ["  name      ms  share", "  a       10.5     5%", "  longer     7"]


def test_each_column_has_its_side_and_the_last_one_is_repeated() -> None:
    assert table_lines([["a", "b", "c"], ["aa", "bb", "cc"]], "><", indent=0) == [" a  b   c", "aa  bb  cc"]


def test_a_count_has_its_noun() -> None:
    assert [plural(1, "task"), plural(4000, "task"), plural(2, "success")] == ["1 task", "4,000 tasks", "2 successes"]


def test_a_rate_has_its_interval() -> None:
    assert rate_cells({"successes": 8, "trials": 9, "interval_95": (0.565, 0.98)}) == ["8 of 9", "56% to 98%"]
