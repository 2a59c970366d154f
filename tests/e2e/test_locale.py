"""A machine whose locale knows ASCII only: what is written and read is UTF-8 all the same, and printing never fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SENTENCES = {"move to the red dot": "移动到\u2028红点", "move to the blue dot": "nach Blau, über Grün"}
SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from lightwam.policy.run_directory import read_recipe
from lightwam.cli.main import main
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.training.train import train

old, dataset, new = map(Path, sys.argv[1:])
assert sys.stdout.encoding.lower() not in ("utf-8", "utf8") and sys.flags.utf8_mode == 0
main(["--version"])
print(*LeRobotDataset(dataset).tasks)
recipe = replace(read_recipe(old), notes="\\u79fb")
train(recipe, dataset, new, stop_after=2)
train(recipe, dataset, new, stop_after=2)
sys.exit(main(["report", str(new)]))
"""


def renamed(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    """The table with other values in a column of the same type."""
    place = table.column_names.index(column)
    field = table.schema.field(place)
    changed = table.set_column(place, field, pa.array(values, field.type))
    return changed.replace_schema_metadata(table.schema.metadata)


def test_sentences_of_any_script_train_and_print_where_the_locale_is_c(tiny: Any, tmp_path: Path) -> None:
    tasks = tiny.dataset / "meta" / "tasks.parquet"
    table = pq.read_table(tasks)
    names = table.column("__index_level_0__").to_pylist()
    pq.write_table(renamed(table, "__index_level_0__", [SENTENCES[name] for name in names]), tasks)
    for path in (tiny.dataset / "meta" / "episodes").rglob("*.parquet"):
        table = pq.read_table(path)
        lists = [[SENTENCES[name] for name in row] for row in table.column("tasks").to_pylist()]
        pq.write_table(renamed(table, "tasks", lists), path)
    (tiny.run / "recipe.json").write_text(  # as an editor saves it, not in escapes
        json.dumps(json.loads((tiny.run / "recipe.json").read_text()) | {"notes": "grün 移"}, ensure_ascii=False),
        encoding="utf-8",
    )
    dataset, new = tiny.dataset.rename(tmp_path / "données 数"), tmp_path / "à neuf"
    c_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tiny.run, dataset, new], env=os.environ | c_locale, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert rb"\u79fb\u52a8\u5230\u2028" in done.stdout
    assert json.loads((new / "recipe.json").read_text(encoding="utf-8"))["notes"] == "移"
    assert len((new / "log.jsonl").read_bytes().splitlines()) == 2 and (new / "report.html").is_file()
