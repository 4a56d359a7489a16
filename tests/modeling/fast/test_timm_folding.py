"""timm networks without their BatchNorms give the same features, and notice new weights."""

import copy

import pytest
import torch
from torch import nn

from updetr_d2.modeling.fast.timm_folding import FoldedTimmNet, _fold_neighbours

timm = pytest.importorskip("timm")


def frozen_net(name, seed=0):
    """A network with random norm statistics, so that a norm that is lost or applied twice is noticed."""
    torch.manual_seed(seed)
    net = timm.create_model(name, features_only=True, pretrained=False).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return timm.layers.freeze_batch_norm_2d(net).requires_grad_(False)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_features_are_those_of_the_network(name):
    net = frozen_net(name)
    images = torch.randn(2, 3, 64, 96)
    assert _fold_neighbours(copy.deepcopy(net)) > 15
    folded = FoldedTimmNet(net)
    features = folded(images)
    assert folded._folded is not net  # it would fall back to the network if the folded one were wrong
    for found, expected in zip(features, net(images)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=3e-5 * float(expected.std()))


def test_new_weights_are_noticed():
    net, images = frozen_net("resnet18"), torch.randn(1, 3, 64, 64)
    folded = FoldedTimmNet(net)
    before = folded(images)[-1]
    net.load_state_dict(frozen_net("resnet18", seed=1).state_dict())
    after = folded(images)[-1]
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, net(images)[-1], rtol=1e-4, atol=1e-4)
    net.layer4[1].bn2.running_mean.add_(1.0)
    torch.testing.assert_close(folded(images)[-1], net(images)[-1], rtol=1e-4, atol=1e-4)


def test_a_network_that_runs_in_another_order_is_left_as_it_is(caplog):
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = timm.layers.FrozenBatchNormAct2d(3)
            self.norm.running_mean.fill_(5.0)

        def forward(self, x):
            return [self.conv(self.norm(x))]

    net, images = Reversed().requires_grad_(False), torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(FoldedTimmNet(net)(images)[0], net(images)[0])
    assert "cannot be folded" in caplog.text
