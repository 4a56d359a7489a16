"""``benchmark.py mask-head``: masks of matched queries in training, of all queries at inference.

The reference computes the masks of all queries, with the features of each image repeated for each of its queries.
"""

from argparse import ArgumentParser, Namespace

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed.timing import Measurement, measure_in_turn, peak_memory
from updetr_d2.modeling.mask_head import MaskHead, QueryMasks

# Channels of ResNet-50's res4, res3 and res2, and their strides.
FPN_CHANNELS = (1024, 512, 256)
FPN_STRIDES = (16, 8, 4)
STRIDE = 32


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=1, help="images (default: 1)")
    parser.add_argument(
        "--image-size", type=int, nargs=2, default=(320, 320), metavar=("H", "W"), help="default: 320 320"
    )
    parser.add_argument("--targets", type=int, default=10, help="matched queries of an image (default: 10)")


def run(args: Namespace, cfg: CfgNode) -> list[Measurement]:
    device = torch.device(cfg.MODEL.DEVICE)
    head = MaskHead(
        hidden_dim=cfg.MODEL.DETR.HIDDEN_DIM, num_heads=cfg.MODEL.DETR.NHEADS, fpn_channels=FPN_CHANNELS
    ).to(device)
    masks = _random_query_masks(args, cfg, head, device)
    image = torch.arange(args.batch_size, device=device).repeat_interleave(args.targets)
    query = torch.arange(args.targets, device=device).repeat(args.batch_size)

    def train_ours() -> None:
        masks[image, query].square().mean().backward()

    def train_reference() -> None:
        plain_masks(masks)[image, query].square().mean().backward()

    @torch.no_grad()
    def infer_ours() -> Tensor:
        return masks[:]

    @torch.no_grad()
    def infer_reference() -> Tensor:
        return plain_masks(masks)

    if args.compare:
        ours, reference = infer_ours(), infer_reference()
        scale = reference.abs().max()
        assert torch.allclose(ours / scale, reference / scale, atol=1e-4), "masks differ from the reference's"
    rows = []
    for name, compute, compute_reference in (
        (f"training, {args.targets} matched queries", train_ours, train_reference),
        (f"inference, {cfg.MODEL.DETR.NUM_QUERIES} queries", infer_ours, infer_reference),
    ):
        functions = {"ours": compute} | ({"reference": compute_reference} if args.compare else {})
        seconds = measure_in_turn(functions, repeats=args.repeats, warmup=args.warmup, clock=args.clock)
        peaks = {key: peak_memory(function, device) for key, function in functions.items()}
        rows.append(
            Measurement(
                f"mask head, {name}",
                seconds["ours"],
                seconds.get("reference", []),
                images=args.batch_size,
                peak_mib=peaks["ours"],
                reference_peak_mib=peaks.get("reference"),
            )
        )
    return rows


def _random_query_masks(args: Namespace, cfg: CfgNode, head: MaskHead, device: torch.device) -> QueryMasks:
    torch.manual_seed(4)
    height, width = args.image_size
    small = (height // STRIDE, width // STRIDE)
    attention = torch.rand(args.batch_size, cfg.MODEL.DETR.NUM_QUERIES, cfg.MODEL.DETR.NHEADS, *small)
    return QueryMasks(
        head=head,
        context=torch.randn(args.batch_size, cfg.MODEL.DETR.HIDDEN_DIM, *small, device=device),
        attention=attention.to(device),
        fpn_features=[
            torch.randn(args.batch_size, channels, height // stride, width // stride, device=device)
            for channels, stride in zip(FPN_CHANNELS, FPN_STRIDES)
        ],
        padded_size=(height, width),
    )


def plain_masks(masks: QueryMasks) -> Tensor:
    """Mask logits ``[B, N, h', w']`` of all queries, everything repeated for each query."""
    head = masks.head
    num_images, num_queries = masks.attention.shape[:2]

    def repeated(x: Tensor) -> Tensor:
        return x.repeat_interleave(num_queries, dim=0)

    x = torch.cat((repeated(masks.context), masks.attention.flatten(0, 1)), dim=1)
    x = F.relu(head.gn1(head.lay1(x)))
    x = F.relu(head.gn2(head.lay2(x)))
    for i, feature in enumerate(masks.fpn_features, start=1):
        finer = repeated(getattr(head, f"adapter{i}")(feature))
        x = finer + F.interpolate(x, size=finer.shape[-2:], mode="nearest")
        x = F.relu(getattr(head, f"gn{i + 2}")(getattr(head, f"lay{i + 2}")(x)))
    return head.out_lay(x)[:, 0].unflatten(0, (num_images, num_queries))
