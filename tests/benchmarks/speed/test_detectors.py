"""Figures of detectors against what can be counted by hand."""

from benchmarks.speed import detectors


def test_figures_of_a_small_detector():
    cfg = detectors.load_config("custom/few_label_lite0.yaml")
    cfg.MODEL.DETR.NUM_CLASSES = 3
    figures = {
        count: detectors.measure(cfg, batch_size=count, size=(64, 96), num_targets=2) for count in (1, 2)
    }
    model = detectors.build_random_model(cfg)
    assert figures[1]["parameters (M)"] * 1e6 == sum(p.numel() for p in model.parameters())
    # The CNN at 224 px costs 0.39 GMACs (its paper's table), and at least as much per pixel here.
    assert figures[1]["GFLOPs of an image"] > 2 * 0.39 * (64 * 96) / 224**2
    assert abs(figures[2]["GFLOPs of an image"] / figures[1]["GFLOPs of an image"] - 1) < 0.01
    assert figures[1]["step (s)"] > 0
    assert figures[1]["peak memory (GiB)"] < 24
