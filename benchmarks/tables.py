"""Tables as text, and options that are lists. Imports nothing, so that a script that uses it starts at once."""


def table(rows: list[dict]) -> str:
    """Rows with the same keys as Markdown."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[column]) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comma_separated(text: str) -> list[str]:
    return text.split(",")
