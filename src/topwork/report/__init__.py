"""How is a run shown to a person? One self-contained HTML page, drawn from run.json and predictions.parquet.

Nothing is computed here and nothing imports this room: without it everything else works as it does.
"""

from topwork.report.page import write

__all__ = ["write"]
