import io

from rich.console import Console

from curation.progress_bars import Bars


def test_bars_move_with_rows_and_count_shards() -> None:
    screen = io.StringIO()
    with Bars(Console(file=screen, force_terminal=True, width=100)) as bars:
        bars.begin("download", 2)
        bars.finish("download", 0)
        bars.move("download", 1, 50, 100)
        bars.move("download", 1, 60, 0)  # how many rows there will be is not known
    assert "1/2 shards" in screen.getvalue()


def test_no_terminal_no_bars() -> None:
    screen = io.StringIO()
    with Bars(Console(file=screen)) as bars:
        bars.begin("download", 1)
        bars.finish("download", 0)
    assert screen.getvalue().strip() == ""
