import pytest

from curation.stages.caption import Policy, choose


@pytest.mark.parametrize(
    ("policy", "itm_text", "itm_synthetic", "chosen"),
    [
        ("keep_text", 0.0, 1.0, ("alt", "text")),
        ("prefer_synthetic", 0.9, 0.95, ("made", "synthetic")),
        ("prefer_synthetic", 0.1, 0.2, ("made", "synthetic")),
        ("prefer_synthetic", 0.8, 0.8, ("alt", "text")),
        ("prefer_synthetic", 0.79, 0.5, (None, None)),
        ("best_above_threshold", 0.9, 0.95, ("made", "synthetic")),
        ("best_above_threshold", 0.95, 0.9, ("alt", "text")),
        ("best_above_threshold", 0.8, 0.8, ("alt", "text")),
        ("best_above_threshold", 0.1, 0.79, (None, None)),
    ],
)
def test_policies(policy: Policy, itm_text: float, itm_synthetic: float, chosen: tuple) -> None:
    assert choose(policy, 0.8, "alt", "made", itm_text, itm_synthetic) == chosen
