"""OneShotDETR: each image answers its own query patch, shots are averaged, pre-training carries over."""

import pytest
import torch
from helpers import WITHOUT_GRADIENT_AT_START, random_sample, tiny_model

from updetr_d2.checkpoint.checkpointer import UPDETRCheckpointer

HEADS = ("pred_logits", "pred_boxes")


def oneshot_model():
    model = tiny_model("OneShotDETR", "MODEL.DETR.NUM_CLASSES", 1)
    with torch.no_grad():
        model.patch2query.weight *= 20  # as after training: different patches give clearly different outputs
    return model


def oneshot_sample(height=64, width=96, *, num_shots=1, num_targets=2):
    sample = random_sample(height, width, num_targets=num_targets)
    sample["instances"].gt_classes.fill_(0)
    sample["patches"] = torch.randint(256, (num_shots, 3, 64, 64), dtype=torch.uint8)
    return sample


def heads_of(model, samples):
    with torch.no_grad():
        return model.eval().forward_heads(samples)


def test_query_is_the_object_query_plus_the_projected_mean_of_the_shots():
    model = oneshot_model().eval()
    sample = oneshot_sample(num_shots=3)
    seen = []
    model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["query_position"]), with_kwargs=True
    )
    heads_of(model, [sample])
    with torch.no_grad():
        features = [
            model.backbone((patch[None] - model.pixel_mean) / model.pixel_std)["res5"].mean(dim=(2, 3))
            for patch in sample["patches"].float()
        ]
        mean = (features[0] + features[1] + features[2]) / 3
        expected = mean @ model.patch2query.weight.T + model.patch2query.bias + model.query_embed.weight
    assert seen[0].shape == (1, 20, 32)
    torch.testing.assert_close(seen[0][0], expected)


def test_queries_attend_to_all_others():
    """As pre-training with one patch: without groups, and so without an attention mask."""
    model = oneshot_model()
    masks = []
    model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["query_mask"]), with_kwargs=True
    )
    heads_of(model, [oneshot_sample()])
    assert masks == [None]


def test_swapping_patches_swaps_the_outputs_and_nothing_else():
    """Images of one content with two queries: where the patches change places, so do the outputs."""
    model = oneshot_model()
    first, second, third = oneshot_sample(), oneshot_sample(), oneshot_sample()
    second["image"] = first["image"]
    before = heads_of(model, [first, second, third])
    swapped = [
        {**first, "patches": second["patches"]},
        {**second, "patches": first["patches"]},
        third,
    ]
    after = heads_of(model, swapped)
    for name in HEADS:
        assert not torch.allclose(before[name][:, 0], before[name][:, 1], atol=1e-3)
        torch.testing.assert_close(after[name][:, 0], before[name][:, 1])
        torch.testing.assert_close(after[name][:, 1], before[name][:, 0])
        torch.testing.assert_close(after[name][:, 2], before[name][:, 2])


def test_swapping_patches_between_different_images_gives_what_each_gives_alone():
    model = oneshot_model()
    first, second = oneshot_sample(64, 96), oneshot_sample(96, 64)
    swapped = [{**first, "patches": second["patches"]}, {**second, "patches": first["patches"]}]
    together = heads_of(model, swapped)
    for i, sample in enumerate(swapped):
        alone = heads_of(model, [sample])
        for name in HEADS:
            torch.testing.assert_close(together[name][:, i], alone[name][:, 0], atol=1e-5, rtol=1e-4)


def test_numbers_of_shots_may_differ_in_a_batch():
    model = oneshot_model()
    samples = [oneshot_sample(num_shots=1), oneshot_sample(num_shots=4)]
    together = heads_of(model, samples)
    for i, sample in enumerate(samples):
        torch.testing.assert_close(
            together["pred_boxes"][:, i], heads_of(model, [sample])["pred_boxes"][:, 0]
        )


def test_order_and_repetition_of_the_shots_do_not_matter():
    model = oneshot_model()
    sample = oneshot_sample(num_shots=2)
    a, b = sample["patches"]
    expected = heads_of(model, [sample])
    for patches in (torch.stack([b, a]), torch.stack([a, b, b, a])):
        actual = heads_of(model, [{**sample, "patches": patches}])
        for name in HEADS:
            torch.testing.assert_close(actual[name], expected[name])


def test_every_parameter_learns_the_patch_projection_included():
    model = oneshot_model()
    losses = model([oneshot_sample(), oneshot_sample(num_targets=0)])
    assert set(losses) == {n + s for n in ("loss_ce", "loss_bbox", "loss_giou") for s in ("", "_0")}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if not name.startswith(WITHOUT_GRADIENT_AT_START):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_inference_returns_all_queries_in_original_pixels():
    sample = oneshot_sample()
    sample["height"], sample["width"] = 128, 192
    with torch.no_grad():
        result = oneshot_model().eval()([sample])[0]["instances"]
    assert result.image_size == (128, 192)
    assert len(result) == 20
    assert result.pred_classes.tolist() == [0] * 20
    assert ((result.scores >= 0) & (result.scores <= 1)).all()


def test_other_numbers_of_classes_are_an_error():
    with pytest.raises(ValueError, match=r"MODEL\.DETR.NUM_CLASSES is 4; OneShotDETR has one class"):
        tiny_model("OneShotDETR")


def test_image_without_patch_is_an_error():
    sample = oneshot_sample()
    with pytest.raises(ValueError, match="without query patch"):
        oneshot_model()([{**sample, "patches": sample["patches"][:0]}, oneshot_sample()])


def test_pretraining_gives_all_but_the_class_head_and_the_reconstruction(tmp_path):
    pretrained = tiny_model("UPDETR")
    UPDETRCheckpointer(pretrained, save_dir=str(tmp_path)).save("pretrained")
    model = oneshot_model()
    fresh_class_embed = model.class_embed.weight.clone()
    checkpointer = UPDETRCheckpointer(model)
    checkpointer.load(str(tmp_path / "pretrained.pth"))
    given = pretrained.state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith("class_embed."):
            torch.testing.assert_close(value, given[name], msg=name)
    torch.testing.assert_close(model.class_embed.weight, fresh_class_embed)
    assert {"patch2query.weight", "patch2query.bias"} <= set(checkpointer.loaded_keys)


def test_single_patch_of_pretraining_and_one_shot_compose_the_same_queries():
    """After loading, one-shot detection continues where the single-query pre-training ended."""
    pretrained = tiny_model("UPDETR", "MODEL.UPDETR.NUM_PATCHES", 1, "MODEL.DETR.NUM_CLASSES", 1).eval()
    model = oneshot_model()
    model.load_state_dict(pretrained.state_dict(), strict=False)
    sample = oneshot_sample()
    expected, actual = heads_of(pretrained, [sample]), heads_of(model, [sample])
    for name in HEADS:
        torch.testing.assert_close(actual[name], expected[name])
