"""The commands on evaluation sets, with a descriptor of the user's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from curation.cli import app
from curation.errors import ConfigError
from tests.curation.reports.test_calibrate import plain_pictures


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_index_with_a_descriptor_and_calibrate_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Colours(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1) + 2

    file = tmp_path / "descriptor.pt"
    torch.jit.trace(Colours(), torch.zeros(2, 3, 32, 32)).save(str(file))
    reds = plain_pictures(tmp_path / "set", [0, 1])
    others = plain_pictures(tmp_path / "others", list(range(40, 80)))
    own = ["--store", str(tmp_path / "store"), "--json", "--descriptor", str(file), "--descriptor-side-px", "32"]

    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(app, [*arguments, *own], catch_exceptions=False)
        return json.loads(done.stdout)

    indexed = run("index-evalset", "reds", str(reds))
    assert indexed["embedding_space"].startswith("descriptor@")
    plot = tmp_path / "c.svg"
    found = run("calibrate-leakage", "reds", "--unrelated", str(others), "--rate", "0.1", "--plot", str(plot))
    assert found["space"] == indexed["embedding_space"]
    assert found["nearest"][0][:2] == ["000.png", "001.png"]
    assert plot.read_text().startswith("<svg")
    with pytest.raises(ConfigError, match="one of --model and --descriptor"):
        run("calibrate-leakage", "reds", "--unrelated", str(others), "--model", "embedded")
