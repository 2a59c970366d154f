"""Where two nested tables differ."""

from lightwam.system.differences import differences


def test_differences_of_nested_tables_have_dotted_names_and_both_values() -> None:
    first = {"a": 1, "b": {"c": [1, 2], "d": None}, "gone": {"x": 1}, "same": {"y": 0}}
    second = {"a": 1, "b": {"c": [1, 3], "d": None, "e": 2}, "same": {"y": 0}}
    expected = [("b.c", [1, 2], [1, 3]), ("b.e", None, 2), ("gone", {"x": 1}, None)]
    assert list(differences(first, second)) == expected
    assert list(differences(first, second, ignored=("b", "gone"))) == []
    assert list(differences(first, second, ignored=("b.c",))) == expected[1:]


def test_values_that_are_no_tables_differ_as_a_pair() -> None:
    assert list(differences(1, 1)) == [] and list(differences({"a": 1}, 2, "top")) == [("top", {"a": 1}, 2)]
