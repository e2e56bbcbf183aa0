"""Write docs/columns.md from curation/schema.py: `python scripts/column_docs.py`."""

from pathlib import Path

from curation.schema import COLUMNS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "columns.md"


def render() -> str:
    """The page as text."""
    lines = [
        "# Columns",
        "",
        "Made by `python scripts/column_docs.py` from `curation/schema.py`; a test keeps it up to date.",
        "",
        "| column | type | written by | meaning | unit, range or values | null means |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, column in COLUMNS.items():
        producer = "every stage" if column.producer == "*" else column.producer
        measure = column.unit or ", ".join(column.values)
        lines.append(f"| `{name}` | {column.type} | {producer} | {column.doc} | {measure} | {column.null} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
